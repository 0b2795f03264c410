"""The operations of a start and of an exec, in the order in which the child performs them.

A start, and who the child is meanwhile:

    host root       enters the prepared network namespace, makes a cgroup namespace, names the host
                    the given root file system becomes / (pivot_root; what it came from is an empty tmpfs)
                    fresh /dev, /dev/pts, /dev/shm, /dev/mqueue, /proc, /sys, /sys/fs/cgroup; masks; volumes
    inner root      enters the prepared user namespace and copies the mounts once more: every mount is now locked,
    none of them
                    can be remounted, unmounted or looked beneath from inside, whatever capabilities there are
    the program's   ids, capabilities, no_new_privs, session, stdio, working directory, seccomp, exec of init
    own user

Nothing is looked up by a path outside the new root, and inside it no symbolic link is followed; procfs is never
written. Pid, ipc, uts, cgroup and network namespaces stay owned by the host's user namespace, so no capability
inside governs them.
"""

from __future__ import annotations

import functools
import os
import resource
import stat
import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from agentos_native.kernel import caps, mount, ns
from agentos_native.kernel.keys import have_keyrings
from agentos_native.kernel.libc import AT_EMPTY_PATH
from agentos_native.sandbox.config import DEFAULT_PATH, ID_RANGE, RLIMITS, Fds, SandboxConfig, check
from agentos_native.sandbox.ops import CWD, NO_FD, Argument, Fd, Operation, Register, Stock
from agentos_native.sandbox.seccomp import compile_filter

_DEV: Final = Register("dev", 0)
_FRESH: Final = Register("fresh mount", 1)
_EMPTY: Final = Register("empty directory", 2)
_NULL: Final = Register("/dev/null", 3)

_RO, _NOSUID, _NODEV, _NOEXEC = (
    mount.MOUNT_ATTR_RDONLY,
    mount.MOUNT_ATTR_NOSUID,
    mount.MOUNT_ATTR_NODEV,
    mount.MOUNT_ATTR_NOEXEC,
)
_DEVICES: Final = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_MASKED: Final = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
"""What tells of the host or has been a hole (power meters, kernel addresses); those that exist are covered."""
_MASKED_FIRST: Final = "/sys/firmware"
"""Masked too, and on every kernel (drivers/base/firmware.c): the empty directory is attached here and copied from here,
since open_tree(2) copies attached mounts only (a detached one: EINVAL on 6.12)."""
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 1, 38, 47, 4
_CLOSE_RANGE_CLOEXEC: Final = 4
_SIGKILL: Final = 9
_TTY_GID: Final = 5
_SOFT_NOFILE: Final = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What a `wire.launch.Clone` is filled with.

    Args:
        fds: the packet's fds, in the order to which the operations refer; borrowed.
        namespaces: CLONE_NEW* for the clone itself.
        cgroup, pidns: indexes into `fds`; `pidns` is -1 for a start.
    """

    operations: tuple[Operation, ...]
    fds: list[int]
    namespaces: int
    cgroup: int
    pidns: int = -1

    def encode(self) -> bytes:
        """The bytes that the child interprets."""
        return _stock().encode(self.operations)

    def describe(self) -> str:
        """One numbered line for each operation, for ``--dry-run``."""
        flags = "|".join(name for name, flag in ns.NAMES.items() if flag & self.namespaces) or "none"
        lines = [f"clone into cgroup <{self.cgroup}>, new namespaces: {flags}"]
        lines += [operation.describe() for operation in self.operations]
        return "\n".join(f"{number:3} {line}" for number, line in enumerate(lines))


class _Builder:
    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.fds: list[int] = []
        self.stage = ""

    def fd(self, name: str, fd: int) -> Fd:
        """A reference to `fd` in the packet; the same fd is sent once."""
        if fd < 0:
            raise ValueError(f"the plan needs the file descriptor {name!r}")
        if fd not in self.fds:
            self.fds.append(fd)
        return Fd(name, self.fds.index(fd))

    def __call__(self, name: str, *arguments: Argument, note: str = "") -> None:
        self.operations.append(Operation(self.stage, name, arguments, note))

    def same(self, part: Callable[..., None], *arguments: Hashable) -> None:
        """What ``part(self, *arguments)`` adds: it takes no fds and depends on nothing else, so it is kept."""
        self.operations += _operations(part, *arguments)

    def mount(self, register: Register, target: str, fstype: str, options: dict[str, str], attributes: int) -> None:
        """Mount a new file system at `target`; values "" are flags."""
        pairs = tuple(word for item in options.items() for word in item)
        self("new_mount", register, fstype, pairs, attributes, note=_attribute_words(attributes))
        if target:
            self("attach", register, target)


@functools.lru_cache(maxsize=128)
def _operations(part: Callable[..., None], *arguments: Hashable) -> tuple[Operation, ...]:
    add = _Builder()
    part(add, *arguments)
    return tuple(add.operations)


@functools.cache
def _stock() -> Stock:
    """The operations of a start and of an exec of nobody in particular: most of everybody's."""
    nobody = SandboxConfig("", "nobody", ("/",), (), "/", 0, 0, (), ID_RANGE)
    start = start_plan(nobody, Fds(cgroup=0, rootfs=1, netns=2, userns=3, init=4, stdin=5, stdout=6, stderr=7))
    further = exec_plan(nobody, Fds(0, agent=2, pidns=1, stdin=3, stdout=4, stderr=5))
    return Stock((*start.operations, *further.operations))


