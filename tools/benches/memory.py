"""What processes and the kernel hold in memory, and what processes have cost, from /proc (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

KERNEL_FIELDS: Final = ("Slab", "KernelStack", "PageTables", "AnonPages")
TICKS: Final = os.sysconf("SC_CLK_TCK")


def meminfo(text: str | None = None) -> dict[str, int]:
    """/proc/meminfo in KiB by name."""
    lines = (text if text is not None else Path("/proc/meminfo").read_text()).splitlines()
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}


def kernel_kib(figures: dict[str, int]) -> int:
    """The sum that the budget of an idle agent is about; Percpu is told apart from it."""
    return sum(figures[name] for name in KERNEL_FIELDS)


def pss_kib(pids: Iterable[int]) -> int:
    """Proportional set size of `pids` together: shared pages are divided among those who share them."""
    return sum(_rollup(pid, "Pss") for pid in pids)


def rss_kib(pid: int) -> int:
    """Resident set size of one process."""
    return _rollup(pid, "Rss")


def _rollup(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def processor_seconds(pids: Iterable[int]) -> float:
    """User and system time that `pids` have used together."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS
