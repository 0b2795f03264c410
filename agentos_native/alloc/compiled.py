"""The numba engine of `agentos_native.alloc.waterfill`: compiled once, cached on disk, on one thread, without the GIL.

A long segment with a level of last time takes two passes over memory. The first sums the shares at two levels at once,
the ends of a narrow bracket around that level (`_sweep`). In between a share is a straight line unless one of its two
bends (floor/w, ceiling/w) lies inside; those few are noted. All others' sum is then interpolated exactly, and Newton's
method runs over the few only (`_settle`). The second pass writes the shares. A level outside of two brackets, and every
short segment, is searched by Newton's method over all members (`_newton`).

Importing this module compiles it, or loads it from the cache: only `engines.load_compiled` does so. Other precisions
than float64 are compiled when they are first used.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from agentos_native.alloc.blocks import BLOCK, BRACKET, Reals, clip, helper, note, vectorised
from agentos_native.alloc.waterfill import MAX_STEPS, TOLERANCE, Floats, Indices

LONG: Final = 2 * BLOCK
"""Members from which on a segment is worth two brackets."""
FEW: Final = 4
"""Bends in more than one member of so many: going on with all of them is no slower."""
_EPSILON: Final = 4 * float(np.finfo(np.float64).eps)
_MEMBERS: Final = "f{0}[::1], f{0}[::1], f{0}[::1]"
_WATERFILL: Final = f"void({_MEMBERS}, i8[::1], f8[::1], f8[::1], f{{0}}[::1], f8[::1])"


@vectorised
def _ends(
    weights: Reals, floors: Reals, ceilings: Reals, low: float, high: float, bent: NDArray[np.int8]
) -> tuple[Any, Any]:
    """A block's sums at both ends of the bracket; `bent`: where the line between them is not straight."""
    at_low, at_high = weights.dtype.type(0), weights.dtype.type(0)
    for i in range(len(weights)):
        floor, ceiling = floors[i], ceilings[i]
        x, y = weights[i] * low, weights[i] * high
        bent[i] = ((x < floor) | (y > ceiling)) & (x < ceiling) & (y > floor)
        x = x if x > floor else floor
        y = y if y > floor else floor
        at_low += x if x < ceiling else ceiling
        at_high += y if y < ceiling else ceiling
    return at_low, at_high


@helper
def _sweep(
    weights: Reals, floors: Reals, ceilings: Reals, low: float, high: float, inside: Indices
) -> tuple[float, float, int]:
    """The sums of all at both ends of a bracket, and how many are bent within (noted in `inside`)."""
    real = weights.dtype.type
    bent = np.zeros(BLOCK, np.int8)
    words = bent.view(np.int64)
    at_low, at_high, count = 0.0, 0.0, 0
    for first in range(0, len(weights), BLOCK):
        part = slice(first, min(first + BLOCK, len(weights)))
        if part.stop - first < BLOCK:
            bent[:] = 0
        one, other = _ends(weights[part], floors[part], ceilings[part], real(low), real(high), bent)
        at_low += one
        at_high += other
        count = note(words, bent, first, inside, count)
    return at_low, at_high, count


@vectorised
def _evaluate(weights: Reals, floors: Reals, ceilings: Reals, begin: int, end: int, level: float) -> Any:
    total, right, left = 0.0, 0.0, 0.0
    for i in range(begin, end):
        linear = weights[i] * level
        total += min(max(linear, floors[i]), ceilings[i])
        right += weights[i] * ((linear >= floors[i]) & (linear < ceilings[i]))  # branch-free: it vectorises
        left += weights[i] * ((linear > floors[i]) & (linear <= ceilings[i]))
    return total, right, left


@helper
def _settle(
    members: Any, inside: Indices, low: float, high: float, at_low: float, at_high: float, budget: float
) -> float:
    """The level within a bracket at which the sum is the budget."""
    weights, floors, ceilings = members
    real, count = weights.dtype.type, len(inside)
    few = np.empty((3, count))
    base, line, rise = low, at_low, at_high - at_low
    for k in range(count):
        i = inside[k]
        few[0, k], few[1, k], few[2, k] = weights[i], floors[i], ceilings[i]
        one = np.float64(min(max(weights[i] * real(low), floors[i]), ceilings[i]))
        other = np.float64(min(max(weights[i] * real(high), floors[i]), ceilings[i]))
        line -= one
        rise -= other - one
    slope = max(rise, 0.0) / (high - low)
    level = low + (budget - at_low) / (at_high - at_low) * (high - low)
    for _ in range(MAX_STEPS):
        total, right, left = _evaluate(few[0], few[1], few[2], 0, count, level)
        surplus = line + slope * (level - base) + total - budget
        steepness = slope + (left if surplus > 0 else right)
        if abs(surplus) <= _EPSILON * budget:
            break
        if surplus > 0:
            high = level
        else:
            low = level
        candidate = level - surplus / steepness if steepness > 0 else low
        if not low < candidate < high:
            candidate = low + 0.5 * (high - low)
        if not low < candidate < high or abs(candidate - level) <= _EPSILON * level:
            break
        level = candidate
    return level


