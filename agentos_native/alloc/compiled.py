"""The numba engine: `agentos_native.alloc.waterfill` compiled ahead of its first use, cached on disk, without the GIL.

Importing this module compiles it, or loads it from the cache (0.6 s): only `engines.load_compiled` does so.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from agentos_native.alloc.waterfill import MAX_STEPS, TOLERANCE, Floats, Indices

_FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered, which vectorises them; NaN and ∞ keep their meaning


@njit("UniTuple(f8, 3)(f8[::1], f8[::1], f8[::1], i8, i8, f8)", cache=True, nogil=True, fastmath=_FAST)
def _evaluate(
    weights: Floats, floors: Floats, ceilings: Floats, begin: int, end: int, level: float
) -> tuple[float, float, float]:
    total, right, left = 0.0, 0.0, 0.0
    for i in range(begin, end):
        linear = weights[i] * level
        total += min(max(linear, floors[i]), ceilings[i])
        right += weights[i] * ((linear >= floors[i]) & (linear < ceilings[i]))  # branch-free: it vectorises
        left += weights[i] * ((linear > floors[i]) & (linear <= ceilings[i]))
    return total, right, left


@njit("UniTuple(f8, 4)(f8[::1], f8[::1], f8[::1], i8, i8)", cache=True, nogil=True, fastmath=_FAST)
def _bounds(
    weights: Floats, floors: Floats, ceilings: Floats, begin: int, end: int
) -> tuple[float, float, float, float]:
    low_sum, high_sum, weight_sum, high = 0.0, 0.0, 0.0, 0.0
    for i in range(begin, end):
        low_sum += floors[i]
        high_sum += ceilings[i]
        weight_sum += weights[i]
        high = max(high, ceilings[i] / weights[i])
    return low_sum, high_sum, weight_sum, high


@njit("f8(f8[::1], f8[::1], f8[::1], i8, i8, f8, f8)", cache=True, nogil=True)
def _level(
    weights: Floats, floors: Floats, ceilings: Floats, begin: int, end: int, budget: float, guess: float
) -> float:
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


@njit("Tuple((f8[::1], f8[::1]))(f8[::1], f8[::1], f8[::1], i8[::1], f8[::1], f8[::1])", cache=True, nogil=True)
def waterfill(
    weights: Floats, floors: Floats, ceilings: Floats, starts: Indices, budgets: Floats, guesses: Floats
) -> tuple[Floats, Floats]:
    """As `agentos_native.alloc.waterfill.waterfill`."""
    shares, levels = np.zeros(len(weights)), np.zeros(len(budgets))
    for s in range(len(budgets)):
        begin, end, budget = starts[s], starts[s + 1], max(budgets[s], 0.0)
        level = _level(weights, floors, ceilings, begin, end, budget, guesses[s])
        levels[s] = level
        if level == np.inf:
            for i in range(begin, end):
                shares[i] = ceilings[i]
        elif level == 0.0:
            low_sum = 0.0
            for i in range(begin, end):
                low_sum += floors[i]
            scale = budget / low_sum if low_sum > 0 else 0.0
            for i in range(begin, end):
                shares[i] = floors[i] * scale
        else:
            for i in range(begin, end):
                shares[i] = min(max(weights[i] * level, floors[i]), ceilings[i])
    return shares, levels
