"""What agents may have inside a tenant that its own limit holds back, where weights do not divide.

A tenant's ``cpu.max`` is a quota that its agents draw on, in slices, from whatever CPU they run on. Agents that run on
different CPUs do not compete for a CPU, so their weights decide nothing: each draws as fast as it can until the quota
is gone, and then all wait for the next period. Weights of 300 and 100 below one CPU of two were measured at 0.47 and
0.53. So while a tenant is at its limit, each of its agents is given a quota of its own, and the tenant's stays as it
is, which holds for the sum whatever happens.

An agent's cap is the W-rule in CPUs (see `agentos_native.alloc.weights`): ``max(share, weight · level, reservation)``.
Who is held back by the limit has exactly its share; who wants less than its part may have all of that part the moment
it wants it. Until the next tick the quotas then are more than the tenant's, which decides, as it would have before.
"""

from __future__ import annotations

import numpy as np

from agentos_native.alloc.hierarchy import HUNGRY, TIERS, Problem, Solution, clean
from agentos_native.alloc.policies import MAXMIN, PRIORITY
from agentos_native.alloc.waterfill import Floats, segments_of


def of_agents(problem: Problem, solution: Solution) -> Floats:
    """What each agent may have, in CPUs; ∞ for whom nothing but its own limit holds. Shape (n,)."""
    result = np.full(len(solution.share), np.inf)
    if not np.any(np.isfinite(problem.tenant_ceiling)):
        return result
    problem = clean(problem)
    limit = problem.tenant_ceiling
    agents = np.diff(problem.starts).reshape(-1, TIERS).sum(axis=1)
    wanted = solution.group_wanted.sum(axis=1)
    bound = (agents > 1) & (wanted > limit + HUNGRY) & (solution.tenant_share >= limit - HUNGRY)
    if not bound.any():
        return result
    group = segments_of(problem.starts)
    tenant, level = group // TIERS, solution.group_level[group]
    policy = problem.tenant_policies[tenant]
    by_level = ((policy == MAXMIN) | (policy == PRIORITY)) & np.isfinite(level) & (level > 0)
    hungry = solution.share < solution.wanted - HUNGRY
    by_rule = np.maximum(problem.weight * np.where(by_level, level, 0.0), problem.floor)
    own = np.where(by_level, np.maximum(solution.share, by_rule), np.where(hungry, solution.share, np.inf))
    return np.where(bound[tenant], own, result)
