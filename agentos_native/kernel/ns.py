"""namespaces(7), setns(2), unshare(2), and ioctl_ns(2) as far as it is needed."""

from __future__ import annotations

import os
from typing import Final

from agentos_native.kernel.libc import libc_call

CLONE_VM: Final = 0x00000100
CLONE_PIDFD: Final = 0x00001000
CLONE_NEWTIME: Final = 0x00000080
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_CLEAR_SIGHAND: Final = 0x100000000
CLONE_INTO_CGROUP: Final = 0x200000000

NAMES: Final[dict[str, int]] = {
    "user": CLONE_NEWUSER,
    "mnt": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "cgroup": CLONE_NEWCGROUP,
}
"""Name in /proc/<pid>/ns → flag: the seven namespaces of an agent."""


def setns(fd: int, flags: int = 0) -> None:
    """Move the calling thread into the namespace(s) of `fd` (a namespace file, or a pidfd with several `flags`)."""
    libc_call("setns", fd, flags)


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces."""
    libc_call("unshare", flags)


def open_own(name: str) -> int:
    """An fd of the calling *thread's* namespace `name` (thread-self, because setns and unshare act on one thread)."""
    return os.open(f"/proc/thread-self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)


def inode(pid: int | str, name: str) -> int:
    """The number that identifies the namespace `name` of process `pid` ("self" for one's own) as long as it lives."""
    return os.stat(f"/proc/{pid}/ns/{name}").st_ino
