"""The slow loop of memory: what agents use and lack → fair shares → ``memory.high`` and ``memory.reclaim``.

Theory of operation
    `turn` reads every group, has `alloc.memory` decide, and writes the limits that moved by more than `CHANGE`. A
    limit that this node has set is lifted when the supervisor stops (`close`): an agent that lives on without one shall
    not be held by a figure that nobody moves any more. After a crash the next supervisor finds the limit in the file
    and goes on from there, or lifts it where memory is not to be moved (``control`` without memory).
    Reservations (``memory.low``) and limits (``memory.max``) are not moved; they are the tree's and stay.
    Every file is read again once in `REFRESH` seconds: another's writes are told (``foreign-change``) and replaced.

The resource is counted in bytes; the allocator's own unit (`alloc.memory.UNIT`) does not leave this file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np

from agentos_native.alloc import memory, solve
from agentos_native.alloc.hierarchy import HUNGRY
from agentos_native.alloc.memory import UNIT, Figures, Machine, Outcome, Reclaim, State
from agentos_native.alloc.waterfill import Floats, Indices, Truths
from agentos_native.cgroup import GroupRef, Tree
from agentos_native.cgroup.memory_files import (
    Descriptors,
    MachineMemory,
    MemoryGroup,
    limit_above,
    machine_memory,
    rounded,
)
from agentos_native.spec.model import PRIORITIES, AgentSpec, Resource, TenantSpec
from agentos_native.supervisor.loop.controllers import Member, Notify
from agentos_native.supervisor.loop.memory_meter import MemoryMeter
from agentos_native.supervisor.loop.oom import OomWatch
from agentos_native.supervisor.loop.slots import Agent, Slots, Tenant

PERIOD: Final = 2.0
"""Seconds between two turns."""
CHANGE: Final = 0.02
"""Hysteresis: a limit is written when it is to move by more than this part of what the file holds."""
REFRESH: Final = 60.0
"""Seconds in which every ``memory.high`` is read again once."""
MARGIN, LEAST_MARGIN = 0.03, 64 << 20
"""Part of the machine's memory, and bytes, that agents leave to the rest of the machine."""
RECLAIM_TIME: Final = 0.1
"""Seconds that a turn spends on taking memory back from sleeping agents."""
LOUD: Final = 0.2
"""Fraction of the time: a squeezed agent that stalls for longer is told of once more."""
UNKNOWN: Final = -1.0
"""Of what a file holds; ∞ stands for ``max``."""


