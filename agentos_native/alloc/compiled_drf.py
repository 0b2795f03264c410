"""The numba engine of `agentos_native.alloc.drf`: two passes over memory in the usual case, one thread, no GIL.

The level of a tier is found by `compiled_level` in one pass, if it is near that of the last answer; a second pass
writes the scales.

Several tiers are swept before the first is settled, since a tier may use what the *floors* of later ones leave.
Agents that do not use the resource that ran out first go on as a compacted copy (`_go_on`).

A precision is compiled, or loaded from the cache, when it is first used (`kernel`).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numba import njit

from agentos_native.alloc.blocks import BRACKET, Reals, clip, helper
from agentos_native.alloc.compiled_level import all_use, first_guess, fits, search, sweep, totals
from agentos_native.alloc.drf import Filled
from agentos_native.alloc.waterfill import LARGE, Floats, Indices

_AGENTS: Final = "f{0}[::1], f{0}[:, ::1], f{0}[::1], f{0}[::1]"
_FILL: Final = f"b1({_AGENTS}, i8[::1], f8[::1], f8[:, ::1], b1, f{{0}}[::1], f8[:, ::1], f8[::1])"


@helper
def _compact(agents: Any, begin: int, end: int, shut: Any, scales: Reals, left: Floats, index: Indices) -> Any:
    """Copies of those that use no resource that is `shut`; what the others use at `scales` is taken from `left`."""
    weights, columns, floors, ceilings = agents
    count, m = 0, len(columns)
    for i in range(begin, end):
        stays = True
        for j in range(m):
            stays &= not (shut[j] and columns[j, i] > 0)
        index[count] = i
        count += stays
        if not stays:
            for j in range(m):
                left[j] -= np.float64(columns[j, i]) * scales[i]
    kept = index[:count]
    usage = np.empty((m, count), weights.dtype)
    for j in range(m):
        left[j] = max(left[j], 0.0)
        column = columns[j]
        for k in range(count):
            usage[j, k] = column[kept[k]]
    return weights[kept], usage, floors[kept], ceilings[kept]


@helper
def _go_on(
    agents: Any, begin: int, end: int, budget: Floats, level: float, guesses: Floats, scales: Reals, levels: Floats
) -> None:
    """The rounds of a tier after its first: whoever uses no resource with a level yet rises on, `scales` says so."""
    shut = np.empty(len(levels), np.bool_)
    for j in range(len(levels)):
        shut[j] = levels[j] < np.inf
    none = np.int64(0)  # typed: a helper is compiled once more for a literal
    index, sums = np.empty(end - begin + 1, np.int32), np.empty((3, len(budget)))
    inside, swept = np.empty(end - begin, np.int32), np.full(4, -1.0)
    while True:
        left = budget.copy()
        some = _compact(agents, begin, end, shut, scales, left, index)
        size = len(some[0])
        if size == 0:
            return
        swept[0] = first_guess(some, none, size, left, level, guesses, sums)
        level, resource = search(some, none, size, left, level, swept, sums, inside)
        if resource >= 0:
            levels[resource], shut[resource] = level, True
        for k in range(size):
            scales[index[k]] = min(max(some[0][k] * level, some[2][k]), some[3][k])
        if resource < 0:
            return


@helper
def _tier(
    agents: Any,
    begin: int,
    end: int,
    budget: Floats,
    closed: Any,
    guesses: Floats,
    swept: Floats,
    sums: Floats,
    inside: Indices,
    scales: Reals,
    levels: Floats,
) -> None:
    """One tier: its agents' scales, and its resources' levels; `sums` row 0: what it uses. The budget includes the
    tier's floors (use of them: `sums` row 2, where something is closed); of what is closed nothing is left beyond."""
    weights, columns, floors, ceilings = agents
    level = 0.0
    for j in range(len(budget)):
        levels[j] = 0.0 if closed[j] else np.inf
    if closed.any():
        scales[begin:end] = floors[begin:end]
        for j in range(len(budget)):
            if closed[j] and all_use(columns[j, begin:end]):
                sums[0] = sums[2]
                return
    else:
        if swept[3] < 0:
            if swept[3] > -2.0:
                totals(columns, ceilings, begin, end, sums[0])
            if fits(sums[0], budget):
                scales[begin:end] = ceilings[begin:end]
                return
            swept[0] = first_guess(agents, begin, end, budget, 0.0, guesses, sums)
        level, resource = search(agents, begin, end, budget, 0.0, swept, sums, inside)
        if resource < 0:
            scales[begin:end] = ceilings[begin:end]
            return
        levels[resource] = level
        part = slice(begin, end)
        if all_use(columns[resource, part]):
            clip(weights[part], floors[part], ceilings[part], weights.dtype.type(level), scales[part])
            return
        for i in range(begin, end):  # not with a rounded level: its error would add up in what is left for the others
            scales[i] = min(max(weights[i] * level, floors[i]), ceilings[i])
    _go_on(agents, begin, end, budget, level, guesses, scales, levels)
    totals(columns, scales, begin, end, sums[0])


