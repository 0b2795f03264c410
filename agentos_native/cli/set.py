"""``set`` and ``tenant set``: other weights, reservations, limits, … for what runs, without starting it anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from agentos_native.cli.context import AGENT, TENANT, client_of, each, output_option, returns_status
from agentos_native.cli.effects import print_effects
from agentos_native.cli.listing import tenant
from agentos_native.cli.spec_options import TEXTS, WHOLE, Value, attribute, nodes_of, pair, whole
from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from agentos_native.wire import api

NONE: Final = "none"
"""Takes a value away: no limit, no reservation, the default weight."""
LIVE: Final = frozenset({"weight", "type", "resources", "timeout", "waitTimeout", "stop"})
"""The beginnings of the paths of `TEXTS` that can be changed under a running agent. The other options are understood,
too, so that the supervisor can say what is to be done instead."""
_TENANT: Final = (
    ("--weight", "weight", "Share against other tenants of the same priority, 1 to 10000."),
    ("--priority", "priority", "system, high, normal, low or idle: order among tenants."),
    ("--policy", "policy", "How its share is divided among its agents: maxmin, drf, utility or priority."),
    ("--cpu-request", "requests.cpu", "CPU that is reserved for all its agents together."),
    ("--cpu-limit", "limits.cpu", "CPU that they never exceed together."),
    ("--memory-request", "requests.memory", "Memory that is reserved for them."),
    ("--memory-limit", "limits.memory", "Memory that they never exceed together."),
    ("--agents-limit", "limits.agents", "How many may run at once."),
    ("--queued-limit", "limits.queued", "How many starts may wait at once."),
)
_TENANT_WHOLE: Final = frozenset({"weight", "limits.agents", "limits.queued"})
_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _options(rows: Iterable[tuple[str, str, str]], shown: Callable[[str], bool]) -> _Decorator:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option, path, text in reversed(list(rows)):
            hidden = not shown(path)
            made = click.option(option, attribute(path), metavar="VALUE", help=text, hidden=hidden)
            function = made(function)
        return function

    return add


_dry_run = click.option("--dry-run", is_flag=True, help="Only say what would change, and who would gain and lose.")


@click.command("set")
@click.argument("names", nargs=-1, required=True, type=AGENT, metavar="NAME...")
@_options(TEXTS, lambda path: path.split(".", maxsplit=1)[0] in LIVE)
@click.option("--restart", metavar="POLICY[:MAX]", help="never, on-failure or always.")
@click.option("-l", "--label", multiple=True, metavar="NAME=VALUE", help="Label; NAME- removes it. Repeatable.")
@click.option("--allow-unenforced", metavar="LIST", help="Controllers to do without: cpu,memory,pids,io.")
@click.option("--rm/--no-rm", "remove", default=None, help="Remove it when it ends, or not.")
@_dry_run
@output_option
@returns_status
def set_(names: tuple[str, ...], dry_run: bool, output: str, **given: Any) -> int:
    """Change agents while they run (or wait, or are stopped): weight, reservations, limits, restart and stop policy.

    "none" takes a value away. An agent gets all of its changes or, when one is refused, none. They take effect within
    the next tick, of agents that do not run at their next start.
    """
    values = list(_agent_values(given))
    _check_agent(values)
    patch = _patch(values)
    client = client_of()
    return each(names, lambda name: client.change(name, patch, dry_run=dry_run), output, partial(_print, dry_run))


@tenant.command("set")
@click.argument("name", type=TENANT)
@_options(_TENANT, lambda _: True)
@_dry_run
@output_option
@returns_status
def tenant_set(name: str, dry_run: bool, output: str, **given: Any) -> int:
    """Change a tenant: weight, priority, policy, reservations, limits. "none" takes a value away."""
    values = list(_values(_TENANT, _TENANT_WHOLE, given))
    _check_tenant(values)
    change = partial(client_of().change_tenant, patch=_patch(values), dry_run=dry_run)
    return each((name,), change, output, partial(_print, dry_run))


def _values(rows: Iterable[tuple[str, str, str]], numbers: frozenset[str], given: Mapping[str, Any]) -> Iterator[Value]:
    for option, path, _ in rows:
        text = given[attribute(path)]
        if text == NONE and path not in ("network", "name"):  # there it is a word like others
            yield path, None, option
        elif text is not None:
            yield path, whole(text, option) if path in numbers else text, option


def _agent_values(given: Mapping[str, Any]) -> Iterator[Value]:
    yield from _values(TEXTS, WHOLE, given)
    if given["restart"]:
        policy, colon, most = given["restart"].partition(":")
        yield "restart.policy", None if policy == NONE else policy, "--restart"
        yield "restart.max", whole(most, "--restart") if colon else None, "--restart"
    for text in given["label"]:
        removed = text.endswith("-") and "=" not in text
        yield "labels", {text[:-1]: None} if removed else dict([pair(text, "--label")]), "--label"
    if given["allow_unenforced"]:
        listed = [] if given["allow_unenforced"] == NONE else given["allow_unenforced"].split(",")
        yield "allowUnenforced", [name.strip() for name in listed], "--allow-unenforced"
    if given["remove"] is not None:
        yield "autoRemove", given["remove"], "--rm"


def _patch(values: Iterable[Value]) -> dict[str, Any]:
    """The merge patch that the options mean."""
    patch: dict[str, Any] = {}
    for path, value, _ in values:
        *parents, last = path.split(".")
        at = patch
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = {**at.get(last, {}), **value} if isinstance(value, dict) else value
    if not patch:
        hint = "for example --weight 200 or --memory-limit none; see --help"
        raise AgentosError("usage", "nothing to set", hint=hint)
    return patch


def _check_agent(values: Iterable[Value]) -> None:
    """The decoder's checks, with the options as places; the supervisor makes them all again for the whole spec."""
    from agentos_native.spec.documents import agent_from_nodes

    # the agent's own network mode is not known here, and reservations of the network need this one
    needed: list[Value] = [("name", "x", ""), ("image", "x", ""), ("network", "egress", "")]
    agent_from_nodes(nodes_of([*needed, *_given(values)]))


def _check_tenant(values: Iterable[Value]) -> None:
    from agentos_native.spec.check import check_tenant
    from agentos_native.spec.decode import build
    from agentos_native.spec.model import TenantSpec
    from agentos_native.spec.tree import Place

    nodes = nodes_of([("name", "x", ""), *_given(values)])
    check_tenant(build(TenantSpec, nodes, Place()), nodes, Place())


def _given(values: Iterable[Value]) -> Iterator[Value]:
    """Without what is taken away."""
    for path, value, where in values:
        if isinstance(value, dict):
            yield path, {key: item for key, item in value.items() if item is not None}, where
        elif value is not None:
            yield path, value, where


def _print(dry_run: bool, name: str, result: api.ChangeResult) -> None:
    print(f"{name} {result.action}{' (dry run)' if dry_run else ''}")
    for path, (before, after) in result.changed.items():
        print(f"  {path}: {_shown(path, before)} → {_shown(path, after)}")
    for warning in result.warnings:
        print(f"  warning: {warning}")
    if dry_run and result.starts:
        print(f"  of those that wait, it lets in: {', '.join(result.starts)}")
    if dry_run and result.changed:
        print_effects(result.effects)


def _shown(path: str, value: Any) -> str:
    from agentos_native.spec.quantities import format_memory

    if value is None:
        return NONE
    if isinstance(value, int) and not isinstance(value, bool) and ("memory" in path or "network" in path):
        return format_memory(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
