"""Weighted dominant resource fairness with floors, ceilings and tiers: several resources at once, the NumPy engine.

Agent i at scale s takes ``usage[i, j] · s`` of resource j. With rows normalised to ``max_j usage[i, j] = 1`` (see
`normalise`) the scale is the agent's dominant share. Within a tier every agent stands at
``s_i = clip(w_i · level, floor_i, ceiling_i)`` and the level rises until some resource is used up; the agents that use
that resource stop there, the others rise on. So each resource j gets a level of its own in each tier, and

    s_i = clip(w_i · min {level_j : usage[i, j] > 0}, floor_i, ceiling_i).

At most m rounds a tier, since each round closes one resource. Floors of all tiers come first. Floors that do not fit
are themselves divided in this way, with the floors as weights and as ceilings: everybody gets the same part of his
floor, until a resource is used up; who does not use it gets a larger part, up to all of it. With one resource that
scales all floors alike, and the whole is `waterfill`.

`agentos_native.alloc.compiled_drf` is the same, compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agentos_native.alloc import waterfill as single
from agentos_native.alloc.waterfill import LARGE, Floats, Indices

Truths = NDArray[np.bool_]

MAX_STEPS: Final = 300
"""Newton takes 3 to 10; bisection alone would need fewer than this from any bracket of doubles."""
EPSILON: Final = 4 * float(np.finfo(np.float64).eps)
"""Relative step at which the search stops: the shares then differ in the last digits only."""


@dataclass(frozen=True)
class Filled:
    """Who stands where.

    Attributes:
        scales: of the agents, shape (n,), in units of dominant share.
        levels: of each resource in each tier, shape (T, m): the scale per unit weight at which the resource was used
            up; ∞ where it was not, 0 where nothing of it was left beyond the floors.
        used: of each resource, shape (m,), in the units of the capacity.
        short: whether a resource could not bear all floors, shape (m,).
    """

    scales: Floats
    levels: Floats
    used: Floats
    short: Truths


def normalise(demands: Floats, capacity: Floats) -> tuple[Floats, Floats]:
    """Demand vectors as usage for each unit of dominant share.

    Args:
        demands: what one unit of work of each agent takes of each resource, shape (n, m), any unit.
        capacity: of each resource, shape (m,), the same units.

    Returns:
        usage, shape (n, m), in Fortran order, as fractions of the capacity with row maxima 1 (rows of zeros stay), to
        be filled against a capacity of ones; and the dominant share of one unit of work, shape (n,), by which floors
        and ceilings in units of work are to be multiplied. What takes of a resource of which there is nothing counts
        as taking all of it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        fractions = np.where(demands > 0, demands / capacity, 0.0)
    fractions = np.asfortranarray(np.minimum(fractions, LARGE))
    dominant = fractions.max(axis=1, initial=0.0)
    fractions /= np.where(dominant > 0, dominant, 1.0)[:, None]
    return fractions, dominant


