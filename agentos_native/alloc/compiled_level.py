"""How far the agents of one tier can rise, compiled: the inner part of `agentos_native.alloc.compiled_drf`.

The level of the last answer is nearly right, so one pass takes two levels at once,
the ends of a narrow bracket around it, and sums what the agents of the tier use at both (`sweep`). In between, an
agent's scale is a straight line unless one of its two bends (floor/w, ceiling/w) lies inside; those few are noted.
Everybody else's use is then interpolated exactly, and Newton's method runs over the few only (`_settle`). The second
pass writes the scales. A level outside the bracket costs another sweep, of a wider bracket at a better place.

No pass divides, and none branches on an agent, so all vectorise (see `blocks`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from agentos_native.alloc.blocks import BLOCK, BRACKET, Reals, helper, note, vectorised
from agentos_native.alloc.drf import EPSILON, MAX_STEPS
from agentos_native.alloc.waterfill import Floats, Indices

WIDEST: Final = 0.5
FEW: Final = 8
"""Bends in fewer than one agent of so many are settled at once; else a narrower sweep is cheaper, twice at most."""


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
def sweep(
    agents: Any, begin: int, end: int, low: float, high: float, sums: Floats, inside: Indices, floors_too: bool
) -> np.int64:
    """Use of each resource at both ends of a bracket, in `sums` rows 0 and 1 (row 2: at the floors); notes the bent."""
    weights, columns, floors, ceilings = agents
    real = weights.dtype.type
    bent = np.zeros(BLOCK, np.int8)
    words = bent.view(np.int64)
    at_low, at_high = np.empty(BLOCK, weights.dtype), np.empty(BLOCK, weights.dtype)
    count = np.int64(0)
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
def totals(columns: Reals, values: Reals, begin: int, end: int, sums: Floats) -> None:
    """Use of each resource when agents stand at `values`."""
    sums[:] = 0.0
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        for j in range(len(columns)):
            sums[j] += _dot(columns[j, first:last], values[first:last])


@helper
def all_use(column: Reals) -> bool:
    none = 0
    for i in range(len(column)):
        none += column[i] <= 0
    return none == 0


@helper
def fits(use: Floats, budget: Floats) -> bool:
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
    for j in range(m):
        line[0, j], line[1, j] = sums[0, j], sums[1, j] - sums[0, j]
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
def _settle(agents: Any, inside: Indices, low: float, high: float, sums: Floats, budget: Floats) -> Any:
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
        if fits(at[0], budget):
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
def search(
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
    never = len(budget) == 0  # not a literal: a helper is compiled once more for each
    for _ in range(MAX_STEPS):
        if count < 0:
            left = np.float64(real(max(level * (1.0 - width), low)))
            right = np.float64(real(min(level * (1.0 + width), high)))
            count = sweep(agents, begin, end, left, right, sums, inside, never)
        over, under = not fits(sums[0], budget), fits(sums[1], budget)
        if over:
            unsure, high = False, left
            if high <= low or left >= right:
                return low, _most_overdrawn(sums[0], budget)
        elif under:
            if unsure:
                totals(columns, ceilings, begin, end, sums[2])
                if fits(sums[2], budget):
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
def first_guess(agents: Any, begin: int, end: int, budget: Floats, low: float, guesses: Floats, sums: Floats) -> float:
    """The lowest earlier level that may still come; without one, the level if there were no floors and ceilings."""
    guess = np.inf
    for j in range(len(guesses)):
        if guesses[j] > low:
            guess = min(guess, guesses[j])
    if guess < np.inf:
        return guess
    totals(agents[1], agents[0], begin, end, sums[2])
    for j in range(len(budget)):
        if sums[2, j] > 0 and budget[j] > 0:
            guess = min(guess, budget[j] / sums[2, j])
    return max(guess, low * (1.0 + BRACKET)) if 0.0 < guess < np.inf else _between(low, np.inf)
