"""The policy ``drf`` among the members of many parents: the CPU column of weighted dominant resource fairness.

Each member wants some part of the machine's CPUs, memory, I/O and network; the largest of these is its dominant
resource. Dominant fairness raises everybody's part of its own dominant resource alike, by weight, until some resource
is used up, and goes on with those that do not use that one (`agentos_native.alloc.drf`). A parent is taken to have as
large a part of every other resource as it has of the CPUs, which are all that is divided here: the controllers of the
others divide their own.

The kernel hands on CPU that somebody leaves, so a division that leaves some would be fiction: what dominant fairness
gives are *promises*, and the rest is filled by weighted max-min (`agentos_native.alloc.policies.drf`). Reservations of
CPU are kept, even where their holders' other wants exceed the machine.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agentos_native.alloc import engines
from agentos_native.alloc.members import HUNGRY, TIERS, Members, sums
from agentos_native.alloc.waterfill import Floats, Indices, Truths, segment_sum

LARGE_PARENT: Final = 1000
"""Members from which on a parent is worth a call of its own."""


def promises(members: Members) -> Floats:
    """What dominant fairness gives each member, at least its floor and at most what it wants; CPUs, shape (n,)."""
    hungry = members.tiers(members.wanted).sum(axis=1) > members.capacity
    promise = members.floor.copy()
    if hungry.any():
        part, mine = (members, slice(None)) if hungry.all() else members.of(hungry)
        promise[mine] = _promises(part)
    return promise


def _promises(members: Members) -> Floats:
    machine = max(members.machine, 1e-9)
    parts = members.parts
    if parts is None:
        parts = np.minimum(members.wanted, machine)[:, None] / machine
    most = np.zeros(len(parts))
    for column in parts.T:
        most = np.maximum(most, column)
    usage = np.asfortranarray(parts) / np.where(most > 0, most, 1.0)[:, None]
    cpu = usage[:, 0] * machine
    floor = np.divide(members.floor, cpu, out=np.zeros_like(cpu), where=cpu > 0)
    floor = np.minimum(floor, most)
    parents = len(members.capacity)
    # floors are promised: where they do not fit into a resource beside CPU it gives way
    least = np.column_stack([sums(floor * column, members.starts[::TIERS]) for column in usage.T])
    capacity = np.maximum((members.capacity / machine)[:, None], least * (1.0 + 1e-9))
    if len(floor) >= LARGE_PARENT * parents or parents == 1:
        scale = np.empty(len(floor))
        for parent in range(parents):
            starts = members.starts[parent * TIERS : (parent + 1) * TIERS + 1]
            own = slice(int(starts[0]), int(starts[-1]))
            filled = engines.drf_fill(
                members.weight[own],
                np.asfortranarray(usage[own]),
                floor[own],
                most[own],
                starts - starts[0],
                capacity[parent],
            )
            scale[own] = filled.scales
    else:
        scale = fill_many(members.weight, usage, floor, most, members.starts, capacity)
    return np.minimum(np.maximum(cpu * scale, members.floor), members.wanted)


def levels(members: Members, share: Floats, level: Floats) -> Floats:
    """The groups' levels: where somebody wants more, the share per unit weight of most of those that do.

    Where dominant fairness uses all the CPU up, that is the highest: those whose dominant resource is the CPU stand at
    it, others below. Where CPU is left and filled by weight, it is the lowest, `level`. Whoever is lifted by its floor
    does not count, unless there are no others. Shape (P · TIERS,).
    """
    hungry = share < members.wanted - HUNGRY
    free = hungry & (share > members.floor * (1.0 + 1e-9))
    group, count = members.group, len(level)
    each = share / members.weight
    highest = np.zeros(count)
    np.maximum.at(highest, group[free], each[free])
    at_highest = segment_sum(np.where(free & (each > 0.999 * highest[group]), 1.0, 0.0), group, count)
    at_level = segment_sum(np.where(free & (each < 1.001 * level[group]), 1.0, 0.0), group, count)
    return np.where(np.isfinite(level) & (highest > 0) & (at_highest > at_level), highest, level)


def _round(weight: Floats, usage: Floats, floor: Floats, ceiling: Floats, of: Indices, budget: Floats) -> Floats:
    """The level at which each parent's every resource is used up by those that use it, shape (P, m); ∞: never."""
    parents, resources = budget.shape
    users = [np.flatnonzero(usage[:, j] > 0) for j in range(resources)]
    sizes = [np.bincount(of[some], minlength=parents) for some in users]
    rates = [usage[some, j] for j, some in enumerate(users)]
    who, rate = np.concatenate(users), np.concatenate(rates)
    starts = np.append(0, np.cumsum(np.concatenate(sizes))).astype(np.int64)
    _, level = engines.waterfill(
        rate * weight[who], rate * floor[who], rate * ceiling[who], starts, budget.T.ravel(), np.zeros(budget.size)
    )
    return level.reshape(resources, parents).T


def _rise(weight: Floats, usage: Floats, floor: Floats, ceiling: Floats, of: Indices, budget: Floats) -> Floats:
    """One tier of every parent: scales, shape (n,). `budget` (P, m) has room for the floors, and is used up."""
    scale, rising = ceiling.copy(), np.arange(len(weight))
    parents, resources = budget.shape
    budget = budget.copy()
    for _ in range(resources):
        if not len(rising):
            break
        level = _round(weight[rising], usage[rising], floor[rising], ceiling[rising], of[rising], budget)
        lowest, resource = level.min(axis=1), level.argmin(axis=1)
        mine = of[rising]
        stop: Truths = np.isfinite(lowest)[mine] & (usage[rising, resource[mine]] > 0)
        some = rising[stop]
        scale[some] = np.clip(weight[some] * lowest[of[some]], floor[some], ceiling[some])
        for j in range(resources):
            budget[:, j] -= segment_sum(usage[some, j] * scale[some], of[some], parents)
        budget = np.maximum(budget, 0.0)
        rising = rising[~stop & np.isfinite(lowest)[mine]]
    return scale


def fill_many(
    weight: Floats, usage: Floats, floor: Floats, ceiling: Floats, starts: Indices, capacity: Floats
) -> Floats:
    """As `agentos_native.alloc.drf.fill` for many small parents at once: the scales, shape (n,).

    Rounds are taken together, and each is one call of the engine with a segment for each parent and resource.

    Args:
        weight, usage, floor, ceiling: of the members, as there; floors fit.
        starts: of the groups (parent · TIERS + tier), and n.
        capacity: shape (P, m).
    """
    parents, resources = capacity.shape
    group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    of, tier = group // TIERS, group % TIERS

    def use(who: Indices, scale: Floats) -> Floats:
        columns = [segment_sum(usage[who, j] * scale, of[who], parents) for j in range(resources)]
        return np.column_stack(columns)

    scale = floor.copy()
    left = np.maximum(capacity - use(np.arange(len(of)), floor), 0.0)
    for rank in range(TIERS):
        who = np.flatnonzero(tier == rank)
        if len(who):
            own = use(who, floor[who])
            scale[who] = _rise(weight[who], usage[who], floor[who], ceiling[who], of[who], left + own)
            left = np.maximum(left - (use(who, scale[who]) - own), 0.0)
    return scale
