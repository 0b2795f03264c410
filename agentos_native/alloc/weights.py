"""From shares to ``cpu.weight``: what to write so that the kernel, which fills demand by itself, arrives at them.

The kernel gives siblings their share by weight and hands on what somebody does not use. So weights are *not* made
proportional to shares, which would cap every agent at its last use; they only encode who goes before whom.

Agents (the W-rule): ``W = max(w, floor / level)``. Whoever is not lifted by its reservation keeps its own weight and
never needs a write. A reserved agent that is asleep is lifted as if it were awake, so that it is protected at the
moment it wakes and not a tick later.

Tiers and tenants: fixed ladders leak (10000 : 100 : 1 is 1 % a step), so they are computed from the solution. The
*marginal* tier is the highest that is still hungry; those above it have what they want and those below it have their
floors only. What the kernel must see: above, at least what they could claim; at the margin, the shares by the W-rule;
below, the floors against the margin's share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from agentos_native.alloc.hierarchy import HUNGRY, TIERS, Problem, Solution
from agentos_native.alloc.trim import Trims
from agentos_native.alloc.waterfill import Floats, Indices, Truths, segment_sum

LOWEST, HIGHEST = 1, 10_000
"""cpu.weight's range; anything else is ERANGE."""
BASE: Final = 100
"""Kernel weight of a group without weight of its own, and of unit weight 100: leaves a factor of 100 for lifting."""
MARGIN: Final = 0.125
"""How far the marginal tier's weight may sink below its share where no floor needs the proportion: bursts of the tiers
above are then served at once."""
TINY: Final = 1e-12


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


def _segment_max(values: Floats, segment: Indices, count: int) -> Floats:
    result = np.zeros(count)
    np.maximum.at(result, segment, values)
    return result


def _quantise(rates: Floats, lifted: Truths, unit: Floats) -> Indices:
    """Whole weights; lifted ones are rounded up, so that a reservation is never missed by rounding."""
    exact = rates / unit
    whole = np.where(lifted, np.ceil(exact - 1e-6), np.rint(exact))
    return np.clip(whole, LOWEST, HIGHEST).astype(np.int64)


def _fitting(unit: Floats, highest: Floats) -> Floats:
    """The unit doubled until the highest rate fits below 10000: whole steps, so that weights seldom change together."""
    unit = np.maximum(unit, TINY)
    steps: Floats = np.ceil(np.log2(np.maximum(highest / (unit * HIGHEST), 1.0)))
    return unit * np.exp2(steps)


def _spread(unit: Floats, highest: Floats) -> Floats:
    """The unit halved as often as the highest rate allows: weight 1, the least there is, then means next to nothing."""
    room: Floats = np.floor(np.log2(np.maximum(HIGHEST * unit / np.maximum(highest, TINY), 1.0)))
    return unit / np.exp2(room)


def _wake(budget: Floats, idle_share: Floats, idle_floor: Floats) -> Floats:
    """The factor on the floors of those that sleep below their reservation.

    With rates R of the others, ``r = floor · R / (budget − Σ floors)`` gives a group its floor when it wakes.
    """
    others = np.maximum(budget - idle_share, TINY)
    left = budget - idle_floor
    return np.where(left > 0.01 * others, np.clip(others / np.maximum(left, TINY), 1.0, 100.0), 100.0)


def _room(problem: Problem, solution: Solution) -> Floats:
    """What each tenant could have beyond its share: of what nobody wants, as much as its limit allows. Shape (T,)."""
    return np.clip(problem.tenant_ceiling - solution.tenant_share, 0.0, solution.slack)


