"""Memory: how much each agent needs, what it is entitled to, and where its ``memory.high`` goes next.

Memory differs from CPU in one thing that decides everything here: what has been given cannot be taken back at once.
Hence

* reservations are kept free even while they are not used (CPU lends them out until their owner wakes);
* nobody is throttled while there is enough: ``memory.high`` is ``max`` unless shares fall short of demands;
* a limit goes down by a few per cent of the agent at each turn, the more slowly the more the agent stalls, and up at
  once; it never goes below the reservation, nor below what the kernel could not take back (anonymous memory without
  swap), since that would only stop the agent and free nothing;
* an agent that is held below its demand is said to be *squeezed*, always.

The demand is the working set and what is missing from it. The working set is what is in use less the cold part of the
cache (``inactive_file``), of which as much counts as used as comes back after having been evicted (refaults). An agent
that stalls (PSI) or refaults at its limit shows that something is missing, but not how much: it is taken to want a
quarter more than it has, again and again until it stalls no longer.

Pure functions of arrays, shape (n,) in the order of the problem; bytes, and bytes per second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from agentos_native.alloc.hierarchy import Problem, Solution, Warm, solve
from agentos_native.alloc.waterfill import Floats, Indices, Truths

UNIT: Final = float(1 << 20)
"""Bytes in the unit of the problem: the allocator's numbers are made for CPUs, and its "no limit" is 1e9."""
LARGEST: Final = float(1 << 60)
STEP: Final = 0.03
"""Of an agent's memory: how far its limit goes down in a turn."""
SLOWEST: Final = 0.1
"""Of `STEP`: what is left of it for an agent that stalls all the time."""
RECALL: Final = 30.0
"""Seconds: what came back after eviction within this time counts as in use."""
HEADROOM: Final = 0.05
"""Of the working set: what an agent may grow by until the next turn without being thought of as growing."""
STALLED: Final = 0.05
"""Fraction of the time: an agent that waits for memory for longer lacks some."""
REFAULTING: Final = 0.01
"""Of the working set per second: likewise, when so much comes back."""
MISSING: Final = 0.25
"""Of its memory: how much more an agent is taken to want that lacks some."""
NEAR: Final = 0.97
"""Of its limit: from here on an agent is held by it."""
CLOSE: Final = 0.8
"""Of its share: until it has come that near to it, nothing holds an agent, whatever it may want."""
FALL_TIME: Final = 20.0
"""Seconds in which a demand that is gone is forgotten (to 1/e)."""
CALM: Final = 10
"""Turns after which a limit that is not needed any more is lifted."""
LEAST: Final = 16 * UNIT
"""No limit is set below this."""
TOLERANCE: Final = 0.01
"""Of the demand: whoever gets that near to it is not squeezed."""


@dataclass(frozen=True)
class Figures:
    """What was measured since the last turn.

    Attributes:
        current: in use. `anon`: of programs (and tmpfs), which only swap can take back.
        cache: what the kernel can take back without swap; `cold`: the part of it that has not been used lately.
        refaults: bytes per second that were needed again after having been evicted.
        stalled: fraction of the time in which somebody waited for memory (NaN: the kernel has no PSI).
        idle: has used no CPU for a while, or is paused.
    """

    current: Floats
    anon: Floats
    cache: Floats
    cold: Floats
    refaults: Floats
    stalled: Floats
    idle: Truths


@dataclass(frozen=True)
class State:
    """What is carried from turn to turn.

    Attributes:
        used: the working set of the last turn; NaN for an agent that is new.
        demand: smoothed.
        high: what ``memory.high`` shall hold, ∞: ``max``.
        calm: turns since the limit was last needed.
    """

    used: Floats
    demand: Floats
    high: Floats
    calm: Indices


@dataclass(frozen=True)
class Machine:
    """What there is, bytes.

    Attributes:
        available: what could be had without swapping (``MemAvailable``), the agents' own cache included.
        margin: what shall stay available for the rest of the machine.
        swap: free.
        ceiling: of a limit above the node's group; ∞: none.
    """

    available: float
    margin: float
    swap: float = 0.0
    ceiling: float = float("inf")


