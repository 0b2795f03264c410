"""The numba engine of `agentos_native.alloc.drf`: two passes over memory in the usual case, one thread, no GIL.

How it gets along with two passes. The level of the last answer is nearly right, so one pass takes two levels at once,
the ends of a narrow bracket around it, and sums what the agents of the tier use at both (`_sweep`). In between, an
agent's scale is a straight line unless one of its two bends (floor/w, ceiling/w) lies inside; those few are noted.
Everybody else's use is then interpolated exactly, and Newton's method runs over the few only (`_settle`). The second
pass writes the scales. A level outside the bracket costs another sweep, of a wider bracket at a better place.

No pass divides, and none branches on an agent, so all vectorise (see `blocks`).

Several tiers are swept before the first is settled, since a tier may use what the *floors* of later ones leave.
Agents that do not use the resource that ran out first go on as a compacted copy (`_go_on`).

A precision is compiled, or loaded from the cache, when it is first used (`kernel`).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numba import njit

from agentos_native.alloc.blocks import BLOCK, BRACKET, Reals, clip, helper, note, vectorised
from agentos_native.alloc.drf import EPSILON, MAX_STEPS, Filled
from agentos_native.alloc.waterfill import LARGE, Floats, Indices

WIDEST: Final = 0.5
FEW: Final = 8
"""Bends in fewer than one agent of so many are settled at once; else a narrower sweep is cheaper, twice at most."""

_AGENTS: Final = "f{0}[::1], f{0}[:, ::1], f{0}[::1], f{0}[::1]"
_FILL: Final = f"b1({_AGENTS}, i8[::1], f8[::1], f8[:, ::1], b1, f{{0}}[::1], f8[:, ::1], f8[::1])"


@vectorised
def _bend(
    weights: Reals, floors: Reals, ceilings: Reals, low: float, high: float, at_low: Reals, at_high: Reals, bent: Reals
) -> None:
    """The scales at both ends of the bracket, and whether the line between them is not straight."""
    for i in range(len(weights)):
        floor, ceiling = floors[i], ceilings[i]
        x, y = weights[i] * low, weights[i] * high
        bent[i] = ((x < floor) | (y > ceiling)) & (x < ceiling) & (y > floor)
        x = x if x > floor else floor
        y = y if y > floor else floor
        at_low[i] = x if x < ceiling else ceiling
        at_high[i] = y if y < ceiling else ceiling


@vectorised
def _dot(one: Reals, other: Reals) -> Any:
    total = one.dtype.type(0)
    for i in range(len(one)):
        total += one[i] * other[i]
    return total


@vectorised
def _dots(one: Reals, other: Reals, at_low: Reals, at_high: Reals) -> Any:
    """Two columns at once: each scale is loaded half as often."""
    none = one.dtype.type(0)
    one_low, one_high, other_low, other_high = none, none, none, none
    for i in range(len(one)):
        one_low += one[i] * at_low[i]
        one_high += one[i] * at_high[i]
        other_low += other[i] * at_low[i]
        other_high += other[i] * at_high[i]
    return one_low, one_high, other_low, other_high


@helper
def _sweep(
    agents: Any, begin: int, end: int, low: float, high: float, sums: Floats, inside: Indices, floors_too: bool
) -> int:
    """Use of each resource at both ends of a bracket, in `sums` rows 0 and 1 (row 2: at the floors); notes the bent."""
    weights, columns, floors, ceilings = agents
    real = weights.dtype.type
    bent = np.zeros(BLOCK, np.int8)
    words = bent.view(np.int64)
    at_low, at_high = np.empty(BLOCK, weights.dtype), np.empty(BLOCK, weights.dtype)
    count = 0
    sums[: 3 if floors_too else 2] = 0.0
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        size = last - first
        if size < BLOCK:
            bent[:] = 0
        block = floors[first:last]
        _bend(weights[first:last], block, ceilings[first:last], real(low), real(high), at_low, at_high, bent)
        for j in range(0, len(columns), 2):
            k = min(j + 1, len(columns) - 1)
            one, other = columns[j, first:last], columns[k, first:last]
            one_low, one_high, other_low, other_high = _dots(one, other, at_low, at_high)
            sums[0, j] += one_low
            sums[1, j] += one_high
            if k > j:
                sums[0, k] += other_low
                sums[1, k] += other_high
            if floors_too:
                at_floors = _dots(one, other, block, block)
                sums[2, j] += at_floors[0]
                sums[2, k] += at_floors[2] if k > j else 0.0
        count = note(words, bent, first, inside, count)
    return count


@helper
def _totals(columns: Reals, values: Reals, begin: int, end: int, sums: Floats) -> None:
    """Use of each resource when agents stand at `values`."""
    sums[:] = 0.0
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        for j in range(len(columns)):
            sums[j] += _dot(columns[j, first:last], values[first:last])


@helper
def _all_use(column: Reals) -> bool:
    none = 0
    for i in range(len(column)):
        none += column[i] <= 0
    return none == 0


@helper
def _fits(use: Floats, budget: Floats) -> bool:
    over = 0
    for j in range(len(use)):
        over += use[j] > budget[j]
    return over == 0


@helper
def _most_overdrawn(use: Floats, budget: Floats) -> int:
    worst, resource = -np.inf, 0
    for j in range(len(use)):
        ratio = use[j] / max(budget[j], 1e-300)
        if ratio > worst:
            worst, resource = ratio, j
    return resource


@helper
def _between(low: float, high: float) -> float:
    """A point inside a bracket, by ratio where it spans several binary orders."""
    if high == np.inf:
        return max(16.0 * low, 1.0)
    if low == 0.0:
        return high / 16.0
    return np.sqrt(low) * np.sqrt(high) if high > 4.0 * low else low + 0.5 * (high - low)


@helper
def _secant(low: float, high: float, sums: Floats, budget: Floats) -> float:
    """Where the first resource runs out if all go on as between the bracket's ends."""
    lowest = np.inf
    for j in range(len(budget)):
        rise = sums[1, j] - sums[0, j]
        if rise > 0:
            lowest = min(lowest, low + (budget[j] - sums[0, j]) / rise * (high - low))
    return lowest


