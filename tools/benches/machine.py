"""Whose the processors were during a measurement, from /proc/stat (proc(5))."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

MAX_STEAL: Final = 0.15
"""Share of the machine that other machines may have taken during a sample that counts."""
MAX_FOREIGN: Final = 0.35
"""Share that other work of this machine may have had. The kernel's own threads are in it; removing devices and
namespaces keeps them busy for up to a fifth of the machine."""
TICKS: Final = os.sysconf("SC_CLK_TCK")


class ProcessorTimes(NamedTuple):
    """Ticks of all processors together since boot."""

    stolen: int
    busy: int
    total: int


class Shares(NamedTuple):
    """What became of the processors' time between two readings, as shares (0..1) of the whole."""

    steal: float
    foreign: float

    @property
    def clean(self) -> bool:
        """Whether a sample taken meanwhile counts."""
        return self.steal <= MAX_STEAL and self.foreign <= MAX_FOREIGN


def read_processor_times(path: str = "/proc/stat") -> ProcessorTimes:
    """The first line: user nice system idle iowait irq softirq steal; guest time is already within user time."""
    with open(path, encoding="ascii") as file:
        user, nice, system, idle, iowait, irq, softirq, steal = (int(field) for field in file.readline().split()[1:9])
    busy = user + nice + system + irq + softirq
    return ProcessorTimes(steal, busy, busy + idle + iowait + steal)


def shares(before: ProcessorTimes, after: ProcessorTimes, used: float) -> Shares:
    """Between two readings, during which what was measured has `used` so many seconds; zeros for less than a tick."""
    total = after.total - before.total
    if total <= 0:
        return Shares(0.0, 0.0)
    foreign = after.busy - before.busy - used * TICKS
    return Shares((after.stolen - before.stolen) / total, max(0.0, foreign / total))
