"""Memory of a group: what the slow loop reads and the two files it writes.

The kernel keeps limits in whole pages, rounded down. A lower ``memory.high`` and a ``memory.reclaim`` are carried out
by the one who writes (mm/memcontrol.c: memory_high_write, memory_reclaim), so callers go down in small steps.

Files stay open while a budget of descriptors allows; beyond it they are opened for each read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from dataclasses import dataclass, replace
from typing import Final

from agentos_native.cgroup import files
from agentos_native.cgroup.settings import PAGE

_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITE: Final = os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
_BUFFER: Final = 16384
RESTING: Final = 5
"""``memory.stat`` costs ten times what the others cost; of a group in which nothing happens it is read only after so
many turns."""
HIGH, RECLAIM = "memory.high", "memory.reclaim"
UNLIMITED: Final = "max"


@dataclass(frozen=True, slots=True)
class MemorySample:
    """The counters of one group; bytes since now, pages and µs since the group was made. -1: the host has it not.

    Attributes:
        anon: of programs. `cache`: page cache on the lists of the file LRU, and reclaimable slab: what can be taken
            back without swap (tmpfs and shared memory are not in it). `cold`: the inactive part of the page cache.
        refaults: pages that were faulted in again soon after having been evicted.
        some, full: µs in which somebody, everybody waited for memory.
    """

    current: int
    anon: int
    cache: int
    cold: int
    refaults: int
    some: int
    full: int


@dataclass(frozen=True, slots=True)
class OomFigures:
    """A group at an out-of-memory kill; bytes, None: no limit or not known."""

    oom_kills: int
    current: int | None
    peak: int | None
    limit: int | None
    anon: int | None
    file: int | None


class Descriptors:
    """How many files may stay open: a quarter of what the process may have, unless said otherwise."""

    def __init__(self, most: int | None = None) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.left = soft // 4 if most is None else most


def value_of(text: bytes, key: bytes) -> int:
    """The number after ``key `` at the start of a line of a flat keyed file; -1 when there is no such line."""
    key += b" "
    at = 0 if text.startswith(key) else text.find(b"\n" + key) + 1
    if at == 0 and not text.startswith(key):
        return -1
    at += len(key)
    end = text.find(b"\n", at)
    digits = text[at : end if end >= 0 else None]
    return int(digits) if digits.isdigit() else -1


def parse_stat(text: bytes) -> tuple[int, int, int, int]:
    """``memory.stat``: anon, cache, cold (bytes), refaults (pages); older kernels have one counter of refaults."""
    anon, cold = value_of(text, b"anon"), value_of(text, b"inactive_file")
    active, slab = value_of(text, b"active_file"), value_of(text, b"slab_reclaimable")
    both = (value_of(text, b"workingset_refault_anon"), value_of(text, b"workingset_refault_file"))
    refaults = sum(value for value in both if value > 0) if max(both) >= 0 else value_of(text, b"workingset_refault")
    return anon, max(cold, 0) + max(active, 0) + max(slab, 0), cold, refaults


def parse_totals(text: bytes) -> tuple[int, int]:
    """The totals of a PSI file in µs: some, full; -1 where there is none."""
    found = {b"some": -1, b"full": -1}
    for line in text.splitlines():
        kind, _, rest = line.partition(b" ")
        digits = rest.rpartition(b"total=")[2]
        if kind in found and digits.isdigit():
            found[kind] = int(digits)
    return found[b"some"], found[b"full"]


def limit_of(text: str | None) -> int | None:
    """A limit's text; None for ``max`` and for what is no number."""
    return int(text) if text is not None and text.isdigit() else None


