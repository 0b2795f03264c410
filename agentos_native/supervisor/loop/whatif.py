"""What would be if: the present problem of the allocator, solved again with other specs, other tenants, other agents.

Nothing is written and nothing is measured. The answer goes by the demand that was measured last; an agent whose limit
holds it is taken to want what it was seen to want behind that limit, and one that is new, all that it may have.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from agentos_native import alloc
from agentos_native.alloc import Problem, Solution
from agentos_native.alloc.waterfill import Floats
from agentos_native.cgroup import GroupRef
from agentos_native.spec.model import DEFAULT_TYPE, POLICIES, PRIORITIES, AgentSpec, Resource, TenantSpec
from agentos_native.supervisor.loop.slots import Agent, Slots, Tenant

NOISE: Final[Mapping[Resource, float]] = {"cpu": 5e-4, "memory": 65536.0, "io": 5e-4, "network": 1000.0}
"""In the resource's unit: smaller differences are not told."""
RELATIVE_NOISE: Final = 1e-3


@dataclass(frozen=True)
class Change:
    """What shall be otherwise.

    Attributes:
        specs: by agent id; of agents that are there, or that would be.
        tenants: by name.
        removed: ids of agents that would be gone.
    """

    specs: Mapping[str, AgentSpec] = field(default_factory=dict)
    tenants: Mapping[str, TenantSpec] = field(default_factory=dict)
    removed: Collection[str] = ()


@dataclass(frozen=True)
class Moved:
    """One agent's entitlement of one resource, in its unit (CPUs, bytes, the disk's time, bits per second)."""

    agent_id: str
    resource: Resource
    before: float
    after: float


def moved(resource: Resource, before: Mapping[str, float], after: Mapping[str, float]) -> list[Moved]:
    """Whose entitlement differs by more than noise: gainers first, the largest difference first."""
    rows = [
        Moved(agent_id, resource, before.get(agent_id, 0.0), after.get(agent_id, 0.0))
        for agent_id in {**before, **after}
    ]
    rows = [
        row
        for row in rows
        if abs(row.after - row.before) > max(NOISE[resource], RELATIVE_NOISE * max(row.before, row.after))
    ]
    return sorted(rows, key=lambda row: (row.after < row.before, -abs(row.after - row.before), row.agent_id))


@dataclass(frozen=True)
class Solved:
    """A problem with its solution; `agents` and `tenants` in the problem's order."""

    agents: tuple[Agent, ...]
    tenants: tuple[Tenant, ...]
    problem: Problem
    solution: Solution

    def entitled(self) -> dict[str, float]:
        """By agent id, in CPUs."""
        shares = self.solution.share.tolist()
        return {agent.agent_id: share for agent, share in zip(self.agents, shares, strict=True)}


@dataclass(frozen=True)
class Present:
    """The Ticker's problem as it stands; CPU only.

    Attributes:
        slots: a copy of its own.
        demand: by slot, CPUs, not cut by the agent's limit.
        capacity: CPUs that were there lately; `cpus`: of the machine.
    """

    slots: Slots
    demand: Floats
    capacity: float
    cpus: float

    def solved(self, change: Change | None = None) -> Solved:
        """Divide, after `change`."""
        slots, demand = self.slots, self.demand
        if change is not None:
            slots = copied(slots)
            demand = self._changed(slots, change)
        plan = slots.plan()
        problem = slots.problem(self.capacity, np.minimum(demand[plan.slots], slots.limit[plan.slots]))
        agents = tuple(slots.at(slot) for slot in plan.slots.tolist())
        return Solved(agents, tuple(plan.tenants), problem, alloc.solve(problem))

    def _changed(self, slots: Slots, change: Change) -> Floats:
        """Change `slots`; gives the demand of each."""
        demand = self.demand.copy()
        for name, tenant in change.tenants.items():
            slots.set_tenant(tenant_of(tenant, slots.tenants.get(name)))
        for agent_id in change.removed:
            slots.remove(agent_id)
        for agent_id, spec in change.specs.items():
            old = slots.agents.get(agent_id)
            if old is not None:
                slots.change(agent_of(agent_id, spec, old.slot))
                continue
            slot = slots.add(agent_of(agent_id, spec)).slot
            demand = np.append(demand, np.full(max(slots.capacity - len(demand), 0), self.cpus))
            demand[slot] = self.cpus
        return demand

    def entitled(self, change: Change | None = None) -> dict[str, float]:
        """By agent id, in CPUs."""
        return self.solved(change).entitled()


def solved_of(slots: Slots, capacity: float, demand: Mapping[int, float]) -> Solved:
    """Divide among the agents of `slots`; `demand` by slot."""
    plan = slots.plan()
    order = plan.slots.tolist()
    problem = slots.problem(capacity, np.array([demand[slot] for slot in order], dtype=np.float64))
    return Solved(tuple(slots.at(slot) for slot in order), tuple(plan.tenants), problem, alloc.solve(problem))


def agent_of(agent_id: str, spec: AgentSpec, slot: int = -1) -> Agent:
    """A spec as the tick's slots hold it."""
    limit = spec.resources.limits.cpu
    return Agent(
        agent_id,
        GroupRef(spec.tenant, spec.priority, agent_id),
        slot,
        spec.weight,
        spec.resources.requests.cpu / 1000,
        float("inf") if limit is None else limit / 1000,
        spec.type or DEFAULT_TYPE,
    )


def tenant_of(spec: TenantSpec, old: Tenant | None = None) -> Tenant:
    """A declaration as the tick's slots hold it; what it does not tell is `old`'s."""
    return replace(
        old or Tenant(spec.name),
        weight=spec.weight,
        tier=PRIORITIES.index(spec.priority),
        request=spec.requests.cpu / 1000,
        limit=float("inf") if spec.limits.cpu is None else spec.limits.cpu / 1000,
        policy=None if spec.policy is None else POLICIES.index(spec.policy),
    )


def copied(slots: Slots) -> Slots:
    """A copy that can be changed without the original noticing (its records are frozen)."""
    made = Slots.__new__(Slots)
    vars(made).update({name: copy.copy(value) for name, value in vars(slots).items()})
    return made
