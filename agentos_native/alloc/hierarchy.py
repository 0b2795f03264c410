"""The CPU policy ``maxmin``: one resource divided over a tree of tenants, tiers and agents.

Going up, floors and ceilings are summed: a tenant's floor is the larger of its own reservation and its agents', its
ceiling the smaller of its own limit and their ceilings. Going down, each level is filled:

1. the machine over the priorities of tenants: every floor first, then tier by tier, highest first, what is left;
2. one priority's part over its tenants, by weighted max-min;
3. a tenant's share over the tiers of its agents, as in 1;
4. a tier's part over its agents, by weighted max-min.

Agents compare with agents of their own tenant and tier only, as siblings of a cgroup do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from agentos_native.alloc import engines
from agentos_native.alloc.waterfill import LARGE, Floats, Indices, sanitise, segment_sum

TIERS: Final = 5
"""system, high, normal, low, idle: the index is the rank, 0 goes first."""
HUNGRY: Final = 1e-6
"""CPUs: whoever is this far below its ceiling wants more than it has."""


@dataclass(frozen=True)
class Problem:
    """What there is and who wants it. Amounts in CPUs; agents in the order of their groups.

    Attributes:
        capacity: what is there to divide.
        tenant_weight, tenant_tier, tenant_floor, tenant_ceiling: shape (T,); the tenant's own, without its agents'.
        starts: of the groups (group = tenant · TIERS + tier), and n: shape (T · TIERS + 1,).
        weight, floor, ceiling, demand: shape (n,); the ceiling is the limit, and demand may be ∞.
    """

    capacity: float
    tenant_weight: Floats
    tenant_tier: Indices
    tenant_floor: Floats
    tenant_ceiling: Floats
    starts: Indices
    weight: Floats
    floor: Floats
    ceiling: Floats
    demand: Floats


@dataclass
class Warm:
    """Levels of the last solution, to start the next search from."""

    tenants: Floats = field(default_factory=lambda: np.zeros(TIERS))
    groups: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Solution:
    """Who gets what. Levels are shares per unit weight; ∞ where everybody has what they want, 0 below the floors.

    Attributes:
        share: of the agents, shape (n,).
        wanted: what each agent could use, min(ceiling, demand), shape (n,).
        group_share, group_wanted, group_floor: shape (T, TIERS); the floor is the wanted part of the reservations.
        group_reserved: all of the reservations, shape (T, TIERS).
        group_level: shape (T · TIERS,).
        tenant_share, tenant_wanted, tenant_floor, tenant_reserved: shape (T,).
        tenant_level: of each priority of tenants, shape (TIERS,).
        capacity, slack: what was there, and what nobody wanted.
    """

    share: Floats
    wanted: Floats
    group_share: Floats
    group_wanted: Floats
    group_floor: Floats
    group_reserved: Floats
    group_level: Floats
    tenant_share: Floats
    tenant_wanted: Floats
    tenant_floor: Floats
    tenant_reserved: Floats
    tenant_level: Floats
    capacity: float
    slack: float


def tier_budgets(capacity: Floats, floors: Floats, wanted: Floats) -> Floats:
    """Divide each row's capacity over its tiers: every tier's floor first, then tier by tier what is left.

    Args:
        capacity: shape (P,).
        floors, wanted: shape (P, TIERS), floors ≤ wanted. Floors that do not fit are scaled down alike.
    """
    total = floors.sum(axis=1)
    scale = np.divide(capacity, total, out=np.ones_like(total), where=total > capacity)
    floors = floors * scale[:, None]
    left = np.maximum(capacity - floors.sum(axis=1), 0.0)
    budgets = np.empty_like(floors)
    for tier in range(floors.shape[1]):
        more = np.minimum(wanted[:, tier] - floors[:, tier], left)
        budgets[:, tier] = floors[:, tier] + more
        left = left - more
    return budgets


def _fill_tenants(problem: Problem, floors: Floats, wanted: Floats, warm: Warm) -> tuple[Floats, Floats]:
    """The machine over tenants: their shares (T,) and each priority's level (TIERS,)."""
    order = np.argsort(problem.tenant_tier, kind="stable")
    tier = problem.tenant_tier[order]
    starts = np.searchsorted(tier, np.arange(TIERS + 1)).astype(np.int64)
    sums = [segment_sum(values, problem.tenant_tier, TIERS)[None, :] for values in (floors, wanted)]
    budgets = tier_budgets(np.array([problem.capacity]), sums[0], sums[1])[0]
    weights = np.clip(np.nan_to_num(problem.tenant_weight), 1e-9, LARGE)
    guesses = np.where(np.isfinite(warm.tenants), warm.tenants, 0.0)
    shares, levels = engines.waterfill(weights[order], floors[order], wanted[order], starts, budgets, guesses)
    result = np.empty_like(shares)
    result[order] = shares
    return result, levels


def solve(problem: Problem, warm: Warm | None = None) -> Solution:
    """Divide `problem.capacity`; `warm` is read and replaced by this solution's levels."""
    warm = warm if warm is not None else Warm()
    tenants = len(problem.tenant_weight)
    group_of = np.repeat(np.arange(tenants * TIERS), np.diff(problem.starts))
    reserved = np.nan_to_num(np.asarray(problem.floor, dtype=np.float64), nan=0.0, posinf=LARGE)
    demand = np.where(np.isnan(problem.demand), np.inf, problem.demand)  # unknown is not held against an agent
    weights, floors, wanted = sanitise(problem.weight, reserved, np.minimum(problem.ceiling, demand))

    def groups(values: Floats) -> Floats:
        return segment_sum(values, group_of, tenants * TIERS).reshape(tenants, TIERS)

    group_floors, group_wanted = groups(floors), groups(wanted)
    tenant_ceiling = np.clip(np.nan_to_num(problem.tenant_ceiling, nan=LARGE, posinf=LARGE), 0.0, LARGE)
    tenant_wanted = np.minimum(tenant_ceiling, group_wanted.sum(axis=1))
    own = np.clip(np.nan_to_num(problem.tenant_floor), 0.0, LARGE)
    tenant_floors = np.minimum(np.maximum(own, group_floors.sum(axis=1)), tenant_wanted)
    tenant_share, tenant_level = _fill_tenants(problem, tenant_floors, tenant_wanted, warm)

    budgets = tier_budgets(tenant_share, group_floors, group_wanted)
    guesses = warm.groups if len(warm.groups) == tenants * TIERS else np.zeros(tenants * TIERS)
    guesses = np.where(np.isfinite(guesses), guesses, 0.0)
    share, group_level = engines.waterfill(weights, floors, wanted, problem.starts, budgets.ravel(), guesses)
    warm.tenants, warm.groups = tenant_level, group_level
    full = groups(np.clip(reserved, 0.0, LARGE))
    return Solution(
        share=share,
        wanted=wanted,
        group_share=budgets,
        group_wanted=group_wanted,
        group_floor=group_floors,
        group_reserved=full,
        group_level=group_level,
        tenant_share=tenant_share,
        tenant_wanted=tenant_wanted,
        tenant_floor=tenant_floors,
        tenant_reserved=np.maximum(own, full.sum(axis=1)),
        tenant_level=tenant_level,
        capacity=problem.capacity,
        slack=max(problem.capacity - float(tenant_share.sum()), 0.0),
    )
