"""The directories of the store, its lock, and files that appear whole or not at all. What is in them: see `catalog`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.images.remove import remove_tree
from agentos_native.kernel.libc import libc_call

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SYNC_FILE_RANGE_WRITE: Final = 2
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


class Draft(NamedTuple):
    """A file that is not where it belongs yet; see `Disk.draft`."""

    path: Path
    fd: int = -1


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
        with self.draft(content) as draft:
            os.fsync(draft.fd)
            os.rename(draft.path, path)
        sync_directory(path.parent)

    @contextlib.contextmanager
    def draft(self, content: bytes) -> Iterator[Draft]:
        """A file of tmp that the caller renames when it is on the disk, which has been told to begin with it; gone when
        the block fails."""
        draft = Draft(self.tmp / secrets.token_hex(8))
        try:
            with open(draft.path, "xb", buffering=0, opener=_private) as file:
                rest = memoryview(content)
                while rest:
                    rest = rest[file.write(rest) :]
                with contextlib.suppress(OSError):  # it is a hint: see sync_file_range(2)
                    libc_call("sync_file_range", file.fileno(), 0, 0, _SYNC_FILE_RANGE_WRITE)
                yield draft._replace(fd=file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft.path)
            raise

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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


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
