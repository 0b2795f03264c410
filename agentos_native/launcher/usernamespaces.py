"""User namespaces for agents: made by a child that does nothing but hold one, mapped from here, kept by an fd."""

from __future__ import annotations

import os
import signal

from agentos_native.sandbox import _child


def make(base: int, size: int, inside: int = 0) -> int:
    """An fd of a new namespace in which `size` ids from `inside` on are the ids `base`.. of the host.

    setgroups stays allowed: the program's supplementary groups are set by the child stage, inside. The holder is left
    to be reaped like any child; until then its pid is nobody else's.

    Raises:
        OSError: there can be no more namespaces, or the range is malformed (with `filename` then).
    """
    holder = _child.hold_userns()
    try:
        for name in ("uid_map", "gid_map"):
            _write(f"/proc/{holder}/{name}", f"{inside} {base} {size}\n".encode())
        return os.open(f"/proc/{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(holder, signal.SIGKILL)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)
