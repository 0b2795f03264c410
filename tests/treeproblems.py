"""Problems for the allocator, small enough to read and random ones, and what the model kernel makes of its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from agentos_native.alloc import TIERS, Problem, Weights
from agentos_native.alloc.policies import MAXMIN
from tests.kernelmodel import Group

SYSTEM, HIGH, NORMAL, LOW, IDLE = range(5)
INF = float("inf")


@dataclass(frozen=True)
class A:
    """An agent."""

    tenant: int = 0
    tier: int = NORMAL
    weight: float = 100
    floor: float = 0
    limit: float = INF
    demand: float = INF
    parts: tuple[float, ...] = ()


@dataclass(frozen=True)
class T:
    """A tenant."""

    weight: float = 100
    tier: int = NORMAL
    floor: float = 0
    limit: float = INF
    policy: int | None = None


def problem(cpus: float, agents: list[A], tenants: list[T] | None = None, policy: int = MAXMIN) -> Problem:
    """Agents must come in the order of their groups; tenants without a policy have the node's."""
    tenants = tenants or [T() for _ in range(1 + max(agent.tenant for agent in agents))]
    group = [agent.tenant * TIERS + agent.tier for agent in agents]
    assert group == sorted(group)
    return Problem(
        capacity=cpus,
        tenant_weight=np.array([tenant.weight for tenant in tenants], dtype=float),
        tenant_tier=np.array([tenant.tier for tenant in tenants], dtype=np.int64),
        tenant_floor=np.array([tenant.floor for tenant in tenants], dtype=float),
        tenant_ceiling=np.array([tenant.limit for tenant in tenants], dtype=float),
        starts=np.searchsorted(group, np.arange(len(tenants) * TIERS + 1)).astype(np.int64),
        weight=np.array([agent.weight for agent in agents], dtype=float),
        floor=np.array([agent.floor for agent in agents], dtype=float),
        ceiling=np.array([min(agent.limit, cpus) for agent in agents], dtype=float),
        demand=np.array([agent.demand for agent in agents], dtype=float),
        policy=policy,
        tenant_policy=np.array([policy if tenant.policy is None else tenant.policy for tenant in tenants]),
        profile=np.array([agent.parts for agent in agents], dtype=float),
    )


def by_the_kernel(one: Problem, weights: Weights) -> list[float]:
    """What a kernel that fills demand by weight gives each agent."""
    root = Group()
    leaves = []
    for group, begin in enumerate(one.starts[:-1].tolist()):
        for index in range(begin, int(one.starts[group + 1])):
            tenant, tier = divmod(group, TIERS)
            above = root.children.setdefault(
                str(tenant),
                Group(
                    weight=float(weights.tenant[tenant]),
                    idle=bool(weights.tenant_idle[tenant]),
                    limit=float(one.tenant_ceiling[tenant]),
                ),
            )
            between = above.children.setdefault(
                str(tier),
                Group(weight=float(weights.group[tenant, tier]), idle=bool(weights.group_idle[tenant, tier])),
            )
            want = min(float(one.demand[index]), float(one.ceiling[index]))
            leaf = between.children[str(index)] = Group(weight=float(weights.agent[index]), want=want)
            leaves.append(leaf)
    root.fill(one.capacity)
    return [leaf.share for leaf in leaves]


@st.composite
def problems(draw: st.DrawFn, policies: tuple[int, ...] = (MAXMIN,)) -> Problem:
    """A few tenants of different rank with up to a dozen agents; floors fit, more or less everybody is hungry."""
    cpus = draw(st.sampled_from([1.0, 2.0, 4.0, 16.0]))
    count = draw(st.integers(1, 4))
    tenants = [
        T(
            weight=draw(st.sampled_from([50, 100, 300])),
            tier=draw(st.sampled_from([HIGH, NORMAL, NORMAL, LOW, IDLE])),
            limit=draw(st.sampled_from([INF, INF, 0.7 * cpus])),
            policy=draw(st.sampled_from(policies)),
        )
        for _ in range(count)
    ]
    agents = []
    for _ in range(draw(st.integers(1, 12))):
        limit = draw(st.sampled_from([INF, INF, 0.5, 1.0]))
        agents.append(
            A(
                tenant=draw(st.integers(0, count - 1)),
                tier=draw(st.integers(0, 4)),
                weight=draw(st.sampled_from([20, 50, 100, 200, 1000])),
                floor=min(draw(st.sampled_from([0, 0, 0.1, 0.4])), limit, cpus),
                limit=limit,
                demand=draw(st.sampled_from([INF, INF, 0.0, 0.05, 0.3, 0.9])),
                parts=tuple(draw(st.lists(st.sampled_from([0.0, 0.1, 0.4, 1.0]), min_size=3, max_size=3))),
            )
        )
    agents.sort(key=lambda agent: agent.tenant * TIERS + agent.tier)
    reserved = sum(agent.floor for agent in agents)
    if reserved > 0.6 * cpus:
        agents = [replace(agent, floor=agent.floor * 0.6 * cpus / reserved) for agent in agents]
    return problem(cpus, agents, tenants, draw(st.sampled_from(policies)))


