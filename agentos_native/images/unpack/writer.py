"""Entries become files below one directory fd, and nothing else can: every parent is resolved without links and
beneath it.

The process that runs this may write nowhere else anyway (see `worker`); this is the inner of the two fences.
Directories are made with mode 0700 and get their owner, mode and time at the end, so that no file inherits a group
and no time is touched.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.images.model import Limits
from agentos_native.images.unpack.archive import Entry, hostile, show
from agentos_native.images.unpack.stream import too_large
from agentos_native.kernel.openat2 import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)

STRICT: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_FDS: Final = 64
_TOLD_FROM: Final = 64 << 10
"""Of smaller pieces the entry is told about, which is soon enough."""
_SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX

WHITEOUT: Final = os.makedev(0, 0)
"""The character device that overlayfs takes for "nothing here"; see Documentation/filesystems/overlayfs.rst."""
OPAQUE: Final = "user.overlay.opaque"
CAPABILITY: Final = "security.capability"
OVERLAY: Final = "user.overlay."
_VFS_CAP_REVISION_2, _VFS_CAP_REVISION_3 = 0x02000000, 0x03000000
_VFS_CAP = struct.Struct("<5I")
_VFS_CAP_ROOTID_ZERO: Final = bytes(4)

Data = Iterable[memoryview]


def kept_xattr(name: str, value: bytes) -> bytes | None:
    """What an image keeps of an extended attribute; None for nothing.

    user.* but for the marks of overlayfs, which only this project sets; file capabilities, as those of the image's
    own root (revision 3 with rootid 0: struct vfs_ns_cap_data). An agent's root is mounted nosuid, so that they give
    nobody anything there; they are kept for those who get the image by `export`. Labels, ACLs and trusted.* belong to
    the machine that the image was made on.
    """
    if name.startswith("user."):
        return None if name.startswith(OVERLAY) or len(name) > 255 else value
    if name != CAPABILITY or len(value) not in (_VFS_CAP.size, _VFS_CAP.size + 4):
        return None
    magic, *sets = _VFS_CAP.unpack_from(value)
    if magic & 0xFF000000 not in (_VFS_CAP_REVISION_2, _VFS_CAP_REVISION_3):
        return None
    return _VFS_CAP.pack(_VFS_CAP_REVISION_3 | magic & 1, *sets) + _VFS_CAP_ROOTID_ZERO


def _explain(error: OSError, entry: Entry) -> AgentosError:
    path = entry.path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return AgentosError(
            "disk-full",
            "no space left for the image",
            f"entry {show(path)}",
            "free some space under the state directory and import again",
        )
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
        return hostile("its parent is not a directory of the image (a symbolic link, perhaps)", path)
    if error.errno == errno.EFBIG:
        return too_large(f"a file is larger than an import may be: {show(path)}", "")
    return AgentosError(
        "image-not-written",
        f"{entry.kind} cannot be made: {error.strerror}",
        f"entry {show(path)}, errno {error.errno}",
    )


class explained:
    """Turns what the kernel says about `entry` into what the user reads; a class, for it is made for each entry."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise _explain(error, self._entry) from None


