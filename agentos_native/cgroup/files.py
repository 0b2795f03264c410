"""Reading and writing cgroup files relative to a directory fd; every refusal says file, value, errno and what to do.

A cgroup filesystem holds no symbolic links and only root makes directories in it, so a path of several components
below a directory fd cannot be redirected; O_NOFOLLOW is given all the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agentos_native.errors import AgentosError

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE: Final = os.O_CLOEXEC | os.O_NOFOLLOW

HINT_CONTROLLER_V1: Final = (
    "the controller is not available on cgroup v2 here; if a v1 hierarchy holds it, boot with cgroup_no_v1=all,\n"
    "or pass --allow-unenforced for what this host cannot enforce"
)
HINT_INTERNAL_PROCESSES: Final = (
    "a group that holds processes cannot hand controllers to groups below it: move its processes into a leaf,\n"
    "or give an empty group as the cgroup root"
)
HINT_THREADED: Final = "the group is threaded or domain-invalid (cgroup.type); use a domain group as the cgroup root"
HINTS: Final[dict[tuple[str, int], str]] = {
    ("cgroup.subtree_control", errno.EBUSY): HINT_INTERNAL_PROCESSES,
    ("cgroup.subtree_control", errno.ENOENT): HINT_CONTROLLER_V1,
    ("cgroup.subtree_control", errno.EINVAL): "real-time processes outside the root group keep cpu from being enabled",
    ("cgroup.subtree_control", errno.EOPNOTSUPP): HINT_THREADED,
    ("cpu.weight", errno.ERANGE): "weights go from 1 to 10000",
    ("cpu.weight", errno.EINVAL): "a group with cpu.idle = 1 has no weight; write cpu.idle = 0 first",
    ("cpu.max", errno.EINVAL): "the quota must be at least 1000 µs and the period at most 1 s",
    ("io.max", errno.ENODEV): "no such block device; the limit needs the whole disk's major:minor, not a partition's",
    ("cgroup.kill", errno.ENOENT): "cgroup.kill needs Linux 5.14",
}
"""(file, errno) → how to mend it."""
GENERAL_HINTS: Final[dict[int, str]] = {
    errno.ENOENT: HINT_CONTROLLER_V1,
    errno.EACCES: "run as root, or have the cgroup root delegated to this user",
    errno.EPERM: "run as root, or have the cgroup root delegated to this user",
    errno.EROFS: "the cgroup filesystem is mounted read-only here: mount -o remount,rw it",
    errno.ENOSPC: "the kernel's limit of groups is reached (cgroup.max.descendants, cgroup.max.depth above, or memory)",
    errno.EAGAIN: "the limit of groups is reached: see cgroup.max.descendants and cgroup.max.depth of the groups above",
    errno.ENODEV: "the group has been removed meanwhile",
}


def refusal(action: str, where: str, error: OSError, value: str | None = None) -> AgentosError:
    """The error for a refused access to the file or group at path `where`."""
    number = error.errno or 0
    name = os.path.basename(where)
    hint = HINTS.get((name, number)) or GENERAL_HINTS.get(number, "")
    written = "" if value is None else f" {value!r}"
    what = f"cannot {action}{written}: {errno.errorcode.get(number, number)} ({os.strerror(number)})"
    details = {"file": name, "value": value, "errno": number}
    return AgentosError(f"cgroup-{action.split(' ', maxsplit=1)[0]}", what, where, hint, details=details)


def open_directory(path: str, dir_fd: int | None = None) -> int:
    """A directory fd; raises OSError."""
    return os.open(path, _DIRECTORY, dir_fd=dir_fd)


@contextmanager
def directory(path: str, dir_fd: int | None = None) -> Iterator[int]:
    """A directory fd for the length of a block; raises OSError."""
    fd = open_directory(path, dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def read_text(dir_fd: int, name: str) -> str:
    """The whole of a file of the group, without the last newline; raises OSError."""
    fd = os.open(name, os.O_RDONLY | _FILE, dir_fd=dir_fd)
    try:
        parts = []
        while part := os.read(fd, 65536):  # cgroup.procs of a large group takes several reads
            parts.append(part)
        return b"".join(parts).decode().rstrip("\n")
    finally:
        os.close(fd)


def read_optional(dir_fd: int, name: str) -> str | None:
    """As `read_text`; None where the file, the group or the feature (PSI: EOPNOTSUPP) is not there."""
    try:
        return read_text(dir_fd, name)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return None
        raise


def write_text(dir_fd: int, name: str, value: str) -> None:
    """Write a file of the group in one call; raises OSError."""
    fd = os.open(name, os.O_WRONLY | _FILE, dir_fd=dir_fd)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def write_checked(dir_fd: int, path: str, name: str, value: str) -> None:
    """As `write_text`, raising AgentosError ``cgroup-write``; `path` is the group's, for the message."""
    try:
        write_text(dir_fd, name, value)
    except OSError as error:
        raise refusal("write", os.path.join(path, name), error, value) from error


def keyed_integers(text: str) -> dict[str, int]:
    """A flat keyed file (``cpu.stat``, ``memory.events``): one ``key integer`` a line; other lines are left out."""
    result = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.lstrip("-").isdigit():
            result[key] = int(value)
    return result


def pressure(text: str) -> dict[str, dict[str, float]]:
    """A PSI file: ``{"some": {"avg10": percent, …, "total": µs}, "full": …}`` (Documentation/accounting/psi.rst)."""
    result: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        result[kind] = {key: float(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    return result
