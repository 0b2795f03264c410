"""How a parent divides among its members: the policies behind one interface, chosen for a node and for each tenant.

`divide` takes the members of many parents at once (the tenants of a node; the agents of every tenant) and the policy of
each parent. All policies have this in common: nobody gets more than it can use, nothing that somebody can use is left
over, and agents of a higher tier go before those of a lower one. They differ in what counts inside a tier, and in what
a reservation is worth:

``maxmin``
    Every reservation first; then tier by tier what is left, by weight: nobody can get more without someone who has
    less for its weight getting still less.
``priority``
    Strict tiers: a higher tier gets all it wants before a lower one gets anything, *its reservation included*. So a
    reservation holds against members of the same and of lower tiers, as a pod's requests under Kubernetes do not save
    it from being preempted for one of a higher priority class. Whoever wants the lower tiers' reservations to hold
    takes ``maxmin``, in which tiers rank what reservations leave, or gives the higher tiers limits. Inside a tier:
    ``maxmin``. A tenant's own reservation is not touched by what its agents' policy is.
``utility``
    Inside a tier, the linear programme ``max Σ w·x`` under demands, limits, reservations and what there is: all to the
    heaviest until it wants no more, then to the next. That *starves by design*: beyond their reservations, lighter
    members get nothing while a heavier one wants anything. Equal weights, between which the programme does not choose,
    share by max-min, so that the answer is unique and fair.
``drf``
    Weighted dominant resource fairness (`agentos_native.alloc.dominant`) over CPU and what else is measured; then what
    CPU is left is filled by max-min.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from agentos_native.alloc import dominant, engines
from agentos_native.alloc.members import Division, Members
from agentos_native.alloc.waterfill import Floats, Indices, Truths, segment_sum

MAXMIN, DRF, UTILITY, PRIORITY = range(4)
"""The order of `agentos_native.spec.model.POLICIES`."""

CLOSE: Final = 1e-12
"""Relative: sums that differ by less are the same."""


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


def _by_weight(members: Members, floor: Floats, floors: Floats, wanted: Floats, budgets: Floats) -> Division:
    """Weighted max-min with floors inside every tier; `floors`, `wanted`: sums of the tiers, shape (P, TIERS).

    Sums depend on the order of adding. So that a tier which has all it wants, or its floors and nothing else, is seen
    as such whatever the engine's order is, its budget is put clear of the border.
    """
    whole = budgets >= wanted * (1 - CLOSE)
    bare = ~whole & (budgets <= floors * (1 + CLOSE))
    parts = np.where(whole, np.inf, np.where(bare, np.minimum(budgets, floors * (1 - CLOSE)), budgets)).ravel()
    share, level = engines.waterfill(members.weight, floor, members.wanted, members.starts, parts, members.guesses)
    return Division(share, floor, budgets, level)


def maxmin(members: Members) -> Division:
    """Weighted max-min with floors, tier by tier."""
    floors, wanted = members.tiers(members.floor), members.tiers(members.wanted)
    return _by_weight(members, members.floor, floors, wanted, tier_budgets(members.capacity, floors, wanted))


def priority(members: Members) -> Division:
    """Strict tiers: floors count inside a tier only."""
    floors, wanted = members.tiers(members.floor), members.tiers(members.wanted)
    budgets = tier_budgets(members.capacity, np.zeros_like(wanted), wanted)
    return _by_weight(members, members.floor, floors, wanted, budgets)


@dataclass(frozen=True)
class _Classes:
    """Members of a tier that have the same weight; K of them in order of tier and falling weight.

    Attributes:
        order: of the members, shape (n,); starts: of the classes in it, and n: shape (K + 1,).
        group: of each class, shape (K,); of how many groups there are: `groups`.
    """

    order: Indices
    starts: Indices
    group: Indices
    groups: int

    @classmethod
    def of(cls, members: Members) -> _Classes:
        group = members.group
        order = np.lexsort((-members.weight, group))
        weight, group = members.weight[order], group[order]
        first = np.flatnonzero(np.append(True, (weight[1:] != weight[:-1]) | (group[1:] != group[:-1])))
        return cls(order, np.append(first, len(order)), group[first], len(members.starts) - 1)

    def sums(self, values: Floats) -> Floats:
        """Of each class; `values` in `order`."""
        sums: Floats = np.add.reduceat(values, self.starts[:-1]).astype(np.float64, copy=False)
        return sums

    def over(self, values: Floats) -> Floats:
        """Of each group; `values` of the classes."""
        return segment_sum(values, self.group, self.groups)

    def before(self, values: Floats) -> Floats:
        """Of the heavier classes in the same group."""
        running = np.append(0.0, np.cumsum(values))
        start = np.searchsorted(self.group, np.arange(self.groups))
        before: Floats = running[:-1] - running[start][self.group]
        return before


def _greedy(classes: _Classes, floors: Floats, wanted: Floats, budgets: Floats) -> tuple[Floats, Truths, Truths]:
    """What each class gets: all it wants, ∞; or what is left, the last in each tier; or its floors, the starved.

    Args:
        floors, wanted: of the classes, shape (K,).
        budgets: of the groups, shape (G,).

    Returns:
        Budgets of the classes; which of them are the last; which are starved. Shape (K,).
    """
    floor_sum = classes.over(floors)
    left = np.maximum(budgets - floor_sum, 0.0)[classes.group]
    more = np.divide(wanted - floors, left, out=np.full_like(left, 2.0), where=left > 0)
    more = np.minimum(more, 2.0)  # in units of what is left, so that running sums keep their digits
    before = classes.before(more)
    full = (left > 0) & (before + more <= 1.0)
    last = ~full & (left > 0) & (before < 1.0)
    scale = np.divide(budgets, floor_sum, out=np.ones_like(budgets), where=floor_sum > budgets)[classes.group]
    taken = classes.over(np.where(full, wanted, np.where(last, 0.0, floors)))
    rest = np.maximum((budgets - taken)[classes.group], floors)
    return np.where(full, np.inf, np.where(last, rest, floors * scale)), last, ~full & ~last & (wanted > floors)


def utility(members: Members) -> Division:
    """The linear programme, tier by tier: greedy by weight, ties by max-min.

    Sorting and running sums are NumPy's under both engines; the one class in each tier that is not all served or not
    served at all is filled by the engine in use.
    """
    budgets = tier_budgets(members.capacity, members.tiers(members.floor), members.tiers(members.wanted))
    share, level = np.zeros(len(members.weight)), np.full(budgets.size, np.inf)
    if not len(share):
        return Division(share, members.floor, budgets, level)
    classes = _Classes.of(members)
    order = classes.order
    weight, floor, wanted = members.weight[order], members.floor[order], members.wanted[order]
    parts, last, starved = _greedy(classes, classes.sums(floor), classes.sums(wanted), budgets.ravel())
    filled, levels = engines.waterfill(weight, floor, wanted, classes.starts, parts, members.guesses[classes.group])
    share[order] = filled
    level[classes.group[starved]] = 0.0  # where nobody stands between the served and the starved
    level[classes.group[last]] = levels[last]
    return Division(share, members.floor, budgets, level)


def drf(members: Members) -> Division:
    """What dominant fairness gives is everybody's floor for a division of what it leaves, by max-min."""
    promise = dominant.promises(members)
    floors, wanted = members.tiers(promise), members.tiers(members.wanted)
    filled = _by_weight(members, promise, floors, wanted, tier_budgets(members.capacity, floors, wanted))
    return replace(filled, level=dominant.levels(members, filled.share, filled.level))