def _attribute_words(attributes: int) -> str:
    words = {"ro": _RO, "nosuid": _NOSUID, "nodev": _NODEV, "noexec": _NOEXEC}
    return ",".join(word for word, bit in words.items() if attributes & bit)


def start_plan(config: SandboxConfig, fds: Fds) -> Plan:
    """The plan of an agent's first process: init by `fds.init`, which runs `config.argv`.

    Raises:
        AgentosError: ``invalid-sandbox``, or no filter can be compiled.
    """
    check(config, fds)
    add = _Builder()
    cgroup = add.fd("cgroup", fds.cgroup)
    add.same(_limits, config.rlimits)
    add.same(_namespaces, add.fd("netns", fds.netns))
    add.stage = "hostname"
    add("sethostname", config.hostname, len(config.hostname.encode()))
    add.same(_root, add.fd("rootfs", fds.rootfs))
    add.stage = "owner"
    add("become_owner", config.id_base)
    add.same(_dev)
    _terminals(add, config)
    add.same(_shared_memory, config.shm_bytes)
    add.same(_kernel_trees)
    _volumes(add, config, fds)
    add.same(_lock, add.fd("userns", fds.userns))
    add.same(_identity, config.uid, config.gid, config.groups, config.capabilities)
    _surroundings(add, config, fds)
    _execute(add, config, add.fd("init", fds.init), ("init", "--", *config.argv))
    flags = ns.CLONE_NEWNS | ns.CLONE_NEWPID | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS
    return Plan(tuple(add.operations), add.fds, flags, cgroup.number)


def exec_plan(config: SandboxConfig, fds: Fds) -> Plan:
    """The plan of a further process in a running agent; `config.argv` is executed directly, PATH searched inside.

    Raises:
        AgentosError: ``invalid-sandbox``, or no filter can be compiled.
    """
    check(config, fds)
    add = _Builder()
    cgroup = add.fd("cgroup", fds.cgroup)
    pidns = add.fd("pidns", fds.pidns)
    add.same(_limits, config.rlimits)
    add.stage = "namespaces"
    agent = add.fd("agent", fds.agent)
    flags = ns.CLONE_NEWNET | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS | ns.CLONE_NEWCGROUP | ns.CLONE_NEWNS
    add("setns", agent, flags | ns.CLONE_NEWUSER, note="all of the agent's but pid, which the clone has entered")
    add.same(_identity, config.uid, config.gid, config.groups, config.capabilities)
    _surroundings(add, config, fds)
    _execute(add, config, NO_FD, config.argv)
    return Plan(tuple(add.operations), add.fds, 0, cgroup.number, pidns.number)


