"""From shares to ``cpu.weight``: what to write so that the kernel, which fills demand by itself, arrives at them.

The kernel gives siblings their share by weight and hands on what somebody does not use. So weights are *not* made
proportional to shares, which would cap every agent at its last use; they only encode who goes before whom.

Agents (the W-rule): ``W = max(w, floor / level)``. Whoever is not lifted by its reservation keeps its own weight and
never needs a write. A reserved agent that is asleep is lifted as if it were awake, so that it is protected at the
moment it wakes and not a tick later. Under ``drf`` the floor is what dominant fairness promises, and an agent that is
held back by another resource than the CPU is told as ``share / level``, which is less than its own weight.

Tiers, tenants, and agents under ``utility``, where every weight is a rank of its own: `agentos_native.alloc.siblings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from agentos_native.alloc.hierarchy import HUNGRY, TIERS, Problem, Solution, clean
from agentos_native.alloc.policies import DRF, PRIORITY, UTILITY
from agentos_native.alloc.siblings import (
    COARSE,
    HIGHEST,
    LOWEST,
    TINY,
    Siblings,
    fitting,
    quantise,
    segment_max,
    sibling_weights,
    spread,
    wake,
)
from agentos_native.alloc.trim import Trims, valid
from agentos_native.alloc.waterfill import Floats, Indices, clipped, segment_sum, segments_of

__all__ = ["BASE", "HIGHEST", "LOWEST", "TINY", "Weights", "agent_weights", "kernel_weights"]

BASE: Final = 100
"""Kernel weight of a group without weight of its own, and of unit weight 100: leaves a factor of 100 for lifting."""


@dataclass(frozen=True)
class Weights:
    """Kernel weights, 1..10000.

    Attributes:
        agent: shape (n,).
        group: of the tiers of each tenant, shape (T, TIERS); 0 where no agent is.
        group_idle: where ``cpu.idle`` is to be 1 (then there is no weight), shape (T, TIERS).
        tenant, tenant_idle: shape (T,).
    """

    agent: Indices
    group: Indices
    group_idle: Indices
    tenant: Indices
    tenant_idle: Indices


def _room(problem: Problem, solution: Solution) -> Floats:
    """What each tenant could have beyond its share: of what nobody wants, as much as its limit allows. Shape (T,)."""
    return clipped(problem.tenant_ceiling - solution.tenant_share, 0.0, solution.slack)


def _own(weight: Floats) -> Indices:
    """The weight that was asked for, in the kernel's range."""
    return clipped(np.rint(weight), LOWEST, HIGHEST).astype(np.int64)


