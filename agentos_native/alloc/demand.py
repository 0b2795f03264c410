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

ROUNDING: Final = 0.05
"""CPUs by which the estimate for threads that never sleep may be above their number: the counters have steps."""

LATELY: Final = 20.0
"""Seconds in which it is forgotten (to 1/e) how much somebody wanted at most, see `awake`."""


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


def in_parallel(wanted: Floats, used: Floats, lane: float, cpus: float) -> Floats:
    """`wanted`, bounded by what as many threads can have at once beside the machine's own work.

    A thread has no more than the CPU that it runs on, of which the kernel and programs outside of the node take their
    part; how much of that it meets is the scheduler's choice. So a thread is taken to want what a CPU gives on
    average, or what it does get if that is more: what it lacks beyond that, no weight could give it.

    Args:
        wanted: by `estimate`; of so many CPUs at least as many threads are needed, and who needs as many as there are
            CPUs is not bounded.
        used: CPUs, averaged over some time.
        lane: what one CPU gives to agents on average, 0..1; cpus: of the machine.
    """
    threads = np.maximum(np.ceil(wanted - ROUNDING), 1.0)
    bounded = np.minimum(wanted, np.maximum(threads * min(lane, 1.0), used))
    return np.where(threads < cpus, bounded, wanted)


def smooth(previous: Floats, current: Floats, elapsed: float) -> Floats:
    """Demand (finite) rises at once and falls slowly: a pause of a tick does not cost an agent its place."""
    keep = float(np.exp(-elapsed / FALL_TIME))
    return np.maximum(current, previous * keep + current * (1.0 - keep))


def lately(before: Floats, current: Floats, elapsed: float) -> Floats:
    """The most that was wanted lately, from what it was before the tick and the present demand."""
    return np.maximum(current, np.nan_to_num(before) * float(np.exp(-elapsed / LATELY)))


def awake(demand: Floats, reserved: Floats, most: Floats) -> Floats:
    """Demand as it would be if whoever was awake lately wanted its reservation again; `most`: see `lately`.

    Shares follow demand, but weights act until the next tick: a burst that begins in between finds the weights of a
    moment without it. Agents that burst share a tenant and a tier, whose weights are to hold all of their reservations
    at once, so it is for this demand that weights are told. It costs others nothing while the agents sleep, since the
    kernel hands on what they do not use; a sibling that never sleeps may have of their reservations what its tenant
    would not be given for its weight. So those that slept for long do not count. Three dialogue agents (reservations
    of 0.4, half of the time awake) among eleven hogs on two CPUs: what turns lack of their reservations fell to a
    third.
    """
    return np.maximum(demand, np.minimum(reserved, np.nan_to_num(most)))


def throttled_fraction(throttled: Floats, limits: Floats, elapsed: Floats) -> Floats:
    """The fraction of the time in which ``cpu.max`` held the group, from the growth of ``throttled_usec`` in seconds.

    The kernel adds the time up over the CPUs on which the group was held: for several threads this errs upwards, too.
    """
    lanes = np.maximum(np.ceil(np.where(np.isfinite(limits), limits, 1.0)), 1.0)
    return np.clip(throttled / (lanes * elapsed), 0.0, 1.0)
