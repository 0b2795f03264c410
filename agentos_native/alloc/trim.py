"""Corrections of weights by experience, where the kernel's arithmetic is not exact.

Weights of siblings that spread over several CPUs are kept by load balancing, which moves whole threads: a group with
two threads was measured at 69 % where its weight says 75 %, since both threads shared a CPU for part of the time. So
siblings are compared, and whoever stays behind what it is due among them is told to the kernel as a little heavier, and
whoever has too much as a little lighter. Slow, bounded, and silent below a threshold: where the kernel is exact,
nothing is ever trimmed and nothing is written.
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
    """Within `BOUNDS`; what is not a number is no correction."""
    return np.clip(np.where(np.isnan(factors), 1.0, factors), *BOUNDS)


@dataclass(frozen=True)
class _Siblings:
    """Who is compared with whom: shape (K,), `parent` below `count`."""

    parent: Indices
    count: int
    used: Floats
    due: Floats
    hungry: Truths


def _step(previous: Floats, group: _Siblings, elapsed: float, ignored: float) -> Floats:
    """One tick's correction of the factors of one level."""
    dues = segment_sum(group.due, group.parent, group.count)
    used = segment_sum(group.used, group.parent, group.count)
    ratio = np.divide(used, dues, out=np.ones_like(used), where=dues > 0)
    expected = group.due * ratio[group.parent]
    missing = np.clip(expected / np.maximum(group.used, 1e-6), 0.2, 5.0)
    missing = np.where(np.abs(expected - group.used) <= ignored, 1.0, missing)
    part = float(np.clip(np.nan_to_num(elapsed / TIME, nan=0.0), 0.0, 0.5))  # clocks may step
    # who wants no more than it is due cannot have too much; its correction is forgotten as soon as it waits no longer
    corrected = group.hungry | (missing > 1.0)
    return valid(np.where(corrected, previous * missing**part, previous ** (1.0 - part)))


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

    of_agents = _Siblings(group, groups, seen.used, seen.due, solution.share < solution.wanted - HUNGRY)
    hungry = (solution.group_share < solution.group_wanted - HUNGRY).ravel()
    of_groups = _Siblings(tenant, tenants, used, due, hungry)
    of_tenants = _Siblings(
        np.zeros(tenants, dtype=np.int64),
        1,
        used.reshape(tenants, TIERS).sum(axis=1),
        due.reshape(tenants, TIERS).sum(axis=1),
        solution.tenant_share < solution.tenant_wanted - HUNGRY,
    )
    return Trims(
        agent=_step(previous.agent, of_agents, elapsed, ignored),
        group=_step(previous.group.ravel(), of_groups, elapsed, ignored).reshape(tenants, TIERS),
        tenant=_step(previous.tenant, of_tenants, elapsed, ignored),
    )
