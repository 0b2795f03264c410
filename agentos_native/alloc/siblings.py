"""Kernel weights of siblings that come in ranks: tenants, the tiers of a tenant, and agents under ``utility``.

Fixed ladders leak (10000 : 100 : 1 is 1 % a step), so weights are computed from the solution. Each parent's *marginal*
rank is the highest that is still hungry; those above it have what they want, and those below it have their floors
only. What the kernel must see: above, at least what they could claim; at the margin, the shares by the W-rule (see
`agentos_native.alloc.weights`); below, the floors against the margin's share.

Where lower ranks have nothing (no floors) they still weigh 1, the least there is. k of them take at most k units of
CPU, where 10000 units are the largest share among their siblings, doubled by the rounding of the unit: with up to a
hundred starved siblings that is less than 2 % of the machine; with more, weights cannot express the policy exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np

from agentos_native.alloc.members import HUNGRY
from agentos_native.alloc.waterfill import Floats, Indices, Truths, clipped, segment_sum

LOWEST, HIGHEST = 1, 10_000
"""cpu.weight's range; anything else is ERANGE."""
MARGIN: Final = 0.125
"""How far the marginal rank's weight may sink below its share where no floor needs the proportion: bursts of the ranks
above are then served at once."""
LEAK: Final = 0.005
"""Of a parent's share: what those that are to have nothing may take before the margin stops sinking."""
COARSE: Final = 32
"""A weight below this one is told in whole numbers with an error of more than some per cent."""
TINY: Final = 1e-12


def segment_max(values: Floats, segment: Indices, count: int) -> Floats:
    """The largest value of each segment, at least 0, shape (count,)."""
    result = np.zeros(count)
    np.maximum.at(result, segment, values)
    return result


def quantise(rates: Floats, lifted: Truths, unit: Floats) -> Indices:
    """Whole weights; lifted ones are rounded up, so that a reservation is never missed by rounding."""
    exact = rates / unit
    whole = np.where(lifted, np.ceil(exact - 1e-6), np.rint(exact))
    return np.minimum(np.fmax(whole, LOWEST), HIGHEST).astype(np.int64)  # fmax: not a number is the lowest


def fitting(unit: Floats, highest: Floats) -> Floats:
    """The unit doubled until the highest rate fits below 10000: whole steps, so that weights seldom change together."""
    unit = np.maximum(unit, TINY)
    steps: Floats = np.ceil(np.log2(np.maximum(highest / (unit * HIGHEST), 1.0)))
    return unit * np.exp2(steps)


def spread(unit: Floats, highest: Floats) -> Floats:
    """The unit halved as often as the highest rate allows: weight 1, the least there is, then means next to nothing."""
    room: Floats = np.floor(np.log2(np.maximum(HIGHEST * unit / np.maximum(highest, TINY), 1.0)))
    return unit / np.exp2(room)


def wake(budget: Floats, idle_share: Floats, idle_floor: Floats) -> Floats:
    """The factor on the floors of those that sleep below their reservation.

    With rates R of the others, ``r = floor · R / (budget − Σ floors)`` gives a group its floor when it wakes.
    """
    others = np.maximum(budget - idle_share, TINY)
    left = budget - idle_floor
    return np.where(left > 0.01 * others, clipped(others / np.maximum(left, TINY), 1.0, 100.0), 100.0)


@dataclass(frozen=True)
class Siblings:
    """Groups below P parents, each of some rank within its parent: shape (K,) where nothing else is said.

    Attributes:
        rank: lower goes first; any numbers.
        floor: what each has before anybody is filled by weight; reserved: all of its reservation.
        level: of those of the same parent and rank; 0 or ∞ where it says nothing.
        budget: of the parents, and `room`: what they could have beyond it, shape (P,).
        strict: parents whose lower ranks have no floors against higher ones, shape (P,).
        steep: parents with many ranks: all above the margin weigh the most there is, and are seldom rewritten. (P,).
    """

    parent: Indices
    rank: Indices
    weight: Floats
    share: Floats
    wanted: Floats
    floor: Floats
    reserved: Floats
    level: Floats
    trim: Floats
    budget: Floats
    room: Floats
    strict: Truths
    steep: Truths

    @property
    def parents(self) -> int:
        return len(self.budget)

    def beside(self, other: Siblings) -> Siblings:
        """Both, below parents of their own."""

        def both(name: str) -> Any:
            return np.concatenate([getattr(self, name), getattr(other, name)])

        parent = np.concatenate([self.parent, other.parent + self.parents])
        names = [field.name for field in fields(self) if field.name != "parent"]
        return Siblings(parent, **{name: both(name) for name in names})

    def over(self, values: Floats) -> Floats:
        """Sums of the parents, shape (P,)."""
        return segment_sum(values, self.parent, self.parents)


@dataclass(frozen=True)
class _Margin:
    """Where the margin is: the marginal rank and its level, shape (P,), and who is at, above and below it, (K,)."""

    rank: Indices
    level: Floats
    at: Truths
    above: Truths
    below: Truths


