"""Everybody of a trace as arrays, one entry for each agent that ever arrives, in the order of their lines.

The allocator wants those that run in the order of their groups (tenant, then tier); `Crowd.order` is that order, made
anew when somebody starts or ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from agentos_native.alloc import TIERS, Problem
from agentos_native.alloc.room import Account
from agentos_native.alloc.waterfill import Floats, Indices
from agentos_native.errors import AgentosError
from agentos_native.simulation.trace import ARRIVE, Step
from agentos_native.spec.model import POLICIES, PRIORITIES, AgentSpec, Document, Policy, TenantSpec

WAITING, RUNNING, ENDED, REFUSED, AWAY = range(5)
"""States of an agent; `AWAY` before it arrives."""
NORMAL: Final = PRIORITIES.index("normal")
UNIT: Final = {"cpu": 1.0, "memory": 2.0**20, "network": 1e6}
"""Bytes and bits per second are divided as Mi and M: the allocator takes 10⁹ for no limit."""


@dataclass
class Resource:
    """One resource of everybody, in units of `UNIT`: shape (N,)."""

    want: Floats
    floor: Floats
    ceiling: Floats


class Crowd:
    """Who is in the trace, what they want now, and in which state they are.

    Attributes:
        tenants: by name, the index of each; `declared`: their documents.
        state, tenant, tier, weight: shape (N,).
        cpu, memory, network: what each wants, has reserved and may have at most.
        arrived, started, ended: times, NaN where not yet; `until`: when it leaves by itself; `work`: CPU-seconds left.
    """

    def __init__(self, steps: Sequence[Step], documents: Iterable[Document] = ()) -> None:
        self.declared: dict[str, TenantSpec] = {}
        self._specs: dict[tuple[str, str], AgentSpec] = {}
        self._families: dict[tuple[str, str], AgentSpec] = {}  # by the name that replicas have in common
        for document in documents:
            if isinstance(document, TenantSpec):
                self.declared[document.name] = document
            else:
                if document.replicas > 1:
                    self._families[document.tenant, document.name] = document
                for name in _replicas(document):
                    self._specs[document.tenant, name] = document
        self.steps = self._completed(steps)
        names = {step.tenant for step in self.steps} | self.declared.keys()
        self.tenants = {name: index for index, name in enumerate(sorted(names))}
        count = sum(step.count for step in self.steps if step.kind == ARRIVE)
        self.state = np.full(count, AWAY, dtype=np.int8)
        self.tenant: Indices = np.zeros(count, dtype=np.int64)
        self.tier: Indices = np.full(count, NORMAL, dtype=np.int64)
        self.weight: Floats = np.full(count, 100.0)
        self.resources = {name: self._resource(name, count) for name in UNIT}
        self.arrived, self.started, self.ended = (np.full(count, np.nan) for _ in range(3))
        self.duration = np.full(count, np.inf)
        self.until = np.full(count, np.inf)
        self.work = np.full(count, np.inf)
        self._names: list[tuple[int, str, int]] = []  # first index, name, count
        self._where: dict[tuple[str, str], slice] = {}
        self._arrivals = 0
        self.order: Indices = np.zeros(0, dtype=np.int64)
        self.starts: Indices = np.zeros(len(names) * TIERS + 1, dtype=np.int64)

    @staticmethod
    def _resource(name: str, count: int) -> Resource:
        want = np.full(count, np.inf) if name == "cpu" else np.zeros(count)
        return Resource(want, np.zeros(count), np.full(count, np.inf))

    def _completed(self, steps: Sequence[Step]) -> list[Step]:
        """With agents that only the documents speak of: they are there from the beginning and want all they get."""
        mentioned = {(step.tenant, step.agent) for step in steps}
        silent = [
            (tenant, name)
            for (tenant, name), spec in self._specs.items()
            if not mentioned & {(tenant, name), (tenant, spec.name)}
        ]
        return [*(Step(0.0, ARRIVE, tenant, agent) for tenant, agent in silent), *steps]

    def __len__(self) -> int:
        return len(self.state)

    def label(self, index: int) -> tuple[str, str]:
        """Tenant and name of one agent."""
        low, high = 0, len(self._names)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._names[middle][0] <= index else (low, middle)
        first, name, count = self._names[low]
        tenant = list(self.tenants)[int(self.tenant[index])]
        return tenant, name if count == 1 else f"{name}-{index - first}"

    # -- what happens -------------------------------------------------------------------------------------------

    def arrive(self, step: Step) -> slice:
        """New agents, in the state `WAITING`; gives their places."""
        places = slice(self._arrivals, self._arrivals + step.count)
        self._arrivals += step.count
        self._names.append((places.start, step.agent, step.count))
        self._where[step.tenant, step.agent] = places
        self.tenant[places] = self.tenants[step.tenant]
        self.arrived[places] = step.time
        who = (step.tenant, step.agent)
        spec = self._specs.get(who) or self._families.get(who)
        if spec is not None:
            self._from_document(places, spec)
        self._change(places, step)
        self.state[places] = WAITING
        return places

    def _from_document(self, places: slice, spec: AgentSpec) -> None:
        self.tier[places] = PRIORITIES.index(spec.priority)
        self.weight[places] = spec.weight
        requests, limits = spec.resources.requests, spec.resources.limits
        cpu, memory, network = (self.resources[name] for name in UNIT)
        cpu.floor[places] = requests.cpu / 1000
        cpu.ceiling[places] = math.inf if limits.cpu is None else limits.cpu / 1000
        memory.floor[places] = requests.memory / UNIT["memory"]
        memory.ceiling[places] = math.inf if limits.memory is None else limits.memory / UNIT["memory"]
        if requests.network is not None:
            network.floor[places] = (requests.network.egress or 0) / UNIT["network"]
        if limits.network is not None and limits.network.egress is not None:
            network.ceiling[places] = limits.network.egress / UNIT["network"]

    def change(self, step: Step) -> slice:
        """Other settings or demands; gives the places of the agents."""
        places = self._where[step.tenant, step.agent]
        self._change(places, step)
        return places

    def _change(self, places: slice, step: Step) -> None:
        if step.tier is not None:
            self.tier[places] = step.tier
        if step.weight is not None:
            self.weight[places] = step.weight
        if step.duration is not None:
            self.duration[places] = step.duration
            self.until[places] = np.where(np.isnan(self.started[places]), np.inf, self.started[places] + step.duration)
        if step.work is not None:
            self.work[places] = step.work
        for column, value in step.amounts.items():
            name, _, part = column.partition("_")
            kind = {"": "want", "request": "floor", "limit": "ceiling"}[part]
            getattr(self.resources[name], kind)[places] = value / UNIT[name]

    def leave(self, step: Step) -> Indices:
        """The agents of the line that are still there."""
        places = self._where[step.tenant, step.agent]
        return np.arange(places.start, places.stop)[self.state[places] <= RUNNING]

    def start(self, places: Indices | slice, now: float) -> None:
        """They run from now on."""
        self.state[places] = RUNNING
        self.started[places] = now
        self.until[places] = now + self.duration[places]

    def end(self, places: Indices, now: float) -> None:
        """They are gone."""
        self.state[places] = ENDED
        self.ended[places] = now

    # -- for the allocator --------------------------------------------------------------------------------------

    def sort(self) -> None:
        """Make `order` and `starts` anew."""
        running = np.flatnonzero(self.state == RUNNING)
        group = self.tenant[running] * TIERS + self.tier[running]
        self.order = running[np.argsort(group, kind="stable")]
        sizes = np.bincount(group, minlength=len(self.tenants) * TIERS)
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def tenant_figures(self, resource: str) -> tuple[Floats, Floats]:
        """The tenants' own reservations and limits, shape (T,)."""
        floors, ceilings = np.zeros(len(self.tenants)), np.full(len(self.tenants), np.inf)
        for name, spec in self.declared.items():
            limit: int | None = getattr(spec.limits, resource, None)
            request: object = getattr(spec.requests, resource, None)
            factor = 1000.0 if resource == "cpu" else UNIT[resource]
            floors[self.tenants[name]] = request / factor if isinstance(request, int) else 0.0
            ceilings[self.tenants[name]] = math.inf if limit is None else limit / factor
        return floors, ceilings

    def problem(self, resource: str, capacity: float, demand: Floats, policy: Policy) -> Problem:
        """The allocator's problem for those that run; `demand` in their order."""
        floors, ceilings = self.tenant_figures(resource)
        specs = [self.declared.get(name, TenantSpec(name=name)) for name in self.tenants]
        part = self.resources[resource]
        return Problem(
            capacity=capacity,
            tenant_weight=np.array([spec.weight for spec in specs], dtype=np.float64),
            tenant_tier=np.array([PRIORITIES.index(spec.priority) for spec in specs], dtype=np.int64),
            tenant_floor=floors,
            tenant_ceiling=ceilings,
            starts=self.starts,
            weight=self.weight[self.order],
            floor=part.floor[self.order],
            ceiling=part.ceiling[self.order],
            demand=demand,
            policy=POLICIES.index(policy),
            tenant_policy=np.array([POLICIES.index(spec.policy or policy) for spec in specs], dtype=np.int64),
        )

    def accounts(self) -> dict[str, Account]:
        """The tenants' terms at the door: CPUs and Mi."""
        accounts = {}
        (cpu_floor, cpu_limit), (memory_floor, memory_limit) = self.tenant_figures("cpu"), self.tenant_figures("memory")
        for name, spec in self.declared.items():
            i = self.tenants[name]
            floor = (float(cpu_floor[i]), float(memory_floor[i]), 0.0, 0.0)
            most = math.inf if spec.limits.agents is None else float(spec.limits.agents)
            limit = (float(cpu_limit[i]), float(memory_limit[i]), math.inf, most)
            accounts[name] = Account(spec.weight, floor, limit)
        return accounts


def _replicas(spec: AgentSpec) -> list[str]:
    return [spec.name] if spec.replicas == 1 else [f"{spec.name}-{number}" for number in range(spec.replicas)]


def check_fits(crowd: Crowd, cpus: float, memory: float) -> None:
    """Raise ``reservation-too-large`` when the tenants' own reservations alone are more than the machine."""
    for resource, total in (("cpu", cpus), ("memory", memory)):
        floors, _ = crowd.tenant_figures(resource)
        if floors.sum() > total:
            what = f"the tenants' own reservations of {resource} are more than the machine has"
            raise AgentosError("reservation-too-large", what, "", "a larger machine, or smaller reservations")
