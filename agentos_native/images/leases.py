"""Leases: what imports, pulls and builds under way hold, so that nobody takes it before an image names it.

A lease is a file ``leases/<random>`` whose maker keeps its flock; each line of it is ``layer`` or ``image`` and a
digest. The flock ends with the process, however that ends, so a lease needs no time limit: one that can be locked is
abandoned. Lines are added under the store's lock, under which removal looks at them, so a layer is either held before
somebody asks whether it may go, or it is gone before somebody wants to hold it.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import fcntl
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from agentos_native import faults
from agentos_native.images.disk import Disk, is_abandoned, names_in


class Lease:
    """See `catalog.Catalog.lease`; its methods are for the catalog, which holds the store's lock."""

    def __init__(self, disk: Disk) -> None:
        self.store = disk.path
        self.path = disk.leases / secrets.token_hex(8)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        faults.point("store.lease-made")
        self._held: set[str] = set()
        self.loose: set[str] = set()
        """Layers that were put into the store under this lease, and that no image names yet."""

    def hold(self, kind: str, digests: Iterable[str]) -> None:
        """Keep layers (`kind` "layer") or an image ("image") until the end."""
        lines = [f"{kind} {digest}\n" for digest in dict.fromkeys(digests)]
        new = [line for line in lines if line not in self._held]
        if new:
            content = "".join(new).encode()
            before = os.fstat(self._fd).st_size
            if os.write(self._fd, content) != len(content):
                os.ftruncate(self._fd, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._held.update(new)

    def end(self) -> None:
        """Hold nothing any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        os.close(self._fd)
        self._fd = -1  # a thread that still works under it gets EBADF, not somebody else's file


class Held(NamedTuple):
    """What live leases hold, by digest, and the files of abandoned ones."""

    layers: set[str]
    images: set[str]
    abandoned: list[Path]


def live(disk: Disk, but: Lease | None = None) -> Held:
    """Look at all leases, `but` one; under the store's lock."""
    held = Held(set(), set(), [])
    for name in names_in(disk.leases):
        path = disk.leases / name
        if but is not None and path == but.path:
            continue
        if is_abandoned(path):
            held.abandoned.append(path)
            continue
        for line in path.read_text(encoding="ascii").splitlines():
            kind, _, digest = line.partition(" ")
            (held.layers if kind == "layer" else held.images).add(digest)
    return held


_current: contextvars.ContextVar[Lease | None] = contextvars.ContextVar("lease", default=None)


def current(disk: Disk) -> Lease | None:
    """The lease of this store that this context (a thread, a task and what it starts) works under."""
    lease = _current.get()
    return lease if lease is not None and lease.store == disk.path else None


def enter(lease: Lease) -> contextvars.Token[Lease | None]:
    """Work under `lease` from here on, in this context and in those that are copied from it."""
    return _current.set(lease)


def leave(token: contextvars.Token[Lease | None]) -> None:
    """The inverse of `enter`."""
    _current.reset(token)