def _limits(add: _Builder, rlimits: tuple[tuple[str, int], ...]) -> None:
    """While still host root, who may raise a hard limit. The number of files comes last, as it binds the child."""
    add.stage = "limits"
    add("umask", 0)
    limits = {"core": 0} | dict(rlimits)
    for name, value in limits.items():
        if name != "nofile":
            add("prlimit64", 0, RLIMITS[name], _rlimit(value, value), 0, note=f"{name} = {value}")


def _rlimit(soft: int, hard: int) -> bytes:
    return struct.pack("=2Q", soft & (1 << 64) - 1, hard & (1 << 64) - 1)


def _namespaces(add: _Builder, netns: Fd) -> None:
    add.stage = "network"
    add("setns", netns, ns.CLONE_NEWNET)
    add.stage = "cgroup namespace"
    add("unshare", ns.CLONE_NEWCGROUP)


def _lock(add: _Builder, userns: Fd) -> None:
    add.stage = "user namespace"
    add("setns", userns, ns.CLONE_NEWUSER)
    add.stage = "mount lock"
    add("unshare", ns.CLONE_NEWNS)


def _root(add: _Builder, rootfs: Fd) -> None:
    add.stage = "root"
    add("move_mount", rootfs, "", CWD, "/", mount.MOVE_MOUNT_F_EMPTY_PATH)
    add("fchdir", rootfs)
    add("pivot_root", ".", ".")
    add("umount2", ".", mount.MNT_DETACH, note="the old root, now on top of the new one")
    add("chdir", "/")
    attr = struct.pack("=4Q", _NOSUID | _NODEV, 0, 0, 0)
    add("mount_setattr", CWD, "/", 0, attr, len(attr), note="nosuid,nodev")


