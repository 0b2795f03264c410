"""What the tick reads: CPU time, throttled time and CPU stall of many groups, from files that stay open.

One pread(2) of ``cpu.stat`` and one of ``cpu.pressure`` per group; opening the files anew would cost five times as
much, so only those are that this process may not keep open, too. A group that has been removed answers ENODEV, which
marks its slot and disturbs no other. Two engines read alike: Python, and the compiled one (`compiled`), which holds no
GIL meanwhile; `use_compiled` switches.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import resource
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agentos_native.cgroup import files
from agentos_native.cgroup.counters import BUFFER, GONE, NO_PRESSURE, OK

_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW

# Of at most 18 digits: whatever is longer is no counter, and would not fit
_USAGE: Final = re.compile(rb"^usage_usec ([0-9]{1,18})(?![0-9])", re.MULTILINE)
_THROTTLED: Final = re.compile(rb"^throttled_usec ([0-9]{1,18})(?![0-9])", re.MULTILINE)
_SOME: Final = re.compile(rb"some [^\n]*?total=([0-9]{1,18})(?![0-9])")

Integers = NDArray[np.int64]
EACH: Final = 2
"""Files of a group."""


class _Engine:
    compiled: Any = None


def use_compiled() -> bool:
    """Read and write by compiled code from now on; False where numba is not installed."""
    try:
        _Engine.compiled = importlib.import_module("agentos_native.cgroup.compiled")
    except ImportError:
        return False
    return True


def use_python() -> None:
    _Engine.compiled = None


def compiled() -> Any:
    """The compiled module, or None while Python reads and writes."""
    return _Engine.compiled


def parse_cpu_stat(text: bytes) -> tuple[int, int]:
    """``usage_usec`` and ``throttled_usec`` (0 where there is no cpu controller); ValueError when usage is missing."""
    usage = _USAGE.search(text)
    if usage is None:
        raise ValueError("cpu.stat without usage_usec")
    throttled = _THROTTLED.search(text)
    return int(usage[1]), int(throttled[1]) if throttled else 0


def parse_pressure(text: bytes) -> int:
    """The total of the ``some`` line in µs; ValueError when there is none."""
    some = _SOME.match(text)
    if some is None:
        raise ValueError("pressure file without a some line")
    return int(some[1])


class Sensors:
    """Slots of kept-open files and what was read last. All arrays have one entry per slot and grow together.

    Attributes:
        usage, throttled, stalled: µs since the group was made.
        status: OK, GONE or NO_PRESSURE, as of the last read.
    """

    def __init__(self, capacity: int = 64) -> None:
        self._left = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # files that may still stay open
        self._elsewhere: dict[int, str] = {}  # paths of the groups whose files do not stay open, by slot
        self.stat_fd: Integers = np.full(capacity, -1, dtype=np.int64)
        self.pressure_fd: Integers = np.full(capacity, -1, dtype=np.int64)
        self.usage: Integers = np.zeros(capacity, dtype=np.int64)
        self.throttled: Integers = np.zeros(capacity, dtype=np.int64)
        self.stalled: Integers = np.zeros(capacity, dtype=np.int64)
        self.status: Integers = np.full(capacity, GONE, dtype=np.int64)

    def keep(self, files: int) -> None:
        """So many files may stay open; before the first is."""
        self._left = files

    def grow(self, capacity: int) -> None:
        """Make room for slots below `capacity`."""
        more = capacity - len(self.stat_fd)
        for name, fill in (("stat_fd", -1), ("pressure_fd", -1), ("usage", 0), ("throttled", 0), ("stalled", 0)):
            setattr(self, name, np.append(getattr(self, name), np.full(more, fill, dtype=np.int64)))
        self.status = np.append(self.status, np.full(more, GONE, dtype=np.int64))

    def open(self, slot: int, path: str) -> None:
        """Open the files of the group at `path`; a missing group makes the slot GONE, missing PSI NO_PRESSURE."""
        self.close(slot)
        if self._left < EACH:
            self._elsewhere[slot] = path
        elif not self._open(slot, path):
            self.status[slot] = GONE
            return
        self.read(np.array([slot], dtype=np.int64))

    def _open(self, slot: int, path: str) -> bool:
        """Whether the group is there."""
        try:
            with files.directory(path) as fd:
                self.stat_fd[slot] = os.open("cpu.stat", _READ, dir_fd=fd)
                with contextlib.suppress(OSError):  # no PSI in this kernel
                    self.pressure_fd[slot] = os.open("cpu.pressure", _READ, dir_fd=fd)
        except FileNotFoundError:
            return False
        finally:
            self._left -= self._count(slot)
        return True

    def _count(self, slot: int) -> int:
        return int(self.stat_fd[slot] >= 0) + int(self.pressure_fd[slot] >= 0)

    def close(self, slot: int) -> None:
        self._elsewhere.pop(slot, None)
        self._close(slot)
        self.status[slot] = GONE

    def _close(self, slot: int) -> None:
        self._left += self._count(slot)
        for fds in (self.stat_fd, self.pressure_fd):
            if fds[slot] >= 0:
                os.close(int(fds[slot]))
                fds[slot] = -1

    def close_all(self) -> None:
        for slot in range(len(self.stat_fd)):
            self.close(slot)

    def read(self, slots: Integers) -> None:
        """Read the files of `slots` into the arrays; never raises for a group."""
        visited = set(slots.tolist()) & self._elsewhere.keys() if self._elsewhere else set()
        known = {slot: int(self.status[slot]) for slot in visited}
        engine = _Engine.compiled
        if engine is not None:
            engine.read_groups(
                slots, self.stat_fd, self.pressure_fd, self.usage, self.throttled, self.stalled, self.status
            )
        else:
            for slot in slots.tolist():
                self.status[slot] = self._read_one(slot)
        for slot, status in known.items():
            self.status[slot] = self._visit(slot, status)

    def _visit(self, slot: int, known: int) -> int:
        """Read files that do not stay open; where not even these can be opened now, all stays as it is known."""
        try:
            return self._read_one(slot) if self._open(slot, self._elsewhere[slot]) else GONE
        except OSError:
            return known
        finally:
            self._close(slot)

    def _read_one(self, slot: int) -> int:
        fd, pressure_fd = int(self.stat_fd[slot]), int(self.pressure_fd[slot])
        try:
            self.usage[slot], self.throttled[slot] = parse_cpu_stat(os.pread(fd, BUFFER, 0))
        except (OSError, ValueError):
            return GONE
        if pressure_fd < 0:
            return NO_PRESSURE
        try:
            self.stalled[slot] = parse_pressure(os.pread(pressure_fd, BUFFER, 0))
        except (OSError, ValueError):  # psi=0 on the command line: reading is EOPNOTSUPP
            return NO_PRESSURE
        return OK


class Machine:
    """What is there for the node's agents: the CPU time they used themselves and what was idle.

    Others (processes outside the node's group, interrupts, a hypervisor's steal) take the rest, and no weight in the
    node's tree can get it back.
    """

    def __init__(self, node_path: str, stat_path: str = "/proc/stat") -> None:
        self._node_fd = os.open(f"{node_path}/cpu.stat", os.O_RDONLY | os.O_CLOEXEC)
        self._stat_fd = os.open(stat_path, os.O_RDONLY | os.O_CLOEXEC)
        self._tick = 1_000_000 // os.sysconf("SC_CLK_TCK")

    def read(self) -> tuple[int, int]:
        """µs used by the node's group, and µs idle of all CPUs, since boot (proc_stat(5): idle and iowait)."""
        used, _ = parse_cpu_stat(os.pread(self._node_fd, BUFFER, 0))
        fields = os.pread(self._stat_fd, 512, 0).split(b"\n", 1)[0].split()
        return used, (int(fields[4]) + int(fields[5])) * self._tick

    def close(self) -> None:
        os.close(self._node_fd)
        os.close(self._stat_fd)


def read_tasks(path: str) -> int | None:
    """``pids.current`` of the group: an upper bound of its runnable threads; None where it cannot be had."""
    try:
        with files.directory(path) as fd:
            text = files.read_optional(fd, "pids.current")
    except OSError:
        return None
    return int(text) if text else None
