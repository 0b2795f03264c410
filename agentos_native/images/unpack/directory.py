"""A directory of the host as entries of an image: the same kind of stream that `archive` makes of a tar.

It is read as it stands: what is mounted in it stays out, and files that change meanwhile are taken as they are read.
Links are never followed, so a directory that someone else may write to gives at worst a wrong image, never a file
from elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.images.confine import ID_RANGE
from agentos_native.images.model import Limits
from agentos_native.images.unpack.archive import DEVICE_HINT, Entry, Kind, check_path, entry_of, hostile, show
from agentos_native.images.unpack.reading import Reading, read_xattrs
from agentos_native.images.unpack.writer import OPAQUE, OVERLAY, STRICT, WHITEOUT, TreeWriter
from agentos_native.kernel.openat2 import openat2

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class DirectoryReader:
    """Feeds what is below the directory fd `root` to a `TreeWriter`.

    Args:
        upper: it is an overlay's upper directory: its whiteouts and opaque directories are meant, and its other marks
            are of no use elsewhere.
        exclude: paths that are left out, with all below them.
    """

    def __init__(self, root: int, limits: Limits, *, upper: bool = False, exclude: Collection[bytes] = ()) -> None:
        self._root = root
        self._limits = limits
        self._upper = upper
        self._exclude = frozenset(check_path(path, limits) for path in exclude)
        self._links: dict[tuple[int, int], bytes] = {}
        self._reading = Reading()
        self._skipped: list[str] = []

    def copy(self, writer: TreeWriter) -> None:
        """Add everything to `writer`.

        Raises:
            AgentosError: as `TreeWriter.add`, ``hostile-archive`` for device nodes and ids over 65535,
            ``source-not-read``.
        """
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            try:
                descriptor = openat2(self._root, path or b".", _READ | os.O_DIRECTORY, resolve=STRICT)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise _unreadable(path, error) from None
                self._skipped.append(f"left out what is mounted at {show(path)}")
                continue
            try:
                if not path:
                    writer.add(self._entry(b"", os.fstat(descriptor), "directory", descriptor))
                waiting += self._copy_one(writer, path, descriptor)
            finally:
                os.close(descriptor)

    def notes(self) -> tuple[str, ...]:
        """What was left out, in words."""
        return tuple(self._skipped[:20]) + ((f"and {len(self._skipped) - 20} more",) if len(self._skipped) > 20 else ())

    def _copy_one(self, writer: TreeWriter, path: bytes, directory: int) -> list[bytes]:
        below = []
        for name in sorted(map(os.fsencode, os.listdir(directory))):
            full = check_path(path + b"/" + name if path else name, self._limits)
            if full in self._exclude:
                continue
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    below.append(full)
                self._add(writer, full, name, directory, status)
            except OSError as error:
                raise _unreadable(full, error) from None
        return below

    def _add(self, writer: TreeWriter, path: bytes, name: bytes, directory: int, status: os.stat_result) -> None:
        kind = stat.S_IFMT(status.st_mode)
        key = (status.st_dev, status.st_ino)
        if self._upper and kind == stat.S_IFCHR and status.st_rdev == WHITEOUT:
            # before links: overlayfs makes one whiteout and links it (commit 2d343087ae0c)
            writer.add(Entry(path=path, kind="whiteout", mode=0, uid=0, gid=0, mtime_ns=0))
            return
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            first = self._links.setdefault(key, path)
            if first != path:
                writer.add(Entry(path=path, kind="hardlink", mode=0, uid=0, gid=0, mtime_ns=0, target=first))
                return
        if kind == stat.S_IFLNK:
            writer.add(self._entry(path, status, "symlink", -1, target=os.readlink(name, dir_fd=directory)))
        elif kind == stat.S_IFIFO:
            writer.add(self._entry(path, status, "fifo", -1))
        elif kind == stat.S_IFSOCK:
            self._skipped.append(f"left out the socket {show(path)}")
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            raise hostile("a device node", path, DEVICE_HINT)
        else:
            flags = _READ | (os.O_DIRECTORY if kind == stat.S_IFDIR else 0)
            descriptor = os.open(name, flags, dir_fd=directory)
            try:
                self._add_opened(writer, path, descriptor, os.fstat(descriptor))
            finally:
                os.close(descriptor)

    def _add_opened(self, writer: TreeWriter, path: bytes, descriptor: int, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            writer.add(self._entry(path, status, "directory", descriptor))
        elif stat.S_ISREG(status.st_mode):
            segments = self._reading.segments(descriptor, status)
            entry = self._entry(path, status, "file", descriptor, segments=segments)
            writer.add(entry, self._reading.data(descriptor, segments))
        else:
            raise hostile("it was replaced while it was read", path)

    def _entry(
        self,
        path: bytes,
        status: os.stat_result,
        kind: Kind,
        descriptor: int,
        *,
        target: bytes = b"",
        segments: tuple[tuple[int, int], ...] | None = None,
    ) -> Entry:
        if not (status.st_uid < ID_RANGE and status.st_gid < ID_RANGE):
            hint = "was it unpacked by a rootless tool? import a tar made inside that tool's user namespace instead"
            raise hostile(f"owner {status.st_uid}:{status.st_gid}; an image has ids 0 to {ID_RANGE - 1}", path, hint)
        xattrs = read_xattrs(descriptor) if descriptor >= 0 else ()
        opaque = self._upper and kind == "directory" and (OPAQUE, b"y") in xattrs
        if self._upper:
            xattrs = tuple((name, value) for name, value in xattrs if not name.startswith(OVERLAY))
        return entry_of(path, kind, status, target=target, segments=segments, xattrs=xattrs, opaque=opaque)


def _unreadable(path: bytes, error: OSError) -> AgentosError:
    return AgentosError(
        "source-not-read", f"the directory cannot be read: {error.strerror}", f"entry {show(path)}, errno {error.errno}"
    )
