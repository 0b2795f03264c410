"""The derivation of a share as text: one equation a line, with its numbers in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agentos_native.alloc.hysteresis import FAR
from agentos_native.supervisor.loop.derivation import Figures
from agentos_native.supervisor.loop.names import Namer


def _n(value: float | None) -> str:
    """Enough digits to compute with."""
    return "none" if value is None else f"{value:.6g}"


def equations(figures: Figures, agent_id: str, written: int | None, name: Namer) -> list[str]:
    """The levels from the machine down to the agent, then its weight; `written` is what the kernel's file holds."""
    return [
        *level_equations(figures, name, "CPUs"),
        *_awake(figures, name),
        *_kernel(figures["kernel"], agent_id, written),
    ]


def level_equations(figures: Figures, name: Namer, unit: str = "") -> list[str]:
    """The levels from the machine down to the agent."""
    machine, tenants = figures["machine"], figures["tenants"]
    lines = [f"machine: {_n(machine['capacity'])} {unit}".rstrip() + f", of which nobody wants {_n(machine['slack'])}"]
    lines += _priorities(machine["capacity"], machine["priorities"])
    lines.append(f"tenants of priority {tenants['tier']}: {_head(tenants)}")
    lines += _members(tenants, lambda member: str(member["tenant"]), tenants["policy"] == "drf")
    own = figures["priorities"]
    lines.append(f"priorities within {figures['tenant']}: {_n(own['capacity'])}")
    lines += _priorities(own["capacity"], own["priorities"])
    agents = figures["agents"]
    lines.append(f"agents of {figures['tenant']} with priority {figures['tier']}: {_head(agents)}")
    lines += _members(agents, lambda member: name(member["agent_id"]), agents["policy"] == "drf")
    return lines


def _priorities(capacity: float, rows: list[Figures]) -> Iterable[str]:
    floors = sum(row["floor"] for row in rows)
    if floors > capacity:
        for row in rows:
            yield f"  {row['tier']}: {_n(row['budget'])} = floor {_n(row['floor'])} · {_n(capacity)} / {_n(floors)}"
        return
    left = capacity - floors
    for row in rows:
        more = f"min(wanted {_n(row['wanted'])} - floor {_n(row['floor'])}, left {_n(left)})"
        yield f"  {row['tier']}: {_n(row['budget'])} = floor {_n(row['floor'])} + {more}"
        left -= row["budget"] - row["floor"]


def _head(level: Figures) -> str:
    budget = _n(level["budget"])
    if level["state"] == "satisfied":
        return f"{budget}, everybody has its ceiling"
    if level["state"] == "short":
        return f"{budget}, no more than the floors"
    if level["state"] == "margin":
        margin, rate = _n(level["margin"]), _n(level["level"])
        return f"{budget}, the heaviest first; those of weight {margin} share what is left, λ = {rate}"
    return f"{budget}, level λ = {_n(level['level'])} for each 1 of weight"


def _members(level: Figures, name: Callable[[Figures], str], promised: bool = False) -> Iterable[str]:
    members = level["members"]
    width = max((len(name(member)) for member in members), default=0)  # nobody: an agent at rest wants nothing
    floors = sum(member["floor"] for member in members)
    for member in members:
        share, floor, ceiling = (_n(member[key]) for key in ("share", "floor", "ceiling"))
        if level["state"] == "satisfied":
            rule = f"ceiling {ceiling}"
        elif level["state"] == "short":
            rule = f"floor {floor} · {_n(level['budget'])} / {_n(floors)}" if floors else "nothing is left"
        elif level["state"] == "margin" and member["weight"] != level["margin"]:
            heavier = member["weight"] > level["margin"]
            rule = f"ceiling {ceiling}, served before" if heavier else f"floor {floor}, not reached"
        else:
            linear = f"{_n(member['weight'])} · λ = {_n(member['weight'] * level['level'])}"
            rule = f"clip({linear}, floor {floor}, ceiling {ceiling}): {member['at']}"
        yield f"  {name(member).ljust(width)}  {share} = {rule}"
        yield f"  {' ' * width}  {_bounds(member, promised)}"


def _bounds(member: Figures, promised: bool) -> str:
    """Where floor and ceiling come from."""
    floor, ceiling, limit, request = (_n(member[key]) for key in ("floor", "ceiling", "limit", "request"))
    if "demand" in member:
        wanted, reserved = f"demand {_n(member['demand'])}", f"reservation {request}"
    else:
        wanted = f"its agents' {_n(member['agents_wanted'])}"
        reserved = f"max(reservation {request}, its agents' {_n(member['agents_floor'])})"
    source = f"min({reserved}, ceiling)"
    source = f"what dominant fairness promises, at least {source}" if promised else source
    return f"ceiling {ceiling} = min(limit {limit}, {wanted}), floor {floor} = {source}"


def _awake(figures: Figures, name: Namer) -> Iterable[str]:
    """The levels that the kernel's weights follow from, where they are others."""
    awake = figures["kernel"]["awake"]
    if awake is not None:
        yield "for the kernel: as if whoever was awake in the last seconds wanted its reservation again"
        yield from (f"  {line}" for line in level_equations({**figures, **awake}, name, "CPUs"))


def _kernel(kernel: Figures, agent_id: str, written: int | None) -> Iterable[str]:
    due = kernel["due"]
    yield f"kernel: cpu.weight is {'not written here' if written is None else written}, due {due}"
    if written is not None and not due / FAR <= written <= due * FAR:
        yield "  only its proportion to its siblings' counts: all may hold one multiple of their due, sleepers more"
    if kernel["rule"] == "alone":
        yield "  alone in its group: its own weight"
    elif kernel["rule"] == "w-rule":
        own = next(member for member in kernel["members"] if member["agent_id"] == agent_id)
        if own["held"]:
            rule = f"its share {_n(own['rate'] / own['trim'])}"
        elif own["asleep"]:
            rule = f"max(weight · λ = {_n(kernel['plain'])}, floor {_n(own['floor'])} · {_n(kernel['wake'])})"
        else:
            rule = f"max(weight · λ = {_n(kernel['plain'])}, floor {_n(own['floor'])})"
        yield f"  rate {_n(kernel['rate'])} = {rule} · trim {_n(own['trim'])}"
        unit = f"unit {_n(kernel['unit'])} = λ {_n(kernel['level'])} · 2^{kernel['doublings']}"
        rounding = "to the nearest" if kernel["own"] else "up"
        yield f"  {due} = rate / {unit} = {_n(kernel['exact'])}, rounded {rounding}"