class MemoryController:
    """Implements `controllers.Controller`.

    Args:
        tree: where it lacks the memory controller, only stalls are measured.
        enforce: False: limits and sleeping agents' caches are left alone; measured and reported all the same.
        machine: the machine's memory; for tests.
        margin: bytes left to the rest of the machine; None: `MARGIN`.
    """

    resource: Resource = "memory"
    period = PERIOD

    def __init__(
        self,
        tree: Tree,
        notify: Notify,
        *,
        enforce: bool = True,
        machine: Callable[[], MachineMemory] = machine_memory,
        margin: int | None = None,
    ) -> None:
        self._tree = tree
        self._notify = notify
        self.enforced = enforce and "memory" in tree.controllers
        self._present = "memory" in tree.controllers
        self._machine = machine
        self._margin = margin
        self._lock = threading.RLock()
        self._slots = Slots()
        self._descriptors = Descriptors()
        self._groups: dict[int, MemoryGroup] = {}
        self._meter = MemoryMeter(self._slots.capacity)
        self._oom = OomWatch(notify)
        self._state = memory.initial(self._slots.capacity)
        self._reclaim = memory.no_reclaim(self._slots.capacity)
        self._written: Floats = np.full(self._slots.capacity, UNKNOWN)
        self._reclaimed: Floats = np.zeros(self._slots.capacity)
        self._told = np.zeros(self._slots.capacity, dtype=np.int64)  # 0: nothing, 1: squeezed, 2: and it stalls
        self._outcome: Outcome | None = None
        self._figures: Figures | None = None
        self._rows: dict[str, dict[str, Any]] = {}
        self._refreshed = 0.0
        self.writes = 0

    # -- members ------------------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        with self._lock:
            self.remove(member.agent_id)
            slot = self._slots.add(_agent(member.agent_id, member)).slot
            self._grow()
            self._groups[slot] = group = MemoryGroup(member.path, self._descriptors)
            self._meter.reset(slot)
            for name, fresh in (("_state", memory.initial(1)), ("_reclaim", memory.no_reclaim(1))):
                _put(getattr(self, name), np.array([slot]), fresh)
            self._reclaimed[slot] = self._told[slot] = 0
            self._oom.watch(member.agent_id, member.path)
            self._take_over(slot, group)

    def _take_over(self, slot: int, group: MemoryGroup) -> None:
        """A limit that an earlier supervisor left: go on from it, or lift it."""
        self._written[slot] = UNKNOWN
        if not self._present:
            return
        try:
            found = group.high()
            if found is not None and not self.enforced:
                found = group.set_high(None)
        except OSError:
            return
        self._written[slot] = self._state.high[slot] = np.inf if found is None else found

    def change(self, member: Member) -> None:
        with self._lock:
            agent = self._slots.agents.get(member.agent_id)
            if agent is None or agent.ref != member.ref:
                self.add(member)
                return
            self._slots.change(replace(_agent(member.agent_id, member), slot=agent.slot))
            self._written[agent.slot] = UNKNOWN  # an update of the group's settings has reset it

    def remove(self, agent_id: str) -> None:
        with self._lock:
            self._oom.forget(agent_id)
            agent = self._slots.remove(agent_id)
            if agent is not None:
                self._groups.pop(agent.slot).close()
                self._rows.pop(agent_id, None)

    def set_tenant(self, spec: TenantSpec) -> None:
        with self._lock:
            self._slots.set_tenant(_tenant(spec))

    def remove_tenant(self, name: str) -> None:
        with self._lock:
            self._slots.remove_tenant(name)

    def _grow(self) -> None:
        more = self._slots.capacity - len(self._written)
        if more > 0:
            self._meter.grow(self._slots.capacity)
            self._state = State(*_joined(self._state, memory.initial(more)))
            self._reclaim = Reclaim(*_joined(self._reclaim, memory.no_reclaim(more)))
            self._written = np.append(self._written, np.full(more, UNKNOWN))
            self._reclaimed = np.append(self._reclaimed, np.zeros(more))
            self._told = np.append(self._told, np.zeros(more, dtype=np.int64))

    def close(self) -> None:
        """Lift every limit that was set here, and let go of the files."""
        with self._lock:
            for slot, group in self._groups.items():
                if self.enforced and np.isfinite(self._written[slot]) and self._written[slot] >= 0:
                    self._write(slot, np.inf)
                group.close()
            self._groups.clear()
            self._oom.close()

    # -- the turn -----------------------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        with self._lock:
            slots = self._slots.plan().slots
            if not len(slots):
                return
            elapsed = self._meter.read(slots, self._groups, now)
            figures = self._figures = self._meter.figures(slots, elapsed)
            machine = self._there()
            problem = self._slots.problem(0.0, np.zeros(len(slots)))
            known = np.isfinite(figures.current)
            outcome = memory.turn(problem, figures, State(*_taken(self._state, slots)), machine, elapsed)
            self._outcome = outcome
            _put(self._state, slots, outcome.state)
            if self.enforced:
                self._refresh(slots, now)
                self._move(slots, outcome, known)
                self._take_back(slots, figures, elapsed)
                self._tell(slots, figures, outcome, known)
            self._rows = self._build(slots, figures, outcome)

    def _there(self) -> Machine:
        found = self._machine()
        margin = max(MARGIN * found.total, LEAST_MARGIN) if self._margin is None else self._margin
        ceiling = limit_above(self._tree.path, self._tree.mount.mount_point) if self._present else None
        return Machine(found.available, margin, found.swap_free, np.inf if ceiling is None else ceiling)

    def _refresh(self, slots: Indices, now: float) -> None:
        """Read the files again, all once in a while; those of unknown content at once."""
        due = now - self._refreshed >= REFRESH
        if due:
            self._refreshed = now
        for slot in slots.tolist():
            if not due and self._written[slot] != UNKNOWN:
                continue
            try:
                found = self._groups[slot].high()
            except OSError:
                continue
            held, expected = np.inf if found is None else float(found), self._written[slot]
            if expected not in (UNKNOWN, held):
                self._foreign(slot, held, expected)
            self._written[slot] = held

    def _foreign(self, slot: int, found: float, expected: float) -> None:
        agent_id = self._slots.at(slot).agent_id
        path = f"{self._groups[slot].path}/memory.high"
        self._notify("foreign-change", agent_id, file=path, expected=_text(expected), found=_text(found))

    def _move(self, slots: Indices, outcome: Outcome, known: Truths) -> None:
        wanted, held = outcome.state.high, self._written[slots]
        ends = np.isfinite(wanted) != np.isfinite(held)
        with np.errstate(invalid="ignore"):
            far = np.abs(wanted - held) > CHANGE * np.minimum(held, wanted)
        for index in np.flatnonzero(known & (ends | far) & ~(np.isinf(wanted) & np.isinf(held))).tolist():
            self._write(int(slots[index]), float(wanted[index]))

    def _write(self, slot: int, wanted: float) -> None:
        """Write one limit and see what the kernel keeps; a group that is gone is no trouble."""
        if np.isnan(wanted) or wanted < 0:
            return
        value = None if np.isinf(wanted) else rounded(int(wanted))
        try:
            kept = self._groups[slot].set_high(value)
        except OSError:
            self._written[slot] = UNKNOWN
            return
        self.writes += 1
        self._written[slot] = np.inf if kept is None else kept
        if kept != value:
            self._foreign(slot, self._written[slot], wanted)

    def _take_back(self, slots: Indices, figures: Figures, elapsed: float) -> None:
        """From sleeping agents' caches; those that come too late in this turn are first in another."""
        state = Reclaim(*_taken(self._reclaim, slots))
        amounts, state = memory.reclaim(figures, self._slots.request[slots] * UNIT, state, elapsed)
        until = time.monotonic() + RECLAIM_TIME
        asked = np.flatnonzero(amounts > 0)
        for index in asked[np.argsort(self._reclaimed[slots[asked]], kind="stable")].tolist():
            amount = int(amounts[index])
            late = time.monotonic() > until
            if late or not self._groups[int(slots[index])].reclaim(amount):
                state.taken[index] = 0.0
                state.waiting[index] = 0 if late else memory.FIRST_PAUSE
            else:
                self._reclaimed[slots[index]] += amount
        _put(self._reclaim, slots, state)

    def _tell(self, slots: Indices, figures: Figures, outcome: Outcome, known: Truths) -> None:
        """Say who is squeezed, once when it begins, once more when it hurts, and when it is over."""
        held = np.isfinite(outcome.state.high) & outcome.squeezed & known
        level = np.where(held, np.where(np.nan_to_num(figures.stalled) > LOUD, 2, 1), 0)
        over = np.isinf(outcome.state.high) & (self._told[slots] > 0)
        for index in np.flatnonzero((level > self._told[slots]) | over).tolist():
            slot = int(slots[index])
            agent_id = self._slots.at(slot).agent_id
            row = self._row(index, slot, figures, outcome)
            detail = {name: row[name] for name in EVENT_FIGURES}
            self._notify("memory-squeezed" if level[index] else "memory-released", agent_id, **detail)
            self._told[slot] = level[index]

    # -- telling ------------------------------------------------------------------------------------------------

    def _build(self, slots: Indices, figures: Figures, outcome: Outcome) -> dict[str, dict[str, Any]]:
        return {
            self._slots.at(slot).agent_id: self._row(index, slot, figures, outcome)
            for index, slot in enumerate(slots.tolist())
        }

    def _row(self, index: int, slot: int, figures: Figures, outcome: Outcome) -> dict[str, Any]:
        agent = self._slots.at(slot)
        known = bool(np.isfinite(figures.current[index]))
        high = self._written[slot]
        return {
            "request": round(agent.request * UNIT),
            "limit": _whole(agent.limit * UNIT),
            "demand": _whole(outcome.wanted[index]) if known else None,
            "entitled": _whole(outcome.share[index]) if known else None,
            "measured": _whole(figures.current[index]),
            "bound": _bound(index, agent, outcome) if known else None,
            "working_set": _whole(outcome.working_set[index]) if known else None,
            "high": _whole(high) if high >= 0 else None,
            "stalled": _finite(figures.stalled[index]),
            "refaults": _finite(figures.refaults[index]),
            "squeezed": bool(outcome.squeezed[index]) and known,
            "idle": bool(figures.idle[index]),
            "reclaimed": round(self._reclaimed[slot]),
            "oom_kills": max(self._oom.kills(agent.agent_id), 0),
            "capacity": round(outcome.capacity),
            "note": self._note(index, figures, outcome),
        }

    def _note(self, index: int, figures: Figures, outcome: Outcome) -> str:
        if not self._present:
            return "not enforced: cgroup v2 has no memory controller on this host"
        if not np.isfinite(figures.current[index]):
            return "not measured yet, or its group is gone"
        if not self.enforced:
            return "not moved: memory is not among the resources to control"
        if outcome.squeezed[index] and outcome.state.high[index] > outcome.share[index] * (1 + CHANGE):
            return "above its share: memory is taken back slowly, and not at all what only swap could take"
        if outcome.trimmed[index]:
            return "has all it needs; of its cache, what goes beyond its fair share is taken for others"
        return ""

    def rows(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            return dict(self._rows)

    def fractions(self) -> Mapping[str, float]:
        with self._lock:
            return {
                agent_id: min((row["demand"] or 0) / max(row["capacity"], 1), 1.0)
                for agent_id, row in self._rows.items()
            }

    def entitled(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> dict[str, float]:
        with self._lock:
            if self._outcome is None:
                return {}
            other, wants = Slots(), {}
            for tenant in self._slots.tenants.values():
                other.set_tenant(tenant)
            for spec in tenants.values():
                other.set_tenant(_tenant(spec))
            for agent_id, agent in self._slots.agents.items():
                used = float(np.nan_to_num(self._state.demand[agent.slot]))
                changed = _changed(agent, specs.get(agent_id))
                taken = other.add(changed)
                wants[taken.slot] = max(min(used, changed.limit * UNIT), changed.request * UNIT)
            plan = other.plan()
            wanted = np.array([wants[slot] for slot in plan.slots.tolist()])
            share = solve(other.problem(self._outcome.capacity / UNIT, wanted / UNIT)).share * UNIT
            return {other.at(slot).agent_id: float(share[i]) for i, slot in enumerate(plan.slots.tolist())}


EVENT_FIGURES: Final = ("high", "measured", "working_set", "demand", "entitled", "stalled", "refaults", "capacity")


def _bound(index: int, agent: Agent, outcome: Outcome) -> str:
    """As `rows.AllocationRow.bound`."""
    if not outcome.squeezed[index]:
        return "limit" if outcome.wanted[index] >= agent.limit * UNIT * (1 - HUNGRY) else "demand"
    return "request" if outcome.share[index] <= agent.request * UNIT * (1 + HUNGRY) else "share"


def _agent(agent_id: str, member: Member) -> Agent:
    return _changed(Agent(agent_id, member.ref, -1, 0, 0.0, 0.0), member.spec)


def _changed(agent: Agent, spec: AgentSpec | None) -> Agent:
    """The agent with another spec's figures, in the allocator's unit."""
    if spec is None:
        return agent
    requests, limits = spec.resources.requests, spec.resources.limits
    ref = GroupRef(agent.ref.tenant, spec.priority, agent.agent_id)
    limit = np.inf if limits.memory is None else limits.memory / UNIT
    return replace(agent, ref=ref, weight=spec.weight, request=requests.memory / UNIT, limit=limit)


def _tenant(spec: TenantSpec) -> Tenant:
    limit = np.inf if spec.limits.memory is None else spec.limits.memory / UNIT
    return Tenant(spec.name, spec.weight, PRIORITIES.index(spec.priority), spec.requests.memory / UNIT, limit)


def _joined(first: State | Reclaim, second: State | Reclaim) -> list[Any]:
    return [np.append(getattr(first, part.name), getattr(second, part.name)) for part in fields(first)]


def _taken(state: State | Reclaim, slots: Indices) -> list[Any]:
    return [getattr(state, part.name)[slots] for part in fields(state)]


def _put(state: State | Reclaim, slots: Indices, values: State | Reclaim) -> None:
    for part in fields(state):
        getattr(state, part.name)[slots] = getattr(values, part.name)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _whole(value: float) -> int | None:
    return round(float(value)) if np.isfinite(value) else None


def _text(value: float) -> str:
    return "max" if np.isinf(value) else str(round(value))