@dataclass(frozen=True)
class Policy:
    """A policy under its name, with a sentence for people."""

    name: str
    divide: Callable[[Members], Division]
    sentence: str


POLICIES: Final[tuple[Policy, ...]] = (
    Policy(
        "maxmin",
        maxmin,
        "every reservation first, then by priority and weight: nobody gets more at the expense of one who has less",
    ),
    Policy(
        "drf",
        drf,
        "the part of whatever each one needs most (processor, memory, I/O, network) is made equal by weight",
    ),
    Policy(
        "utility",
        utility,
        "all to the heaviest until it wants no more, then to the next; lighter ones have their reservations only",
    ),
    Policy(
        "priority",
        priority,
        "a higher priority gets all it wants before a lower one gets anything, even its reservation",
    ),
)


def describe(name: str) -> str:
    """One sentence on what the policy does; KeyError for a name that is none."""
    return {policy.name: policy.sentence for policy in POLICIES}[name]


def divide(members: Members, policy: Indices) -> Division:
    """Divide every parent's capacity among its members by its policy; `policy` (index into `POLICIES`), shape (P,)."""
    counts = np.bincount(policy, minlength=len(POLICIES))
    used = np.flatnonzero(counts).tolist()
    if len(used) <= 1:
        return POLICIES[used[0] if used else MAXMIN].divide(members)
    whole = Division.empty(members)
    for kind in used:
        chosen = policy == kind
        part, mine = members.of(chosen)
        whole.put(POLICIES[kind].divide(part), chosen, mine)
    return whole
