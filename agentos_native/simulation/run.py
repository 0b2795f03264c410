"""A simulated node, tick by tick: the kernel runs with the weights in force, things happen, the allocator turns.

In each tick
1. the fluid kernel (`fluid`) gives CPUs by the weights of the tick before, for what agents want then;
2. who has left, is done or has had its time goes; who arrives starts or waits (`door`); demands change;
3. demand is taken to be measured exactly, rises at once and falls slowly, as in the real loop (`alloc.demand`); who is
   new counts as wanting all it may have for its first tick;
4. `alloc.turn`, the very same as in the supervisor, gives shares and weights.

Memory and network, where the machine's are given, are divided by the same `alloc.solve`. A tick in which nothing
differs from the one before is not computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from agentos_native import alloc
from agentos_native.alloc import demand
from agentos_native.alloc.policies import DRF
from agentos_native.alloc.waterfill import Floats, Indices
from agentos_native.errors import AgentosError
from agentos_native.simulation.crowd import RUNNING, WAITING, Crowd, check_fits
from agentos_native.simulation.door import Door
from agentos_native.simulation.fluid import fill
from agentos_native.simulation.trace import ARRIVE, LEAVE
from agentos_native.spec.model import Policy

SETTLE: Final = 10
"""Ticks that are simulated after the last thing that happened."""
LONGEST: Final = 1_000_000
"""Ticks of one simulation."""
NEAR: Final = 1e-9
"""CPUs: a demand that has fallen so near to its new value has reached it."""


@dataclass(frozen=True)
class Machine:
    """What there is: CPUs, Mi, M bits per second (None: enough, not divided), and agents at once."""

    cpus: float
    memory: float | None = None
    network: float | None = None
    slots: float = math.inf


@dataclass(frozen=True)
class Moment:
    """One tick as results see it. Arrays in the order of `order`, in the units of `crowd.UNIT`.

    Attributes:
        time: at its end; `period`: seconds since the last one.
        floor: what was reserved in it.
        had: what the kernel gave in it; `entitled`: what the allocator had given for it; `wanted`: at most the limit.
        shares: of memory and network, now.
        waiting: agents of each tenant that wait, shape (T,).
        weights: of the agents, now.
    """

    time: float
    period: float
    order: Indices
    floor: Floats
    had: Floats
    entitled: Floats
    wanted: Floats
    shares: dict[str, Floats]
    waiting: list[int]
    weights: Indices


@dataclass
class _State:
    """What lasts from tick to tick: the order and shares in force, and what was computed last."""

    order: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    starts: Indices | None = None
    outcome: alloc.Outcome | None = None
    problems: dict[str, alloc.Problem] = field(default_factory=dict)
    shares: dict[str, Floats] = field(default_factory=dict)
    warm: alloc.Warm = field(default_factory=alloc.Warm)


class Simulation:
    """One run of a trace on a machine.

    Args:
        see: called with every tick.
    """

    def __init__(
        self,
        crowd: Crowd,
        machine: Machine,
        see: Callable[[Moment], None],
        *,
        policy: Policy = "maxmin",
        period: float = 1.0,
        wait: bool = True,
        until: float | None = None,
    ) -> None:
        memory = math.inf if machine.memory is None else machine.memory
        check_fits(crowd, machine.cpus, memory)
        self.ticks = self.computed = 0
        self._crowd = crowd
        self._machine = machine
        self._see = see
        self._policy: Policy = policy
        self._period = period
        self._until = until
        self._door = Door(crowd, machine.cpus, memory, machine.slots, wait)
        self._estimate: Floats = np.zeros(len(crowd))  # of the demand, for everybody
        self._fresh = np.ones(len(crowd), dtype=bool)  # not measured yet
        self._next = 0
        self._state = _State()
        self._starved = False
        self._changed = crowd.steps[-1].time  # the last time that anything happened, or will by the trace
        if (self._changed if until is None else until) > LONGEST * period:
            raise self._too_long()

    def run(self) -> None:
        """From time 0 to the end. Raises ``too-long`` when that is not reached in `LONGEST` ticks."""
        self._turn(0.0)
        while self.ticks < LONGEST:
            now = (self.ticks + 1) * self._period
            end = self._changed + SETTLE * self._period if self._until is None else self._until
            if now > end + 1e-9 and (self._until is not None or not self._going_on()):
                return
            self.ticks += 1
            self._tick(now)
        raise self._too_long()

    @staticmethod
    def _too_long() -> AgentosError:
        what = f"it does not end within {LONGEST} ticks"
        return AgentosError("too-long", what, hint="a longer --tick, or an end by --until")

    def _going_on(self) -> bool:
        """Whether something will still happen by itself: somebody's time will be over, or its work done."""
        crowd = self._crowd
        running = crowd.state == RUNNING
        ends = bool(np.isfinite(crowd.until[running]).any())
        return ends or (bool(np.isfinite(crowd.work[running]).any()) and not self._starved)

    # -- one tick -----------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        crowd, state = self._crowd, self._state
        order, wanted = state.order, self._wanted(state.order)
        had = self._kernel(wanted)
        assert state.outcome is not None
        entitled, floor = state.outcome.solution.share, state.problems["cpu"].floor
        crowd.work[order] -= had * self._period
        worked = np.isfinite(crowd.work[order])
        self._starved = bool(worked.any() and not (had[worked] > 0).any())
        changed = self._ends(order, now)
        self._measure(order, wanted)
        self._turn(now, changed)
        waiting, weights = self._door.lengths(), state.outcome.weights.agent
        self._see(Moment(now, self._period, order, floor, had, entitled, wanted, state.shares, waiting, weights))

    def _wanted(self, order: Indices) -> Floats:
        cpu = self._crowd.resources["cpu"]
        return np.minimum(np.minimum(cpu.want[order], cpu.ceiling[order]), self._machine.cpus)

    def _kernel(self, wanted: Floats) -> Floats:
        """What each agent gets in the tick by the weights in force."""
        state = self._state
        if state.outcome is None or state.starts is None or not len(wanted):
            return np.zeros(len(wanted))
        _, limits = self._crowd.tenant_figures("cpu")
        return fill(self._machine.cpus, state.outcome.weights, state.starts, wanted, limits)

    def _measure(self, order: Indices, wanted: Floats) -> None:
        before = self._estimate[order]
        after = demand.smooth(before, wanted, self._period)
        after = np.where(np.abs(after - wanted) <= NEAR, wanted, after)
        self._estimate[order] = np.where(self._fresh[order], before, after)
        self._fresh[order] = False

    def _ends(self, order: Indices, now: float) -> bool:
        crowd = self._crowd
        done = order[(crowd.until[order] <= now + 1e-9) | (crowd.work[order] <= 1e-9)]
        crowd.end(done, now)
        return len(done) > 0

    def _happen(self, now: float) -> tuple[bool, Indices]:
        """The lines of the trace up to now: whether the crowd is another one then, and who has arrived."""
        crowd = self._crowd
        new: list[Indices] = []
        changed = False
        while self._next < len(crowd.steps) and crowd.steps[self._next].time <= now + 1e-9:
            step = crowd.steps[self._next]
            self._next += 1
            if step.kind == ARRIVE:
                places = crowd.arrive(step)
                new.append(np.arange(places.start, places.stop))
            elif step.kind == LEAVE:
                gone = crowd.leave(step)
                self._door.leave(gone)
                crowd.end(gone, now)
                changed = True
            else:
                crowd.change(step)
                changed |= step.tier is not None
        arrivals = np.concatenate(new) if new else np.zeros(0, dtype=np.int64)
        return changed, arrivals[crowd.state[arrivals] == WAITING]  # who left between two ticks was never there

    def _turn(self, now: float, changed: bool = False) -> None:
        crowd, state = self._crowd, self._state
        happened, arrivals = self._happen(now)
        changed |= happened
        if len(arrivals) or (changed and len(self._door)):
            changed |= self._door.come(arrivals, now)
        if changed:
            self._changed = max(self._changed, now)
            crowd.sort()
            state.order, state.starts = crowd.order, crowd.starts
            cpu = crowd.resources["cpu"]
            fresh = state.order[self._fresh[state.order]]
            self._estimate[fresh] = np.minimum(cpu.ceiling[fresh], self._machine.cpus)
        self._allocate()

    def _allocate(self) -> None:
        """Shares and weights of everything, unless they are the same as before."""
        crowd, state, machine = self._crowd, self._state, self._machine
        problem = crowd.problem("cpu", machine.cpus, self._estimate[crowd.order], self._policy)
        if DRF in problem.tenant_policies or problem.policy == DRF:
            problem = replace(problem, profile=self._profile())
        if not _same(problem, state.problems.get("cpu")):
            self.computed += 1
            state.problems["cpu"] = problem
            state.outcome = alloc.turn(alloc.Inputs(problem, state.warm, cpus=machine.cpus, elapsed=self._period))
            state.warm = state.outcome.warm
        for name, capacity in (("memory", machine.memory), ("network", machine.network)):
            if capacity is not None:
                problem = crowd.problem(name, capacity, crowd.resources[name].want[crowd.order], "maxmin")
                if not _same(problem, state.problems.get(name)):
                    state.problems[name] = problem
                    state.shares = {**state.shares, name: alloc.solve(problem).share}

    def _profile(self) -> Floats | None:
        """The parts of the machine's memory and network that each wants: ``drf`` looks at them."""
        machine, order = self._machine, self._crowd.order
        columns = []
        for name, capacity in (("memory", machine.memory), ("network", machine.network)):
            if capacity is not None:
                part = self._crowd.resources[name]
                columns.append(np.clip(np.minimum(part.want[order], part.ceiling[order]) / capacity, 0.0, 1.0))
        return np.stack(columns, axis=1) if columns else None


def _same(one: alloc.Problem, other: alloc.Problem | None) -> bool:
    """Whether the allocator is asked the same thing as before."""
    if other is None:
        return False
    arrays = ("starts", "demand", "weight", "floor", "ceiling", "profile")
    return all(
        getattr(one, name) is getattr(other, name)
        or (getattr(other, name) is not None and np.array_equal(getattr(one, name), getattr(other, name)))
        for name in arrays
    )