def agent_weights(problem: Problem, solution: Solution, trim: Floats) -> Indices:
    """Of every agent within its tenant and tier, shape (n,); `trim`: factors, shape (n,)."""
    group = segments_of(problem.starts)
    if len(group) == 0:
        return np.zeros(0, dtype=np.int64)
    alone = np.diff(problem.starts)[group] == 1  # nobody to compare with: nothing to lift it above
    ranked = (problem.tenant_policies == UTILITY)[group // TIERS]
    result = _own(problem.weight)
    if not ranked.all():
        result = np.where(alone | ranked, result, _by_w_rule(problem, solution, group, trim))
    if ranked.any():
        some = np.flatnonzero(ranked & ~alone)
        result[some] = _by_rank(problem, solution, group, trim, some)
    return result


def _by_w_rule(problem: Problem, solution: Solution, group: Indices, trim: Floats) -> Indices:
    """The W-rule for every agent, shape (n,)."""
    count = len(solution.group_level)
    weight, reserved = problem.weight, problem.floor
    budget = solution.group_share.ravel()
    hungry_group = np.isfinite(solution.group_level)
    floor_sum = segment_sum(reserved, group, count)
    # a group that has all it wants: the level it would have if all its agents woke, so that floors hold when they do
    room = np.repeat(_room(problem, solution), TIERS)
    if_hungry = np.maximum(budget + room, floor_sum) - floor_sum
    if_hungry /= np.maximum(segment_sum(weight, group, count), TINY)
    level = np.where(hungry_group, solution.group_level, if_hungry)
    level = np.where((level <= 0) & (floor_sum <= 0), 1.0, level)  # nothing to divide: by weight, should it come

    floor = np.where(hungry_group[group], np.maximum(reserved, solution.promise), reserved)
    held = (solution.share < solution.wanted - HUNGRY) & (budget > 0)[group]
    asleep = (solution.wanted < floor - HUNGRY) & hungry_group[group] & ~held
    factor = wake(
        budget,
        segment_sum(solution.share * asleep, group, count),
        segment_sum(floor * asleep, group, count),
    )
    plain = weight * level[group]
    rates = np.where(held, solution.share, np.maximum(plain, np.where(asleep, floor * factor[group], floor))) * trim
    # sleepers set the scale by what they use now; at worst they are cut to 10000 and short for one tick when they wake
    highest = segment_max(np.where(asleep, solution.share, rates), group, count)
    unit = fitting(level, highest)
    # who is held below its own weight by another resource needs a scale that can say so
    exact = np.abs(rates - plain) > plain * 1e-9
    coarse = held & (rates < plain * (1 - 1e-9)) & (rates < COARSE * unit[group])
    unit = np.where(segment_sum(coarse.astype(np.float64), group, count) > 0, spread(unit, highest), unit)
    return quantise(rates, exact, unit[group])


def _by_rank(problem: Problem, solution: Solution, group: Indices, trim: Floats, some: Indices) -> Indices:
    """Of the agents `some` of tenants under ``utility``; the heaviest go first."""
    groups, parent = np.unique(group[some], return_inverse=True)
    room = np.repeat(_room(problem, solution), TIERS)
    return sibling_weights(
        Siblings(
            parent=parent,
            rank=_falling(problem.weight[some]),
            weight=problem.weight[some],
            share=solution.share[some],
            wanted=solution.wanted[some],
            floor=solution.promise[some],
            reserved=problem.floor[some],
            level=solution.group_level[group[some]],
            trim=trim[some],
            budget=solution.group_share.ravel()[groups],
            room=room[groups],
            strict=np.zeros(len(groups), dtype=bool),
            steep=np.ones(len(groups), dtype=bool),
        )
    )


def _falling(weight: Floats) -> Indices:
    """Ranks by weight: 0 for the heaviest."""
    return np.unique(-weight, return_inverse=True)[1].astype(np.int64)


def _tenants(problem: Problem, solution: Solution, trim: Floats) -> tuple[Indices, Siblings]:
    """The tenants that have agents, and so a group, as siblings."""
    agents = np.diff(problem.starts).reshape(-1, TIERS).sum(axis=1)
    present = np.flatnonzero(agents > 0)
    tier, weight = problem.tenant_tier[present], problem.tenant_weight[present]
    ranked = problem.policy == UTILITY
    return present, Siblings(
        parent=np.zeros(len(present), dtype=np.int64),
        rank=tier * len(present) + _falling(weight) if ranked else tier,
        weight=weight,
        share=solution.tenant_share[present],
        wanted=solution.tenant_wanted[present],
        floor=solution.tenant_floor[present],
        reserved=solution.tenant_reserved[present],
        level=solution.tenant_level[tier],
        trim=trim[present],
        budget=np.array([float(solution.tenant_share.sum())]),
        room=np.array([solution.slack]),
        strict=np.array([problem.policy == PRIORITY]),
        steep=np.array([ranked]),
    )


def _groups(problem: Problem, solution: Solution, trim: Floats) -> tuple[Indices, Siblings]:
    """The groups that have agents, as siblings below their tenants."""
    present = np.flatnonzero(np.diff(problem.starts) > 0)
    share = solution.group_share.ravel()[present]
    # one group a tier: its level is its share, at unit weight BASE
    return present, Siblings(
        parent=present // TIERS,
        rank=present % TIERS,
        weight=np.full(len(present), float(BASE)),
        share=share,
        wanted=solution.group_wanted.ravel()[present],
        floor=solution.group_floor.ravel()[present],
        reserved=solution.group_reserved.ravel()[present],
        level=share / BASE,
        trim=trim.ravel()[present],
        budget=solution.tenant_share,
        room=_room(problem, solution),
        strict=problem.tenant_policies == PRIORITY,
        steep=np.zeros(len(problem.tenant_weight), dtype=bool),
    )


def _upper_weights(problem: Problem, solution: Solution, trims: Trims) -> tuple[Indices, Indices]:
    """Of the tenants' groups, shape (T,), and of the tiers' below them, shape (T, TIERS); 0 where no agent is.

    One call for both: at a few tenants its fixed cost is all there is.
    """
    tenants, above = _tenants(problem, solution, valid(trims.tenant))
    groups, below = _groups(problem, solution, valid(trims.group))
    weights = sibling_weights(above.beside(below))
    of_tenants = np.zeros(len(problem.tenant_weight), dtype=np.int64)
    of_groups = np.zeros(solution.group_share.shape, dtype=np.int64)
    of_tenants[tenants] = weights[: len(tenants)]
    of_groups.ravel()[groups] = weights[len(tenants) :]
    return of_tenants, of_groups


def kernel_weights(problem: Problem, solution: Solution, trims: Trims | None = None) -> Weights:
    """Everything that is to be written, corrected by `trims`; always in the kernel's range, whatever comes in."""
    problem = clean(problem)
    if trims is None:
        trims = Trims(
            np.ones(len(problem.weight)), np.ones(solution.group_share.shape), np.ones(len(problem.tenant_weight))
        )
    idle = TIERS - 1
    group_idle = np.zeros(solution.group_share.shape, dtype=np.int64)
    # dominant fairness may give the idle tier something before a higher one has all it wants
    group_idle[:, idle] = (solution.group_reserved[:, idle] <= 0) & (problem.tenant_policies != DRF)
    # idle groups all weigh the same (WEIGHT_IDLEPRIO): only a tenant that is alone in its tier can be one
    idlers = (problem.tenant_tier == idle) & (np.diff(problem.starts).reshape(-1, TIERS).sum(axis=1) > 0)
    alone = int(idlers.sum()) == 1 and problem.policy != DRF
    tenant_idle = (idlers & (solution.tenant_reserved <= 0) & alone).astype(np.int64)
    tenant, group = _upper_weights(problem, solution, trims)
    return Weights(
        agent=agent_weights(problem, solution, valid(trims.agent)),
        group=group,
        group_idle=group_idle,
        tenant=tenant,
        tenant_idle=tenant_idle,
    )
