"""Weighted max-min with floors and ceilings, many independent segments at once: the NumPy engine.

In each segment s the shares are ``x_i = clip(w_i · level_s, floor_i, ceiling_i)`` with
``Σ x = min(budget_s, Σ ceiling)``. That is the minimiser of ``Σ x²/w`` under the same constraints (the continuous
quadratic knapsack problem), and the only feasible point at which nobody can get more without someone of a lower level
getting less.

The level is the root of a nondecreasing, piecewise linear function, found by Newton's method inside a bracket, started
from the last tick's level; the bracket makes it safe where the slope is zero or Newton would cycle.
`agentos_native.alloc.compiled` is the same, compiled.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Truths = NDArray[np.bool_]

LARGE: Final = 1e9
"""Stands for "no limit": more CPUs than any machine has. Kernels are free of infinities, so fast arithmetic is safe."""
SMALLEST_WEIGHT: Final = 1e-9
TOLERANCE: Final = 1e-12
"""Of Σx against the budget, relative."""
MAX_STEPS: Final = 200
"""Newton takes 3 to 10; bisection alone would need at most 64 from any bracket of doubles, twice over."""


def sanitise(weights: Floats, floors: Floats, ceilings: Floats) -> tuple[Floats, Floats, Floats]:
    """Replace what no solver can use, always to the disadvantage of the entry itself and never of the others.

    A weight that is NaN or not positive becomes the smallest; a floor that is NaN or negative becomes 0; a ceiling that
    is NaN becomes 0; infinities become `LARGE`; a floor above its ceiling comes down to it.
    """
    ceilings = _within(ceilings, 0.0)
    return _within(weights, SMALLEST_WEIGHT), np.minimum(_within(floors, 0.0), ceilings), ceilings


def _within(values: Floats, least: float) -> Floats:
    """From `least` to `LARGE`, NaN as `least`; for few agents ten times as fast as np.nan_to_num."""
    return clipped(np.fmax(np.asarray(values, dtype=np.float64), least), least, LARGE)


def clipped(values: Floats, least: float | Floats, most: float | Floats) -> Floats:
    """np.clip, for few values in a third of its time."""
    found: Floats = np.minimum(np.maximum(values, least), most)
    return found


def segments_of(starts: Indices) -> Indices:
    """The segment of each member, from the segments' starts (length S + 1, the last entry is n)."""
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts))


def segment_sum(values: Floats, segment: Indices, count: int) -> Floats:
    return np.bincount(segment, values, minlength=count).astype(np.float64, copy=False)


def _trivial(shares: Floats, levels: Floats, state: _State) -> None:
    """Segments that need no level: all at the ceiling (∞), or not even the floors fit (0; they are scaled down)."""
    satisfied = state.budgets >= state.high_sum
    short = ~satisfied & (state.budgets <= state.low_sum)
    levels[satisfied] = np.inf
    levels[short] = 0.0
    scale = np.divide(state.budgets, state.low_sum, out=np.zeros_like(levels), where=short & (state.low_sum > 0))
    segment = state.segment
    np.copyto(shares, state.ceilings, where=satisfied[segment])
    np.copyto(shares, state.floors * scale[segment], where=short[segment])
    state.active = ~satisfied & ~short


class _State:
    """What the iteration carries, one entry per segment."""

    def __init__(self, weights: Floats, floors: Floats, ceilings: Floats, starts: Indices, budgets: Floats) -> None:
        count = len(budgets)
        self.weights, self.floors, self.ceilings = weights, floors, ceilings
        self.segment = segments_of(starts)
        self.budgets = budgets
        self.low_sum = segment_sum(floors, self.segment, count)
        self.high_sum = segment_sum(ceilings, self.segment, count)
        self.weight_sum = segment_sum(weights, self.segment, count)
        self.low = np.zeros(count)
        self.low_value = self.low_sum - budgets
        self.high = np.zeros(count)
        np.maximum.at(self.high, self.segment, ceilings / weights)
        self.high_value = self.high_sum - budgets
        self.active = np.ones(count, dtype=bool)

    def start(self, guesses: Floats) -> Floats:
        """The guesses where they lie inside the bracket, else the level without floors and ceilings."""
        plain = np.divide(self.budgets, self.weight_sum, out=np.zeros_like(self.budgets), where=self.weight_sum > 0)
        inside = (guesses > self.low) & (guesses < self.high)
        return np.where(inside, guesses, np.minimum(plain, 0.5 * (self.low + self.high)))


def _evaluate(state: _State, levels: Floats) -> tuple[Floats, Floats, Floats]:
    """The surplus Σx − budget at `levels`, and the slopes to its right and left."""
    count = len(levels)
    linear = state.weights * levels[state.segment]
    shares = np.minimum(np.maximum(linear, state.floors), state.ceilings)
    right = state.weights * ((linear >= state.floors) & (linear < state.ceilings))
    left = state.weights * ((linear > state.floors) & (linear <= state.ceilings))
    return (
        segment_sum(shares, state.segment, count) - state.budgets,
        segment_sum(right, state.segment, count),
        segment_sum(left, state.segment, count),
    )


def _step(state: _State, levels: Floats, step: int) -> Floats:
    """One safeguarded Newton step for the active segments; clears `active` where the root is reached."""
    surplus, right, left = _evaluate(state, levels)
    state.active &= np.abs(surplus) > TOLERANCE * state.budgets
    below = state.active & (surplus < 0)
    above = state.active & (surplus > 0)
    state.low = np.where(below, levels, state.low)
    state.low_value = np.where(below, surplus, state.low_value)
    state.high = np.where(above, levels, state.high)
    state.high_value = np.where(above, surplus, state.high_value)
    slope = np.where(below, right, left)
    with np.errstate(divide="ignore", invalid="ignore"):
        newton = levels - surplus / slope
        secant = state.low - state.low_value * (state.high - state.low) / (state.high_value - state.low_value)
    middle = 0.5 * (state.low + state.high)
    safe = secant if step % 2 == 0 else middle
    safe = np.where((safe > state.low) & (safe < state.high), safe, middle)
    candidate = np.where((newton > state.low) & (newton < state.high), newton, safe)
    state.active &= (candidate > state.low) & (candidate < state.high)  # else the doubles are exhausted
    return np.where(state.active, candidate, levels)


def waterfill(
    weights: Floats, floors: Floats, ceilings: Floats, starts: Indices, budgets: Floats, guesses: Floats
) -> tuple[Floats, Floats]:
    """Fill each segment up to its budget.

    Args:
        weights, floors, ceilings: of the n members, in the order of their segments, as `sanitise` leaves them.
        starts: of the S segments, and n: shape (S + 1,).
        budgets, guesses: shape (S,); a guess is any earlier level (0 or ∞ for none).

    Returns:
        The shares, shape (n,), and the levels (share per unit weight), shape (S,): ∞ where every ceiling is reached, 0
        where the floors do not fit (they are then all scaled down alike).
    """
    shares, levels = np.zeros(len(weights)), np.zeros(len(budgets))
    if len(weights) == 0:
        levels[:] = np.inf
        return shares, levels
    state = _State(weights, floors, ceilings, starts, np.maximum(budgets, 0.0))
    _trivial(shares, levels, state)
    searched = state.active.copy()
    if not searched.any():
        return shares, levels
    current = np.where(searched, state.start(guesses), 0.0)
    for step in range(MAX_STEPS):
        current = _step(state, current, step)
        if not state.active.any():
            break
    levels = np.where(searched, current, levels)
    filled = np.minimum(np.maximum(weights * current[state.segment], floors), ceilings)
    return np.where(searched[state.segment], filled, shares), levels
