"""sched_setattr(2): priority that is not inherited."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from agentos_native.kernel.libc import syscall

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}[os.uname().machine]
_SCHED_OTHER, _RESET_ON_FORK = 0, 1


class _Attributes(ctypes.Structure):
    """struct sched_attr, first version (48 bytes)."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def set_nice_of_this_thread(nice: int) -> None:
    """Set the nice value of the calling thread only: what it makes begins at 0 again (SCHED_FLAG_RESET_ON_FORK)."""
    attributes = _Attributes(ctypes.sizeof(_Attributes), _SCHED_OTHER, _RESET_ON_FORK, nice)
    syscall("sched_setattr", _SCHED_SETATTR, 0, attributes, 0)
