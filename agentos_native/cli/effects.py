"""Who gains and who loses by a change, as a table; amounts of each resource in its own unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from agentos_native.cli.output import cpus, size, table

if TYPE_CHECKING:
    from agentos_native.wire import api

_HEADERS: Final = ("TENANT", "AGENT", "RESOURCE", "BEFORE", "AFTER", "CHANGE")


def rate(value: float | None) -> str:
    """Bits per second for people: 950k, 1.5M."""
    if value is None:
        return "-"
    for power, letter in ((4, "T"), (3, "G"), (2, "M"), (1, "k")):
        if value >= 1000**power:
            return f"{value / 1000**power:.3g}{letter}"
    return f"{value:.0f}"


def part(value: float | None) -> str:
    """Of the disk's time."""
    return "-" if value is None else f"{100 * value:.1f}%"


AMOUNTS: Final[Mapping[str, Callable[[float | None], str]]] = {"cpu": cpus, "memory": size, "io": part, "network": rate}


def amount(resource: str, value: float | None) -> str:
    """An amount of a resource: CPUs, bytes, part of the disk's time, bits per second."""
    return AMOUNTS.get(resource, cpus)(value)


def print_effects(effects: Sequence[api.Effect]) -> None:
    """Gainers and losers of each resource, and what the figures go by."""
    if not effects:
        print("Nobody gains or loses by it, by the demand measured lately.")
        return
    rows = []
    for effect in effects:
        difference = effect.after - effect.before
        sign = "+" if difference > 0 else "-"
        figures = (amount(effect.resource, value) for value in (effect.before, effect.after))
        rows.append(
            (effect.tenant, effect.name, effect.resource, *figures, sign + amount(effect.resource, abs(difference)))
        )
    table(_HEADERS, rows, right=("BEFORE", "AFTER", "CHANGE"))
    print("Entitlements by the demand measured lately; they move when demand does.")
