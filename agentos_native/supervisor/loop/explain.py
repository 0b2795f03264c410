"""Why an agent has the CPU it has: words for people first, then every figure, then the equations that tie them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from agentos_native.alloc import Trims
from agentos_native.alloc.hierarchy import HUNGRY
from agentos_native.alloc.policies import describe
from agentos_native.alloc.waterfill import LARGE
from agentos_native.spec.model import PRIORITIES
from agentos_native.supervisor.loop.derivation import Figures, derive
from agentos_native.supervisor.loop.equations import equations
from agentos_native.supervisor.loop.names import Namer, names_of
from agentos_native.supervisor.loop.remedies import Remedy, remedies
from agentos_native.supervisor.loop.rows import AllocationRow, Bound
from agentos_native.supervisor.loop.whatif import Present, Solved


@dataclass(frozen=True)
class View:
    """The CPU's state at one moment, from which an explanation is made.

    Attributes:
        rows: of every agent; `present`: the problem that they are the solution of.
        trims: the corrections of the kernel's weights; None where none are written.
        awake: the problem that weights are told for (`alloc.demand.awake`); None: `present`.
        cap: CPUs that the tick's ``cpu.max`` leaves the agent in question (`alloc.caps`); None: only its own limit's.
    """

    rows: list[AllocationRow]
    present: Present
    trims: Trims | None
    awake: Present | None = None
    cap: float | None = None

    def told(self) -> Solved | None:
        """The solution that weights are told by, where it is another one."""
        if self.awake is None or not np.any(self.awake.demand > self.present.demand + HUNGRY):
            return None
        return self.awake.solved()


LANE: Final = 0.02
"""CPUs: whoever waits for more than this, though it is given all it is taken to want, has too few threads."""
_REASONS: dict[Bound, str] = {
    "demand": "it has all it can use",
    "limit": "it has all that its limit allows",
    "request": "its weight alone would give it less: its reservation lifts it",
    "share": "others want the processor too: it has its share by weight",
}


def explain(agent_id: str, view: View, name: Namer = str) -> Figures:
    """Why `agent_id` has what it has.

    Returns:
        The figures of its row (CPUs); ``words``; who is ``at_level`` with it, ``lifted`` above the level by a
        reservation, ``content`` below it with all they want, and ``higher`` in priority (ids, its tenant's only);
        ``remedies``; ``derivation`` (`derivation.derive`) and ``equations``, the same as text.
    """
    solved = view.present.solved()
    index = next(number for number, agent in enumerate(solved.agents) if agent.agent_id == agent_id)
    row = next(row for row in view.rows if row.agent_id == agent_id)
    figures = derive(solved, index, view.trims, view.told())
    tried = remedies(view.present, solved, index)
    members = figures["agents"]["members"]

    def at(place: str) -> list[str]:
        return [member["agent_id"] for member in members if member["at"] == place]

    higher = [
        other.agent_id
        for other in view.rows
        if other.tenant == row.tenant and PRIORITIES.index(other.tier) < PRIORITIES.index(row.tier)
    ]
    who = {"at_level": at("level"), "lifted": at("floor"), "content": at("ceiling"), "higher": higher}
    return {
        **dataclasses.asdict(row),
        "siblings": len(members),
        **who,
        "cap": view.cap,
        "words": [*_words(row, figures, who, name), *_cap_words(row, view.cap), *_advice(row, tried, name)],
        "remedies": [dataclasses.asdict(remedy) for remedy in tried],
        "derivation": figures,
        "equations": [
            *equations(figures, agent_id, row.kernel_weight, name),
            *_cap_equation(figures, agent_id, view.cap),
        ],
    }


def _reason(row: AllocationRow) -> str:
    if row.bound == "share" and row.policy == "utility":
        return "heavier agents are served first, and it has what they leave"
    return _REASONS[row.bound]


def _words(row: AllocationRow, figures: Figures, who: dict[str, list[str]], name: Namer) -> list[str]:
    limit = "no limit" if row.limit is None else f"limit {row.limit:.3f}"
    lines = [
        f"{name(row.agent_id)} is entitled to {row.entitled:.3f} of {row.capacity:.2f} CPUs: {_reason(row)}.",
        f"It used {row.measured:.3f} over the last {row.window:.1f} s and could use {row.demand:.3f};"
        f" reservation {row.request:.3f}, {limit}, weight {row.weight}, priority {row.tier}.",
        *_policy_words(row),
        *_tenant_words(row, figures),
        *_tier_words(row, figures, who, name),
    ]
    if row.kernel_weight is None:
        lines.append("This host does not hold to it: cgroup v2 has no cpu controller here.")
    else:
        why = _weight_words(figures["kernel"], row)
        lines.append(f"The kernel is told cpu.weight {row.kernel_weight}{f' ({why})' if why else ''}.")
    return lines


def _weight_words(kernel: Figures, row: AllocationRow) -> str:
    """Why the kernel's weight is another than the agent's own."""
    if kernel["rule"] is None or kernel["rule"] == "alone":
        return ""
    own = next(member for member in kernel["members"] if member["agent_id"] == row.agent_id)
    reasons = []
    if own["rate"] > own["trim"] * kernel["plain"] * (1 + 1e-9):
        reasons.append("its reservation lifts it above its own")
    elif own["rate"] < own["trim"] * kernel["plain"] * (1 - 1e-9):
        reasons.append("less than its own, since another resource holds it back")
    if abs(own["trim"] - 1) > 0.02:
        reasons.append(f"corrected by {own['trim']:.2f} for what the kernel's balancing does to it")
    if kernel["doublings"]:
        reasons.append(f"all of its priority are scaled by 1/{2 ** kernel['doublings']} to fit below 10000")
    return ", ".join(reasons)


def _policy_words(row: AllocationRow) -> Iterable[str]:
    if row.policy != "maxmin":
        yield f"Its tenant divides by the policy {row.policy}: {describe(row.policy)}."


def _tenant_words(row: AllocationRow, figures: Figures) -> Iterable[str]:
    level = figures["tenants"]
    own = next(member for member in level["members"] if member["tenant"] == row.tenant)
    if len(level["members"]) == 1 and len(figures["machine"]["priorities"]) == 1:
        yield f"Its tenant {row.tenant} has {row.tenant_share:.3f}: no other tenant wants any."
        return
    why = {"ceiling": "all it wants or may have", "floor": "its reservation, more than its weight would give it"}
    reason = why.get(own["at"], f"its share by weight among {len(level['members'])} tenants")
    policy = "" if level["policy"] == "maxmin" else f" (policy {level['policy']})"
    yield f"Its tenant {row.tenant} (weight {row.tenant_weight}) has {row.tenant_share:.3f}: {reason}{policy}."


def _tier_words(row: AllocationRow, figures: Figures, who: dict[str, list[str]], name: Namer) -> Iterable[str]:
    tiers = figures["priorities"]["priorities"]
    if len(tiers) > 1:
        parts = ", ".join(f"{tier['tier']} {tier['budget']:.3f}" for tier in tiers)
        yield f"Within the tenant reservations come first, then priorities in order: {parts}."
    level = figures["agents"]
    count = len(level["members"])
    if count == 1:
        return
    places = (
        ("at the level", who["at_level"]),
        ("above it, by reservation", who["lifted"]),
        ("below it, with all they want", who["content"]),
    )
    if level["state"] == "satisfied":
        yield f"All {count} agents of its priority have what they want."
    elif level["state"] == "short":
        yield f"Not even the reservations of its priority's {count} agents fit: all are scaled down alike."
    elif level["state"] == "margin":
        rest = f"who weighs {level['margin']:g} has the rest"
        yield f"{count} agents share {level['budget']:.3f}, the heaviest first; {rest}:"
    else:
        rate = 100 * level["level"]
        yield f"{count} agents share {level['budget']:.3f} by weight, {rate:.4f} for each 100 (the water level):"
    if level["state"] in ("level", "margin"):
        for words, ids in places:
            if ids:
                yield f"  {words}: {names_of(ids, name)}"


def _cap_words(row: AllocationRow, cap: float | None) -> Iterable[str]:
    if cap is not None:
        yield (
            f"Its tenant {row.tenant} is at its limit, within which weights do not divide:"
            f" it has {cap:.3f} by a cpu.max of its own."
        )


def _cap_equation(figures: Figures, agent_id: str, cap: float | None) -> Iterable[str]:
    """Where its cap comes from; the file may hold one of a moment ago that is near enough."""
    if cap is None:
        return
    level = figures["agents"]
    own = next(member for member in level["members"] if member["agent_id"] == agent_id)
    due = f"share {own['share']:.6g}"
    if level["state"] == "level" and level["policy"] in ("maxmin", "priority"):
        due = f"max({due}, weight · λ = {own['weight'] * level['level']:.6g}, reservation {own['request']:.6g})"
    yield f"kernel: cpu.max holds it at {cap:.6g}, due {due}"


def _unmet(row: AllocationRow) -> float:
    """CPUs that its threads wait for, beyond what it is taken to want (`alloc.demand.in_parallel`)."""
    stalled = min(row.stalled or 0.0, 0.9)
    return min(row.measured / (1.0 - stalled), row.limit or LARGE) - row.demand


def _advice(row: AllocationRow, tried: list[Remedy], name: Namer) -> Iterable[str]:
    if row.bound == "demand" and _unmet(row) > LANE:
        yield "No change gives it more: each of its threads has what one CPU gives beside the machine's own work."
        return
    if row.bound == "demand":
        yield "No change gives it more: it waits for something other than the processor, or has nothing to do."
        return
    yield "What would change that, by the demand measured lately:"
    width = max((len(remedy.words) for remedy in tried), default=0)
    for remedy in tried:
        if abs(remedy.after - remedy.before) < 5e-4:
            effect = "nothing"
        else:
            effect = f"{remedy.before:.3f} → {remedy.after:.3f} CPUs"
            if remedy.at_cost_of:
                effect += f", at the cost of {names_of([loser['agent_id'] for loser in remedy.at_cost_of], name)}"
        yield f"  {remedy.words.ljust(width)}  {effect}"
