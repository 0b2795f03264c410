"""Where cgroup v2 is on this machine, and what it can control there: read from mountinfo, never assumed.

Three layouts exist (cgroups(7)): *unified* (v2 only), *hybrid* (v2 beside v1 hierarchies that hold some or all of the
controllers) and *legacy* (v1 only). A controller that is bound to v1 is absent from every ``cgroup.controllers`` of v2.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from agentos_native.errors import AgentosError

Layout = Literal["unified", "hybrid", "legacy"]

MOUNTINFO: Final = "/proc/self/mountinfo"

V1_ONLY_NAMES: Final = {"cpuacct": "cpu", "blkio": "io"}
"""v1 controllers that carry another name on v2 (or are part of another there)."""

_V1_OPTIONS_THAT_ARE_NOT_CONTROLLERS: Final = frozenset(
    {"rw", "ro", "none", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "all", "favordynmods"}
)

HINT_NO_V2: Final = (
    "mount it beside v1:  mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified\n"
    "or boot with cgroup_no_v1=all, which leaves every controller to v2"
)


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo, as far as cgroups need it."""

    mount_point: str
    fstype: str
    super_options: tuple[str, ...]
    read_only: bool


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """A usable v2 hierarchy.

    Attributes:
        path: the directory below which groups are made (the mount point or a group below it).
        mount_point: where the hierarchy is mounted.
        layout: of the whole machine.
        controllers: what `path` offers.
        v1_controllers: what v1 hierarchies hold, by their v1 names.
    """

    path: str
    mount_point: str
    layout: Layout
    controllers: frozenset[str]
    v1_controllers: frozenset[str] = frozenset()


def _unescape(field: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits (proc_pid_mountinfo(5))."""
    if "\\" not in field:
        return field
    out, index = bytearray(), 0
    raw = os.fsencode(field)
    while index < len(raw):
        digits = raw[index + 1 : index + 4]
        if raw[index] == 0x5C and len(digits) == 3 and all(0x30 <= digit <= 0x37 for digit in digits):
            out.append(int(digits, 8) & 0xFF)
            index += 4
        else:
            out.append(raw[index])
            index += 1
    return os.fsdecode(bytes(out))


def parse_mountinfo(lines: Iterable[str]) -> list[MountEntry]:
    """The cgroup mounts (v1 and v2) in the order of `lines`; others and malformed lines are left out."""
    entries = []
    for line in lines:
        head, separator, tail = line.rstrip("\n").partition(" - ")
        fields, rest = head.split(" "), tail.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3 or rest[0] not in ("cgroup", "cgroup2"):
            continue
        options = tuple(rest[2].split(","))
        read_only = "ro" in fields[5].split(",") or "ro" in options
        entries.append(MountEntry(_unescape(fields[4]), rest[0], options, read_only))
    return entries


def v1_bound(entries: Iterable[MountEntry]) -> frozenset[str]:
    """The controllers that v1 hierarchies hold; named hierarchies (``name=systemd``) hold none."""
    return frozenset(
        option
        for entry in entries
        if entry.fstype == "cgroup"
        for option in entry.super_options
        if "=" not in option and option not in _V1_OPTIONS_THAT_ARE_NOT_CONTROLLERS
    )


def layout_of(entries: Iterable[MountEntry]) -> Layout | None:
    """The layout that `entries` amount to; None when no cgroup filesystem is mounted at all."""
    kinds = {entry.fstype for entry in entries}
    if kinds == {"cgroup2"}:
        return "unified"
    if kinds == {"cgroup", "cgroup2"}:
        return "hybrid"
    return "legacy" if kinds else None


def _mount_of(path: str, entries: Iterable[MountEntry]) -> MountEntry | None:
    """The v2 mount that `path` lies in: the longest mount point above it, the last one when mounted over."""
    found: MountEntry | None = None
    for entry in entries:
        point = entry.mount_point.rstrip("/")
        above = path == point or path.startswith(point + "/")
        if above and (found is None or len(point) >= len(found.mount_point.rstrip("/"))):
            found = entry
    return found if found is not None and found.fstype == "cgroup2" else None


def _choose(root: str | None, entries: list[MountEntry], layout: Layout | None) -> tuple[str, MountEntry]:
    if root is not None:
        path = os.path.realpath(root)
        entry = _mount_of(path, entries)
        if entry is None or not os.path.isdir(path):
            mounts = [entry.mount_point for entry in entries if entry.fstype == "cgroup2"]
            hint = f"cgroup v2 is mounted at {', '.join(mounts)}" if mounts else HINT_NO_V2
            raise AgentosError("cgroup-root", "is not a directory of a cgroup v2 hierarchy", root, hint)
        return path, entry
    candidates = [entry for entry in entries if entry.fstype == "cgroup2"]
    if not candidates:
        what = f"no cgroup v2 hierarchy is mounted (layout: {layout or 'none'})"
        raise AgentosError("no-cgroup2", what, MOUNTINFO, HINT_NO_V2)
    writable = [entry for entry in candidates if not entry.read_only]
    entry = (writable or candidates)[0]
    return entry.mount_point, entry


def discover(root: str | None = None, mountinfo: str = MOUNTINFO) -> CgroupMount:
    """Find the v2 hierarchy.

    Args:
        root: a directory of a v2 hierarchy to use; None takes the first writable v2 mount.
        mountinfo: for tests.

    Raises:
        AgentosError: ``no-cgroup2``, ``cgroup-root`` (not in a v2 hierarchy) or ``cgroup-read-only``.
    """
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        entries = parse_mountinfo(file)
    layout = layout_of(entries)
    path, entry = _choose(root, entries, layout)
    if entry.read_only:
        hint = f"mount -o remount,rw {entry.mount_point}"
        raise AgentosError("cgroup-read-only", "the cgroup v2 hierarchy is mounted read-only", entry.mount_point, hint)
    with open(os.path.join(path, "cgroup.controllers"), encoding="ascii") as file:
        controllers = frozenset(file.read().split())
    assert layout is not None and layout != "legacy"  # `entry` is a v2 mount
    return CgroupMount(path, entry.mount_point, layout, controllers, v1_bound(entries))
