"""The measuring half of the tick: counters of every slot, samples of them, and averages between two samples."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from agentos_native.alloc import demand
from agentos_native.alloc.waterfill import Floats, Indices
from agentos_native.cgroup.counters import NO_PRESSURE
from agentos_native.cgroup.sensors import Machine, Sensors

KEPT: Final = 120.0
"""Seconds of samples that windows can reach back."""
SPACING: Final = 0.9
"""Least seconds between two kept samples, whatever the period of the tick."""
LEAST_CAPACITY: Final = 0.05
"""Of the machine: however much others take, something is there to divide."""


@dataclass(frozen=True)
class Sample:
    """The counters of every slot at one time, in µs since the group was made; machine-wide ones since boot."""

    time: float
    generation: Indices
    usage: Indices
    throttled: Indices
    stalled: Indices
    node_used: int
    idle: int


@dataclass(frozen=True)
class Measured:
    """Averages over a window, for the slots asked for, shape (n,).

    Attributes:
        used: CPUs.
        stalled: fraction of the time in which the group waited for a CPU or was held by its limit (NaN: unknown).
        window: seconds; `capacity`: CPUs that were there for the node's agents.
        new: agents that were not there when the window began; they are averaged over their own time.
    """

    used: Floats
    stalled: Floats
    window: float
    capacity: float
    new: np.ndarray[tuple[int], np.dtype[np.bool_]]


class Meter:
    """Sensors by slot, with their history.

    Args:
        node_path: the node's group, whose use and the machine's idle time are what there is to divide.
        cpus: the most there can be.
        slots: how many to begin with.
    """

    def __init__(self, node_path: str, cpus: float, slots: int) -> None:
        self.sensors = Sensors(slots)
        self._machine = Machine(node_path)
        self._cpus = cpus
        self._generation: Indices = np.zeros(slots, dtype=np.int64)
        self._born = np.zeros((4, slots))  # time, usage, throttled, stalled at the time of `open`
        self._kept: deque[Sample] = deque()

    def grow(self, slots: int) -> None:
        more = slots - len(self._generation)
        self.sensors.grow(slots)
        self._generation = np.append(self._generation, np.zeros(more, dtype=np.int64))
        self._born = np.append(self._born, np.zeros((4, more)), axis=1)

    def open(self, slot: int, path: str, now: float) -> None:
        """Take the group at `path` into `slot`: earlier samples of the slot are somebody else's from now on."""
        self.sensors.open(slot, path)
        self._generation[slot] += 1
        seen = self.sensors
        self._born[:, slot] = now, seen.usage[slot], seen.throttled[slot], seen.stalled[slot]

    def close(self) -> None:
        self.sensors.close_all()
        self._machine.close()

    def read(self, slots: Indices, now: float) -> Sample:
        """Read the counters of `slots`, and the machine's."""
        self.sensors.read(slots)
        used, idle = self._machine.read()
        seen = self.sensors
        counters = (self._generation.copy(), seen.usage.copy(), seen.throttled.copy(), seen.stalled.copy())
        return Sample(now, *counters, node_used=used, idle=idle)

    def keep(self, sample: Sample) -> None:
        """Keep the sample for windows to begin at. After a clock that went back, the samples before it say nothing."""
        if self._kept and sample.time < self._kept[-1].time:
            self._kept.clear()
        if not self._kept or sample.time - self._kept[-1].time >= SPACING:
            self._kept.append(sample)
        while sample.time - self._kept[0].time > KEPT + SPACING:
            self._kept.popleft()

    def begin_of(self, window: float, now: float) -> Sample | None:
        """The oldest kept sample of the last `window` seconds."""
        return next((sample for sample in self._kept if now - sample.time <= window + SPACING / 2), None)

    def between(self, before: Sample, after: Sample, slots: Indices, limits: Floats) -> Measured:
        """Averages of `slots` from one sample to another; `limits` in CPUs, shape (n,)."""
        older = np.minimum(slots, len(before.generation) - 1)  # a slot that `before` does not have is new, see below
        new = (slots != older) | (before.generation[older] != after.generation[slots])
        begin, usage, throttled, stalled = self._born[:, slots]
        begin = np.where(new, begin, before.time)
        usage = np.where(new, usage, before.usage[older])
        throttled = np.where(new, throttled, before.throttled[older])
        stalled = np.where(new, stalled, before.stalled[older])

        elapsed = np.maximum(after.time - begin, 1e-3)
        used = np.maximum(after.usage[slots] - usage, 0) / 1e6 / elapsed
        waited = (after.stalled[slots] - stalled) / 1e6 / elapsed
        waited = np.where(self.sensors.status[slots] == NO_PRESSURE, np.nan, waited)
        held = (after.throttled[slots] - throttled) / 1e6
        held = np.where(held > 0, demand.throttled_fraction(held, limits, elapsed), np.nan)

        window = max(after.time - before.time, 1e-3)
        # a virtual machine's clocks need not agree: more CPU time than wall time may have been used
        taken = (after.node_used - before.node_used) / 1e6 / window
        there = taken + (after.idle - before.idle) / 1e6 / window
        capacity = max(min(there, max(self._cpus, taken)), LEAST_CAPACITY * self._cpus)
        return Measured(used, np.clip(np.fmax(waited, held), 0.0, 1.0), window, capacity, new)