def sanitise(weights: Floats, usage: Floats, floors: Floats, ceilings: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """As `waterfill.sanitise`; an agent whose usage is not finite gets nothing, a negative usage counts as none."""
    usage = np.array(usage, dtype=np.float64, order="F")
    unknown = ~np.isfinite(usage).all(axis=1)
    usage = np.clip(np.nan_to_num(usage, nan=0.0, posinf=0.0, neginf=0.0), 0.0, LARGE)
    weights, floors, ceilings = single.sanitise(weights, floors, np.where(unknown, 0.0, ceilings))
    return weights, usage, floors, ceilings


def _candidate(level: float, surplus: Floats, right: Floats, left: Floats) -> tuple[float, int]:
    """The lowest of all resources' Newton steps, and whose it is; −∞ where one is overdrawn on a flat piece."""
    slope = np.where(surplus > 0, left, right)
    flat = np.where(surplus > 0, -np.inf, np.inf)
    with np.errstate(over="ignore"):  # a slope may be next to nothing: then the step is infinite, as on a flat piece
        steps = np.divide(-surplus, slope, out=flat, where=slope > 0)
    lowest = int(np.argmin(steps))
    return level + float(steps[lowest]), lowest


def _between(low: float, high: float) -> float:
    """A point inside a bracket, by ratio where it spans several binary orders."""
    if low > 0 and high > 4 * low:
        return float(np.sqrt(low) * np.sqrt(high))
    return low + 0.5 * (high - low)


@dataclass
class _Members:
    """The agents of one tier that may still rise, and what they may use together (shape (m,))."""

    weights: Floats
    usage: Floats
    floors: Floats
    ceilings: Floats
    budget: Floats

    def surplus(self, level: float) -> tuple[Floats, Floats, Floats]:
        """Σ usage · s − budget at `level`, and the slopes to its right and left."""
        linear = self.weights * level
        shares = np.minimum(np.maximum(linear, self.floors), self.ceilings)
        right = self.weights * ((linear >= self.floors) & (linear < self.ceilings))
        left = self.weights * ((linear > self.floors) & (linear <= self.ceilings))
        return shares @ self.usage - self.budget, right @ self.usage, left @ self.usage

    def level(self, low: float, guess: float) -> tuple[float, int]:
        """The highest level from `low` on that no resource forbids, and the resource that forbids more (−1: none)."""
        if not np.any(self.ceilings @ self.usage > self.budget):
            return np.inf, -1
        surplus, right, left = self.surplus(low)
        bound = (surplus > 0) | ((surplus == 0) & (right > 0))
        if bound.any():
            return low, int(np.argmax(bound))
        high = max(float((self.ceilings / self.weights).max()), low)
        level = guess if low < guess < high else _candidate(low, surplus, right, left)[0]
        level = level if low < level < high else _between(low, high)
        resource = -1
        for _ in range(MAX_STEPS):
            surplus, right, left = self.surplus(level)
            candidate, resource = _candidate(level, surplus, right, left)
            if abs(candidate - level) <= EPSILON * level:
                return max(candidate, low), resource
            if candidate < np.inf and abs(surplus[resource]) <= EPSILON * self.budget[resource]:
                return level, resource
            if np.any(surplus > 0):
                high = level
            else:
                low = level
            candidate = candidate if low < candidate < high else _between(low, high)
            if not low < candidate < high:
                break
            level = candidate
        return level, self._forbidding(high)

    def _forbidding(self, level: float) -> int:
        """The resource most overdrawn just above the level, where the doubles are exhausted."""
        return int(np.argmax(self.surplus(level)[0] / np.maximum(self.budget, 1e-300)))

    def without(self, resource: int, scales: Floats) -> tuple[_Members, Truths]:
        """Those that do not use `resource`, with what the others leave them; and which they are."""
        stay = self.usage[:, resource] <= 0
        budget = np.maximum(self.budget - scales[~stay] @ self.usage[~stay], 0.0)
        left = _Members(self.weights[stay], self.usage[stay], self.floors[stay], self.ceilings[stay], budget)
        return left, stay


def _fill_tier(members: _Members, closed: Truths, guesses: Floats) -> tuple[Floats, Floats]:
    """One tier: the scales, and the levels (m,).

    The budget includes the tier's own floors; of resources that are `closed` nothing is left beyond them.
    """
    scales, levels = members.ceilings.copy(), np.where(closed, 0.0, np.inf)
    where, level = np.arange(len(scales)), 0.0
    for shut in np.flatnonzero(closed):
        at = members.floors
        members, stay = members.without(int(shut), at)
        scales[where[~stay]], where = at[~stay], where[stay]
    while len(where):
        later = guesses[(guesses > level) & np.isfinite(guesses)]
        level, resource = members.level(level, float(later.min()) if len(later) else 0.0)
        if resource < 0:
            break
        levels[resource] = level
        at = np.minimum(np.maximum(members.weights * level, members.floors), members.ceilings)
        members, stay = members.without(resource, at)
        scales[where[~stay]], where = at[~stay], where[stay]
    return scales, levels


def fill(
    weights: Floats,
    usage: Floats,
    floors: Floats,
    ceilings: Floats,
    starts: Indices,
    capacity: Floats,
    guesses: Floats | None = None,
) -> Filled:
    """Divide several resources at once.

    Args:
        weights, floors, ceilings: of the n agents, by tier, as `sanitise` leaves them; floors and ceilings in scale.
        usage: what one unit of scale takes of each resource, shape (n, m).
        starts: of the T tiers, the first to be served first, and n: shape (T + 1,).
        capacity: of each resource, shape (m,); what is not positive (or NaN) counts as nothing.
        guesses: the levels of an earlier answer, shape (T, m); None: there is none.
    """
    tiers, resources = len(starts) - 1, len(capacity)
    capacity = np.maximum(np.nan_to_num(np.asarray(capacity, dtype=np.float64), nan=0.0, posinf=LARGE), 0.0)
    guesses = guesses if guesses is not None else np.zeros((tiers, resources))
    short = floors @ usage > capacity
    if short.any():
        alike, nothing = np.where(floors > 0, floors, 1.0), np.zeros_like(floors)
        everybody = _Members(alike, usage, nothing, floors, capacity)
        floors, _ = _fill_tier(everybody, np.zeros(resources, dtype=bool), np.zeros(resources))
    left = capacity - floors @ usage
    closed = np.zeros(resources, dtype=bool)
    scales, levels = np.zeros(len(weights)), np.full((tiers, resources), np.inf)
    for tier in range(tiers):
        part = slice(starts[tier], starts[tier + 1])
        own = floors[part] @ usage[part]
        closed |= left <= 0
        members = _Members(weights[part], usage[part], floors[part], ceilings[part], np.maximum(left, 0.0) + own)
        scales[part], levels[tier] = _fill_tier(members, closed, guesses[tier])
        left -= scales[part] @ usage[part] - own
        closed |= np.isfinite(levels[tier])
    return Filled(scales, levels, scales @ usage, short)
