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
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from agentos_native.alloc import memory
from agentos_native.alloc.memory import UNIT, Figures, Machine, Outcome, Reclaim, State
from agentos_native.alloc.waterfill import Floats, Indices, Truths
from agentos_native.cgroup import Tree
from agentos_native.cgroup.memory_files import (
    Descriptors,
    MachineMemory,
    MemoryGroup,
    limit_above,
    machine_memory,
    rounded,
)
from agentos_native.spec.model import AgentSpec, Resource, TenantSpec
from agentos_native.supervisor.loop.controllers import Member, Notify
from agentos_native.supervisor.loop.memory_meter import MemoryMeter, Reading
from agentos_native.supervisor.loop.memory_rows import (
    EVENT_FIGURES,
    agent_of,
    changed_agent,
    joined,
    note,
    put,
    row,
    taken_of,
    tenant_of,
    text_of,
)
from agentos_native.supervisor.loop.oom import OomWatch
from agentos_native.supervisor.loop.slots import Agent, Slots
from agentos_native.supervisor.loop.whatif import Solved, solved_of

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
        self._view: tuple[list[Agent], Figures, Outcome] | None = None  # of the last turn
        self._refreshed = 0.0
        self.writes = 0

    # -- members ------------------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        with self._lock:
            self.remove(member.agent_id)
            slot = self._slots.add(agent_of(member.agent_id, member)).slot
            self._grow()
            self._groups[slot] = group = MemoryGroup(member.path, self._descriptors)
            group.read()  # which opens its files now and not at some later turn
            self._meter.reset(slot)
            for name, fresh in (("_state", memory.initial(1)), ("_reclaim", memory.no_reclaim(1))):
                put(getattr(self, name), np.array([slot]), fresh)
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
            self._slots.change(replace(agent_of(member.agent_id, member), slot=agent.slot))
            self._written[agent.slot] = UNKNOWN  # an update of the group's settings has reset it

    def remove(self, agent_id: str) -> None:
        with self._lock:
            self._oom.forget(agent_id)
            agent = self._slots.remove(agent_id)
            group = self._groups.pop(agent.slot, None) if agent is not None else None
            if group is not None:  # else closed before the agent ended
                group.close()

    def set_tenant(self, spec: TenantSpec) -> None:
        with self._lock:
            self._slots.set_tenant(tenant_of(spec))

    def remove_tenant(self, name: str) -> None:
        with self._lock:
            self._slots.remove_tenant(name)

    def _grow(self) -> None:
        more = self._slots.capacity - len(self._written)
        if more > 0:
            self._meter.grow(self._slots.capacity)
            self._state = State(*joined(self._state, memory.initial(more)))
            self._reclaim = Reclaim(*joined(self._reclaim, memory.no_reclaim(more)))
            self._written = np.append(self._written, np.full(more, UNKNOWN))
            self._reclaimed = np.append(self._reclaimed, np.zeros(more))
            self._told = np.append(self._told, np.zeros(more, dtype=np.int64))

    def close(self) -> None:
        """Lift every limit that was set here, and let go of the files."""
        with self._lock:
            for slot, group in self._groups.items():
                if self.enforced and np.isfinite(self._written[slot]) and self._written[slot] >= 0:
                    self._write(slot, group, np.inf)
                group.close()
            self._groups.clear()
            self._oom.close()

    # -- the turn -----------------------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        with self._lock:
            groups = dict(self._groups)
        if not groups:
            return
        reading, machine = self._meter.read(groups, now), self._there()
        with self._lock:
            due = self._decide(reading, {slot for slot in groups if self._groups.get(slot) is groups[slot]}, machine)
        for work in due:
            work()

    def _decide(self, reading: Reading, same: set[int], machine: Machine) -> list[Callable[[], None]]:
        """Take in what was read of the slots that are still the `same` agents'; gives what is to be written.

        The kernel takes memory back while it is written to, which lasts; nobody shall wait for a lock meanwhile.
        """
        slots = self._slots.plan().slots
        slots = slots[[slot in same for slot in slots.tolist()]]
        elapsed = self._meter.take(reading, slots)
        slots = self._slots.plan().slots  # those that came meanwhile count, as not measured yet
        figures = self._meter.figures(slots, elapsed)
        problem = self._slots.problem(0.0, np.zeros(len(slots)))
        known = np.isfinite(figures.current)
        outcome = memory.turn(problem, figures, State(*taken_of(self._state, slots)), machine, elapsed)
        put(self._state, slots, outcome.state)
        due: list[Callable[[], None]] = []
        if self.enforced:
            self._refresh(slots, reading.time)
            due += self._moves(slots, outcome, known)
            due += self._reclaims(slots, figures, elapsed)
            self._tell(slots, figures, outcome, known)
        self._view = ([self._slots.at(slot) for slot in slots.tolist()], figures, outcome)
        return due

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
        self._notify("foreign-change", agent_id, file=path, expected=text_of(expected), found=text_of(found))

    def _moves(self, slots: Indices, outcome: Outcome, known: Truths) -> list[Callable[[], None]]:
        wanted, held = outcome.state.high, self._written[slots]
        ends = np.isfinite(wanted) != np.isfinite(held)
        with np.errstate(invalid="ignore"):
            far = np.abs(wanted - held) > CHANGE * np.minimum(held, wanted)
        far &= ~(np.isinf(wanted) & np.isinf(held))
        return [
            partial(self._write, int(slots[index]), self._groups[int(slots[index])], float(wanted[index]))
            for index in np.flatnonzero(known & (ends | far)).tolist()
        ]

    def _write(self, slot: int, group: MemoryGroup, wanted: float) -> None:
        """Write one limit and see what the kernel keeps; a group that is gone is no trouble."""
        if np.isnan(wanted) or wanted < 0:
            return
        value = None if np.isinf(wanted) else rounded(int(wanted))
        try:
            kept = group.set_high(value)
            held = np.inf if kept is None else float(kept)
        except OSError:
            kept, held = value, UNKNOWN
        with self._lock:
            if self._groups.get(slot) is not group:
                return
            self.writes += held != UNKNOWN
            self._written[slot] = held
            if kept != value:
                self._foreign(slot, held, wanted)

    def _reclaims(self, slots: Indices, figures: Figures, elapsed: float) -> list[Callable[[], None]]:
        """From sleeping agents' caches; those that come too late in this turn are first in another."""
        state = Reclaim(*taken_of(self._reclaim, slots))
        amounts, state = memory.reclaim(figures, self._slots.request[slots] * UNIT, state, elapsed)
        put(self._reclaim, slots, state)
        asked = np.flatnonzero(amounts > 0)
        asked = asked[np.argsort(self._reclaimed[slots[asked]], kind="stable")]
        pairs = [(int(slots[index]), int(amounts[index])) for index in asked.tolist()]
        return [partial(self._take_back, [(slot, self._groups[slot], amount) for slot, amount in pairs])]

    def _take_back(self, asked: list[tuple[int, MemoryGroup, int]]) -> None:
        until = time.monotonic() + RECLAIM_TIME
        for slot, group, amount in asked:
            late = time.monotonic() > until
            taken = not late and group.reclaim(amount)
            with self._lock:
                if self._groups.get(slot) is not group:
                    continue
                if taken:
                    self._reclaimed[slot] += amount
                else:
                    self._reclaim.taken[slot] = 0.0
                    self._reclaim.waiting[slot] = 0 if late else memory.FIRST_PAUSE

    def _tell(self, slots: Indices, figures: Figures, outcome: Outcome, known: Truths) -> None:
        """Say who is squeezed, once when it begins, once more when it hurts, and when it is over."""
        held = np.isfinite(outcome.state.high) & outcome.squeezed & known
        level = np.where(held, np.where(np.nan_to_num(figures.stalled) > LOUD, 2, 1), 0)
        over = np.isinf(outcome.state.high) & (self._told[slots] > 0)
        for index in np.flatnonzero((level > self._told[slots]) | over).tolist():
            slot = int(slots[index])
            agent_id = self._slots.at(slot).agent_id
            figures_now = self._row(index, slot, figures, outcome)
            detail = {name: figures_now[name] for name in EVENT_FIGURES}
            self._notify("memory-squeezed" if level[index] else "memory-released", agent_id, **detail)
            self._told[slot] = level[index]

    # -- telling ------------------------------------------------------------------------------------------------

    def _row(self, index: int, slot: int, figures: Figures, outcome: Outcome) -> dict[str, Any]:
        agent = self._slots.at(slot)
        written, kills = float(self._written[slot]), self._oom.kills(agent.agent_id)
        found = row(index, agent, figures, outcome, written, float(self._reclaimed[slot]), kills)
        return {**found, "note": note(index, figures, outcome, present=self._present, enforced=self.enforced)}

    def rows(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            agents, figures, outcome = self._view or ([], None, None)
            if figures is None or outcome is None:
                return {}
            return {
                agent.agent_id: self._row(index, agent.slot, figures, outcome)
                for index, agent in enumerate(agents)
                if self._is_here(agent)
            }

    def fractions(self) -> Mapping[str, float]:
        with self._lock:
            if self._view is None:
                return {}
            agents, figures, outcome = self._view
            known = np.isfinite(figures.current)
            parts = np.where(known, np.minimum(outcome.wanted / max(outcome.capacity, 1.0), 1.0), 0.0).tolist()
            return {agent.agent_id: part for agent, part in zip(agents, parts, strict=True) if self._is_here(agent)}

    def _is_here(self, agent: Agent) -> bool:
        """Whether the agent of the last turn is still in its slot."""
        known = self._slots.agents.get(agent.agent_id)
        return known is not None and known.slot == agent.slot

    def entitled(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> dict[str, float]:
        with self._lock:
            solved = self._solved(specs, tenants)
            return {agent_id: share * UNIT for agent_id, share in solved.entitled().items()} if solved else {}

    def solved(self) -> Mapping[str, tuple[Solved, str]]:
        """See `others.Solvable`."""
        with self._lock:
            solved = self._solved({}, {})
            return {"memory": (solved, "MiB")} if solved else {}

    def _solved(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> Solved | None:
        if self._view is None:
            return None
        other, wants = Slots(), {}
        for tenant in self._slots.tenants.values():
            other.set_tenant(tenant)
        for spec in tenants.values():
            other.set_tenant(tenant_of(spec))
        for agent_id, agent in self._slots.agents.items():
            used = float(np.nan_to_num(self._state.demand[agent.slot]))
            changed = changed_agent(agent, specs.get(agent_id))
            taken = other.add(changed)
            wants[taken.slot] = max(min(used, changed.limit * UNIT), changed.request * UNIT)
        return solved_of(other, self._view[2].capacity / UNIT, {slot: used / UNIT for slot, used in wants.items()})
