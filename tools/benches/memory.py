"""What processes and the kernel hold in memory, and what processes have cost, from /proc (proc(5))."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tools.benches.machine import TICKS

KERNEL_FIELDS: Final = ("Slab", "KernelStack", "PageTables", "AnonPages")


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


def processor_seconds(pids: Iterable[int], *, children: bool = False) -> float:
    """User and system time that `pids` have used together; with `children` also that of children they reaped."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended, like an id map's holder
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11 : 15 if children else 13])
    return total / TICKS


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants that live."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found
