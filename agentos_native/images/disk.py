"""The directories of the store, its lock, and files that appear whole or not at all. What is in them: see `catalog`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.images.remove import remove_tree

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_FAILED: Final = (errno.EIO, errno.EROFS)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Failures of the disk as errors that users can read: ``disk-full``, ``disk-failed``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            hint = "make room: `agentos-native image gc`, with --all the build cache too; the store is as it was"
            raise AgentosError("disk-full", "there is no space left for images", str(error.strerror), hint) from None
        if error.errno in _FAILED:
            raise AgentosError("disk-failed", f"the store cannot be written: {error.strerror}") from None
        raise


class Disk:
    """`path` and what is below it. Thread-safe, and safe beside other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        names = ("layers", "damaged", "index", "manifests", "refs", "leases", "tmp", "downloads")
        parts = [path / name for name in names]
        self.layers, self.damaged, self.index, self.manifests, self.refs, self.leases, self.tmp, self.downloads = parts
        with explained():
            for part in parts:
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)

    @contextlib.contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """The lock under which names, manifests, layers and leases change; `shared` to read them as they belong
        together. Not reentrant."""
        with explained():
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def write(self, path: Path, content: bytes) -> None:
        """Make or replace a file; after a crash it is the old one or the new one."""
        beside = self.tmp / secrets.token_hex(8)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(beside, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        sync_directory(path.parent)

    def put_aside(self, path: Path) -> str | None:
        """Move something out of sight, into tmp; its name there, None when it was gone. The caller holds the lock and
        has its name removed by `discard` afterwards."""
        name = secrets.token_hex(8)
        try:
            os.rename(path, self.tmp / name)
        except FileNotFoundError:
            return None
        return name

    def discard(self, entries_of_tmp: Iterable[str]) -> None:
        """Remove them for good; takes as long as it takes, so not under the lock."""
        with contextlib.suppress(FileNotFoundError):
            tmp = os.open(self.tmp, DIRECTORY)
            try:
                for name in entries_of_tmp:
                    remove_tree(tmp, name)
            finally:
                os.close(tmp)


def is_abandoned(path: Path) -> bool:
    """Whether nobody holds the flock of `path`; false when it is gone. Sound under the store's lock only, where nobody
    makes one."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def sync_directory(path: Path) -> None:
    """What was made, renamed and removed in it survives a power cut."""
    descriptor = os.open(path, DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def names_in(path: Path) -> list[str]:
    """Sorted names in a directory."""
    return sorted(os.listdir(path))
