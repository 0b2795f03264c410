"""The digest of a tree: sha256 over a canonical listing, so that a directory and any tar of it have the same.

One record for each entry, directory by directory, names in byte order. A record is its fields, each ended by NUL:
kind, mode (octal), uid, gid, path; then for a file its size, the sha256 of its content and its attributes (names and
hex values in order); for a directory its attributes; for a symbolic link its target; for a further name of an inode
only the first path, for a whiteout only its own. Attributes are those that an image keeps (`writer.kept_xattr`), and
the mark of an opaque directory. Times are not part of it: two builds of the same files are the same image.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Final

from agentos_native.images.unpack.early import EarlyHashes
from agentos_native.images.unpack.messages import Measured
from agentos_native.images.unpack.reading import read_xattrs
from agentos_native.images.unpack.stream import BUFFER
from agentos_native.images.unpack.writer import OPAQUE, STRICT, WHITEOUT, kept_xattr
from agentos_native.kernel.openat2 import openat2

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LETTERS: Final = {
    stat.S_IFREG: b"f",
    stat.S_IFDIR: b"d",
    stat.S_IFLNK: b"l",
    stat.S_IFIFO: b"p",
}


class _Lister:
    def __init__(self, root: int, early: EarlyHashes | None) -> None:
        self.root = root
        self._early = early
        self.sum = hashlib.sha256(b"agentos-native tree 1\n")
        self.size = 0
        self.entries = 0
        self._links: dict[int, bytes] = {}
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)

    def directory(self, path: bytes) -> list[bytes]:
        """Add the records of one directory; the paths of those in it."""
        descriptor = openat2(self.root, path or b".", _READ | os.O_DIRECTORY, resolve=STRICT)
        try:
            if not path:
                self._record(os.fstat(descriptor), b"", _attributes(descriptor))
            below = []
            prefix = path + b"/" if path else b""
            for name in sorted(map(os.fsencode, os.listdir(descriptor))):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                full = prefix + name
                if stat.S_ISDIR(status.st_mode):
                    below.append(full)
                self._entry(descriptor, name, full, status)
            return below
        finally:
            os.close(descriptor)

    def _entry(self, directory: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFCHR and status.st_rdev == WHITEOUT:
            self.entries += 1
            self.sum.update(b"w\0%b\0" % path)
            return
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            first = self._links.setdefault(status.st_ino, path)
            if first != path:
                self.entries += 1
                self.sum.update(b"h\0%b\0%b\0" % (path, first))
                return
        if kind == stat.S_IFREG:
            self._file(directory, name, path, status)
        elif kind == stat.S_IFDIR:
            descriptor = os.open(name, _READ | os.O_DIRECTORY, dir_fd=directory)
            try:
                self._record(status, path, _attributes(descriptor))
            finally:
                os.close(descriptor)
        elif kind == stat.S_IFLNK:
            self._record(status, path, os.readlink(name, dir_fd=directory))
        else:
            self._record(status, path, b"")

    def _file(self, directory: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        known = self._early.digest(status) if self._early is not None else None
        if known is not None:
            self.size += status.st_size
            self._record(status, path, b"%d\0%b\0" % (status.st_size, known.hex().encode()))
            return
        descriptor = os.open(name, _READ, dir_fd=directory)
        try:
            content = hashlib.sha256()
            size = 0
            while got := os.readv(descriptor, [self._buffer]):
                content.update(self._view[:got])
                size += got
                if got < len(self._buffer) and size >= status.st_size:
                    break  # saves the read that would say "end" for nearly every file
            self.size += size
            self._record(status, path, b"%d\0%b\0%b" % (size, content.digest().hex().encode(), _attributes(descriptor)))
        finally:
            os.close(descriptor)

    def _record(self, status: os.stat_result, path: bytes, rest: bytes) -> None:
        self.entries += 1
        letter = _LETTERS[stat.S_IFMT(status.st_mode)]
        fields = (letter, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, path, rest)
        self.sum.update(b"%b\0%o\0%d\0%d\0%b\0%b\0" % fields)


def _attributes(descriptor: int) -> bytes:
    return b"".join(
        b"%b\0%b\0" % (os.fsencode(name), value.hex().encode())
        for name, value in read_xattrs(descriptor)
        if name == OPAQUE or kept_xattr(name, value) is not None
    )


def measure(root: int, early: EarlyHashes | None = None) -> Measured:
    """Read the whole tree below the directory fd `root`; but for what `early` has read, and nobody has changed since.

    Raises:
        OSError: something cannot be read.
        KeyError: there is a device node or a socket, which the store never holds.
    """
    lister = _Lister(root, early)
    waiting = [b""]
    while waiting:
        waiting += lister.directory(waiting.pop())
    return Measured(f"sha256:{lister.sum.hexdigest()}", lister.size, lister.entries)
