"""Reading what is below a directory fd without ever leaving it: files, their holes, and whether they stay the same."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from agentos_native.images.unpack.stream import BUFFER
from agentos_native.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

_PATH: Final = os.O_PATH | os.O_NOFOLLOW
_LINKS_MAX: Final = 40
"""As many symbolic links as the kernel follows in one path (path_resolution(7))."""
_BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """openat2(2): no link is followed, and nothing above `root` is reached; what is mounted below is."""
    return openat2(root, path or b".", flags | os.O_CLOEXEC, resolve=_BENEATH)


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """What tells two states of a file apart: nobody can set the time of change (ctime) to what it was."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Found(NamedTuple):
    """What is at a path; `target` of a symbolic link."""

    status: os.stat_result
    target: bytes

    @property
    def is_directory(self) -> bool:
        """Itself, not where a link leads."""
        return stat.S_ISDIR(self.status.st_mode)


class Root:
    """A directory that does not change, looked at as "/" of a file system; fd -1 for one that is empty."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._missing: set[bytes] = set()

    def find(self, path: bytes) -> Found | None:
        """What is at `path`, no link of which is followed; None when there is nothing."""
        if self.descriptor < 0 or path.rpartition(b"/")[0] in self._missing:
            return None
        try:
            descriptor = open_beneath(self.descriptor, path, _PATH)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                raise
            self._missing.add(path)
            return None
        try:
            status = os.fstat(descriptor)
            return Found(status, os.readlink(b"", dir_fd=descriptor) if stat.S_ISLNK(status.st_mode) else b"")
        finally:
            os.close(descriptor)

    def resolve(self, path: bytes) -> bytes:
        """`path` without links and ".."; links lead nowhere but below the root, and what is missing stays as written.

        Raises:
            OSError: ELOOP, too many links; ENOTDIR, it leads through something else.
        """
        waiting = deque(path.split(b"/"))
        done: list[bytes] = []
        links = 0
        while waiting:
            part = waiting.popleft()
            if part in (b"", b"."):
                continue
            if part == b"..":
                del done[-1:]
                continue
            found = self.find(b"/".join([*done, part]))
            if found is None or not found.target:
                if found is not None and not found.is_directory and any(each not in (b"", b".") for each in waiting):
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                done.append(part)
                continue
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if found.target.startswith(b"/"):
                done.clear()
            waiting.extendleft(reversed(found.target.split(b"/")))
        return b"/".join(done)


class Reading:
    """Opens files and gives their data piece by piece; the buffer is used again."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER))

    @contextlib.contextmanager
    def opened(self, root: int, path: bytes) -> Iterator[tuple[int, os.stat_result]]:
        """An fd of `path` and its status: for reading when it is a file or a directory, else only a name (O_PATH).

        Opening something else for reading could wait forever (a FIFO) or act (a device).
        """
        descriptor = open_beneath(root, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                readable = open_beneath(root, path, flags)
                os.close(descriptor)
                descriptor = readable
                status = os.fstat(descriptor)
            yield descriptor, status
        finally:
            os.close(descriptor)

    def data(self, descriptor: int, segments: tuple[tuple[int, int], ...] | None) -> Iterator[memoryview]:
        """The content of a file, or the parts of it that `segments` name."""
        if segments is None:
            while size := os.readv(descriptor, [self._buffer]):
                yield self._buffer[:size]
            return
        for start, length in segments:
            position = start
            while position < start + length:
                size = os.preadv(descriptor, [self._buffer[: start + length - position]], position)
                if not size:
                    raise OSError(errno.EIO, "the file became shorter while it was read")
                yield self._buffer[:size]
                position += size

    def segments(self, descriptor: int, status: os.stat_result) -> tuple[tuple[int, int], ...] | None:
        """The parts of a sparse file that hold data, as (offset, length); None for a file without holes."""
        size = status.st_size
        if status.st_blocks * 512 >= size:
            return None
        found = []
        position = 0
        while position < size:
            try:
                start = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            position = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
            found.append((start, position - start))
        os.lseek(descriptor, 0, os.SEEK_SET)
        return tuple(found)


def read_xattrs(descriptor: int) -> tuple[tuple[str, bytes], ...]:
    """All extended attributes of an open file, by name; none where the filesystem has none."""
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS):
            return ()
        raise
    return tuple((name, os.getxattr(descriptor, name)) for name in sorted(names))