@helper
def _take_out(agents: Any, inside: Indices, low: float, high: float, sums: Floats) -> tuple[Floats, Floats]:
    """The bent agents as a matrix of doubles (rows: weight, floor, ceiling, then usage), and all others' straight
    lines: their use at the bracket's low end, and by how much it rises for each unit of level."""
    weights, columns, floors, ceilings = agents
    real, m, count = weights.dtype.type, len(columns), len(inside)
    few, line = np.empty((3 + m, count)), np.empty((2, m))
    line[0], line[1] = sums[0], sums[1] - sums[0]
    for k in range(count):
        i = inside[k]
        few[0, k], few[1, k], few[2, k] = weights[i], floors[i], ceilings[i]
        at_low = min(max(weights[i] * real(low), floors[i]), ceilings[i])
        at_high = min(max(weights[i] * real(high), floors[i]), ceilings[i])
        rise = np.float64(at_high) - np.float64(at_low)
        for j in range(m):
            few[3 + j, k] = columns[j, i]
            line[0, j] -= few[3 + j, k] * at_low
            line[1, j] -= few[3 + j, k] * rise
    for j in range(m):
        line[1, j] = max(line[1, j], 0.0) / (high - low)
    return few, line


@vectorised
def _evaluate(few: Floats, line: Floats, rise: float, level: float, moving: Floats, at: Floats) -> None:
    """`at` rows: use of each resource at `level` (`rise` above the bracket's low end), slopes to its right and left."""
    weights, floors, ceilings = few[0], few[1], few[2]
    scales, right, left = moving[0], moving[1], moving[2]
    for k in range(len(weights)):
        linear = weights[k] * level
        scales[k] = min(max(linear, floors[k]), ceilings[k])
        right[k] = weights[k] * ((linear >= floors[k]) & (linear < ceilings[k]))
        left[k] = weights[k] * ((linear > floors[k]) & (linear <= ceilings[k]))
    for j in range(line.shape[1]):
        column = few[3 + j]
        at[0, j] = line[0, j] + line[1, j] * rise + _dot(column, scales)
        at[1, j] = line[1, j] + _dot(column, right)
        at[2, j] = line[1, j] + _dot(column, left)


