"""The agents that the tick cares for, as slots of arrays, and the order in which the allocator wants them.

An agent keeps its slot for life; a slot that becomes free is given to a later one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from agentos_native.alloc import TIERS, Problem
from agentos_native.alloc.policies import DRF, MAXMIN
from agentos_native.alloc.waterfill import Floats, Indices
from agentos_native.cgroup import GroupRef
from agentos_native.spec.model import PRIORITIES, Resource

FIRST: Final = 64
PROFILED: Final[tuple[Resource, ...]] = ("memory", "io", "network")


@dataclass(frozen=True)
class Tenant:
    """A tenant's own settings; CPUs. `policy` is an index into `alloc.policies.POLICIES`; None: the node's."""

    name: str
    weight: int = 100
    tier: int = PRIORITIES.index("normal")
    request: float = 0.0
    limit: float = float("inf")
    policy: int | None = None


@dataclass(frozen=True)
class Agent:
    """What was asked for one agent; CPUs."""

    agent_id: str
    ref: GroupRef
    slot: int
    weight: int
    request: float
    limit: float
    agent_type: str = ""

    @property
    def tier(self) -> int:
        return PRIORITIES.index(self.ref.tier)


@dataclass
class Plan:
    """The agents in the allocator's order: by tenant, then tier. Rebuilt when somebody comes, goes or changes group."""

    tenants: list[Tenant] = field(default_factory=list)
    slots: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    group: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    starts: Indices = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    @property
    def present(self) -> Indices:
        """The groups (tenant · TIERS + tier) that have agents."""
        return np.flatnonzero(np.diff(self.starts) > 0)


class Slots:
    """Who is where. Arrays have one entry per slot.

    Args:
        policy: of the node, an index into `alloc.policies.POLICIES`.

    Attributes:
        agents, tenants: by id and by name.
        weight, request, limit: as asked for, CPUs.
        profile: the parts of the machine's memory, I/O and network that each wants, one column for each of `PROFILED`.
    """

    def __init__(self, policy: int = MAXMIN) -> None:
        self.policy = policy
        self.agents: dict[str, Agent] = {}
        self.tenants: dict[str, Tenant] = {}
        self.weight: Floats = np.zeros(FIRST)
        self.request: Floats = np.zeros(FIRST)
        self.limit: Floats = np.zeros(FIRST)
        self.profile: Floats = np.zeros((FIRST, len(PROFILED)))
        self._by_slot: dict[int, Agent] = {}
        self._free = list(range(FIRST - 1, -1, -1))
        self._plan: Plan | None = Plan()

    @property
    def capacity(self) -> int:
        return len(self.weight)

    def set_tenant(self, tenant: Tenant) -> None:
        self.tenants[tenant.name] = tenant
        self._plan = None

    def remove_tenant(self, name: str) -> None:
        """Forget its settings; a tenant that still has agents goes on with the defaults."""
        if self.tenants.pop(name, None) is not None:
            self._plan = None

    @property
    def profiled(self) -> bool:
        """Whether any policy in use asks for the profile."""
        return self.policy == DRF or any(tenant.policy == DRF for tenant in self.tenants.values())

    def add(self, agent: Agent) -> Agent:
        """Take `agent` in (its `slot` is chosen here); returns it with its slot."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        agent = replace(agent, slot=slot)
        self.profile[slot] = 0.0
        self._store(agent)
        return agent

    def at(self, slot: int) -> Agent:
        """The agent in `slot`; KeyError when it is free."""
        return self._by_slot[slot]

    def change(self, agent: Agent) -> None:
        """Replace the record of an agent that stays in its slot."""
        self._store(agent)

    def _store(self, agent: Agent) -> None:
        self.agents[agent.agent_id] = self._by_slot[agent.slot] = agent
        self.weight[agent.slot] = agent.weight
        self.request[agent.slot] = agent.request
        self.limit[agent.slot] = agent.limit
        self._plan = None

    def set_profile(self, resource: Resource, fractions: Mapping[str, float]) -> None:
        """What part of the machine's `resource` each agent wants, by id; 0 for those that are not told of."""
        column = np.zeros(self.capacity)
        for agent_id, fraction in fractions.items():
            agent = self.agents.get(agent_id)
            if agent is not None:
                column[agent.slot] = fraction
        self.profile[:, PROFILED.index(resource)] = column

    def remove(self, agent_id: str) -> Agent | None:
        agent = self.agents.pop(agent_id, None)
        if agent is not None:
            del self._by_slot[agent.slot]
            self._free.append(agent.slot)
            self._plan = None
        return agent

    def _grow(self) -> None:
        old = self.capacity
        for name in ("weight", "request", "limit"):
            array = getattr(self, name)
            setattr(self, name, np.append(array, np.zeros(old, dtype=array.dtype)))
        self.profile = np.vstack([self.profile, np.zeros_like(self.profile)])
        self._free = list(range(2 * old - 1, old - 1, -1))

    def plan(self) -> Plan:
        """The present order; the same object until somebody comes, goes or changes."""
        if self._plan is None:
            names = sorted({agent.ref.tenant for agent in self.agents.values()} | set(self.tenants))
            index = {name: number for number, name in enumerate(names)}
            agents = list(self.agents.values())
            group = np.array([index[agent.ref.tenant] * TIERS + agent.tier for agent in agents], dtype=np.int64)
            order = np.argsort(group, kind="stable")
            slots = np.array([agent.slot for agent in agents], dtype=np.int64)[order]
            starts = np.searchsorted(group[order], np.arange(len(names) * TIERS + 1)).astype(np.int64)
            tenants = [self.tenants.get(name, Tenant(name)) for name in names]
            self._plan = Plan(tenants, slots, group[order], starts)
        return self._plan

    def problem(self, capacity: float, demand: Floats) -> Problem:
        """The allocator's problem for the present plan; `demand` in the plan's order, shape (n,)."""
        plan = self.plan()
        policies = [self.policy if tenant.policy is None else tenant.policy for tenant in plan.tenants]
        return Problem(
            capacity=capacity,
            tenant_weight=np.array([tenant.weight for tenant in plan.tenants], dtype=np.float64),
            tenant_tier=np.array([tenant.tier for tenant in plan.tenants], dtype=np.int64),
            tenant_floor=np.array([tenant.request for tenant in plan.tenants], dtype=np.float64),
            tenant_ceiling=np.array([tenant.limit for tenant in plan.tenants], dtype=np.float64),
            starts=plan.starts,
            weight=self.weight[plan.slots],
            floor=self.request[plan.slots],
            ceiling=self.limit[plan.slots],
            demand=demand,
            policy=self.policy,
            tenant_policy=np.array(policies, dtype=np.int64),
            profile=self.profile[plan.slots] if DRF in (self.policy, *policies) else None,
        )
