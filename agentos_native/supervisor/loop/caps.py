"""``cpu.max`` of agents whose tenant is at its limit: see `agentos_native.alloc.caps` for what it is to be, and why.

An agent's file belongs to its spec's limit; the tick only ever makes it lower, and puts it back when the tenant is no
longer at its limit, when the ticker is closed, and, should a supervisor have died meanwhile, when its successor takes
the agent in. Writing ``cpu.max`` costs the kernel several times what a weight does, so caps have a band like weights
have, and are lifted only after some seconds without need.
"""

from __future__ import annotations

import errno
import os
from typing import Final

import numpy as np

from agentos_native.alloc.waterfill import Floats
from agentos_native.cgroup import Tree
from agentos_native.cgroup.settings import cpu_max
from agentos_native.supervisor.loop.slots import Agent, Slots

RISE, FALL = 1.02, 0.98
"""A cap is written when it leaves this range around what the file holds."""
PATIENCE: Final = 5.0
"""Seconds without need after which a cap is lifted: tenants come and go from their limit."""
LEAST: Final = 10
"""Millicores: less is not expressed in the kernel's usual period, and an agent would hardly live."""


class Caps:
    """Of all agents, by slot. What is not in `held` has its own limit."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._held: dict[int, tuple[Agent, int]] = {}  # millicores that the file holds
        self._needed: dict[int, float] = {}  # when it last was, time.monotonic()
        self._unknown: set[int] = set()

    def add(self, slot: int) -> None:
        """An agent is in the slot, or has new settings: what its file holds is not known."""
        self.remove(slot)
        self._unknown.add(slot)

    def remove(self, slot: int) -> None:
        """Forget it; its group may be gone."""
        self._held.pop(slot, None)
        self._needed.pop(slot, None)
        self._unknown.discard(slot)

    def refresh(self, slot: int) -> None:
        """Read the file in the next turn, if it is to hold a cap: somebody else may have written it."""
        if slot in self._held:
            self._unknown.add(slot)

    def of(self, slot: int) -> float | None:
        """CPUs that the file holds below the agent's own limit; None: its own limit."""
        return self._held[slot][1] / 1000 if slot in self._held else None

    def write(self, slots: Slots, caps: Floats, now: float) -> tuple[int, int]:
        """Write what differs enough; returns how many were written and how many the kernel refused.

        Args:
            slots: everybody; caps: CPUs in the plan's order, ∞: none; now: time.monotonic().
        """
        plan = slots.plan()
        if self._unknown:
            for slot in sorted(self._unknown & set(plan.slots.tolist())):
                self._see(slots.at(slot), now)
        due: list[tuple[Agent, int | None]] = []  # None: its own limit again
        capped = np.flatnonzero(np.isfinite(caps))
        for slot, cap in zip(plan.slots[capped].tolist(), caps[capped].tolist(), strict=True):
            agent, millis = slots.at(slot), max(round(cap * 1000), LEAST)
            if millis >= agent.limit * 1000:
                continue  # its own limit is what holds it; a cap from before is lifted in time
            held = self._held[slot][1] if slot in self._held else _own(agent)
            self._needed[slot] = now
            if held is None or not held * FALL <= millis <= held * RISE:
                due.append((agent, millis))
        needless = [slot for slot, since in self._needed.items() if now - since >= PATIENCE]
        due += [(self._held[slot][0], None) for slot in needless if slot in self._held]
        for slot in needless:
            del self._needed[slot]
        # raised before lowered: nobody waits for what another has not given up yet, and the tenant's own limit holds
        due.sort(key=self._lowers)
        done = [self._write(agent, millis) for agent, millis in due]
        return sum(done), len(done) - sum(done)

    def _lowers(self, change: tuple[Agent, int | None]) -> bool:
        """Whether an agent has less by it than before."""
        agent, millis = change
        return millis is not None and (agent.slot not in self._held or millis < self._held[agent.slot][1])

    def _see(self, agent: Agent, now: float) -> None:
        """Read what the file holds: an earlier supervisor may have left a cap."""
        try:
            with open(self._path(agent), encoding="ascii") as file:
                quota, period = file.read().split()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):  # else it is read in the next tick: out of files, perhaps
                self._unknown.discard(agent.slot)
            return
        self._unknown.discard(agent.slot)
        own = _own(agent)
        if not quota.isdigit() or f"{quota} {period}" == cpu_max(own):
            self._held.pop(agent.slot, None)
            return
        held = self._held[agent.slot] = (agent, max(int(quota) * 1000 // int(period), 1))
        self._needed.setdefault(agent.slot, now)
        if own is not None and held[1] > own:  # written by a turn that met new settings half-way
            self._write(agent, None)

    def _write(self, agent: Agent, millis: int | None) -> bool:
        """Write a cap, or the agent's own limit; whether the kernel took it. If not, its file is read next time."""
        text = cpu_max(_own(agent) if millis is None else millis)
        try:
            fd = os.open(self._path(agent), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                taken = os.write(fd, text.encode()) == len(text)
            finally:
                os.close(fd)
        except OSError:
            taken = False
        if taken and millis is not None:
            self._held[agent.slot] = (agent, millis)
        else:
            self._held.pop(agent.slot, None)
        if not taken:
            self._unknown.add(agent.slot)
        return taken

    def _path(self, agent: Agent) -> str:
        return f"{self._tree.get(agent.ref).path}/cpu.max"

    def close(self) -> None:
        """Give every agent its own limit back: they may go on without anybody who follows what they want."""
        for agent, _ in list(self._held.values()):
            self._write(agent, None)


def _own(agent: Agent) -> int | None:
    """The limit of its spec, in millicores."""
    return round(agent.limit * 1000) if np.isfinite(agent.limit) else None
