"""Volumes: a directory or file of the host as a detached mount with the agent's ids."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.kernel import mount
from agentos_native.kernel.libc import AT_EMPTY_PATH, AT_FDCWD, SyscallError, libc_call
from agentos_native.kernel.openat2 import RESOLVE_NO_MAGICLINKS, openat2

_KERNEL_FILESYSTEMS: Final[dict[int, str]] = {
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x73636673: "securityfs",
    0xCAFE4A11: "bpf",
    0x1CD1: "devpts",
    0x19800202: "mqueue",
    0x6E736673: "nsfs",
}
"""statfs(2) magic numbers of the kernel's own control files: an agent gets its own of those that it may see."""


def _fail(code: str, what: str, source: str, hint: str = "") -> AgentosError:
    return AgentosError(code, what, f"volume {source!r}", hint)


def volume_mount(source: str, userns_fd: int, read_only: bool, private: str | None = None) -> int:
    """A detached mount of `source`, to be attached in the agent (nosuid, nodev); the caller closes it.

    Its ids are mapped: what uid 0 … 65535 own on the host belongs to uid 0 … 65535 in the agent, and the other way
    round. What is mounted below `source` is not part of it. `private` is the supervisor's own state, which an agent
    must not reach: its registry, and what other agents have written.

    Raises:
        AgentosError: ``invalid-volume`` (not absolute, of the wrong kind, in `private` or a writable parent of it),
        ``volume-not-found``, ``volume-not-idmappable``.
    """
    if not source.startswith("/") or "\0" in source:
        raise _fail("invalid-volume", "its source is not an absolute path", source)
    try:
        found = openat2(AT_FDCWD, source, os.O_PATH, resolve=RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        code = "volume-not-found" if error.errno == errno.ENOENT else "invalid-volume"
        raise _fail(
            code, f"its source cannot be opened: {error.strerror}", source, "make it first; it is never made for you"
        ) from None
    try:
        _check(found, source)
        if private is not None:
            refuse_private(os.readlink(f"/proc/self/fd/{found}"), source, read_only, private)
        return _clone(found, source, userns_fd, read_only)
    finally:
        os.close(found)


def refuse_private(real: str, source: str, read_only: bool, private: str) -> None:
    """`real` is where `source` leads to. A parent of `private` may be read: what is in it is a choice of root's."""
    kept = os.path.realpath(private)
    common = os.path.commonpath([real, kept])
    if common == kept or (common == real and not read_only):
        raise _fail(
            "invalid-volume",
            f"it leads into the supervisor's own state, {kept}",
            source,
            "Choose another directory." if common == kept else "Choose a directory below it, or make it read-only.",
        )


def _check(descriptor: int, source: str) -> None:
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise _fail("invalid-volume", "its source is neither a directory nor a plain file", source)
    statfs = (ctypes.c_long * 32)()
    libc_call("fstatfs", descriptor, statfs, path=source)
    kind = _KERNEL_FILESYSTEMS.get(statfs[0] & 0xFFFFFFFF)
    if kind:
        raise _fail("invalid-volume", f"its source is on {kind}, which controls the host", source)


def _clone(descriptor: int, source: str, userns_fd: int, read_only: bool) -> int:
    tree = mount.open_tree(descriptor, "", mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)
    attributes = mount.MOUNT_ATTR_IDMAP | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV
    if read_only:
        attributes |= mount.MOUNT_ATTR_RDONLY
    try:
        mount.mount_setattr(tree, "", AT_EMPTY_PATH, attributes, userns_fd=userns_fd)
    except SyscallError as error:
        os.close(tree)
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
            raise
        raise _fail(
            "volume-not-idmappable",
            "its filesystem does not support idmapped mounts, so its files cannot have the agent's owners",
            source,
            "use a directory on ext4, xfs, btrfs or tmpfs (not overlay, nfs or 9p, nor a mount that is mapped already)",
        ) from None
    except BaseException:
        os.close(tree)
        raise
    return tree
