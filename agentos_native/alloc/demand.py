"""How much CPU an agent would use if nothing held it back, from what it used and how long it waited.

Measured use alone is a trap: an agent that is held down by its weight uses little, would be taken to want little, and
would stay held down. PSI tells the difference: ``cpu.pressure`` counts the time in which somebody of the group was
runnable and did not run, and ``throttled_usec`` the time in which ``cpu.max`` held it.

With use u and stalled fraction s of the time, the estimate is ``u / (1 − s)``. For one thread it is exact, whether it
computes without end (u = 1 − s, so 1) or sleeps in between: of the time in which it was not kept waiting, that is what
it used. For several threads it errs upwards, since s is the time in which *any* of them waited. That is the harmless
side: the kernel hands on what somebody does not use.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agentos_native.alloc.waterfill import Floats

SATURATED: Final = 0.98
"""Stalled for more than this part of the time: the division says nothing any more, and the demand is unlimited."""
NEARLY_ALL: Final = 0.9
"""Without PSI: whoever uses this part of its share is taken to want more."""
FALL_TIME: Final = 1.5
"""Seconds in which a demand that is gone is forgotten (to 1/e).

Between two evils: the longer the bursts of reserved agents are remembered, the better these fare, at the cost of
everybody else; forgotten at once, reservations fall short in the next burst. Three dialogue agents (reservations of
0.4, turns of 0.17 CPU seconds) among eleven hogs on two CPUs, simulated: time given to the wrong agent 8.3, 6.3 and
2.3 % with 3, 1.5 and 0.7 s, reservations short by 0.012, 0.008 and 0.024 CPUs.
"""


def estimate(used: Floats, stalled: Floats) -> Floats:
    """The demand in CPUs; ∞ where it cannot be told from the measurement.

    Args:
        used: CPUs used on average.
        stalled: fraction of the time in which the group waited for a CPU (NaN: unknown, see `without_pressure`).
    """
    waited = np.clip(np.where(np.isnan(stalled), 0.0, stalled), 0.0, 1.0)
    unlimited = waited > SATURATED
    return np.where(unlimited, np.inf, used / np.where(unlimited, 1.0, 1.0 - waited))


def without_pressure(used: Floats, entitled: Floats) -> Floats:
    """The estimate where the kernel has no PSI: unlimited for whoever uses nearly all it is entitled to."""
    return np.where(used >= NEARLY_ALL * entitled, np.inf, used / NEARLY_ALL)


def smooth(previous: Floats, current: Floats, elapsed: float) -> Floats:
    """Demand (finite) rises at once and falls slowly: a pause of a tick does not cost an agent its place."""
    keep = float(np.exp(-elapsed / FALL_TIME))
    return np.maximum(current, previous * keep + current * (1.0 - keep))


def throttled_fraction(throttled: Floats, limits: Floats, elapsed: Floats) -> Floats:
    """The fraction of the time in which ``cpu.max`` held the group, from the growth of ``throttled_usec`` in seconds.

    The kernel adds the time up over the CPUs on which the group was held: for several threads this errs upwards, too.
    """
    lanes = np.maximum(np.ceil(np.where(np.isfinite(limits), limits, 1.0)), 1.0)
    return np.clip(throttled / (lanes * elapsed), 0.0, 1.0)
