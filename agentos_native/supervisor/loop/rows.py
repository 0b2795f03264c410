"""What the tick tells people: one row for each agent, and the explanation of a row in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agentos_native.alloc import TIERS, Problem, Solution
from agentos_native.alloc.hierarchy import HUNGRY
from agentos_native.alloc.waterfill import Indices
from agentos_native.spec.model import PRIORITIES
from agentos_native.supervisor.loop.meter import Measured
from agentos_native.supervisor.loop.slots import Agent, Slots

Bound = Literal["request", "limit", "demand", "share"]


@dataclass(frozen=True)
class AllocationRow:
    """One agent. Amounts in CPUs, averaged over the last `window` seconds.

    Attributes:
        demand: what it could use if nothing held it back, at most its limit.
        entitled: what the allocator gives it; `measured`: what the kernel gave it (cpu.stat).
        stalled: fraction of the time in which it waited for a CPU; None where the kernel has no PSI.
        kernel_weight: what cpu.weight holds; None where the host has no cpu controller on v2.
        bound: what keeps it from more: its demand, its limit, its reservation (it has that instead of its fair share),
            or its weight among the others.
        level: share per unit weight 100 of those at the water level; None where nobody is held back.
        capacity: what there was to divide, less than the machine when others use it.
    """

    tenant: str
    agent_id: str
    agent_type: str
    tier: str
    weight: int
    request: float
    limit: float | None
    demand: float
    entitled: float
    measured: float
    stalled: float | None
    usage_usec: int
    kernel_weight: int | None
    bound: Bound
    level: float | None
    tier_share: float
    tenant_share: float
    tenant_weight: int
    capacity: float
    window: float


def _bound(share: float, wanted: float, limit: float, floor: float, fair: float) -> Bound:
    if share >= wanted - HUNGRY:
        return "limit" if wanted >= limit - HUNGRY else "demand"
    return "request" if floor > fair + HUNGRY else "share"


def build(
    slots: Slots, problem: Problem, solution: Solution, measured: Measured, usage: Indices, kernel: Indices
) -> list[AllocationRow]:
    """Rows in the plan's order; `usage` (µs) and `kernel` (weights, negative: none) have one entry per slot."""
    plan = slots.plan()
    rows = []
    for index, (slot, group) in enumerate(zip(plan.slots.tolist(), plan.group.tolist(), strict=True)):
        agent = slots.at(slot)
        tenant_index, tier = divmod(group, TIERS)
        level = float(solution.group_level[group])
        share = float(solution.share[index])
        limit = min(agent.limit, problem.capacity)
        stalled = float(measured.stalled[index])
        rows.append(
            AllocationRow(
                tenant=agent.ref.tenant,
                agent_id=agent.agent_id,
                agent_type=agent.agent_type,
                tier=PRIORITIES[tier],
                weight=agent.weight,
                request=agent.request,
                limit=agent.limit if np.isfinite(agent.limit) else None,
                demand=float(solution.wanted[index]),
                entitled=share,
                measured=float(measured.used[index]),
                stalled=None if np.isnan(stalled) else stalled,
                usage_usec=int(usage[slot]),
                kernel_weight=int(kernel[slot]) if kernel[slot] >= 0 else None,
                bound=_bound(share, float(solution.wanted[index]), limit, agent.request, agent.weight * level),
                level=level * 100 if np.isfinite(level) else None,
                tier_share=float(solution.group_share[tenant_index, tier]),
                tenant_share=float(solution.tenant_share[tenant_index]),
                tenant_weight=plan.tenants[tenant_index].weight,
                capacity=measured.capacity,
                window=measured.window,
            )
        )
    return rows


_REASONS: dict[Bound, str] = {
    "demand": "it has all it can use",
    "limit": "it has all that its limit allows",
    "request": "its weight alone would give it less: its reservation lifts it",
    "share": "others want the processor too: it has its share by weight",
}
_REMEDIES: dict[Bound, str] = {
    "demand": "nothing gives it more: it waits for something other than the processor",
    "limit": "a higher limit (resources.limits.cpu) gives it more",
    "request": "a higher reservation, or a weight above its neighbours', gives it more",
    "share": "a higher weight, a reservation, a higher priority or a heavier tenant gives it more",
}


def explain(agent: Agent, rows: list[AllocationRow]) -> dict[str, Any]:
    """Why the agent of `rows` has what it has: the figures, who is at the water level with it, and words."""
    row = next(row for row in rows if row.agent_id == agent.agent_id)
    siblings = [other for other in rows if (other.tenant, other.tier) == (row.tenant, row.tier)]
    at_level = [other.agent_id for other in siblings if other.bound == "share"]
    higher = [
        other.agent_id
        for other in rows
        if other.tenant == row.tenant and PRIORITIES.index(other.tier) < PRIORITIES.index(row.tier)
    ]
    limit = "none" if row.limit is None else f"{row.limit:.3f}"
    words = [
        f"entitled to {row.entitled:.3f} of {row.capacity:.2f} CPUs: {_REASONS[row.bound]};"
        f" measured {row.measured:.3f} over {row.window:.1f} s",
        f"demand {row.demand:.3f}, reservation {row.request:.3f}, limit {limit}, weight {row.weight}, tier {row.tier}",
        f"its tenant {row.tenant} (weight {row.tenant_weight}) has {row.tenant_share:.3f}, of which its tier has"
        f" {row.tier_share:.3f} for {len(siblings)} agents",
    ]
    if higher:
        words.append(f"{len(higher)} agents of its tenant have a higher priority and are served first")
    if row.level is not None:
        words.append(f"water level: {row.level:.3f} CPUs for each 100 of weight, {len(at_level)} agents are at it")
    words.append(_REMEDIES[row.bound])
    return {**vars(row), "siblings": len(siblings), "at_level": at_level, "higher": higher, "words": words}
