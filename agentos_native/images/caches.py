"""Directories that RUNs find as the last one left them: ``RUN --mount=type=cache``.

::

    <state>/images/caches/<name>/        its flock is held by builds that use it; its time is when one last did
    <state>/images/caches/<name>/tree    what is mounted, with ids as in the image

The name stands for the tenant and the mount's id, so nobody finds what another tenant's build has left. A cache is
worth nothing but time: what a killed RUN left half-done is there for the next one, and a collection (`gc`) takes what
nobody holds. The directory is opened, then locked, then looked at once more, for it may have been taken in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agentos_native.images.build.model import Cache
from agentos_native.images.disk import DIRECTORY, Disk, is_abandoned, names_in
from agentos_native.kernel.libc import libc_call

CACHES: Final = "caches"
_TREE: Final = "tree"
_PRIVATE_MAX: Final = 64
_CHARACTERS: Final = 32
_RENAME_NOREPLACE: Final = 1  # renameat2(2)


class Held(contextlib.ExitStack):
    """Caches that are held until it is closed: the path of each mount's tree, by its target."""

    def __init__(self) -> None:
        super().__init__()
        self.trees: dict[str, str] = {}


class Caches:
    """Those of the store at `store`."""

    def __init__(self, store: Path) -> None:
        self._path = store / CACHES

    def take(self, held: Held, tenant: str, mounts: Sequence[Cache]) -> bool:
        """Have `held` hold the caches of one RUN, all of them, or none (false) because another build has one."""
        by_name: dict[str, list[Cache]] = {}
        for mount in mounts:
            by_name.setdefault(_name(tenant, mount.id), []).append(mount)
        self._path.mkdir(mode=0o700, exist_ok=True)
        with Held() as taking:
            for name, several in sorted(by_name.items()):
                descriptor, taken = self._lock(name, several)
                if descriptor < 0:
                    return False
                taking.callback(os.close, descriptor)
                os.utime(descriptor)
                _make_tree(descriptor, several[0])
                taking.trees |= {mount.target: str(self._path / taken / _TREE) for mount in several}
            held.trees = taking.trees
            held.push(taking.pop_all())
            return True

    def _lock(self, name: str, mounts: Sequence[Cache]) -> tuple[int, str]:
        """An fd that holds the cache, and which it is: of private ones there are several; -1 where all are taken."""
        sharing = {mount.sharing for mount in mounts}
        how = fcntl.LOCK_SH if sharing == {"shared"} else fcntl.LOCK_EX
        names = [name] if "private" not in sharing else [name, *(f"{name}-{n}" for n in range(1, _PRIVATE_MAX))]
        for each in names:
            descriptor = self._try(each, how)
            if descriptor >= 0:
                return descriptor, each
        return -1, ""

    def _try(self, name: str, how: int) -> int:
        path = self._path / name
        while True:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            try:
                descriptor = os.open(path, DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                return -1
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def unused(store: Path, older_than: float | None) -> list[str]:
    """The names of caches that nobody holds, and nobody held for `older_than` seconds."""
    limit = None if older_than is None else time.time() - older_than
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in names_in(store / CACHES):
            path = store / CACHES / name
            if (limit is None or path.stat().st_mtime < limit) and is_abandoned(path):
                found.append(name)
    return found


def put_aside(disk: Disk, name: str) -> str | None:
    """As `Disk.put_aside`; None also when somebody has begun to hold it: who takes one does not ask for the store's
    lock."""
    path = disk.path / CACHES / name
    try:
        descriptor = os.open(path, DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return disk.put_aside(path)
    except BlockingIOError:
        return None
    finally:
        os.close(descriptor)


def _make_tree(cache: int, mount: Cache) -> None:
    """Unless it is there; with the owner and mode that the first who uses it wants, from its first moment."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(_TREE, dir_fd=cache, follow_symlinks=False)
        return
    made = secrets.token_hex(8)
    os.mkdir(made, 0o700, dir_fd=cache)
    os.chown(made, mount.uid, mount.gid, dir_fd=cache)
    os.chmod(made, mount.mode, dir_fd=cache)
    try:
        libc_call("renameat2", cache, made, cache, _TREE, _RENAME_NOREPLACE, path=_TREE)
    except FileExistsError:  # another build that shares it was faster
        os.rmdir(made, dir_fd=cache)


def _name(tenant: str, identity: str) -> str:
    return hashlib.sha256(f"{tenant}\0{identity}".encode()).hexdigest()[:_CHARACTERS]
