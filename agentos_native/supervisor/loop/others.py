"""Why an agent has the memory, the I/O and the network that it has, and what would give it more.

A controller tells a row of figures (`controllers.Controller.rows`), solves the problem again for another spec
(`entitled`), and, where it divides by the same tree as CPU, gives the problem with its solution
(`controllers.Solvable`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from agentos_native.spec.model import AgentSpec, NetworkRates, Resource
from agentos_native.spec.quantities import format_memory, format_rate
from agentos_native.supervisor.loop.controllers import Controller, Member, Solvable
from agentos_native.supervisor.loop.derivation import levels
from agentos_native.supervisor.loop.equations import level_equations
from agentos_native.supervisor.loop.names import Namer, names_of
from agentos_native.supervisor.loop.remedies import HIGHEST_WEIGHT, Remedy, replace_resources
from agentos_native.supervisor.loop.whatif import Moved, moved

NAMES: Final[Mapping[Resource, str]] = {"memory": "Memory", "io": "I/O", "network": "Network"}
REASONS: Final[Mapping[str, str]] = {
    "demand": "it has all it needs",
    "limit": "it has all that its limit allows",
    "request": "its reservation gives it more than its weight would",
    "share": "others want it too: it has its share by weight",
}
MEBI: Final = 1 << 20


def amount(resource: Resource, value: float | None) -> str:
    """For people."""
    if value is None:
        return "none"
    if resource == "io":
        return f"{100 * value:.1f} %"
    step, letters = (1000, ("", "k", "M", "G", "T")) if resource == "network" else (1024, ("", "Ki", "Mi", "Gi", "Ti"))
    power = 0
    while power < 4 and value >= step ** (power + 1):
        power += 1
    return f"{value / step**power:.4g}{letters[power]}" + ("bit/s" if resource == "network" else "")


def explain(controller: Controller, member: Member, row: Mapping[str, Any], name: Namer) -> dict[str, Any]:
    """The figures of `row`, words, remedies, and where it can be told the derivation of each problem."""
    resource = controller.resource
    tried = list(_remedies(controller, member, row))
    found = {**row, "words": [*_words(resource, row), *_advice(resource, row, tried, name)]}
    found["remedies"] = [dataclasses.asdict(remedy) for remedy in tried]
    found["derivations"], found["equations"] = {}, []
    if not moved_here(row) or not isinstance(controller, Solvable):
        return found
    for about, (solved, unit) in controller.solved().items():
        index = next((i for i, agent in enumerate(solved.agents) if agent.agent_id == member.agent_id), None)
        if index is not None:
            figures = levels(solved, index)
            found["derivations"][about] = {**figures, "unit": unit}
            found["equations"] += [f"{about}, in {unit}", *level_equations(figures, name)]
    return found


def moved_here(row: Mapping[str, Any]) -> bool:
    """Whether the resource is moved for this agent: its controller notes where it is not."""
    return not str(row.get("note", "")).startswith("not ")


def _words(resource: Resource, row: Mapping[str, Any]) -> Iterator[str]:
    shown = {key: amount(resource, row.get(key)) for key in ("entitled", "capacity", "measured", "demand", "limit")}
    shown["measured"] = shown["measured"] if row.get("measured") is not None else "an unknown amount"
    if not moved_here(row):
        yield f"{NAMES[resource]}: {row['note']}; it uses {shown['measured']}."
        return
    if row.get("entitled") is None or row.get("capacity") is None:
        yield f"{NAMES[resource]}: nothing is divided here; it uses {shown['measured']}, limit {shown['limit']}."
    else:
        reason = REASONS.get(str(row.get("bound")), "")
        yield f"{NAMES[resource]}: entitled to {shown['entitled']} of {shown['capacity']}: {reason}."
        shown["request"] = amount(resource, row.get("request") or 0)
        wants = f"  It uses {shown['measured']} and wants {shown['demand']}"
        yield f"{wants}; reservation {shown['request']}, limit {shown['limit']}."
    if row.get("note"):
        yield f"  {row['note']}"


def _advice(resource: Resource, row: Mapping[str, Any], tried: list[Remedy], name: Namer) -> Iterator[str]:
    if row.get("bound") in {"demand", None} or not moved_here(row):
        return
    for remedy in tried:
        effect = "nothing"
        if remedy.after != remedy.before:
            effect = f"{amount(resource, remedy.before)} → {amount(resource, remedy.after)}"
            if remedy.at_cost_of:
                effect += f", at the cost of {names_of([loser['agent_id'] for loser in remedy.at_cost_of], name)}"
        yield f"  {remedy.words}: {effect}"


def _candidates(
    resource: Resource, spec: AgentSpec, entitled: float
) -> Iterator[tuple[str, dict[str, Any], AgentSpec]]:
    """Changes in words, as a patch, and done."""
    resources = spec.resources
    if resource == "io" and resources.io_weight is not None:
        weight = min(2 * resources.io_weight, HIGHEST_WEIGHT)
        words = f"I/O weight {weight} instead of {resources.io_weight}"
        yield words, {"resources": {"ioWeight": weight}}, replace_resources(spec, io_weight=weight)
    elif spec.weight < HIGHEST_WEIGHT:
        weight = min(2 * spec.weight, HIGHEST_WEIGHT)
        words = f"weight {weight} instead of {spec.weight}"
        yield words, {"weight": weight}, msgspec.structs.replace(spec, weight=weight)
    for part, wished, show in _bounds(resource, spec, entitled):
        kind, field, value = part
        holder = getattr(resources, kind)
        patch = {"resources": {kind: _patch(field, value)}}
        done = replace_resources(spec, **{kind: msgspec.structs.replace(holder, **{field: value})})
        yield f"{wished} {show}".strip(), patch, done


def _patch(field: str, value: Any) -> dict[str, Any]:
    return {field: msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value}


def _bounds(resource: Resource, spec: AgentSpec, entitled: float) -> Iterator[tuple[tuple[str, str, Any], str, str]]:
    """Other reservations and limits: which field with which value, and words."""
    requests, limits = spec.resources.requests, spec.resources.limits
    if resource == "memory":
        wished = int(max(1.5 * entitled, requests.memory + 64 * MEBI)) // (16 * MEBI) * 16 * MEBI
        wished = min(wished, limits.memory or wished)
        if wished > requests.memory:
            yield ("requests", "memory", wished), "a reservation of", format_memory(wished)
        if limits.memory is not None:
            yield ("limits", "memory", None), "no limit instead of", format_memory(limits.memory)
    if resource == "network":
        asked, limited = requests.network or NetworkRates(), limits.network or NetworkRates()
        wished = int(max(1.5 * entitled / 2, 2 * (asked.egress or 0), 1e6)) // 100_000 * 100_000
        wished = min(wished, limited.egress or wished)
        if wished > (asked.egress or 0):
            rates = msgspec.structs.replace(asked, egress=wished)
            yield ("requests", "network", rates), "an egress reservation of", f"{format_rate(wished)}bit/s"
        if limits.network is not None:
            yield ("limits", "network", None), "no limits", ""


def _remedies(controller: Controller, member: Member, row: Mapping[str, Any]) -> Iterator[Remedy]:
    before = controller.entitled({}, {})
    own = before.get(member.agent_id)
    if own is None:
        return
    for words, patch, changed in _candidates(controller.resource, member.spec, own):
        after = controller.entitled({member.agent_id: changed}, {})
        losers = [_loser(one) for one in moved(controller.resource, before, after) if _loses(one, member.agent_id)]
        then = after.get(member.agent_id, own)
        gained = any(one.agent_id == member.agent_id for one in moved(controller.resource, before, after))
        yield Remedy(words, "agent", patch, True, own, then if gained else own, losers)


def _loses(one: Moved, agent_id: str) -> bool:
    return one.after < one.before and one.agent_id != agent_id


def _loser(one: Moved) -> dict[str, Any]:
    return {"agent_id": one.agent_id, "before": one.before, "after": one.after}
