"""openat2(2): opening a path that somebody untrusted may have prepared (Linux 5.6)."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from agentos_native.kernel.libc import syscall

_OPENAT2: Final = 437

RESOLVE_NO_XDEV: Final = 0x01
"""Do not cross a mount."""
RESOLVE_NO_MAGICLINKS: Final = 0x02
"""Refuse /proc/<pid>/fd/<n> and the like, which jump anywhere."""
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
"""Refuse (EXDEV) whatever would leave the starting directory, absolute paths too."""
RESOLVE_IN_ROOT: Final = 0x10
"""Take the starting directory for "/" (absolute symbolic links and ".." stay inside)."""


class OpenHow(ctypes.Structure):
    """struct open_how, first version (24 bytes)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` below `dirfd` under the rules `resolve`; always close-on-exec.

    RESOLVE_BENEATH and RESOLVE_IN_ROOT can fail with EAGAIN when something is renamed meanwhile; nobody renames in
    what this project opens with them, so that an EAGAIN is reported as it is.
    """
    how = OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return syscall("openat2", _OPENAT2, dirfd, path, how, ctypes.sizeof(how), path=os.fsdecode(path))
