"""User namespaces for agents: made by a child that does nothing but hold one, mapped from here, kept by an fd."""

from __future__ import annotations

import os
from typing import Final

from agentos_native.sandbox.ops import Operation, encode

HOLD: Final = encode([Operation("user namespace", "hold", ())])
"""The plan of the holder: it waits to be killed."""


def open_mapped(pid: int, base: int, size: int, inside: int = 0) -> int:
    """Map `size` inner ids from `inside` on, of the namespace that process `pid` holds, to `base`..; gives an fd of it.

    setgroups stays allowed: the program's supplementary groups are set by the child stage, inside.

    Raises:
        OSError: the range is taken by nobody, but malformed, or the process is gone.
    """
    for name in ("uid_map", "gid_map"):
        _write(f"/proc/{pid}/{name}", f"{inside} {base} {size}\n".encode())
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)