@helper
def _bracketed(weights: Reals, floors: Reals, ceilings: Reals, budget: float, guess: float) -> float:
    """The level, if one of two brackets holds it; else NaN. That it is inside proves that floors fit, ceilings not."""
    real = weights.dtype.type
    inside = np.empty(len(weights), np.int32)
    level, width = guess, BRACKET
    for _ in range(2):
        low, high = np.float64(real(level * (1.0 - width))), np.float64(real(level * (1.0 + width)))
        at_low, at_high, count = _sweep(weights, floors, ceilings, low, high, inside)
        if at_low <= budget < at_high and count * FEW <= len(weights):
            few = inside[:count]
            return float(_settle((weights, floors, ceilings), few, low, high, at_low, at_high, budget))
        if not at_low < at_high:
            break
        level = low + (budget - at_low) / (at_high - at_low) * (high - low)
        width = max(BRACKET, min(0.5, abs(level / guess - 1.0)))
        if not 0.0 < level < np.inf:
            break
    return np.nan


@vectorised
def _bounds(weights: Reals, floors: Reals, ceilings: Reals, begin: int, end: int) -> tuple[float, float, float, float]:
    low_sum, high_sum, weight_sum, high = 0.0, 0.0, 0.0, 0.0
    for i in range(begin, end):
        low_sum += floors[i]
        high_sum += ceilings[i]
        weight_sum += weights[i]
        high = max(high, np.float64(ceilings[i]) / weights[i])
    return low_sum, high_sum, weight_sum, high


@helper
def _newton(weights: Reals, floors: Reals, ceilings: Reals, begin: int, end: int, budget: float, guess: float) -> float:
    low_sum, high_sum, weight_sum, high = _bounds(weights, floors, ceilings, begin, end)
    if begin == end or budget >= high_sum:
        return np.inf
    if budget <= low_sum:
        return 0.0
    low, low_value, high_value = 0.0, low_sum - budget, high_sum - budget
    level = guess if low < guess < high else min(budget / weight_sum, 0.5 * high)
    for step in range(MAX_STEPS):
        total, right, left = _evaluate(weights, floors, ceilings, begin, end, level)
        surplus = total - budget
        if abs(surplus) <= TOLERANCE * budget:
            break
        slope = right if surplus < 0 else left
        if surplus < 0:
            low, low_value = level, surplus
        else:
            high, high_value = level, surplus
        candidate = level - surplus / slope if slope > 0 else np.nan
        if not (low < candidate < high):
            candidate = low - low_value * (high - low) / (high_value - low_value) if step % 2 == 0 else np.nan
        if not (low < candidate < high):
            candidate = 0.5 * (low + high)
        if not (low < candidate < high):
            break
        level = candidate
    return level


@helper
def _scaled(floors: Reals, begin: int, end: int, budget: float, shares: Reals) -> None:
    """Floors that do not fit, all scaled down alike."""
    total = 0.0
    for i in range(begin, end):
        total += floors[i]
    scale = budget / total if total > 0 else 0.0
    for i in range(begin, end):
        shares[i] = floors[i] * scale


def _waterfill(
    weights: Reals, floors: Reals, ceilings: Reals, starts: Indices, budgets: Floats, guesses: Floats, shares: Reals,
    levels: Floats
) -> None:  # fmt: skip
    real = weights.dtype.type
    for s in range(len(budgets)):
        begin, end, budget, guess = starts[s], starts[s + 1], max(budgets[s], 0.0), guesses[s]
        level = np.nan
        part = slice(begin, end)
        if end - begin >= LONG and 0.0 < guess < np.inf:
            level = _bracketed(weights[part], floors[part], ceilings[part], budget, guess)
        if np.isnan(level):
            level = _newton(weights, floors, ceilings, begin, end, budget, guess)
        levels[s] = level
        if level == 0.0:
            _scaled(floors, begin, end, budget, shares)
        elif end - begin >= BLOCK:
            clip(weights[part], floors[part], ceilings[part], real(min(level, 1e37)), shares[part])
        else:
            for i in range(begin, end):
                shares[i] = min(max(weights[i] * real(level), floors[i]), ceilings[i])


@cache
def kernel(real: type[np.floating[Any]]) -> Any:
    """The compiled `_waterfill` of one precision: compiled, or loaded from the cache, at the first call for it."""
    return njit(_WATERFILL.format(np.dtype(real).itemsize), cache=True, nogil=True)(_waterfill)


_DOUBLE: Final = kernel(np.float64)


def waterfill(
    weights: Reals,
    floors: Reals,
    ceilings: Reals,
    starts: Indices,
    budgets: Floats,
    guesses: Floats,
    shares: Reals | None = None,
) -> tuple[Reals, Floats]:
    """As `agentos_native.alloc.waterfill.waterfill`, in the precision of `weights` (float64 or float32).

    Args:
        shares: where to put the shares; None: a new array.
    """
    shares, levels = np.empty_like(weights) if shares is None else shares, np.empty(len(budgets))
    compiled = _DOUBLE if weights.dtype == np.float64 else kernel(np.float32)
    compiled(weights, floors, ceilings, starts, budgets, guesses, shares, levels)
    return shares, levels
