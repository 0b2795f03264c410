"""What a group's files shall say: one table from settings to files, written, read back and compared."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final

from agentos_native.cgroup import files
from agentos_native.errors import AgentosError

PERIOD: Final = 100_000
"""µs: the period of ``cpu.max``, the kernel's default."""
LONG_PERIOD: Final = 1_000_000
"""µs: for limits below 10 millicores, since the quota must be at least 1000 µs (sched/core.c, tg_set_cfs_bandwidth)."""
WEIGHT_MIN, WEIGHT_MAX = 1, 10_000
PAGE: Final = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True, slots=True)
class IoMax:
    """``io.max`` of one whole disk, ``device`` as ``major:minor``; None: no limit."""

    device: str
    rbps: int | None = None
    wbps: int | None = None
    riops: int | None = None
    wiops: int | None = None

    def render(self) -> str:
        pairs = (("rbps", self.rbps), ("wbps", self.wbps), ("riops", self.riops), ("wiops", self.wiops))
        return " ".join([self.device, *(f"{key}={'max' if value is None else value}" for key, value in pairs)])


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """The settings of a tenant's or an agent's group.

    Attributes:
        cpu_weight: 1..10000; None leaves it alone (the tick owns the weights of groups that run).
        cpu_max_millis: hard limit in millicores; None: no limit.
        cpu_min_millis: reservation in millicores. No file holds it: the tick turns it into weights, so it needs
            the cpu controller.
        cpu_idle: SCHED_IDLE for the whole group; None leaves it alone (the tick owns it above agents).
        memory_max, memory_high, memory_low: bytes. memory_min: likewise; what the kernel rather kills for than takes.
        io_weight: 1..10000 (``io.weight`` where the kernel has iocost, else ``io.bfq.weight``).
    """

    cpu_weight: int | None = None
    cpu_max_millis: int | None = None
    cpu_min_millis: int = 0
    cpu_idle: bool | None = None
    memory_max: int | None = None
    memory_high: int | None = None
    memory_low: int | None = None
    memory_min: int | None = None
    pids_max: int | None = None
    io_weight: int | None = None
    io_max: tuple[IoMax, ...] = ()


def unenforceable(settings: GroupSettings, controllers: Collection[str]) -> set[str]:
    """Which of cpu, memory, pids, io `settings` needs and `controllers` lacks. A mere weight is a wish, not a need."""
    needs = {
        "cpu": settings.cpu_max_millis is not None or settings.cpu_min_millis > 0 or settings.cpu_idle is True,
        "memory": any(
            value is not None
            for value in (settings.memory_max, settings.memory_high, settings.memory_low, settings.memory_min)
        ),
        "pids": settings.pids_max is not None,
        "io": settings.io_weight is not None or bool(settings.io_max),
    }
    return {controller for controller, needed in needs.items() if needed and controller not in controllers}


def whole_disk(device: str) -> str:
    """The disk of the partition ``major:minor``, since io.max takes no partitions; other devices are themselves."""
    entry = f"/sys/dev/block/{device}"
    if not os.path.exists(f"{entry}/partition"):
        return device
    with open(f"{os.path.dirname(os.path.realpath(entry))}/dev", encoding="ascii") as file:
        return file.read().strip()


def cpu_max(millis: int | None) -> str:
    """``cpu.max`` for a limit in millicores."""
    if millis is None:
        return f"max {PERIOD}"
    period = PERIOD if millis * PERIOD >= 1000 * 1000 else LONG_PERIOD
    return f"{millis * period // 1000} {period}"


def _limit(value: int | None) -> str:
    return "max" if value is None else str(value)


def _same_number(wanted: str, got: str) -> bool:
    return wanted == got


def _at_most(wanted: str, got: str) -> bool:
    """The tick may hold an agent's ``cpu.max`` lower at any moment (supervisor/loop/caps.py), never higher."""
    if wanted == got:
        return True
    quota, period = got.split()
    if not (quota.isdigit() and period.isdigit()):
        return False
    limit, of = wanted.split()
    return not limit.isdigit() or int(quota) * int(of) <= int(limit) * int(period)


def _same_pages(wanted: str, got: str) -> bool:
    """The kernel keeps memory limits in whole pages, rounded down (page_counter_memparse)."""
    if not (wanted.isdigit() and got.isdigit()):
        return wanted == got
    return int(got) == int(wanted) // PAGE * PAGE


def _same_weight(wanted: str, got: str) -> bool:
    """``io.weight`` reads ``default 100``, ``io.bfq.weight`` too where it is in use."""
    return got.splitlines()[0].removeprefix("default ") == wanted if got else False


def _same_io_max(wanted: str, got: str) -> bool:
    """The file lists every device that has a limit; one without any limit is not listed."""
    device, *pairs = wanted.split()
    listed = {line.split()[0]: set(line.split()[1:]) for line in got.splitlines()}
    return listed.get(device, {pair for pair in pairs if pair.endswith("=max")}) == set(pairs)


Comparison = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Write:
    """One file to write: the controller it belongs to and how to see that it took."""

    controller: str
    file: str
    value: str
    same: Comparison = _same_number
    otherwise: str = ""  # another name of the file


def writes(settings: GroupSettings, *, reset: bool) -> Iterator[Write]:
    """The writes that `settings` amount to.

    Args:
        reset: also write the defaults of what is not set (for the update of an existing group).
    """
    if settings.cpu_idle is not None:
        yield Write("cpu", "cpu.idle", str(int(settings.cpu_idle)))
    if settings.cpu_weight is not None and not settings.cpu_idle:  # EINVAL in an idle group
        yield Write("cpu", "cpu.weight", str(min(max(settings.cpu_weight, WEIGHT_MIN), WEIGHT_MAX)))
    if reset or settings.cpu_max_millis is not None:
        yield Write("cpu", "cpu.max", cpu_max(settings.cpu_max_millis), _at_most)
    for file, value, default in (
        ("memory.min", settings.memory_min, "0"),
        ("memory.low", settings.memory_low, "0"),
        ("memory.high", settings.memory_high, "max"),
        ("memory.max", settings.memory_max, "max"),
    ):
        if reset or value is not None:
            yield Write("memory", file, default if value is None else str(value), _same_pages)
    if reset or settings.pids_max is not None:
        yield Write("pids", "pids.max", _limit(settings.pids_max))
    if settings.io_weight is not None:
        yield Write("io", "io.weight", str(settings.io_weight), _same_weight, otherwise="io.bfq.weight")
    for limit in settings.io_max:
        yield Write("io", "io.max", replace(limit, device=whole_disk(limit.device)).render(), _same_io_max)


def _write_one(dir_fd: int, path: str, write: Write) -> str:
    """Write under the first name that exists; returns that name."""
    if write.otherwise:
        try:
            files.write_text(dir_fd, write.file, write.value)
            return write.file
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise files.refusal("write", os.path.join(path, write.file), error, write.value) from error
    name = write.otherwise or write.file
    files.write_checked(dir_fd, path, name, write.value)
    return name


def require(settings: GroupSettings, controllers: Collection[str], allow: Collection[str], path: str) -> None:
    """Raise ``unenforceable`` unless every missing controller is in `allow`."""
    missing = sorted(unenforceable(settings, controllers) - set(allow))
    if missing:
        listing = ",".join(missing)
        hint = (
            "the controller is not on cgroup v2 here (agentos-native check says why)\n"
            f"--allow-unenforced {listing} starts it all the same, not enforced"
        )
        raise AgentosError(
            "unenforceable", f"this host cannot enforce: {listing}", path, hint, details={"controllers": missing}
        )


def _lift_io_limits(dir_fd: int, path: str, keep: Collection[str]) -> None:
    for line in (files.read_optional(dir_fd, "io.max") or "").splitlines():
        device = line.split()[0]
        if device not in keep:
            files.write_checked(dir_fd, path, "io.max", IoMax(device).render())


def apply(
    dir_fd: int,
    path: str,
    settings: GroupSettings,
    controllers: Collection[str],
    *,
    allow: Collection[str] = (),
    reset: bool = False,
) -> None:
    """Write `settings` into the group and read every value back.

    Args:
        controllers: those that the group has.
        allow: controllers whose settings are skipped where the group lacks them.

    Raises:
        AgentosError: ``unenforceable``; ``cgroup-write`` (file, value, errno); ``cgroup-mismatch`` (the kernel kept
            another value).
    """
    require(settings, controllers, allow, path)
    if reset and "io" in controllers:
        _lift_io_limits(dir_fd, path, {whole_disk(limit.device) for limit in settings.io_max})
    for write in writes(settings, reset=reset):
        if write.controller not in controllers:
            continue
        name = _write_one(dir_fd, path, write)
        got = files.read_text(dir_fd, name)
        if not write.same(write.value, got):
            hint = "something else writes to this group, or the kernel rounds the value: use another one"
            raise AgentosError(
                "cgroup-mismatch", f"wrote {write.value!r}, the kernel kept {got!r}", os.path.join(path, name), hint
            )
