"""Corrections of weights by experience, where the kernel's arithmetic is not exact.

Weights of siblings that spread over several CPUs are kept by load balancing, which moves whole threads: a group with
two threads was measured at 69 % where its weight says 75 %, since both threads shared a CPU for part of the time. So
siblings are compared, and whoever stays behind what it is due among them is told to the kernel as a little heavier, and
whoever has too much as a little lighter. Slow, bounded, and silent below a threshold: where the kernel is exact,
nothing is ever trimmed and nothing is written.

**Shares or odds.** Among siblings that compete everywhere, shares are proportional to weights, and ``due / used`` is
the factor that is missing. Whoever wants less than the machine and is due nearly all of that competes on the CPUs that
it runs on only: a thread that has the part s of its CPU has the odds s/(1-s), and those are what is proportional to
weight. From 0.94 to 0.99 of a CPU it is not 1/20 more, but six times the weight. A thread that would compute for the
part c of the time if it never waited, and sleeps for the rest, uses u of

    u = c / (c/s + 1 - c),  therefore  u / (c - u) = (1/c) · s/(1-s):

what it has, against what it lacks of its wants, is proportional to its odds and so to its weight, whatever it sleeps.
So the factor that is missing is ``due / used · (wanted - used) / (wanted - due)``, with a gap of `IGNORED` at the
least; the second factor only for who is due nearly all of what it wants (`NEAR`), since others compete with everybody,
and there the first one, on all of them, is exact. In logarithms of odds each step makes up for the same part of the
error, so the approach is as quick near a whole CPU as anywhere, and neither overshoots nor slows down. Such a weight
may have to be far higher (`ODDS`). It takes nothing from anybody that its owner is not due: the owner wants no more,
and should it want more than it is due, the bound is back where it is for everybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from agentos_native.alloc.hierarchy import HUNGRY, TIERS, Problem, Solution
from agentos_native.alloc.waterfill import Floats, Indices, Truths, segment_sum

BOUNDS: Final = (0.5, 3.0)
TIME: Final = 8.0
"""Seconds in which a factor that is missing is made up for (to 1/e)."""
IGNORED: Final = 0.005
"""Of the machine: smaller deviations are left alone."""
HELD: Final = 0.5
"""Of that: whoever has all it wants but for less than this is told its own weight again; in between, trims stay."""
NEAR: Final = (0.8, 0.95)
"""Parts of its wants that somebody is due: from the first on odds count, from the second on fully."""
PARALLEL: Final = 0.95
"""Of the capacity: whoever wants more than this competes with everybody."""
ODDS: Final = 30.0
"""The most that any factor may be, for who is due all it wants."""


@dataclass
class Trims:
    """Factors on what the kernel is told, 1 for no correction.

    Attributes:
        agent: shape (n,); group: shape (T, TIERS); tenant: shape (T,).
    """

    agent: Floats
    group: Floats
    tenant: Floats


def valid(factors: Floats) -> Floats:
    """From the least of `BOUNDS` to `ODDS`; what is not a number is no correction."""
    return np.clip(np.where(np.isnan(factors), 1.0, factors), BOUNDS[0], ODDS)


@dataclass(frozen=True)
class _Siblings:
    """Who is compared with whom: shape (K,), `parent` below `count`."""

    parent: Indices
    count: int
    used: Floats
    due: Floats
    wanted: Floats
    hungry: Truths


def _step(previous: Floats, group: _Siblings, capacity: float, elapsed: float, ignored: float) -> Floats:
    """One tick's correction of the factors of one level."""
    dues = segment_sum(group.due, group.parent, group.count)
    used = segment_sum(group.used, group.parent, group.count)
    ratio = np.divide(used, dues, out=np.ones_like(used), where=dues > 0)
    expected = group.due * ratio[group.parent]
    lacking = expected - group.used
    missing = expected / np.maximum(group.used, 1e-6)

    few = group.wanted < PARALLEL * capacity
    near = np.where(few, np.clip(expected / np.maximum(group.wanted, 1e-6), 0.0, 1.0), 0.0)
    by_odds = np.clip((near - NEAR[0]) / (NEAR[1] - NEAR[0]), 0.0, 1.0)
    left = np.maximum(group.wanted - expected, ignored)
    missing *= (np.maximum(group.wanted - group.used, ignored) / left) ** by_odds
    most = np.maximum(BOUNDS[1], by_odds * np.minimum(0.3 * group.wanted / left, ODDS))

    missing = np.where(np.abs(lacking) <= ignored, 1.0, np.clip(missing, 0.2, 5.0))
    part = float(np.clip(np.nan_to_num(elapsed / TIME, nan=0.0), 0.0, 0.5))  # clocks may step
    # who wants no more than it is due cannot have too much; its correction is forgotten as soon as it waits no longer
    corrected = group.hungry | (lacking > HELD * ignored)
    return valid(np.minimum(np.where(corrected, previous * missing**part, previous ** (1.0 - part)), most))


@dataclass(frozen=True)
class Experience:
    """What agents had and what they were due, both averaged alike over some seconds; CPUs, shape (n,)."""

    used: Floats
    due: Floats


def step(previous: Trims, problem: Problem, solution: Solution, seen: Experience, cpus: float, elapsed: float) -> Trims:
    """The factors after a tick.

    Args:
        previous: of the same agents and tenants.
        cpus: of the machine; elapsed: seconds since the last tick.
    """
    tenants = len(problem.tenant_weight)
    groups = tenants * TIERS
    ignored = IGNORED * cpus
    group = np.repeat(np.arange(groups), np.diff(problem.starts))
    used, due = segment_sum(seen.used, group, groups), segment_sum(seen.due, group, groups)
    tenant = np.repeat(np.arange(tenants), TIERS)

    hungry = solution.share < solution.wanted - HUNGRY
    of_agents = _Siblings(group, groups, seen.used, seen.due, solution.wanted, hungry)
    hungry = (solution.group_share < solution.group_wanted - HUNGRY).ravel()
    of_groups = _Siblings(tenant, tenants, used, due, solution.group_wanted.ravel(), hungry)
    of_tenants = _Siblings(
        np.zeros(tenants, dtype=np.int64),
        1,
        used.reshape(tenants, TIERS).sum(axis=1),
        due.reshape(tenants, TIERS).sum(axis=1),
        solution.tenant_wanted,
        solution.tenant_share < solution.tenant_wanted - HUNGRY,
    )
    return Trims(
        agent=_step(previous.agent, of_agents, solution.capacity, elapsed, ignored),
        group=_step(previous.group.ravel(), of_groups, solution.capacity, elapsed, ignored).reshape(tenants, TIERS),
        tenant=_step(previous.tenant, of_tenants, solution.capacity, elapsed, ignored),
    )