def _dev(add: _Builder) -> None:
    add.stage = "mount /dev"
    add.mount(_DEV, "", "tmpfs", {"mode": "755", "size": "64k", "nr_inodes": "64"}, _NOSUID | _NOEXEC)
    for name, (major, minor) in _DEVICES.items():
        add("mknodat", _DEV, name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    for name, target in _LINKS.items():
        add("symlinkat", target, _DEV, name)
    add("open_path", _NULL, _DEV, "null")
    add("attach", _DEV, "/dev")


def _terminals(add: _Builder, config: SandboxConfig) -> None:
    add.stage = "mount /dev/pts"
    options = {"newinstance": "", "ptmxmode": "0666", "mode": "0620", "gid": str(config.id_base + _TTY_GID)}
    add.mount(_FRESH, "/dev/pts", "devpts", options, _NOSUID | _NOEXEC)


def _shared_memory(add: _Builder, size: int) -> None:
    add.stage = "mount /dev/shm"
    shm = {"mode": "1777", "size": str(size)}
    add.mount(_FRESH, "/dev/shm", "tmpfs", shm, _NOSUID | _NODEV | _NOEXEC)
    add.stage = "mount /dev/mqueue"
    add.mount(_FRESH, "/dev/mqueue", "mqueue", {}, _NOSUID | _NODEV | _NOEXEC)


def _kernel_trees(add: _Builder) -> None:
    closed = _NOSUID | _NODEV | _NOEXEC
    add.stage = "mount /proc"
    add.mount(_FRESH, "/proc", "proc", {}, closed)
    add.stage = "mount /sys"
    add.mount(_FRESH, "/sys", "sysfs", {}, closed | _RO)
    add.stage = "mount /sys/fs/cgroup"
    add.mount(_FRESH, "/sys/fs/cgroup", "cgroup2", {}, closed | _RO)
    add.stage = "mask"
    add.mount(_EMPTY, _MASKED_FIRST, "tmpfs", {"mode": "555", "nr_inodes": "2", "size": "4k"}, closed | _RO)
    for path in _MASKED:
        add("cover", path, _EMPTY, _NULL, _RO | _NOEXEC)
    add.stage = "read-only"
    for path in _READ_ONLY:
        add("cover", path, NO_FD, NO_FD, closed | _RO)


def _volumes(add: _Builder, config: SandboxConfig, fds: Fds) -> None:
    for volume in sorted(config.mounts, key=lambda volume: volume.target.count("/")):
        add.stage = f"volume {volume.target}"
        fd = add.fd(volume.fd, fds.volumes[volume.fd])
        attr = struct.pack("=4Q", _NOSUID | _NODEV | (_RO if volume.read_only else 0), 0, 0, 0)
        add("mount_setattr", fd, "", AT_EMPTY_PATH, attr, len(attr), note="nosuid,nodev" + ",ro" * volume.read_only)
        add("attach", fd, volume.target)
    if config.read_only:
        add.stage = "read-only root"
        attr = struct.pack("=4Q", _RO, 0, 0, 0)
        add("mount_setattr", CWD, "/", 0, attr, len(attr), note="ro")


def _identity(add: _Builder, uid: int, gid: int, groups: tuple[int, ...], capabilities: tuple[str, ...]) -> None:
    add.stage = "identity"
    add("setgroups", len(groups), struct.pack(f"={len(groups)}I", *groups))
    add("setresgid", gid, gid, gid)
    add("setresuid", uid, uid, uid)
    add("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0, note="the change of ids has cleared it")
    if have_keyrings():
        add("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, 0, note="an empty session keyring instead of the launcher's")
    add.stage = "capabilities"
    kept = caps.mask(capabilities)
    add("drop_bounding", kept)
    add("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    add("capset", *caps.capset_arguments(kept, kept, 0))
    add("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _surroundings(add: _Builder, config: SandboxConfig, fds: Fds) -> None:
    add.stage = "session"
    add("setsid")
    add("umask", config.umask)
    add.stage = "stdio"
    if config.tty:
        add("terminal", "/dev/pts/ptmx")
    else:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            add("dup3", add.fd(name, getattr(fds, name)), number, 0)
    add("close_range", 3, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC)
    add.stage = "workdir"
    add("chdir", config.workdir)
    add("check_cwd")


def _execute(add: _Builder, config: SandboxConfig, program: Fd, argv: tuple[str, ...]) -> None:
    environment = dict(config.env)
    path = environment.setdefault("PATH", DEFAULT_PATH)
    add.stage = "command"
    add("find_command", config.argv[0], _candidates(config.argv[0], path))
    add.stage = "limits"
    soft, hard = _files(config)
    add("prlimit64", 0, RLIMITS["nofile"], _rlimit(soft, hard), 0, note=f"nofile = {soft}:{hard}")
    add.stage = "seccomp"
    add("reset_signals")
    filter_bytes = compile_filter()
    add("install_filter", filter_bytes, len(filter_bytes), note=f"{len(filter_bytes) // 8} instructions")
    add.stage = "execute"
    add("execute", program, argv, tuple(f"{name}={value}" for name, value in environment.items()))


def _candidates(command: str, path: str) -> tuple[str, ...]:
    """Where the program may be, in the order of execvp(3)."""
    if "/" in command:
        return (command,)
    return tuple(f"{directory or '.'}/{command}" for directory in path.split(":"))


def _files(config: SandboxConfig) -> tuple[int, int]:
    asked = dict(config.rlimits).get("nofile")
    if asked is not None:
        return asked, asked
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return min(_SOFT_NOFILE, hard) if hard >= 0 else _SOFT_NOFILE, hard