@dataclass(frozen=True)
class Outcome:
    """What one turn gives; bytes.

    Attributes:
        working_set, wanted: the latter is the demand, at most the limit and at least the reservation.
        share: what the agent is entitled to.
        squeezed: held below what it wants.
        trimmed: it has all it wants, but its cold cache, beyond its fair share, is taken for others.
        capacity: what was divided; `solution`: how, in `UNIT`.
    """

    state: State
    working_set: Floats
    wanted: Floats
    share: Floats
    squeezed: Truths
    trimmed: Truths
    capacity: float
    solution: Solution


def initial(count: int) -> State:
    """Of agents that have not been measured yet and have no limit."""
    return State(np.full(count, np.nan), np.zeros(count), np.full(count, np.inf), np.zeros(count, dtype=np.int64))


def _amount(values: Floats) -> Floats:
    """Counters of a kernel can go back or be missing: such a figure is 0."""
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), 0.0, LARGEST)


def sanitise(figures: Figures) -> Figures:
    """Figures that can be calculated with: finite, not negative, parts not above the whole."""
    current = _amount(figures.current)
    cache = np.minimum(_amount(figures.cache), current)
    return Figures(
        current=current,
        anon=np.minimum(_amount(figures.anon), current),
        cache=cache,
        cold=np.minimum(_amount(figures.cold), cache),
        refaults=_amount(figures.refaults),
        stalled=np.clip(np.nan_to_num(figures.stalled, posinf=1.0), 0.0, 1.0),
        idle=figures.idle,
    )


def working_set(figures: Figures) -> Floats:
    """What is in use: all but the cold cache, of which as much is in use as keeps coming back."""
    result: Floats = figures.current - np.maximum(figures.cold - figures.refaults * RECALL, 0.0)
    return result


def demand(figures: Figures, state: State, elapsed: float) -> Floats:
    """How much each would use if nothing held it back; rises at once, falls slowly.

    Args:
        elapsed: seconds since the last turn.
    """
    used = working_set(figures)
    growth = np.maximum(np.nan_to_num(used - state.used), 0.0)
    wanted = used * (1.0 + HEADROOM) + np.minimum(growth, used)
    held = figures.current >= NEAR * state.high
    lacking = (figures.stalled > STALLED) | (figures.refaults > REFAULTING * used)
    wanted = np.where(held & lacking, np.maximum(wanted, figures.current * (1.0 + MISSING)), wanted)
    keep = float(np.exp(-max(elapsed, 0.0) / FALL_TIME))
    known = np.where(np.isnan(state.used), wanted, _amount(state.demand))
    return np.minimum(np.maximum(wanted, known * keep + wanted * (1.0 - keep)), LARGEST)


def capacity(figures: Figures, machine: Machine) -> float:
    """What the node's agents can have: what they hold for good, and what is available besides.

    Their caches are part of ``MemAvailable`` and not counted twice.
    """
    held = float((figures.current - figures.cache).sum())
    there = held + max(machine.available, 0.0) - machine.margin
    return float(np.clip(min(there, machine.ceiling), 0.0, LARGEST))


def _next_high(figures: Figures, state: State, target: Floats, floor: Floats) -> Floats:
    """One step from where the limit is (or where the use is, when there was none) towards `target`."""
    standing = np.minimum(state.high, np.maximum(figures.current, target))
    pace = STEP * np.maximum(1.0 - figures.stalled, SLOWEST)
    stepped = np.maximum(target, standing * (1.0 - pace))
    # what cannot be taken back stays, but a limit does not give way to an agent that grows against it
    return np.maximum(stepped, np.minimum(floor, np.maximum(state.high, target)))


