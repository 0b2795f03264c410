"""The measuring half of the memory loop: counters of every slot, rates between two reads, and who sleeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from agentos_native.alloc.memory import Figures
from agentos_native.alloc.waterfill import Floats, Indices
from agentos_native.cgroup.memory_files import MemoryGroup, MemorySample
from agentos_native.cgroup.settings import PAGE

IDLE_CPU: Final = 0.01
"""CPUs: an agent that uses less than this sleeps."""
IDLE_AFTER: Final = 30.0
"""Seconds without use after which an agent counts as idle (a paused one is found by the same)."""
IDLE_CHECK: Final = 10.0
"""Seconds between two looks at the CPU time of everybody."""
_AMOUNTS: Final = ("current", "anon", "cache", "cold")
_COUNTERS: Final = ("refaults", "some")


@dataclass(frozen=True)
class Reading:
    """What was read at one time, by slot; `usage` (µs of CPU) only now and then."""

    time: float
    samples: dict[int, MemorySample | None]
    usage: dict[int, int]


class MemoryMeter:
    """Arrays with one entry per slot; NaN: not known.

    Attributes:
        idle_after, idle_check: as the constants, for tests.
    """

    def __init__(self, slots: int) -> None:
        self.idle_after, self.idle_check = IDLE_AFTER, IDLE_CHECK
        self._now: dict[str, Floats] = {name: np.full(slots, np.nan) for name in (*_AMOUNTS, *_COUNTERS)}
        self._before: dict[str, Floats] = {name: np.full(slots, np.nan) for name in _COUNTERS}
        self._usage: Floats = np.full(slots, np.nan)
        self._quiet: Floats = np.zeros(slots)
        self._read = self._checked = float("nan")

    def grow(self, slots: int) -> None:
        more = slots - len(self._usage)
        for arrays in (self._now, self._before):
            for name, values in arrays.items():
                arrays[name] = np.append(values, np.full(more, np.nan))
        self._usage = np.append(self._usage, np.full(more, np.nan))
        self._quiet = np.append(self._quiet, np.zeros(more))

    def reset(self, slot: int) -> None:
        """Somebody else has the slot from now on."""
        for values in (*self._now.values(), *self._before.values(), self._usage):
            values[slot] = np.nan
        self._quiet[slot] = 0.0

    def read(self, groups: Mapping[int, MemoryGroup], now: float) -> Reading:
        """Read the counters of the groups (by slot); changes nothing, so it needs no lock."""
        samples = {slot: group.read() for slot, group in groups.items()}
        due = not now - self._checked < self.idle_check  # the first time it is NaN
        return Reading(now, samples, {slot: group.cpu_usage() for slot, group in groups.items()} if due else {})

    def take(self, reading: Reading, slots: Indices) -> float:
        """Take in what was read of `slots`; returns the seconds since the last time."""
        for name in _COUNTERS:
            self._before[name][slots] = self._now[name][slots]
        for slot in slots.tolist():
            sample = reading.samples.get(slot)
            for name, values in self._now.items():
                value = -1 if sample is None else getattr(sample, name)
                values[slot] = value if value >= 0 else np.nan
        if reading.usage:
            self._look_for_sleepers(reading)
        elapsed = reading.time - self._read if np.isfinite(self._read) else 0.0
        self._read = reading.time
        return max(elapsed, 0.0)

    def _look_for_sleepers(self, reading: Reading) -> None:
        window = reading.time - self._checked
        self._checked = reading.time
        for slot, usage in reading.usage.items():
            quiet = 0 <= usage - self._usage[slot] < IDLE_CPU * window * 1e6
            self._usage[slot] = usage if usage >= 0 else np.nan
            self._quiet[slot] = self._quiet[slot] + window if quiet else 0.0

    def figures(self, slots: Indices, elapsed: float) -> Figures:
        """What the allocator goes by; rates since the last read."""
        seconds = max(elapsed, 1e-3)
        rates = {name: (self._now[name][slots] - self._before[name][slots]) / seconds for name in _COUNTERS}
        current, anon, cache, cold = (self._now[name][slots] for name in _AMOUNTS)
        return Figures(
            current=current,
            anon=anon,
            cache=cache,
            cold=cold,
            refaults=np.maximum(rates["refaults"], 0.0) * PAGE,
            stalled=np.clip(rates["some"] / 1e6, 0.0, 1.0),
            idle=self._quiet[slots] >= self.idle_after,
        )