class TreeWriter:
    """Makes entries below `root`, counts them against `limits`, and calls `progress(entries, bytes)` often.

    `finished(path, size)` is called for each file that is complete.
    """

    def __init__(
        self,
        root: int,
        limits: Limits,
        progress: Callable[[int, int], None],
        finished: Callable[[bytes, int], None] = lambda path, size: None,
    ) -> None:
        self._root = root
        self._limits = limits
        self._progress = progress
        self._finished = finished
        self._parents: dict[bytes, int] = {}
        self._directories: dict[bytes, Entry] = {}
        self._dropped: Counter[str] = Counter()
        self.entries = 0
        self.bytes = 0

    def add(self, entry: Entry, data: Data = ()) -> None:
        """Make `entry`; `data` is what is stored of a file (`Entry.segments`).

        Raises:
            AgentosError: ``hostile-archive``, ``image-too-large``, ``disk-full``, ``image-not-written``.
        """
        self._count_entry()
        try:
            self._make(entry, data)
        except OSError as error:
            raise _explain(error, entry) from None
        self._progress(self.entries, self.bytes)

    def finish(self) -> None:
        """Give the directories their owners, modes, attributes and times, children before parents."""
        for path in sorted(self._directories, reverse=True):
            entry = self._directories[path]
            with explained(entry):
                self._finish_directory(entry)
        self._progress(self.entries, self.bytes)

    def notes(self) -> tuple[str, ...]:
        """What was left out, in words."""
        found = sorted(self._dropped.items())
        return tuple(f"left out {name} of {count} files" for name, count in found[:20])

    def _make(self, entry: Entry, data: Data) -> None:
        directory, _, name = entry.path.rpartition(b"/")
        if entry.kind == "directory":
            self._make_directory(entry)
            return
        parent = self._parent(directory)
        if entry.kind == "file":
            self._make_file(parent, name, entry, data)
            return
        if entry.kind == "hardlink":
            self._make_hardlink(parent, name, entry)
            return
        if entry.kind == "whiteout":
            # needs no privilege, whatever the mount's options: a device that does not exist (Linux 5.8)
            self._replacing(parent, name, entry, lambda: os.mknod(name, stat.S_IFCHR, WHITEOUT, dir_fd=parent))
            return
        if entry.kind == "symlink":
            self._replacing(parent, name, entry, lambda: os.symlink(entry.target, name, dir_fd=parent))
        else:
            self._replacing(parent, name, entry, lambda: os.mkfifo(name, 0o600, dir_fd=parent))
        if entry.uid or entry.gid:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind == "fifo":
            os.chmod(name, entry.mode, dir_fd=parent)
        for dropped, _ in entry.xattrs:
            self._note_dropped(dropped)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _make_directory(self, entry: Entry) -> None:
        if entry.path:
            directory, _, name = entry.path.rpartition(b"/")
            parent = self._parent(directory)
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    self._replacing(parent, name, entry, lambda: os.mkdir(name, 0o700, dir_fd=parent))
        self._directories[entry.path] = entry

    def _make_file(self, parent: int, name: bytes, entry: Entry, data: Data) -> None:
        mode = entry.mode & 0o777
        try:
            descriptor = os.open(name, _CREATE, mode, dir_fd=parent)
        except FileExistsError:
            descriptor = self._replacing(parent, name, entry, lambda: os.open(name, _CREATE, mode, dir_fd=parent))
        try:
            if entry.segments is None:
                self._copy(descriptor, data)
            else:
                self._copy_sparse(descriptor, entry, data)
            if entry.uid or entry.gid:
                os.fchown(descriptor, entry.uid, entry.gid)
            if entry.mode & _SPECIAL_BITS:
                os.fchmod(descriptor, entry.mode)
            if entry.xattrs:
                self._set_xattrs(descriptor, entry)
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(descriptor)
        self._finished(entry.path, entry.size)

    def _copy(self, descriptor: int, data: Data) -> None:
        for piece in data:
            self._count(len(piece))
            if len(piece) >= _TOLD_FROM:
                self._progress(self.entries, self.bytes)
            written = os.write(descriptor, piece)
            while written < len(piece):
                written += os.write(descriptor, piece[written:])

    def _copy_sparse(self, descriptor: int, entry: Entry, data: Data) -> None:
        os.truncate(descriptor, entry.size)
        pieces = iter(data)
        piece = memoryview(b"")
        for start, length in entry.segments or ():
            position = start
            while position < start + length:
                piece = piece or next(pieces)
                written = os.pwrite(descriptor, piece[: start + length - position], position)
                self._count(written)
                piece = piece[written:]
                position += written

    def _count_entry(self) -> None:
        self.entries += 1
        if self.entries > self._limits.entries:
            raise too_large(f"more than {self._limits.entries} entries", "")

    def _count(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self._limits.bytes:
            raise too_large(f"more than {self._limits.bytes} bytes of files", "")

    def _make_hardlink(self, parent: int, name: bytes, entry: Entry) -> None:
        directory, _, source = entry.target.rpartition(b"/")
        try:
            source_parent = self._parent(directory, make=False)
            status = os.stat(source, dir_fd=source_parent, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            raise hostile(
                f"a hard link to {show(entry.target)}, which is not in the archive before it", entry.path
            ) from None
        if stat.S_ISDIR(status.st_mode):
            raise hostile("a hard link to a directory", entry.path)
        if entry.target == entry.path:
            return
        self._replacing(
            parent,
            name,
            entry,
            lambda: os.link(source, name, src_dir_fd=source_parent, dst_dir_fd=parent, follow_symlinks=False),
        )

    def _replacing(self, parent: int, name: bytes, entry: Entry, make: Callable[[], int | None]) -> int:
        """`make()`, with an earlier entry of that name taken out of the way as by tar; an fd if `make` gives one."""
        try:
            return make() or 0
        except FileExistsError:
            pass
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            try:
                os.rmdir(name, dir_fd=parent)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise hostile("it replaces a directory that is not empty", entry.path) from None
            self._directories.pop(entry.path, None)
            if entry.path in self._parents:
                os.close(self._parents.pop(entry.path))
        else:
            os.unlink(name, dir_fd=parent)
            self._replaced(entry)
        return make() or 0

    def _replaced(self, entry: Entry) -> None:
        """`entry` takes the place of something else that was no directory."""

    def _parent(self, path: bytes, *, make: bool = True) -> int:
        """An O_PATH fd of the directory `path`, made with its parents when the archive did not bring them."""
        known = self._parents.pop(path, None)
        if known is not None:
            self._parents[path] = known  # the last used go last: what a caller holds is never the next to be closed
            return known
        if not path:
            return self._root
        try:
            descriptor = openat2(self._root, path, _DIRECTORY, resolve=STRICT)
        except FileNotFoundError:
            if not make:
                raise
            above, _, name = path.rpartition(b"/")
            os.mkdir(name, 0o755, dir_fd=self._parent(above))
            self._implied(path)
            descriptor = openat2(self._root, path, _DIRECTORY, resolve=STRICT)
        if len(self._parents) >= _KEPT_FDS:
            os.close(self._parents.pop(next(iter(self._parents))))
        self._parents[path] = descriptor
        return descriptor

    def _status(self, path: bytes) -> os.stat_result | None:
        """What was made at `path`; None for nothing. Its parents must not be links."""
        directory, _, name = path.rpartition(b"/")
        try:
            return os.stat(name, dir_fd=self._parent(directory, make=False), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _implied(self, path: bytes) -> None:
        """The directory `path` was made because something is in it."""

    def _set_xattrs(self, descriptor: int, entry: Entry) -> None:
        for name, value in entry.xattrs:
            kept = kept_xattr(name, value)
            if kept is None:
                self._note_dropped(name)
                continue
            try:
                os.setxattr(descriptor, name, kept)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.ENOSPC, errno.E2BIG, errno.ERANGE):
                    raise
                # ENOSPC too: ext4 keeps all attributes of a file in one block
                raise AgentosError(
                    "image-not-written",
                    f"the attribute {show(os.fsencode(name))} cannot be set: {error.strerror}",
                    f"entry {show(entry.path)}",
                    "the filesystem of the state directory holds no attributes, or no more of them",
                ) from None

    def _note_dropped(self, name: str) -> None:
        self._dropped[show(name.encode("utf-8", "replace"))] += 1

    def _finish_directory(self, entry: Entry) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        descriptor = openat2(self._root, entry.path or b".", flags, resolve=STRICT)
        try:
            os.fchown(descriptor, entry.uid, entry.gid)
            os.fchmod(descriptor, entry.mode)
            if entry.xattrs:
                self._set_xattrs(descriptor, entry)
            if entry.opaque:
                os.setxattr(descriptor, OPAQUE, b"y")
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(descriptor)