def agent_weights(problem: Problem, solution: Solution, trim: Floats | None = None) -> Indices:
    """The W-rule for every agent within its tenant and tier, shape (n,); `trim`: factors, shape (n,)."""
    count = len(solution.group_level)
    group = np.repeat(np.arange(count), np.diff(problem.starts))
    if len(group) == 0:
        return np.zeros(0, dtype=np.int64)
    weight, floor = np.maximum(problem.weight, TINY), np.maximum(problem.floor, 0.0)
    budget = solution.group_share.ravel()
    floor_sum = segment_sum(floor, group, count)
    # a group that has all it wants: the level it would have if all its agents woke, so that floors hold when they do
    room = np.repeat(_room(problem, solution), TIERS)
    if_hungry = np.maximum(budget + room, floor_sum) - floor_sum
    if_hungry /= np.maximum(segment_sum(weight, group, count), TINY)
    level = np.where(np.isfinite(solution.group_level), solution.group_level, if_hungry)

    asleep = (solution.wanted < floor - HUNGRY) & np.isfinite(solution.group_level)[group]
    factor = _wake(
        budget,
        segment_sum(solution.share * asleep, group, count),
        segment_sum(floor * asleep, group, count),
    )
    plain = weight * level[group]
    rates = np.maximum(plain, np.where(asleep, floor * factor[group], floor))
    rates = rates if trim is None else rates * trim
    # sleepers set the scale by what they use now; at worst they are cut to 10000 and short for one tick when they wake
    unit = _fitting(level, _segment_max(np.where(asleep, solution.share, rates), group, count))
    whole = _quantise(rates, rates > plain * (1 + 1e-9), unit[group])
    alone = np.diff(problem.starts)[group] == 1  # nobody to compare with: nothing to lift it above
    return np.where(alone, np.clip(np.rint(weight), LOWEST, HIGHEST).astype(np.int64), whole)


@dataclass(frozen=True)
class _Siblings:
    """Groups below P parents, each in a tier of its parent: shape (K,) where nothing else is said."""

    parent: Indices
    tier: Indices
    weight: Floats
    share: Floats
    wanted: Floats
    floor: Floats  # wanted part of the reservation
    reserved: Floats  # all of it
    budget: Floats  # of the parents, shape (P,)
    room: Floats  # what the parents could have beyond it, shape (P,)
    level: Floats  # of the parents' tiers, shape (P, TIERS); 0 or ∞ where it says nothing
    trim: Floats


def _marginal_tier(group: _Siblings) -> Indices:
    """Each parent's marginal tier; its lowest one when nobody is hungry. Shape (P,)."""
    count = len(group.budget)
    hungry = group.share < group.wanted - HUNGRY
    highest = np.full(count, TIERS)
    np.minimum.at(highest, group.parent[hungry], group.tier[hungry])
    lowest = np.zeros(count, dtype=np.int64)
    np.maximum.at(lowest, group.parent, group.tier)
    return np.where(highest < TIERS, highest, lowest)


def _margin_level(group: _Siblings, marginal: Indices) -> Floats:
    """The level of each parent's marginal tier; where nobody is hungry, the one it would have if its members were."""
    count = len(group.budget)
    at = group.tier == marginal[group.parent]
    above = group.tier < marginal[group.parent]
    taken = segment_sum(group.share * above, group.parent, count)
    floors = segment_sum(group.floor * ~above, group.parent, count)
    weights = np.maximum(segment_sum(group.weight * at, group.parent, count), TINY)
    if_hungry = np.maximum(group.budget + group.room - taken - floors, 0.0) / weights
    level = group.level[np.arange(count), marginal]
    return np.maximum(np.where(np.isfinite(level) & (level > 0), level, if_hungry), TINY)


def _rates(group: _Siblings) -> tuple[Floats, Truths, Floats, Floats]:
    """What the kernel must see, in CPUs.

    Returns:
        Rates (K,); which of them are lifted (K,); the unit of weight 1 (P,); the highest rate that sets the scale (P,).
    """
    count = len(group.budget)
    parent = group.parent
    marginal = _marginal_tier(group)
    level = _margin_level(group, marginal)
    at, above = group.tier == marginal[parent], group.tier < marginal[parent]

    # only a group that has all it wants is lifted by a sleeping reservation: in another, somebody else would take it
    asleep = (group.share < group.reserved - HUNGRY) & (group.share >= group.wanted - HUNGRY)
    factor = _wake(
        group.budget,
        segment_sum(group.share * asleep, parent, count),
        segment_sum(group.reserved * asleep, parent, count),
    )
    floor = np.where(asleep, group.reserved * factor[parent], group.floor)
    plain = np.where(at, group.weight * level[parent], 0.0)
    rates = np.maximum(plain, floor) * group.trim
    lifted = rates > plain * (1 + 1e-9)

    # above: what a tier could claim if it turned hungry, all floors of others kept
    tier_of = parent * TIERS + group.tier
    tier_weight = segment_sum(group.weight, tier_of, count * TIERS)[tier_of]
    tier_reserved = segment_sum(group.reserved, tier_of, count * TIERS)[tier_of]
    others = segment_sum(group.reserved, parent, count)[parent] - tier_reserved
    claim = np.maximum((group.budget + group.room)[parent] - others, 0.0) * group.weight / tier_weight
    rates = np.where(above, np.maximum.reduce([claim, group.share, group.reserved]) * group.trim, rates)

    # without floors below it, the margin need not be in proportion to anything: let it sink, so that bursts above win
    floors_below = segment_sum(group.reserved * (~at & ~above), parent, count)
    free = (floors_below <= 0) & (segment_sum(above.astype(np.float64), parent, count) > 0)
    held = _segment_max(np.where(at, group.reserved / np.maximum(rates, TINY), 0.0), parent, count)
    sink = np.where(free, np.clip(held, MARGIN, 1.0), 1.0)
    rates = np.where(at, rates * sink[parent], rates)
    return rates, lifted, level * sink, _segment_max(np.where(asleep & ~above, group.share, rates), parent, count)