@helper
def _sum_tier(
    agents: Any, begin: int, end: int, guesses: Floats, swept: Floats, sums: Floats, inside: Indices, later: bool
) -> None:
    """What a tier uses, summed before any is settled: at its ceilings if it had all last time (`swept` ends in −2), at
    a bracket around its level if it had one (the floors too if it is a `later` tier), else at its floors (−1)."""
    real = agents[0].dtype.type
    guess = np.inf
    for j in range(len(guesses)):
        guess = min(guess, guesses[j])
    sums[2] = -1.0
    if 0.0 < guess < np.inf:
        left, right = np.float64(real(guess * (1.0 - BRACKET))), np.float64(real(guess * (1.0 + BRACKET)))
        swept[0], swept[1], swept[2] = guess, left, right
        swept[3] = sweep(agents, begin, end, left, right, sums, inside, later)
    elif guess == np.inf and not later:
        totals(agents[1], agents[3], begin, end, sums[0])
        swept[3] = -2.0
    else:
        totals(agents[1], agents[2], begin, end, sums[2])


@helper
def _presume(swept: Floats, sums: Floats, capacity: Floats) -> tuple[int, bool]:
    """The first tier that did not have all last time, and whether those before it may have all again: with what it
    takes at least, and the floors of those after it. Then all floors fit, too."""
    tiers, use = len(swept), np.zeros(len(capacity))
    first = 0
    while first < tiers and swept[first, 3] == -2.0:
        first += 1
    for t in range(tiers):
        row = 0 if t < first or (t == first and swept[t, 3] >= 0) else 2
        for j in range(len(use)):
            use[j] += sums[t, row, j]
    return first, fits(use, capacity)


def _fill(
    weights: Reals, columns: Reals, floors: Reals, ceilings: Reals, starts: Indices, capacity: Floats, guesses: Floats,
    scaled: bool, scales: Reals, levels: Floats, used: Floats
) -> bool:  # fmt: skip
    """True, and nothing done, if the floors do not fit, unless they are `scaled` to fit already."""
    agents = (weights, columns, floors, ceilings)
    tiers, m = len(starts) - 1, len(capacity)
    inside = np.empty(len(weights), np.int32)
    sums, after, swept = np.empty((tiers, 3, m)), np.zeros((tiers + 1, m)), np.full((tiers, 4), -1.0)
    later = tiers == 0  # not a literal: a helper is compiled once more for each
    for t in range(tiers):
        begin, end = starts[t], starts[t + 1]
        _sum_tier(agents, begin, end, guesses[t], swept[t], sums[t], inside[begin:end], later)
        later |= swept[t, 3] != -2.0
    first, granted = _presume(swept, sums, capacity)
    for t in range(tiers - 1, -1, -1):
        if t <= first and not granted and swept[t, 3] != -1.0:
            totals(columns, floors, starts[t], starts[t + 1], sums[t, 2])
        for j in range(m):
            after[t, j] = after[t + 1, j] + sums[t, 2, j]
    if not granted and not scaled and not fits(after[0], capacity):
        return True
    used[:] = 0.0
    closed, budget = np.zeros(m, np.bool_), np.empty(m)
    for t in range(tiers):
        begin, end = starts[t], starts[t + 1]
        if granted and t < first:
            scales[begin:end], levels[t] = ceilings[begin:end], np.inf
        else:
            for j in range(m):
                budget[j] = max(capacity[j] - used[j] - after[t + 1, j], 0.0)
                closed[j] |= budget[j] <= sums[t, 2, j]
            part = inside[begin:end]
            _tier(agents, begin, end, budget, closed, guesses[t], swept[t], sums[t], part, scales, levels[t])
        for j in range(m):
            used[j] += sums[t, 0, j]
            closed[j] |= levels[t, j] < np.inf
    return False


@cache
def kernel(real: type[np.floating[Any]]) -> Any:
    """The compiled `_fill` of one precision: compiled, or loaded from the cache, at the first call for it."""
    return njit(_FILL.format(np.dtype(real).itemsize), cache=True, nogil=True)(_fill)


def fill(
    weights: Reals,
    usage: Reals,
    floors: Reals,
    ceilings: Reals,
    starts: Indices,
    capacity: Floats,
    guesses: Floats | None = None,
    scales: Reals | None = None,
) -> Filled:
    """As `agentos_native.alloc.drf.fill`, in the precision of `weights` (float64 or float32).

    Args:
        usage: in Fortran order it is read where it lies; else it is copied.
        scales: where to put the scales; None: a new array.
    """
    real = np.float32 if weights.dtype == np.float32 else np.float64
    weights, columns = np.ascontiguousarray(weights, real), np.ascontiguousarray(usage.T, real)
    floors, ceilings = np.ascontiguousarray(floors, real), np.ascontiguousarray(ceilings, real)
    tiers, m = len(starts) - 1, len(capacity)
    capacity = np.array([min(value, LARGE) if value > 0 else 0.0 for value in map(float, capacity)])
    guesses = np.zeros((tiers, m)) if guesses is None else np.ascontiguousarray(guesses, np.float64)
    starts = np.ascontiguousarray(starts, np.int64)
    scales = np.empty(len(weights), real) if scales is None else scales
    levels, used = np.empty((tiers, m)), np.empty(m)
    given = (weights, columns, floors, ceilings, starts, capacity, guesses)
    compiled = kernel(real)
    if not compiled(*given, False, scales, levels, used):
        return Filled(scales, levels, used, np.zeros(m, dtype=np.bool_))
    short = np.array([np.dot(column, floors) for column in columns], dtype=np.float64) > capacity
    alike, everybody = np.where(floors > 0, floors, real(1)), np.array([0, len(weights)])
    fitting, none = np.empty_like(floors), np.zeros((1, m))
    compiled(alike, columns, np.zeros_like(floors), floors, everybody, capacity, none, True, fitting, none.copy(), used)
    compiled(weights, columns, fitting, ceilings, starts, capacity, guesses, True, scales, levels, used)
    return Filled(scales, levels, used, short)
