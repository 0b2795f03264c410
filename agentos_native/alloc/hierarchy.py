"""The machine's CPUs over a tree of tenants, tiers and agents, each parent by its own policy.

Going up, floors and ceilings are summed: a tenant's floor is the larger of its own reservation and its agents', its
ceiling the smaller of its own limit and their ceilings. Going down, `policies.divide` fills:

1. the machine over its tenants, by the node's policy; a tenant's tier is its priority among tenants;
2. each tenant's share over its agents, by the tenant's policy; what a tier gets, its agents divide among themselves.

Agents compare with agents of their own tenant only, as siblings of a cgroup do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from agentos_native.alloc.members import HUNGRY, TIERS, Division, Members, sums
from agentos_native.alloc.policies import DRF, MAXMIN, divide, tier_budgets
from agentos_native.alloc.waterfill import LARGE, SMALLEST_WEIGHT, Floats, Indices

__all__ = ["HUNGRY", "TIERS", "Problem", "Solution", "Warm", "clean", "solve", "tier_budgets"]


NOTHING: Final = 1e-9
"""Of the machine: whoever wants less of a resource does not use it."""


@dataclass(frozen=True)
class Problem:
    """What there is and who wants it. Amounts in CPUs; agents in the order of their groups.

    Attributes:
        capacity: what is there to divide.
        tenant_weight, tenant_tier, tenant_floor, tenant_ceiling: shape (T,); the tenant's own, without its agents'.
        starts: of the groups (group = tenant · TIERS + tier), and n: shape (T · TIERS + 1,).
        weight, floor, ceiling, demand: shape (n,); the ceiling is the limit, and demand may be ∞.
        policy: by which the machine is divided among tenants, an index into `policies.POLICIES`.
        tenant_policy: by which each tenant's share is divided among its agents, shape (T,); None: the node's.
        profile: the parts (0..1) of the machine's other resources that each agent wants, shape (n, k); None: nothing
            is known of them. Only ``drf`` asks.
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
    policy: int = MAXMIN
    tenant_policy: Indices | None = None
    profile: Floats | None = None

    @property
    def tenant_policies(self) -> Indices:
        """Each tenant's policy, shape (T,)."""
        if self.tenant_policy is None:
            return np.full(len(self.tenant_weight), self.policy, dtype=np.int64)
        return self.tenant_policy


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
        promise: what the policy gives each agent before it fills by weight: the wanted part of its reservation, and
            under ``drf`` its part by dominant fairness. Shape (n,).
        group_share, group_wanted, group_floor: shape (T, TIERS); the floor is the sum of promises.
        group_reserved: all of the reservations, shape (T, TIERS).
        group_level: shape (T · TIERS,).
        tenant_share, tenant_wanted, tenant_floor, tenant_reserved: shape (T,).
        tenant_level: of each priority of tenants, shape (TIERS,).
        capacity, slack: what was there, and what nobody wanted.
    """

    share: Floats
    wanted: Floats
    promise: Floats
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


def _finite(values: Floats, least: float = 0.0) -> Floats:
    """Doubles from `least` to `LARGE`; NaN becomes `least`, since fmax takes the other one."""
    found: Floats = np.minimum(np.fmax(np.asarray(values, dtype=np.float64), least), LARGE)
    return found


def _limit(values: Floats) -> Floats:
    """Doubles from 0 to `LARGE`; NaN becomes `LARGE`."""
    found: Floats = np.maximum(np.fmin(np.asarray(values, dtype=np.float64), LARGE), 0.0)
    return found


def clean(problem: Problem) -> Problem:
    """The problem without NaN, infinities and negative amounts, always to the disadvantage of the entry itself.

    An exception: a demand that is not known is not held against an agent, nor a tenant's limit against a tenant.
    """
    return replace(
        problem,
        capacity=float(_finite(np.array(problem.capacity))),
        tenant_weight=_finite(problem.tenant_weight, SMALLEST_WEIGHT),
        tenant_floor=_finite(problem.tenant_floor),
        tenant_ceiling=_limit(problem.tenant_ceiling),
        weight=_finite(problem.weight, SMALLEST_WEIGHT),
        floor=_finite(problem.floor),
        ceiling=_finite(problem.ceiling),
        demand=_limit(problem.demand),
    )


def _parts(problem: Problem, wanted: Floats) -> Floats | None:
    """The parts of the machine's resources that agents want, CPU first, shape (n, 1 + k); None: no policy asks."""
    if problem.policy != DRF and not np.any(problem.tenant_policies == DRF):
        return None
    machine = max(problem.capacity, 1e-9)
    others = problem.profile if problem.profile is not None else np.zeros((len(wanted), 0))
    parts = np.empty((len(wanted), 1 + others.shape[1]), order="F")
    parts[:, 0] = np.minimum(wanted, machine) / machine
    parts[:, 1:] = others
    return np.where(parts > NOTHING, np.minimum(parts, 1.0), 0.0)  # NaN is none