def _sibling_weights(group: _Siblings) -> Indices:
    count = len(group.budget)
    if len(group.parent) == 0:
        return np.zeros(0, dtype=np.int64)
    rates, lifted, unit, highest = _rates(group)
    unit = _fitting(unit, highest)
    lowest_tier = _segment_max(group.tier.astype(np.float64), group.parent, count)
    somebody_below = lowest_tier > _marginal_tier(group)
    unit = np.where(somebody_below, _spread(unit, highest), unit)
    return _quantise(rates, lifted, unit[group.parent])


def tenant_weights(problem: Problem, solution: Solution, trim: Floats) -> Indices:
    """Of the tenants' groups, shape (T,); 0 for a tenant without agents, which has no group."""
    agents = np.diff(problem.starts).reshape(-1, TIERS).sum(axis=1)
    present = np.flatnonzero(agents > 0)
    siblings = _Siblings(
        parent=np.zeros(len(present), dtype=np.int64),
        tier=problem.tenant_tier[present],
        weight=np.maximum(problem.tenant_weight[present], TINY),
        share=solution.tenant_share[present],
        wanted=solution.tenant_wanted[present],
        floor=solution.tenant_floor[present],
        reserved=solution.tenant_reserved[present],
        budget=np.array([float(solution.tenant_share.sum())]),
        room=np.array([solution.slack]),
        level=solution.tenant_level[None, :],
        trim=trim[present],
    )
    result = np.zeros(len(agents), dtype=np.int64)
    result[present] = _sibling_weights(siblings)
    return result


def group_weights(problem: Problem, solution: Solution, trim: Floats) -> Indices:
    """Of the tiers' groups below each tenant, shape (T, TIERS); 0 where no agent is."""
    shape = solution.group_share.shape
    present = np.flatnonzero(np.diff(problem.starts) > 0)
    parent, tier = present // TIERS, present % TIERS
    share = solution.group_share.ravel()[present]
    # one group a tier: its level is its share, at unit weight BASE
    siblings = _Siblings(
        parent=parent,
        tier=tier,
        weight=np.full(len(present), float(BASE)),
        share=share,
        wanted=solution.group_wanted.ravel()[present],
        floor=solution.group_floor.ravel()[present],
        reserved=solution.group_reserved.ravel()[present],
        budget=solution.tenant_share,
        room=_room(problem, solution),
        level=solution.group_share / BASE,
        trim=trim.ravel()[present],
    )
    result = np.zeros(shape[0] * TIERS, dtype=np.int64)
    result[present] = _sibling_weights(siblings)
    return result.reshape(shape)


def kernel_weights(problem: Problem, solution: Solution, trims: Trims | None = None) -> Weights:
    """Everything that is to be written, corrected by `trims`."""
    if trims is None:
        trims = Trims(
            np.ones(len(problem.weight)), np.ones(solution.group_share.shape), np.ones(len(problem.tenant_weight))
        )
    idle = TIERS - 1
    group_idle = np.zeros(solution.group_share.shape, dtype=np.int64)
    group_idle[:, idle] = solution.group_reserved[:, idle] <= 0
    # idle groups all weigh the same (WEIGHT_IDLEPRIO): only a tenant that is alone in its tier can be one
    idlers = (problem.tenant_tier == idle) & (np.diff(problem.starts).reshape(-1, TIERS).sum(axis=1) > 0)
    tenant_idle = (idlers & (solution.tenant_reserved <= 0) & (idlers.sum() == 1)).astype(np.int64)
    return Weights(
        agent=agent_weights(problem, solution, trims.agent),
        group=group_weights(problem, solution, trims.group),
        group_idle=group_idle,
        tenant=tenant_weights(problem, solution, trims.tenant),
        tenant_idle=tenant_idle,
    )