@helper
def _candidate(at: Floats, budget: Floats) -> tuple[float, int]:
    """The lowest of all resources' Newton steps, and whose it is; −∞ where one is overdrawn on a flat piece."""
    lowest, resource = np.inf, 0
    for j in range(len(budget)):
        surplus = at[0, j] - budget[j]
        slope = at[2, j] if surplus > 0 else at[1, j]
        step = -surplus / slope if slope > 0 else (-np.inf if surplus > 0 else np.inf)
        if step < lowest:
            lowest, resource = step, j
    return lowest, resource


@helper
def _settle(
    agents: Any, inside: Indices, low: float, high: float, sums: Floats, budget: Floats
) -> Any:
    """The level inside a bracket at which the first resource runs out, and which; `sums` row 0: the use at it."""
    few, line = _take_out(agents, inside, low, high, sums)
    moving, at = np.empty((3, len(inside))), np.empty((3, len(budget)))
    base, level, resource = low, _secant(low, high, sums, budget), 0
    level = level if low < level < high else low + 0.5 * (high - low)
    step = 0.0
    for _ in range(MAX_STEPS):
        _evaluate(few, line, level - base, level, moving, at)
        step, resource = _candidate(at, budget)
        surplus = at[0, resource] - budget[resource]
        if abs(step) <= EPSILON * level:
            break
        if step < np.inf and abs(surplus) <= EPSILON * budget[resource]:
            step = 0.0
            break
        if _fits(at[0], budget):
            low = level
        else:
            high = level
        candidate = level + step if low < level + step < high else low + 0.5 * (high - low)
        step = 0.0
        if not low < candidate < high:
            break
        level = candidate
    for j in range(len(budget)):
        sums[0, j] = at[0, j] + step * at[1, j]
    return level + step, resource


@helper
def _search(
    agents: Any, begin: int, end: int, budget: Floats, low: float, swept: Any, sums: Floats, inside: Indices
) -> tuple[float, int]:
    """The highest level from `low` on that no resource forbids, and which forbids more (−1: none).

    Args:
        swept: a guess; if a sweep around it was already made, its bracket and how many it noted, else −1 for that.
        sums: of that sweep; afterwards row 0 holds the use of each resource at the answer.
    """
    weights, columns, _, ceilings = agents
    real = weights.dtype.type
    level, left, right, count = swept[0], swept[1], swept[2], int(swept[3])  # no count: no sweep yet
    high, width, unsure, narrowed = np.inf, BRACKET, True, 0
    for _ in range(MAX_STEPS):
        if count < 0:
            left = np.float64(real(max(level * (1.0 - width), low)))
            right = np.float64(real(min(level * (1.0 + width), high)))
            count = _sweep(agents, begin, end, left, right, sums, inside, np.bool_(False))
        over, under = not _fits(sums[0], budget), _fits(sums[1], budget)
        if over:
            unsure, high = False, left
            if high <= low or left >= right:
                return low, _most_overdrawn(sums[0], budget)
        elif under:
            if unsure:
                _totals(columns, ceilings, begin, end, sums[2])
                if _fits(sums[2], budget):
                    sums[0] = sums[2]
                    return np.inf, -1
            unsure, low = False, right
        else:
            if count * FEW <= end - begin + BLOCK or narrowed == 2:
                answer: tuple[float, int] = _settle(agents, inside[:count], left, right, sums, budget)
                return answer
            low, high, narrowed = left, right, narrowed + 1
        width = min(4.0 * width, WIDEST) if over or under else BRACKET
        level = _secant(left, right, sums, budget)
        if not low < level < high or level > 64.0 * right:
            level = _between(low, high)
        count = -1
    return low, _most_overdrawn(sums[1], budget)


@helper
def _first_guess(agents: Any, begin: int, end: int, budget: Floats, low: float, guesses: Floats, sums: Floats) -> float:
    """The lowest earlier level that may still come; without one, the level if there were no floors and ceilings."""
    guess = np.inf
    for j in range(len(guesses)):
        if guesses[j] > low:
            guess = min(guess, guesses[j])
    if guess < np.inf:
        return guess
    _totals(agents[1], agents[0], begin, end, sums[2])
    for j in range(len(budget)):
        if sums[2, j] > 0 and budget[j] > 0:
            guess = min(guess, budget[j] / sums[2, j])
    return max(guess, low * (1.0 + BRACKET)) if 0.0 < guess < np.inf else _between(low, np.inf)


