"""Hashing files while others are still being written: what the measurer does until the unpacker has ended.

The unpacker names the files that it has finished; that is a hint and nothing more. A hash made early counts later only
when the file has not been changed since, and the kernel says so: nobody can set a file's time of change (ctime).

* The file is looked at before it is read. A write after that gets a later ctime, when the clock of the filesystem has
  moved on in between: it moves in ticks (before Linux 6.13, commit 4e40eff0b573), so that a file is read only once its
  ctime is older than any tick.
* Writes through shared memory leave the ctime alone once the page is dirty; the children cannot have any
  (`confine.compile_filter`).
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable
from select import POLLIN, poll
from typing import Final

from agentos_native.images.unpack.stream import BUFFER
from agentos_native.images.unpack.writer import STRICT
from agentos_native.kernel.openat2 import openat2

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_TICK_NS: Final = 20_000_000
"""Twice the longest tick of any kernel (CONFIG_HZ=100)."""
_KNOWN_MAX: Final = 1 << 16
_PATH_MAX: Final = 4 << 10
_HINTS: Final = 1 << 10
"""Few files at once: when the unpacker has ended, what is not read yet is read while the disk is written to."""
_TOLD_AT_ONCE: Final = 256 << 10
"""Files of this size take a while to read; smaller ones are told of by the dozen."""
_KEY: Final = struct.Struct("=qqq32s")


class EarlyHashes:
    """Digests of files below the directory fd `root`, by inode; at most 65536, so that memory does not grow.

    `read(size)` is called for each file that was read.
    """

    def __init__(self, root: int, read: Callable[[int], None] = lambda size: None) -> None:
        self._root = root
        self._read = read
        self._known: dict[int, bytes] = {}
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._parent = -1
        self._parent_path = b""

    def follow(self, hints: int, go: int) -> None:
        """Hash what comes over the pipe `hints` (paths, each ended by NUL) until the pipe `go` is closed."""
        over = poll()
        over.register(go, POLLIN)
        waiting = poll()
        waiting.register(go, POLLIN)
        waiting.register(hints, POLLIN)
        rest = b""
        while True:
            ready = [descriptor for descriptor, _ in waiting.poll()]
            if go in ready:
                self._leave()
                return
            data = os.read(hints, _HINTS)
            if not data:
                waiting.unregister(hints)
            *paths, rest = (rest + data).split(b"\0")
            for path in paths:
                if len(self._known) < _KNOWN_MAX:
                    self._take(path, over)
            rest = rest[-_PATH_MAX:]

    def digest(self, status: os.stat_result) -> bytes | None:
        """The sha256 of a file that is now as `status` says, and was when it was read; it has no attributes."""
        known = self._known.get(status.st_ino)
        if known is None:
            return None
        size, changed, modified, digest = _KEY.unpack(known)
        same = (size, changed, modified) == (status.st_size, status.st_ctime_ns, status.st_mtime_ns)
        return digest if same else None

    def _take(self, path: bytes, over: poll) -> None:
        try:
            descriptor = self._open(path)
        except OSError:
            return  # a hint that is not true; the tree is looked at again anyway
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and not os.listxattr(descriptor):
                self._hash(descriptor, status, over)
        finally:
            os.close(descriptor)

    def _open(self, path: bytes) -> int:
        """Hints come directory by directory, so that the last one is kept open; it may be any directory of the tree by
        now, which is as good: what is read counts for its inode."""
        directory, _, name = path.rpartition(b"/")
        if name in (b".", b".."):
            raise IsADirectoryError
        if self._parent < 0 or directory != self._parent_path:
            parent = openat2(self._root, directory or b".", _DIRECTORY, resolve=STRICT)
            self._leave()
            self._parent, self._parent_path = parent, directory
        return os.open(name, _READ, dir_fd=self._parent)

    def _leave(self) -> None:
        if self._parent >= 0:
            os.close(self._parent)
            self._parent = -1

    def _hash(self, descriptor: int, status: os.stat_result, over: poll) -> None:
        age = time.time_ns() - status.st_ctime_ns
        if age < 0:
            return
        if age < _TICK_NS and over.poll((_TICK_NS - age) / 1e6):
            return  # everybody waits for the last pass now, which need not wait
        content = hashlib.sha256()
        size = 0
        while got := os.readv(descriptor, [self._buffer]):
            content.update(self._view[:got])
            size += got
            if got < BUFFER and size >= status.st_size:
                break  # were there more by now, it would have been changed
        key = _KEY.pack(status.st_size, status.st_ctime_ns, status.st_mtime_ns, content.digest())
        self._known[status.st_ino] = key
        self._read(size)


class Hints:
    """The writing end: paths of finished files, as many as the pipe takes; -1 for nobody who wants them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: list[bytes] = []
        self._size = 0
        if descriptor >= 0:
            os.set_blocking(descriptor, False)

    def add(self, path: bytes, size: int) -> None:
        """A file of `size` bytes is finished."""
        if self._descriptor < 0:
            return
        self._waiting.append(path)
        self._size += len(path) + 1
        if self._size > 2048 or size >= _TOLD_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Send what waits. A full pipe loses hints, not files."""
        if not self._waiting:
            return
        data = b"\0".join(self._waiting) + b"\0"
        self._waiting.clear()
        self._size = 0
        try:
            if os.write(self._descriptor, data) < len(data):  # the rest of a path would be added to the next
                os.close(self._descriptor)
                self._descriptor = -1
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._descriptor = -1
