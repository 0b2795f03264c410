"""I/O of a group: rates and stalls, and the weight, where this kernel has something that heeds it.

Two parts of Linux know weights. iocost reads ``io.weight``, which is there wherever it is compiled in, but only acts on
disks that are enabled in ``io.cost.qos`` of the root group. BFQ reads ``io.bfq.weight`` (1..1000) and acts on disks
whose scheduler it is. So the file being there says nothing (admin-guide/cgroup-v2.rst, block/bfq-iosched.rst).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Final, Literal

from agentos_native.cgroup import files
from agentos_native.cgroup.memory_files import parse_totals
from agentos_native.cgroup.settings import whole_disk

_FIELDS: Final = (b"rbytes", b"wbytes", b"rios", b"wios")
Counts = tuple[int, int, int, int]
"""Bytes read and written, reads and writes."""


@dataclass(frozen=True, slots=True)
class IoSample:
    """One group's counters by device (``major:minor``), and µs in which somebody waited for I/O (-1: no PSI)."""

    devices: dict[str, Counts]
    some: int


@dataclass(frozen=True, slots=True)
class IoWeights:
    """What heeds weights on one disk; `highest` is the largest that its file takes."""

    kind: Literal["iocost", "bfq"]
    file: str
    highest: int
    device: str


def parse_io_stat(text: bytes) -> dict[str, Counts]:
    """``io.stat``: one device a line; devices without figures (``8:0`` alone) are left out."""
    found: dict[str, Counts] = {}
    for line in text.splitlines():
        device, *pairs = line.split()
        values = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
        numbers = [int(value) if (value := values.get(field, b"")).isdigit() else -1 for field in _FIELDS]
        if min(numbers) >= 0:
            found[device.decode("ascii", "replace")] = (numbers[0], numbers[1], numbers[2], numbers[3])
    return found


def read_io(path: str) -> IoSample | None:
    """The counters of the group at `path`; None when it is gone or has no ``io.stat``."""
    try:
        with files.directory(path) as fd:
            stat = files.read_optional(fd, "io.stat")
            pressure = files.read_optional(fd, "io.pressure")
    except OSError:
        return None
    if stat is None:
        return None
    return IoSample(parse_io_stat(stat.encode()), parse_totals((pressure or "").encode())[0])


def disk_of(directory: str) -> str | None:
    """``major:minor`` of the whole disk that `directory` is on; None: on none (tmpfs, overlay, btrfs' own numbers)."""
    number = os.stat(directory).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return whole_disk(device) if os.major(number) and os.path.exists(f"/sys/dev/block/{device}") else None


def scheduler_of(device: str, sysfs: str = "/sys/dev/block") -> str:
    """The I/O scheduler in use, "" where it cannot be known."""
    with contextlib.suppress(OSError), open(f"{sysfs}/{device}/queue/scheduler", encoding="ascii") as file:
        for word in file.read().split():
            if word.startswith("["):
                return word.strip("[]")
    return ""


def find_weights(mount_point: str, device: str | None, sysfs: str = "/sys/dev/block") -> IoWeights | None:
    """What heeds weights on `device`; None: nothing does."""
    if device is None:
        return None
    if scheduler_of(device, sysfs) == "bfq":
        return IoWeights("bfq", "io.bfq.weight", 1000, device)
    with contextlib.suppress(OSError), open(f"{mount_point}/io.cost.qos", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{device} ") and " enable=1" in line:
                return IoWeights("iocost", "io.weight", 10_000, device)
    return None


def busy_time(device: str, sysfs: str = "/sys/dev/block") -> tuple[int, int] | None:
    """Milliseconds in which the disk was busy since boot, and its total cost (`cost`); None where it is not known."""
    try:
        with open(f"{sysfs}/{device}/stat", encoding="ascii") as file:
            fields = [int(word) for word in file.read().split()]
        return fields[9], cost((fields[2] * 512, fields[6] * 512, fields[0], fields[4]))
    except (OSError, ValueError, IndexError):
        return None


OPERATION: Final = 64 << 10
"""Bytes: what one operation counts, beside the bytes that it moves; about where rates of operations and of bytes are
equally dear to a disk."""


def cost(counts: Counts) -> int:
    """How much of a disk these operations took, in bytes of a long transfer."""
    return counts[0] + counts[1] + OPERATION * (counts[2] + counts[3])


def read_weight(path: str, file: str) -> int | None:
    """The group's default weight; None where it has none."""
    try:
        with files.directory(path) as fd:
            text = files.read_text(fd, file)
    except OSError:
        return None
    word = text.splitlines()[0].removeprefix("default ") if text else ""
    return int(word) if word.isdigit() else None


def write_weight(path: str, file: str, value: int) -> int | None:
    """Write the default weight; what the kernel keeps, None when it took nothing."""
    try:
        fd = os.open(f"{path}/{file}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError:
        return None
    return read_weight(path, file)