def _margin(group: Siblings) -> _Margin:
    """Each parent's marginal rank; its lowest one when nobody is hungry, with the level if its members were."""
    hungry = group.share < group.wanted - HUNGRY
    last = int(group.rank.max()) + 1
    highest = np.full(group.parents, last)
    np.minimum.at(highest, group.parent[hungry], group.rank[hungry])
    lowest = np.zeros(group.parents, dtype=np.int64)
    np.maximum.at(lowest, group.parent, group.rank)
    rank = np.where(highest < last, highest, lowest)
    at, above = group.rank == rank[group.parent], group.rank < rank[group.parent]

    taken = group.over(group.share * above)
    floors = np.where(group.strict, 0.0, group.over(group.floor * ~above))
    weights = np.maximum(group.over(group.weight * at), TINY)
    if_hungry = np.maximum(group.budget + group.room - taken - floors, 0.0) / weights
    known = at & np.isfinite(group.level)
    level = segment_max(np.where(known, group.level, 0.0), group.parent, group.parents)
    return _Margin(rank, np.maximum(np.where(level > 0, level, if_hungry), TINY), at, above, ~at & ~above)


def _claims(group: Siblings) -> Floats:
    """What each could have if its rank turned hungry, all floors of the others kept; shape (K,)."""
    ranks = int(group.rank.max()) + 1
    _, rank_of = np.unique(group.parent * ranks + group.rank, return_inverse=True)
    count = len(group.parent)
    weight = segment_sum(group.weight, rank_of, count)[rank_of]
    reserved = segment_sum(group.reserved, rank_of, count)[rank_of]
    others = np.where(group.strict[group.parent], 0.0, group.over(group.reserved)[group.parent] - reserved)
    claim = np.maximum((group.budget + group.room)[group.parent] - others, 0.0) * group.weight / weight
    return np.maximum(claim, np.maximum(group.share, group.reserved))


@dataclass(frozen=True)
class _Rates:
    """What the kernel must see, in CPUs.

    Attributes:
        rate: shape (K,); exact: which of them are not what the plain weight says; less: which are less, shape (K,).
        unit: CPUs of weight 1, shape (P,); highest: the rate that sets the scale, shape (P,).
    """

    rate: Floats
    exact: Truths
    less: Truths
    unit: Floats
    highest: Floats


def _rates(group: Siblings, margin: _Margin) -> _Rates:
    parent, at, above = group.parent, margin.at, margin.above
    void = margin.below & group.strict[parent]
    reserved, floor = np.where(void, 0.0, group.reserved), np.where(void, 0.0, group.floor)

    # only a group that has all it wants is lifted by a sleeping reservation: in another, somebody else would take it
    hungry = group.share < group.wanted - HUNGRY
    asleep = (group.share < reserved - HUNGRY) & ~hungry
    factor = wake(group.budget, group.over(group.share * asleep), group.over(reserved * asleep))
    floor = np.where(asleep, reserved * factor[parent], floor)
    plain = np.where(at, group.weight * margin.level[parent], 0.0)
    rate = np.maximum(plain, floor)
    rate = np.where(hungry, group.share, rate) * group.trim
    exact, less = np.abs(rate - plain) > plain * 1e-9, rate < plain * (1 - 1e-9)
    claim = np.maximum(group.share, reserved)
    if not group.steep.all():
        claim = np.where(group.steep[parent], claim, _claims(group))
    rate = np.where(above, claim * group.trim, rate)

    # without floors below it, the margin need not be in proportion to anything: let it sink, so that bursts above win
    floors_below = group.over(np.maximum(reserved, floor) * margin.below)
    free = (floors_below <= 0) & (group.over(above.astype(np.float64)) > 0)
    held = np.where(group.strict[parent], 0.0, group.reserved)
    held_by = segment_max(np.where(at, held / np.maximum(rate, TINY), 0.0), parent, group.parents)
    starved = group.over(np.where((group.share <= HUNGRY) & hungry | void, 1.0, 0.0))
    deepest = clipped(starved / (LEAK * HIGHEST), MARGIN, 1.0)  # a sunk margin leaks more to those below
    sink = np.where(free & ~group.steep, clipped(held_by, deepest, 1.0), 1.0)
    rate = np.where(at, rate * sink[parent], rate)

    # sleepers set the scale by what they use now; at worst they are cut to 10000 and short for one tick when they wake
    scale = np.where(asleep & ~above, group.share, rate)
    highest = segment_max(scale, parent, group.parents)
    marginal = segment_max(np.where(at, scale, 0.0), parent, group.parents)
    most = clipped(LEAK * HIGHEST * group.budget / np.maximum(starved * marginal, TINY), 1.0, 1.0 / MARGIN)
    highest = np.where(group.steep & free, np.maximum(highest, marginal * most), highest)
    return _Rates(rate, exact, less, margin.level * sink, highest)


def sibling_weights(group: Siblings) -> Indices:
    """``cpu.weight`` of every group, shape (K,)."""
    if len(group.parent) == 0:
        return np.zeros(0, dtype=np.int64)
    margin = _margin(group)
    rates = _rates(group, margin)
    unit = fitting(rates.unit, rates.highest)
    lowest = segment_max(group.rank.astype(np.float64), group.parent, group.parents)
    coarse = rates.less & (rates.rate < COARSE * unit[group.parent])
    scaled = (lowest > margin.rank) | group.steep | (group.over(np.where(coarse, 1.0, 0.0)) > 0)
    unit = np.where(scaled, spread(unit, rates.highest), unit)
    # the marginal level of a few wanders with every demand above it: where more are told in CPUs, the unit stands still
    told = group.over(np.where(rates.exact & ~margin.above & (rates.rate > 0), 1.0, 0.0))
    still = group.steep & (told > group.over(np.where(margin.at & ~rates.exact, 1.0, 0.0)))
    unit = np.where(still, np.exp2(np.ceil(np.log2(np.maximum(rates.highest, TINY) / HIGHEST))), unit)
    whole = quantise(rates.rate, rates.exact, unit[group.parent])
    return np.where(group.steep[group.parent] & margin.above, HIGHEST, whole)
