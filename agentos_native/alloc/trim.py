"""Corrections of weights by experience, where the kernel's arithmetic is not exact.

Weights of siblings that spread over several CPUs are kept by load balancing, which moves whole threads: a group with
two threads was measured at 69 % where its weight says 75 %, since both threads shared a CPU for part of the time. So
those who want more than they have are compared with their hungry siblings, and whoever stays behind what it is entitled
to among them is told to the kernel as a little heavier, and the other way round. Slow, bounded, and silent below a
threshold: where the kernel is exact, nothing is ever trimmed and nothing is written.
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
IGNORED: Final = 0.01
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


@dataclass(frozen=True)
class _Siblings:
    """Who is compared with whom: shape (K,), `parent` below `count`."""

    parent: Indices
    count: int
    used: Floats
    share: Floats
    hungry: Truths


def _step(previous: Floats, group: _Siblings, elapsed: float, ignored: float) -> Floats:
    """One tick's correction of the factors of one level."""
    share = np.where(group.hungry, group.share, 0.0)
    used = np.where(group.hungry, group.used, 0.0)
    shares = segment_sum(share, group.parent, group.count)
    useds = segment_sum(used, group.parent, group.count)
    ratio = np.divide(useds, shares, out=np.ones_like(useds), where=shares > 0)
    expected = share * ratio[group.parent]
    missing = np.clip(expected / np.maximum(used, 1e-6), 0.2, 5.0)
    missing = np.where(np.abs(expected - used) <= ignored, 1.0, missing)
    part = min(elapsed / TIME, 0.5)
    factor = np.where(group.hungry, previous * missing**part, previous ** (1.0 - part))
    return np.clip(factor, *BOUNDS)


@dataclass(frozen=True)
class Experience:
    """What agents had and what they should have had, both averaged alike over some seconds; CPUs, shape (n,)."""

    used: Floats
    entitled: Floats


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
    used, share = segment_sum(seen.used, group, groups), segment_sum(seen.entitled, group, groups)
    tenant = np.repeat(np.arange(tenants), TIERS)

    of_agents = _Siblings(group, groups, seen.used, seen.entitled, solution.share < solution.wanted - HUNGRY)
    hungry = (solution.group_share < solution.group_wanted - HUNGRY).ravel()
    of_groups = _Siblings(tenant, tenants, used, share, hungry)
    of_tenants = _Siblings(
        np.zeros(tenants, dtype=np.int64),
        1,
        used.reshape(tenants, TIERS).sum(axis=1),
        share.reshape(tenants, TIERS).sum(axis=1),
        solution.tenant_share < solution.tenant_wanted - HUNGRY,
    )
    return Trims(
        agent=_step(previous.agent, of_agents, elapsed, ignored),
        group=_step(previous.group.ravel(), of_groups, elapsed, ignored).reshape(tenants, TIERS),
        tenant=_step(previous.tenant, of_tenants, elapsed, ignored),
    )