def turn(problem: Problem, figures: Figures, state: State, machine: Machine, elapsed: float) -> Outcome:
    """Measure, divide, and say where each limit goes.

    Args:
        problem: who there is; amounts in `UNIT`. Its capacity and demand are replaced.
        elapsed: seconds since the last turn.
    """
    figures = sanitise(figures)
    limit = np.where(np.isfinite(problem.ceiling), problem.ceiling * UNIT, np.inf)
    request = np.minimum(_amount(problem.floor * UNIT), limit)
    wants = demand(figures, state, elapsed)
    there = capacity(figures, machine)
    wanted = np.minimum(np.maximum(wants, request), limit)
    problem = replace(problem, capacity=there / UNIT, demand=wanted / UNIT)
    solution = solve(problem, Warm())
    share = solution.share * UNIT

    group = np.repeat(np.arange(len(solution.group_level)), np.diff(problem.starts))
    fair = np.maximum(share, problem.weight * solution.group_level[group] * UNIT)
    limited = np.isfinite(state.high)  # who is so stays so until there is clearly enough
    squeezed = share < wanted * (1.0 - np.where(limited, 0.25, 1.0) * TOLERANCE)
    squeezed &= limited | (figures.current > CLOSE * share)
    trimmed = ~squeezed & (figures.current > np.maximum(fair, wanted) * np.where(limited, NEAR, 1.0 + TOLERANCE))
    bound = squeezed | trimmed
    target = np.where(squeezed, share, np.maximum(fair, wanted))
    target = np.maximum(target, np.maximum(request, LEAST))

    fixed = figures.current - figures.cache - np.minimum(figures.anon, max(machine.swap, 0.0))
    stepped = _next_high(figures, state, target, np.maximum(fixed, 0.0))
    calm = np.where(bound, 0, state.calm + 1)
    waiting = limited & (calm < CALM)
    high = np.where(bound, stepped, np.where(waiting, np.maximum(state.high, share), np.inf))
    high = np.where(high >= limit, np.inf, high)  # memory.max is there for that
    used = working_set(figures)
    return Outcome(
        state=State(used, wants, high, calm),
        working_set=used,
        wanted=wanted,
        share=share,
        squeezed=squeezed,
        trimmed=trimmed,
        capacity=there,
        solution=solution,
    )


# -- agents that sleep ----------------------------------------------------------------------------------------------

RECLAIM_STEP: Final = 0.05
"""Of a sleeping agent's memory: what is taken from its cache in a turn."""
RECLAIM_LEAST, RECLAIM_MOST = 1 * UNIT, 32 * UNIT
"""Bytes in a turn: less is not worth it, more would keep the turn waiting."""
RETURNED: Final = 0.1
"""Of what was last taken: when so much comes back, it was not cold."""
FIRST_PAUSE, LONGEST_PAUSE = 5, 320
"""Turns without taking anything, doubled each time that something comes back."""


@dataclass(frozen=True)
class Reclaim:
    """What is carried from turn to turn for `reclaim`: bytes last taken, the pause it is in, and the last pause."""

    taken: Floats
    waiting: Indices
    pause: Indices


def no_reclaim(count: int) -> Reclaim:
    """Of agents from which nothing has been taken yet."""
    return Reclaim(np.zeros(count), np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64))


def reclaim(figures: Figures, request: Floats, state: Reclaim, elapsed: float) -> tuple[Floats, Reclaim]:
    """What to take from sleeping agents' caches now (bytes, 0: nothing), never below their reservation."""
    figures = sanitise(figures)
    returned = (state.taken > 0) & (figures.refaults * max(elapsed, 0.0) > RETURNED * state.taken)
    pause = np.where(returned, np.clip(2 * state.pause, FIRST_PAUSE, LONGEST_PAUSE), state.pause)
    waiting = np.where(returned, pause, np.maximum(state.waiting - 1, 0))
    step = np.clip(RECLAIM_STEP * figures.current, RECLAIM_LEAST, RECLAIM_MOST)
    amount = np.minimum(step, np.minimum(figures.cache, figures.current - _amount(request)))
    amount = np.where(figures.idle & (waiting == 0) & (amount >= RECLAIM_LEAST), amount, 0.0)
    pause = np.where(figures.idle, pause, 0)  # it has worked since: another time, another chance
    # what was taken counts until something is taken again: it may come back long after
    return amount, Reclaim(np.where(amount > 0, amount, np.where(returned, 0.0, state.taken)), waiting, pause)
