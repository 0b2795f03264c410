"""Who has a state directory: what a supervisor writes into the file that it locks there."""

from __future__ import annotations

import fcntl
import os
from typing import Final

import msgspec

LOCK: Final = "lock"
"""The file's name in the state directory."""
_LONGEST: Final = 8192


class Holder(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A supervisor: its process, its API's socket, and whether it ends with a command that it is part of."""

    pid: int = 0
    socket: str = ""
    embedded: bool = False

    def write(self, fd: int) -> None:
        """Into the locked file."""
        os.ftruncate(fd, 0)
        os.pwrite(fd, msgspec.json.encode(self) + b"\n", 0)


def read(fd: int) -> Holder:
    """What is in the file; nothing is known of who has only just locked it."""
    try:
        return msgspec.json.decode(os.pread(fd, _LONGEST, 0), type=Holder)
    except msgspec.MsgspecError:
        return Holder()


def holder_of(state_dir: str) -> Holder | None:
    """Who has it now; None when nobody has, or who asks may not know."""
    try:
        fd = os.open(os.path.join(state_dir, LOCK), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read(fd)
    finally:
        os.close(fd)
    return None