class MemoryGroup:
    """One group's memory files; may be read from one thread and closed from another."""

    def __init__(self, path: str, descriptors: Descriptors) -> None:
        self.path = path
        self._descriptors = descriptors
        self._kept: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._last: MemorySample | None = None
        self._quiet = 0  # reads since the last one of memory.stat

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for fd in self._kept.values():
                os.close(fd)
                self._descriptors.left += 1
            self._kept.clear()

    def _read(self, name: str, *, keep: bool = True) -> bytes:
        """The file's text, empty where there is no such file; it stays open, to `keep`, if the budget allows.

        Raises:
            OSError: ENODEV when the group is gone.
        """
        fd = self._kept.get(name, -1)
        if fd >= 0:
            return os.pread(fd, _BUFFER, 0)
        try:
            fd = os.open(f"{self.path}/{name}", _READ)
        except FileNotFoundError:
            return b""
        try:
            text = os.pread(fd, _BUFFER, 0)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and error.errno == errno.EOPNOTSUPP:  # psi=0
                return b""
            raise
        if keep and self._descriptors.left > 0:
            self._kept[name] = fd
            self._descriptors.left -= 1
        else:
            os.close(fd)
        return text

    def read(self) -> MemorySample | None:
        """The counters; None when the group is gone."""
        with self._lock:
            return None if self._closed else self._sample()

    def _sample(self) -> MemorySample | None:
        try:
            number = self._read("memory.current").strip()
            current = int(number) if number.isdigit() else -1
            some, full = parse_totals(self._read("memory.pressure"))
            last = self._last
            if last is not None and self._quiet < RESTING and self._is_quiet(last, current, some):
                self._quiet += 1
                return replace(last, current=current, some=some, full=full)
            stat = self._read("memory.stat")
        except OSError:
            return None
        if not stat and not os.path.isdir(self.path):
            return None
        self._quiet = 0
        self._last = MemorySample(current, *parse_stat(stat), some, full)
        return self._last

    @staticmethod
    def _is_quiet(last: MemorySample, current: int, some: int) -> bool:
        """Nobody has waited for memory, and there is about as much as when ``memory.stat`` was read."""
        return some == last.some and current > 0 and abs(current - last.current) * 100 <= last.current

    def cpu_usage(self) -> int:
        """µs of CPU time used so far; -1 when it cannot be read."""
        with self._lock, contextlib.suppress(OSError):
            return -1 if self._closed else value_of(self._read("cpu.stat", keep=False), b"usage_usec")
        return -1

    def high(self) -> int | None:
        """What ``memory.high`` holds, None: ``max``; raises OSError when it cannot be read."""
        with files.directory(self.path) as fd:
            return limit_of(files.read_text(fd, HIGH))

    def set_high(self, value: int | None) -> int | None:
        """Write ``memory.high`` and return what the kernel keeps; raises OSError."""
        fd = os.open(f"{self.path}/{HIGH}", _WRITE)
        try:
            os.write(fd, (UNLIMITED if value is None else str(value)).encode())
            return limit_of(os.pread(fd, 64, 0).decode().strip())
        finally:
            os.close(fd)

    def reclaim(self, amount: int) -> bool:
        """Have the kernel take `amount` bytes back; False when it did not find as much (EAGAIN), or cannot at all."""
        try:
            fd = os.open(f"{self.path}/{RECLAIM}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # before Linux 5.19, or the group is gone
            return False
        try:
            os.write(fd, str(amount).encode())
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


def rounded(value: int) -> int:
    """What the kernel keeps of a limit (page_counter_memparse)."""
    return value // PAGE * PAGE


def oom_figures(path: str) -> OomFigures | None:
    """The figures for the report of a kill; None where there is no ``memory.events``, or no group any more."""
    try:
        with files.directory(path) as fd:
            events = files.read_optional(fd, "memory.events")
            if events is None:
                return None
            stat = (files.read_optional(fd, "memory.stat") or "").encode()
            current, peak, limit = (
                limit_of(files.read_optional(fd, f"memory.{name}")) for name in ("current", "peak", "max")
            )
    except OSError:
        return None
    kills = files.keyed_integers(events).get("oom_kill", 0)
    anon, file = (found if found >= 0 else None for found in (value_of(stat, b"anon"), value_of(stat, b"file")))
    return OomFigures(kills, current, peak, limit, anon, file)


@dataclass(frozen=True)
class MachineMemory:
    """Of the whole machine, bytes (proc_meminfo(5))."""

    total: int
    available: int
    swap_free: int


def machine_memory(path: str = "/proc/meminfo") -> MachineMemory:
    """What the kernel says of the machine's memory."""
    with open(path, encoding="ascii") as file:
        found = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in file)}
    return MachineMemory(found["MemTotal"], found.get("MemAvailable", found["MemFree"]), found.get("SwapFree", 0))


def limit_above(path: str, mount_point: str) -> int | None:
    """The lowest ``memory.max`` from the group at `path` up to the root of the mount; None: there is none."""
    lowest = None
    while path.startswith(mount_point) and len(path) > len(mount_point):
        with contextlib.suppress(OSError), files.directory(path) as fd:
            limit = limit_of(files.read_optional(fd, "memory.max"))
            lowest = limit if lowest is None or (limit is not None and limit < lowest) else lowest
        path = os.path.dirname(path)
    return lowest
