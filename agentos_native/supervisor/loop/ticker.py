"""One turn of the tick: measure → estimate demand → allocate → write the weights that differ.

The Ticker is called from one worker thread for `tick` and from others for the rest; a lock makes that safe, so an `add`
waits for a running tick at most (some milliseconds at a thousand agents). It holds two open files for each agent, and a
third for an agent whose weight it has had to write.

Nothing a group does can stop a tick: a group that is gone is reported once and skipped until it is removed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from agentos_native import alloc
from agentos_native.alloc import Warm, caps, demand, hysteresis
from agentos_native.alloc.hierarchy import HUNGRY
from agentos_native.alloc.waterfill import Floats
from agentos_native.cgroup import GroupRef, Tree
from agentos_native.cgroup.actuators import UNKNOWN, WeightFiles
from agentos_native.cgroup.counters import GONE
from agentos_native.errors import AgentosError
from agentos_native.spec.model import POLICIES, PRIORITIES, Policy, Priority, Resource
from agentos_native.supervisor.loop.caps import Caps
from agentos_native.supervisor.loop.engine import load as load_compiled
from agentos_native.supervisor.loop.explain import View, explain
from agentos_native.supervisor.loop.groups import GroupFiles
from agentos_native.supervisor.loop.meter import Measured, Meter, Sample
from agentos_native.supervisor.loop.names import Namer
from agentos_native.supervisor.loop.rows import AllocationRow, build
from agentos_native.supervisor.loop.slots import Agent, Plan, Slots, Tenant
from agentos_native.supervisor.loop.trims import TrimState
from agentos_native.supervisor.loop.wants import Wants
from agentos_native.supervisor.loop.whatif import Change, Present, copied

COMPILE_FROM: Final = 600
"""Agents from which the compiled engine is worth its memory (over 100 MB, which is 0.2 MB for each of 500 agents).
NumPy and Python serve fewer well."""
REFRESH: Final = 60.0
"""Seconds in which every weight file is read again once: others may have written."""
SMOOTHING: Final = 2.0
"""Seconds over which the capacity is averaged."""

STEADY: Final = 0.05
"""Of the machine: while the capacity moves by more than this in a tick, missing shares say nothing about weights."""

OnEvent = Callable[[str, str], None]


@dataclass(frozen=True)
class TickResult:
    """What one tick did.

    Attributes:
        agents: cared for.
        writes, failures: weights written, and those the kernel refused.
        duration: seconds.
        capacity: CPUs that were divided.
        engine: numpy or numba.
        gone: agents whose groups have vanished since the last tick.
    """

    agents: int
    writes: int
    failures: int
    duration: float
    capacity: float
    engine: str
    gone: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """One tick for whoever records it.

    Attributes:
        time: time.monotonic().
        agents, tenants: in the order of the problem; the same objects while nobody comes, goes or changes.
        used, stalled: CPUs that each agent used since the last tick, and the fraction of that time in which it waited
            (0 and NaN in the first, NaN without PSI), shape (n,).
    """

    time: float
    agents: tuple[Agent, ...]
    tenants: tuple[str, ...]
    inputs: alloc.Inputs
    outcome: alloc.Outcome
    used: Floats
    stalled: Floats
    writes: int
    failures: int
    duration: float
    engine: str


class Ticker:
    """Owns the slots, their sensors and the weights of every group in the tree.

    Args:
        tree: opened; where it lacks the cpu controller the ticker only measures.
        cpus: of the machine, or fewer where the node shall divide fewer.
        on_event: called with ("cgroup-gone", agent id) from within `tick`.
        policy: by which the machine is divided among tenants, and what tenants have that choose none.
        compile_from: agents from which the compiled engine is loaded, in a thread of its own; 0: never. It may be
            set later: while the main thread still imports, another thread's imports could meet half of a module.
        clock: time.monotonic, but for tests.
    """

    def __init__(
        self,
        tree: Tree,
        cpus: float,
        on_event: OnEvent | None = None,
        *,
        policy: Policy = "maxmin",
        compile_from: int = COMPILE_FROM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_turn: Callable[[Turn], None] | None = None
        self._clock = clock
        self._tree = tree
        self._cpus = cpus
        self.on_event = on_event
        self.compile_from = compile_from
        self._loader: threading.Thread | None = None
        self._lock = threading.RLock()
        self._slots = Slots(POLICIES.index(policy))
        self._meter = Meter(tree.path, cpus, self._slots.capacity)
        self._weights = WeightFiles(self._slots.capacity)
        self._groups = GroupFiles(tree)
        self._caps = Caps(tree)
        self._demand: Floats = np.zeros(self._slots.capacity)
        self._wants = Wants(tree, cpus, self._slots.capacity)
        self._entitled: Floats = np.zeros(self._slots.capacity)
        self._trims = TrimState(self._slots.capacity)
        self._reported: set[str] = set()
        self._warm = Warm()
        self._last: Sample | None = None
        self._before_last: Sample | None = None
        self._capacity = cpus
        self._used: Floats = np.zeros(0)  # since the last tick, in the plan's order
        self._stalled: Floats = np.zeros(0)
        self._told: tuple[Plan, tuple[Agent, ...], tuple[str, ...]] | None = None  # for `on_turn`
        self._refreshed = 0.0

    @property
    def enforced(self) -> bool:
        """Whether weights can be written at all on this host."""
        return "cpu" in self._tree.controllers

    # -- who is there -------------------------------------------------------------------------------------------

    def set_tenant(
        self,
        name: str,
        weight: int,
        priority: Priority,
        cpu_request_millis: int,
        cpu_limit_millis: int | None,
        policy: Policy | None = None,
    ) -> None:
        """A tenant's settings; one that is not set has weight 100, priority normal, the node's policy, no more."""
        tier = PRIORITIES.index(priority)
        request, limit = cpu_request_millis / 1000, _cpus(cpu_limit_millis)
        chosen = None if policy is None else POLICIES.index(policy)
        with self._lock:
            self._slots.set_tenant(Tenant(name, weight, tier, request, limit, chosen))

    @property
    def profiled(self) -> bool:
        """Whether any policy in use divides by what agents want of the other resources."""
        with self._lock:
            return self._slots.profiled

    def set_profile(self, fractions: Mapping[Resource, Mapping[str, float]]) -> None:
        """What parts of the machine's other resources agents want, by agent id; for ``drf``."""
        with self._lock:
            for resource, parts in fractions.items():
                self._slots.set_profile(resource, parts)

    def remove_tenant(self, name: str) -> None:
        with self._lock:
            self._slots.remove_tenant(name)

    def add(
        self,
        agent_id: str,
        ref: GroupRef,
        weight: int,
        cpu_request_millis: int,
        cpu_limit_millis: int | None,
        agent_type: str = "",
    ) -> None:
        """Take in an agent whose group exists. It counts as wanting all it may have until it has been measured."""
        request, limit = cpu_request_millis / 1000, _cpus(cpu_limit_millis)
        path = self._tree.get(ref).path
        with self._lock:
            self.remove(agent_id)
            slot = self._slots.add(Agent(agent_id, ref, -1, weight, request, limit, agent_type)).slot
            self._grow()
            self._meter.open(slot, path, self._clock())
            if self.enforced:
                self._weights.open(slot, path)
                self._caps.add(slot)
            self._demand[slot] = self._entitled[slot] = min(limit, self._cpus)
            self._wants.add(slot)
            self._trims.add(slot)

    def _grow(self) -> None:
        more = self._slots.capacity - len(self._demand)
        if more > 0:
            self._meter.grow(self._slots.capacity)
            self._weights.grow(self._slots.capacity)
            self._trims.grow(more)
            self._wants.grow(more)
            for name in ("_demand", "_entitled"):
                setattr(self, name, np.append(getattr(self, name), np.zeros(more)))

    def change(
        self,
        agent_id: str,
        weight: int,
        cpu_request_millis: int,
        cpu_limit_millis: int | None,
        ref: GroupRef | None = None,
    ) -> None:
        """New settings for an agent; with another `ref`, in another group (it is then measured afresh)."""
        with self._lock:
            agent = self._agent(agent_id)
            if ref is not None and ref != agent.ref:
                self.add(agent_id, ref, weight, cpu_request_millis, cpu_limit_millis, agent.agent_type)
                return
            limit = _cpus(cpu_limit_millis)
            self._slots.change(replace(agent, weight=weight, request=cpu_request_millis / 1000, limit=limit))
            if self.enforced:
                self._weights.refresh(agent.slot)  # its settings have been written, its weight among them
                self._caps.add(agent.slot)

    def remove(self, agent_id: str) -> None:
        """Forget an agent and close its files; nothing happens when it is not there."""
        with self._lock:
            agent = self._slots.remove(agent_id)
            if agent is not None:
                self._meter.sensors.close(agent.slot)
                self._weights.close(agent.slot)
                self._caps.remove(agent.slot)
                self._reported.discard(agent_id)

    def _agent(self, agent_id: str) -> Agent:
        try:
            return self._slots.agents[agent_id]
        except KeyError:
            raise AgentosError("no-such-agent", "the allocator has no such agent", agent_id) from None

    def close(self) -> None:
        """Close every file; the groups and their weights stay as they are, limits are the agents' own again."""
        with self._lock:
            self._meter.close()
            self._weights.close_all()
            self._groups.close()
            self._caps.close()

    # -- the turn -----------------------------------------------------------------------------------------------

    def tick(self, now: float) -> TickResult:
        """Measure, allocate, write; `now` is time.monotonic()."""
        with self._lock:
            began = time.perf_counter()
            slots = self._slots.plan().slots
            sample = self._meter.read(slots, now)
            gone = self._report_gone()
            self._used, self._stalled = np.zeros(len(slots)), np.full(len(slots), np.nan)
            if self._last is not None and now - self._last.time > 1e-3:
                measured = self._meter.between(self._last, sample, slots, self._slots.limit[slots])
                self._update(measured)
                self._used, self._stalled = measured.used, measured.stalled
            inputs = self._inputs(now)
            engine = alloc.engine()
            outcome = alloc.turn(inputs)
            self._warm, self._entitled[slots] = outcome.warm, outcome.solution.share
            writes, failures = 0, 0
            if self.enforced:
                assert outcome.trims is not None
                self._trims.keep(self._slots, outcome.trims)
                self._refresh(now)
                writes, failures = self._write(outcome)
                there = self._meter.sensors.status[slots] != GONE
                capped = np.where(there, caps.of_agents(inputs.problem, outcome.solution), np.inf)
                written = self._caps.write(self._slots, capped, now)
                writes, failures = writes + written[0], failures + written[1]
            self._before_last, self._last = self._last, sample
            self._meter.keep(sample)
            self._load_engine(len(slots))
            duration = time.perf_counter() - began
            if self.on_turn is not None:
                agents, names = self._participants()
                seen = (self._used, self._stalled)
                self.on_turn(Turn(now, agents, names, inputs, outcome, *seen, writes, failures, duration, engine))
            return TickResult(len(slots), writes, failures, duration, self._capacity, engine, gone)

    def _participants(self) -> tuple[tuple[Agent, ...], tuple[str, ...]]:
        """Agents and tenants of the present plan, made once for each plan."""
        plan = self._slots.plan()
        if self._told is None or self._told[0] is not plan:
            agents = tuple(self._slots.at(slot) for slot in plan.slots.tolist())
            self._told = (plan, agents, tuple(tenant.name for tenant in plan.tenants))
        return self._told[1:]

    def _inputs(self, now: float) -> alloc.Inputs:
        """All that this turn goes by."""
        elapsed = now - self._last.time if self._last is not None else 0.0
        slots = self._slots.plan().slots
        return alloc.Inputs(
            problem=self._slots.problem(self._capacity, self._demand[slots]),
            warm=self._warm,
            trims=self._trims.current(self._slots) if self.enforced else None,
            experience=self._trims.experience(self._slots) if self.enforced else None,
            cpus=self._cpus,
            elapsed=elapsed,
            lately=self._wants.lately[slots],
        )

    def _report_gone(self) -> tuple[str, ...]:
        status = self._meter.sensors.status
        if not (status[self._slots.plan().slots] == GONE).any():
            return ()
        missing = [agent.agent_id for agent in self._slots.agents.values() if status[agent.slot] == GONE]
        gone = tuple(agent_id for agent_id in missing if agent_id not in self._reported)
        self._reported.update(gone)
        for agent_id in gone:
            if self.on_event is not None:
                self.on_event("cgroup-gone", agent_id)
        return gone

    def _update(self, measured: Measured) -> None:
        """Carry demand and capacity on by what was measured since the last tick."""
        slots = self._slots.plan().slots
        # an estimate that went wrong once must not be carried on for ever: NaN and ∞ are forgotten
        before, entitled = _finite(self._demand[slots]), _finite(self._entitled[slots])
        capacity = self._capacity if np.isfinite(self._capacity) else measured.capacity
        had = self._trims.used(slots, measured.used)
        wanted = self._wants.estimate(self._slots, measured, entitled, capacity, had)
        smoothed = demand.smooth(before, wanted, measured.window)
        due = np.where(entitled < before - HUNGRY, entitled, np.minimum(entitled, wanted))
        self._demand[slots] = np.where(measured.new, np.minimum(self._slots.limit[slots], self._cpus), smoothed)
        self._wants.remember(slots, self._demand[slots], measured.window)
        part = 1.0 - float(np.exp(-measured.window / SMOOTHING))
        steady = abs(measured.capacity - self._capacity) <= STEADY * self._cpus
        self._trims.measured(self._slots.plan(), measured, due, steady)
        self._capacity = capacity + part * (measured.capacity - capacity)

    def _write(self, outcome: alloc.Outcome) -> tuple[int, int]:
        """Write the weights that differ enough from what the files hold."""
        plan, weights, solution = self._slots.plan(), outcome.weights, outcome.solution
        plain = self._slots.weight[plan.slots].astype(np.int64)
        reserved, content = self._slots.request[plan.slots] > 0, solution.share >= solution.wanted - HUNGRY
        held = self._weights.written[plan.slots]
        target, due = hysteresis.due(weights.agent, held, plain, plan.group, reserved, content)
        due &= self._meter.sensors.status[plan.slots] != GONE
        done = self._weights.write(plan.slots[due], target[due])
        writes, failures = self._groups.write(plan, weights)
        return writes + int(done.sum()), failures + int((~done).sum())

    def _refresh(self, now: float) -> None:
        """Read each weight file and cap once in REFRESH seconds, a few at each tick."""
        slots = self._slots.plan().slots
        since, self._refreshed = self._refreshed, now
        if since == 0.0:
            return
        begin, end = (int(part / REFRESH * len(slots)) for part in (since % REFRESH, since % REFRESH + now - since))
        for index in range(begin, min(end, begin + len(slots))):
            for files in (self._weights, self._caps):
                files.refresh(int(slots[index % len(slots)]))
        if now // REFRESH != since // REFRESH:
            self._groups.refresh()

    def _load_engine(self, agents: int) -> None:
        """Load the compiled engine in a thread once there are enough agents; until it is there NumPy goes on."""
        if self._loader is not None or not self.compile_from or agents < self.compile_from:
            return

        self._loader = threading.Thread(target=load_compiled, name="compile", daemon=True)
        self._loader.start()

    # -- telling ------------------------------------------------------------------------------------------------

    def rows(self, window: float | None = None) -> list[AllocationRow]:
        """One row for each agent, by tenant and tier.

        Args:
            window: seconds to average over, at most `meter.KEPT`; what agents are entitled to then follows from
                their mean demand. None: since the tick before the last, with the demand that the last tick went by.
        """
        with self._lock:
            plan = self._slots.plan()
            if not len(plan.slots):
                return []
            if self._last is None:
                self.tick(self._clock())
            now = self._clock()
            sample = self._meter.read(plan.slots, now)
            before = self._meter.begin_of(window, now) if window is not None else self._before_last
            before = before or self._last
            assert before is not None
            measured = self._meter.between(before, sample, plan.slots, self._slots.limit[plan.slots])
            if window is None:
                measured = replace(measured, capacity=self._capacity)
                wanted = self._demand[plan.slots]
            else:
                entitled, capacity = self._entitled[plan.slots], measured.capacity
                wanted = self._wants.estimate(self._slots, measured, entitled, capacity, measured.used)
            problem = self._slots.problem(measured.capacity, wanted)
            kernel = self._weights.written if self.enforced else np.full(self._slots.capacity, UNKNOWN)
            return build(self._slots, problem, alloc.solve(problem), measured, self._meter.sensors.usage, kernel)

    def present(self) -> Present:
        """The problem as it stands, to be solved again with something changed."""
        with self._lock:
            slots = copied(self._slots)
            # what a limit holds back is wanted all the same: a change of the limit would show it
            held = self._demand >= slots.limit - HUNGRY
            wanted = np.where(held, np.maximum(self._demand, self._wants.unheld), self._demand)
            return Present(slots, wanted, self._capacity, self._cpus)

    def entitled(self, change: Change | None = None) -> dict[str, float]:
        """By agent id: what each would be entitled to after `change`, in CPUs."""
        return self.present().entitled(change)

    def explain(self, agent_id: str, name: Namer = str) -> dict[str, Any]:
        """Why this agent has what it has: figures and words; AgentosError ``no-such-agent``."""
        with self._lock:
            slot = self._agent(agent_id).slot
            trims = self._trims.current(self._slots) if self.enforced else None
            present = self.present()
            awake = demand.awake(present.demand, present.slots.request, self._wants.lately)
            view = View(self.rows(), present, trims, replace(present, demand=awake), self._caps.of(slot))
        return explain(agent_id, view, name)


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, 0.0)


def _cpus(millis: int | None) -> float:
    return float("inf") if millis is None else millis / 1000
