"""What the tick tells people of each agent: one row of figures (`explain` says in words why they are so)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from agentos_native.alloc import TIERS, Problem, Solution
from agentos_native.alloc.hierarchy import HUNGRY
from agentos_native.alloc.waterfill import Indices
from agentos_native.spec.model import POLICIES, PRIORITIES, Policy
from agentos_native.supervisor.loop.meter import Measured
from agentos_native.supervisor.loop.slots import Slots

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
        policy: by which its tenant's share is divided among its agents.
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
    policy: Policy


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
                policy=POLICIES[int(problem.tenant_policies[tenant_index])],
            )
        )
    return rows
