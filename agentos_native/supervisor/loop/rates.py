"""From what wires carried to how fast each may be: pure functions of arrays, for one direction of the uplink.

Amounts in Mbit/s. Each wire's bucket stands alone, so nothing that one agent leaves unused reaches another before the
next turn. What is lost by that is bounded:

- Nobody has a cap but its limit until the agents together want more than there is (`Contention`).
- An agent that uses its cap up is taken to want everything; one that does not has a cap of `HEADROOM` times its use,
  so at most a fifth of what *satisfied* agents hold lies idle, and nothing when all are hungry.
- What an agent stops using is forgotten to a quarter each turn of 2 s: the others have all of it in three.
- An agent that pauses lends all it has, its reservation too. It keeps a cap of what it would have if everybody were
  hungry, at least its reservation, so it has that the moment it wakes; the uplink is promised twice then, for one turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from agentos_native.alloc.waterfill import Floats, Truths

NEARLY: Final = 0.85
"""Whoever uses this part of its cap wants more: TCP that lives on losses does not fill a rate quite."""
HEADROOM: Final = 1.25
HELD_BACK: Final = 2.0
"""Times its use for whoever had to wait or lost packets without filling its cap."""
STARTERS: Final = 0.02
"""Of the capacity, divided by the number of agents: what each is given to begin with; half of it counts as nothing."""
FALL_TIME: Final = 1.5
"""Seconds in which a demand that is gone is forgotten (to 1/e)."""
CALM: Final = 0.9
"""The uplink is free again when no more than this part of it is wanted, `CALM_TURNS` times running."""
CALM_TURNS: Final = 2
FALL, RISE = 0.995, 1.02
"""Hysteresis: a rate is written when it leaves this range around what the bucket has. Falls are followed closely,
because the sum of all rates may not exceed the uplink by more than that."""


@dataclass(frozen=True)
class Seen:
    """What one direction showed since the last turn, one entry for each agent.

    Attributes:
        rate: measured; `cap`: what it was held to (∞: nothing).
        waited: whether packets queue, or were lost, at its bucket.
    """

    rate: Floats
    cap: Floats
    waited: Truths


def starter(capacity: float, agents: int) -> float:
    """The cap that an agent without any traffic has at least."""
    return STARTERS * capacity / max(agents, 1)


def demands(seen: Seen, before: Floats, elapsed: float, least: float) -> Floats:
    """What each would use if nothing held it: 0 for who pauses, ∞ for who fills its cap.

    Args:
        before: what it was taken to want, or had, at the last turn (finite).
        elapsed: seconds since then.
        least: as `starter` gives it.
    """
    held = np.isfinite(seen.cap)
    now = np.where(seen.rate < least / 2, 0.0, HEADROOM * seen.rate + least)
    now = np.where(seen.waited & held, HELD_BACK * seen.rate + least, now)
    kept = np.maximum(now, before * float(np.exp(-elapsed / FALL_TIME)))
    kept = np.where(kept < least, 0.0, kept)
    return np.where(held & (seen.rate >= NEARLY * np.where(held, seen.cap, 0.0)), np.inf, kept)


@dataclass
class Contention:
    """Whether the agents together want more than there is; slow to forget, so that caps do not come and go."""

    contended: bool = False
    calm: int = 0

    def see(self, wanted: float, capacity: float) -> bool:
        """Take note of a turn's sum of demands; returns `contended`."""
        if wanted > capacity:
            self.contended, self.calm = True, 0
        elif wanted <= CALM * capacity:
            self.calm += 1
            self.contended = self.contended and self.calm < CALM_TURNS
        else:
            self.calm = 0
        return self.contended


def caps(shares: Floats, awake: Truths, full: Floats, floors: Floats, limits: Floats, capacity: float) -> Floats:
    """The cap of each agent while the uplink is contended; Σ over those awake ≤ `capacity` but for unused floors.

    Args:
        shares: by the allocator, for today's demands; 0 for those not awake.
        full: by the allocator, were all of them hungry.
    """
    given = float(shares[awake].sum())
    grown = shares * (capacity / given) if 0 < given < capacity else shares
    wanted = np.where(awake, grown, np.maximum(full, starter(capacity, len(shares))))
    return np.minimum(np.maximum(wanted, floors), limits)


def due(wanted: Floats, held: Floats, limits: Floats) -> Truths:
    """Which caps are to be written. ∞: no bucket; NaN in `held`: not known. A limit is written exactly."""
    bounded = np.isfinite(wanted)
    changed: Truths = np.isnan(held) | (bounded != np.isfinite(held))
    both = bounded & np.isfinite(held)
    target = np.where(both, wanted, 1.0)
    present = np.where(both, held, 1.0)
    changed |= both & ((target < present * FALL) | (target > present * RISE))
    changed |= both & (target == limits) & (np.abs(target - present) > GRAIN)
    return changed


GRAIN: Final = 1.6e-5
"""Mbit/s: rates are whole bytes per second in the kernel, and differences below two of them are none."""