def _tenants(
    problem: Problem, floors: Floats, wanted: Floats, parts: Floats | None, warm: Warm
) -> tuple[Division, Indices]:
    """The machine over its tenants, in the order of their priority; and that order, shape (T,)."""
    order = np.argsort(problem.tenant_tier, kind="stable")
    members = Members(
        weight=problem.tenant_weight[order],
        floor=floors[order],
        wanted=wanted[order],
        starts=np.searchsorted(problem.tenant_tier[order], np.arange(TIERS + 1)).astype(np.int64),
        capacity=np.array([problem.capacity]),
        guesses=np.where(np.isfinite(warm.tenants), warm.tenants, 0.0),
        machine=problem.capacity,
        parts=None if parts is None else parts[order],
    )
    return divide(members, np.array([problem.policy])), order


def _parts_of_tenants(problem: Problem, parts: Floats) -> Floats:
    """What tenants want of each resource: what their agents do, of CPU no more than their limit."""
    wanted = np.column_stack([sums(column, problem.starts[::TIERS]) for column in parts.T])
    wanted[:, 0] = np.minimum(wanted[:, 0], problem.tenant_ceiling / max(problem.capacity, 1e-9))
    return wanted


def solve(problem: Problem, warm: Warm | None = None) -> Solution:
    """Divide `problem.capacity`; `warm` is read and replaced by this solution's levels."""
    warm = warm if warm is not None else Warm()
    problem = clean(problem)
    tenants = len(problem.tenant_weight)
    wanted = np.minimum(problem.ceiling, problem.demand)
    floors = np.minimum(problem.floor, wanted)

    def groups(values: Floats) -> Floats:
        return sums(values, problem.starts).reshape(tenants, TIERS)

    group_wanted, full = groups(wanted), groups(problem.floor)
    tenant_wanted = np.minimum(problem.tenant_ceiling, group_wanted.sum(axis=1))
    reserved = np.maximum(problem.tenant_floor, groups(floors).sum(axis=1))
    parts = _parts(problem, wanted)
    of_tenants = None if parts is None else _parts_of_tenants(problem, parts)
    above, order = _tenants(problem, np.minimum(reserved, tenant_wanted), tenant_wanted, of_tenants, warm)
    tenant_share, tenant_floor = np.empty(tenants), np.empty(tenants)
    tenant_share[order], tenant_floor[order] = above.share, above.promise

    guesses = warm.groups if len(warm.groups) == tenants * TIERS else np.zeros(tenants * TIERS)
    guesses = np.where(np.isfinite(guesses), guesses, 0.0)
    members = Members(problem.weight, floors, wanted, problem.starts, tenant_share, guesses, problem.capacity, parts)
    below = divide(members, problem.tenant_policies)
    warm.tenants, warm.groups = above.level, below.level
    return Solution(
        share=below.share,
        wanted=wanted,
        promise=below.promise,
        group_share=below.budget,
        group_wanted=group_wanted,
        group_floor=groups(below.promise),
        group_reserved=full,
        group_level=below.level,
        tenant_share=tenant_share,
        tenant_wanted=tenant_wanted,
        tenant_floor=tenant_floor,
        tenant_reserved=np.maximum(problem.tenant_floor, full.sum(axis=1)),
        tenant_level=above.level,
        capacity=problem.capacity,
        slack=max(problem.capacity - float(tenant_share.sum()), 0.0),
    )