@helper
def _compact(
    agents: Any, begin: int, end: int, shut: Any, scales: Reals, left: Floats, index: Indices
) -> Any:
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
    shut = levels < np.inf
    none = np.int64(0)  # typed: a helper is compiled once more for a literal
    index, sums = np.empty(end - begin + 1, np.int32), np.empty((3, len(budget)))
    inside, swept = np.empty(end - begin, np.int32), np.full(4, -1.0)
    while True:
        left = budget.copy()
        some = _compact(agents, begin, end, shut, scales, left, index)
        size = len(some[0])
        if size == 0:
            return
        swept[0] = _first_guess(some, none, size, left, level, guesses, sums)
        level, resource = _search(some, none, size, left, level, swept, sums, inside)
        if resource >= 0:
            levels[resource], shut[resource] = level, True
        for k in range(size):
            scales[index[k]] = min(max(some[0][k] * level, some[2][k]), some[3][k])
        if resource < 0:
            return


@helper
def _tier(
    agents: Any, begin: int, end: int, budget: Floats, closed: Any, guesses: Floats, swept: Floats, sums: Floats,
    inside: Indices, scales: Reals, levels: Floats
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
            if closed[j] and _all_use(columns[j, begin:end]):
                sums[0] = sums[2]
                return
    else:
        if swept[3] < 0:
            if swept[3] > -2.0:
                _totals(columns, ceilings, begin, end, sums[0])
            if _fits(sums[0], budget):
                scales[begin:end] = ceilings[begin:end]
                return
            swept[0] = _first_guess(agents, begin, end, budget, 0.0, guesses, sums)
        level, resource = _search(agents, begin, end, budget, 0.0, swept, sums, inside)
        if resource < 0:
            scales[begin:end] = ceilings[begin:end]
            return
        levels[resource] = level
        part = slice(begin, end)
        if _all_use(columns[resource, part]):
            clip(weights[part], floors[part], ceilings[part], weights.dtype.type(level), scales[part])
            return
        for i in range(begin, end):  # not with a rounded level: its error would add up in what is left for the others
            scales[i] = min(max(weights[i] * level, floors[i]), ceilings[i])
    _go_on(agents, begin, end, budget, level, guesses, scales, levels)
    _totals(columns, scales, begin, end, sums[0])


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
        swept[3] = _sweep(agents, begin, end, left, right, sums, inside, later)
    elif guess == np.inf and not later:
        _totals(agents[1], agents[3], begin, end, sums[0])
        swept[3] = -2.0
    else:
        _totals(agents[1], agents[2], begin, end, sums[2])


@helper
def _presume(swept: Floats, sums: Floats, capacity: Floats) -> tuple[int, bool]:
    """The first tier that did not have all last time, and whether those before it may have all again: with what it
    takes at least, and the floors of those after it. Then all floors fit, too."""
    tiers, use = len(swept), np.zeros(len(capacity))
    first = 0
    while first < tiers and swept[first, 3] == -2.0:
        first += 1
    for t in range(tiers):
        use += sums[t, 0] if t < first or (t == first and swept[t, 3] >= 0) else sums[t, 2]
    return first, _fits(use, capacity)


def _fill(
    weights: Reals, columns: Reals, floors: Reals, ceilings: Reals, starts: Indices, capacity: Floats, guesses: Floats,
    scaled: bool, scales: Reals, levels: Floats, used: Floats
) -> bool:  # fmt: skip
    """True, and nothing done, if the floors do not fit, unless they are `scaled` to fit already."""
    agents = (weights, columns, floors, ceilings)
    tiers, m = len(starts) - 1, len(capacity)
    inside = np.empty(len(weights), np.int32)
    sums, after, swept = np.empty((tiers, 3, m)), np.zeros((tiers + 1, m)), np.full((tiers, 4), -1.0)
    later = False
    for t in range(tiers):
        begin, end = starts[t], starts[t + 1]
        _sum_tier(agents, begin, end, guesses[t], swept[t], sums[t], inside[begin:end], later)
        later |= swept[t, 3] != -2.0
    first, granted = _presume(swept, sums, capacity)
    for t in range(tiers - 1, -1, -1):
        if t <= first and not granted and swept[t, 3] != -1.0:
            _totals(columns, floors, starts[t], starts[t + 1], sums[t, 2])
        after[t] = after[t + 1] + sums[t, 2]
    if not granted and not scaled and not _fits(after[0], capacity):
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
        used += sums[t, 0]
        closed |= levels[t] < np.inf
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
