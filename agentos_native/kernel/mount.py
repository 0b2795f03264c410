"""mount(2) and the mount API of fds: open_tree, move_mount, fsopen, fsconfig, fsmount, mount_setattr (Linux 5.12)."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from agentos_native.kernel.libc import AT_FDCWD, AT_RECURSIVE, libc_call, syscall

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}[os.uname().machine]

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = 0o2000000

MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40

FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_SET_FD, _FSCONFIG_CREATE = 0, 1, 5, 6

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19

MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8


class MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2), first version (32 bytes)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """A mount or (OPEN_TREE_CLONE) a detached copy of it; with `path` "" and AT_EMPTY_PATH, of `dirfd` itself."""
    return syscall("open_tree", _OPEN_TREE, dirfd, path, flags, path=path)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """Attach a detached mount, or move one."""
    syscall("move_mount", _MOVE_MOUNT, from_fd, from_path, to_fd, to_path, flags, path=to_path)


def fsopen(fstype: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """A filesystem context to be configured by fsconfig_* and mounted by `fsmount`."""
    return syscall("fsopen", _FSOPEN, fstype, flags, path=fstype)


def fsconfig_set_string(fd: int, key: str, value: str) -> None:
    """Set `key` to `value`; the kernel refuses values of 256 bytes and more."""
    syscall("fsconfig", _FSCONFIG, fd, _FSCONFIG_SET_STRING, key, value, 0, path=key)


def fsconfig_set_flag(fd: int, key: str) -> None:
    """Set the option `key` that takes no value, for example "ro"."""
    syscall("fsconfig", _FSCONFIG, fd, _FSCONFIG_SET_FLAG, key, None, 0, path=key)


def fsconfig_set_fd(fd: int, key: str, fd2: int) -> None:
    """Set `key` to the open file `fd2` (overlayfs takes its layers so since Linux 6.13)."""
    syscall("fsconfig", _FSCONFIG, fd, _FSCONFIG_SET_FD, key, None, fd2, path=key)


def fsconfig_create(fd: int) -> None:
    """Make the superblock."""
    syscall("fsconfig", _FSCONFIG, fd, _FSCONFIG_CREATE, None, None, 0)


def fsmount(fd: int, flags: int, attr: int) -> int:
    """A detached mount of the created context `fd`; `attr` are MOUNT_ATTR_* flags."""
    return syscall("fsmount", _FSMOUNT, fd, flags, attr)


def mount_setattr(
    dirfd: int,
    path: str,
    flags: int,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = -1,
) -> None:
    """Change a mount's (AT_RECURSIVE: and its submounts') attributes; MOUNT_ATTR_IDMAP maps ids by `userns_fd`."""
    attr = MountAttr(attr_set, attr_clr, propagation, userns_fd if userns_fd >= 0 else 0)
    syscall("mount_setattr", _MOUNT_SETATTR, dirfd, path, flags, attr, ctypes.sizeof(attr), path=path)


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """The classic mount(2)."""
    libc_call("mount", source, target, fstype, flags, data, path=target)


def umount2(path: str, flags: int) -> None:
    """Unmount; MNT_DETACH even when busy."""
    libc_call("umount2", path, flags, path=path)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root of this mount namespace; with (".", ".") the old one ends up on top of the new one."""
    syscall("pivot_root", _PIVOT_ROOT, new_root, put_old, path=new_root)


def make_private(path: str = "/") -> None:
    """Nothing mounted below `path` from now on is seen in other mount namespaces, nor theirs here."""
    mount_setattr(AT_FDCWD, path, AT_RECURSIVE, propagation=MS_PRIVATE)
