"""A layer's tree as a tar that is the same for the same tree, byte for byte.

Entries go directory by directory, names in byte order, each directory before what is in it. Times are whole seconds.
Headers are ustar; what does not fit there (long names, large files, attributes) is in a pax header before it. The marks
of overlayfs become those of OCI layers: a whiteout ``.wh.NAME``, an opaque directory ``.wh..wh..opq`` in it.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.unpack.archive import show
from agentos_native.images.unpack.writer import STRICT
from agentos_native.kernel.openat2 import openat2

BLOCK: Final = 512
_RECORD: Final = 20 * BLOCK
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_NAME_MAX: Final = 100
_OCTAL_11: Final = 8**11 - 1
_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_OVERLAY: Final = "user.overlay."
_OPAQUE_MARK: Final = "user.overlay.opaque"
_CAPABILITY: Final = "security.capability"
_VFS_CAP_REVISION_MASK: Final = 0xFF000000
_VFS_CAP_REVISION_2: Final = 0x02000000
_VFS_CAP_REVISION_3: Final = 0x03000000

Write = Callable[[bytes | memoryview], None]


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One header: `kind` is the type flag of ustar (``0`` file, ``1`` hard link, ``2`` link, ``5`` directory, ``6``
    FIFO); `mtime` in seconds."""

    path: bytes
    kind: bytes = b"0"
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    target: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()


def header(member: Member) -> bytes:
    """The block or blocks before the content of `member`."""
    records: list[tuple[bytes, bytes]] = []
    if len(member.path) > _NAME_MAX:
        records.append((b"path", member.path))
    if len(member.target) > _NAME_MAX:
        records.append((b"linkpath", member.target))
    if member.size > _OCTAL_11:
        records.append((b"size", b"%d" % member.size))
    if not 0 <= member.mtime <= _OCTAL_11:
        records.append((b"mtime", b"%d" % member.mtime))
    records += [(b"SCHILY.xattr." + os.fsencode(name), value) for name, value in member.xattrs]
    if not records:
        return _block(member)
    content = b"".join(_record(key, value) for key, value in records)
    extended = Member(path=b"././@PaxHeader", kind=b"x", size=len(content))
    return _block(extended) + content + padding(len(content)) + _block(member)


def _record(key: bytes, value: bytes) -> bytes:
    """``length key=value``, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _block(member: Member) -> bytes:
    size = member.size if member.size <= _OCTAL_11 else 0
    mtime = member.mtime if 0 <= member.mtime <= _OCTAL_11 else 0
    fields = (
        member.path[:_NAME_MAX],
        b"%07o\0" % member.mode,
        b"%07o\0" % member.uid,
        b"%07o\0" % member.gid,
        b"%011o\0" % size,
        b"%011o\0" % mtime,
        b" " * 8,
        member.kind,
        member.target[:_NAME_MAX],
        b"ustar\x0000",
        b"",
        b"",
        b"%07o\0" % 0,
        b"%07o\0" % 0,
        b"",
    )
    block = _HEADER.pack(*fields)
    checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:]


def padding(size: int) -> bytes:
    """What fills the last block of `size` bytes."""
    return bytes(-size % BLOCK)


def end(size: int) -> bytes:
    """The end of an archive of `size` bytes: two blocks of zeros and more, as tar writes records of 20 blocks."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % _RECORD)


class TreePacker:
    """Writes the tree below the directory fd `root` to `write`, as the tar of one layer."""

    def __init__(self, root: int, write: Write) -> None:
        self._root = root
        self._out = write
        self._size = 0
        self._links: dict[int, bytes] = {}
        self._buffer = memoryview(bytearray(1 << 20))

    def pack(self) -> None:
        """All of it.

        Raises:
            AgentosError: ``image-not-exportable``; a name means something else in a layer's tar.
            OSError: something cannot be read.
        """
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            directory = openat2(self._root, path or b".", _READ | os.O_DIRECTORY, resolve=STRICT)
            try:
                if not path:
                    self._directory(directory, b"")
                below = list(self._entries(directory, path))
            finally:
                os.close(directory)
            waiting += reversed(below)
        self._write(end(self._size))

    def _entries(self, directory: int, path: bytes) -> Iterator[bytes]:
        """Write what is in `directory`; the paths of the directories among it."""
        prefix = path + b"/" if path else b""
        for name in sorted(map(os.fsencode, os.listdir(directory))):
            full = prefix + name
            if name.startswith(_WHITEOUT):
                raise AgentosError(
                    "image-not-exportable",
                    'a name that begins with ".wh." means a removed file in a layer',
                    f"entry {show(full)}",
                    "rename the file in a new image, and export that",
                )
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                below = os.open(name, _READ | os.O_DIRECTORY, dir_fd=directory)
                try:
                    self._directory(below, full)
                finally:
                    os.close(below)
                yield full
            else:
                self._other(directory, name, full, status)

    def _directory(self, descriptor: int, path: bytes) -> None:
        status = os.fstat(descriptor)
        attributes = _xattrs(descriptor)
        kept = tuple((name, value) for name, value in attributes if not name.startswith(_OVERLAY))
        self._header(path + b"/" if path else b"./", b"5", status, xattrs=kept)
        if (_OPAQUE_MARK, b"y") in attributes:
            self._write(header(Member(path=path + b"/" + _OPAQUE if path else _OPAQUE)))

    def _other(self, directory: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFCHR and status.st_rdev == 0:
            above, slash, _ = path.rpartition(b"/")
            self._write(header(Member(path=above + slash + _WHITEOUT + name)))
            return
        if status.st_nlink > 1:
            first = self._links.setdefault(status.st_ino, path)
            if first != path:
                self._header(path, b"1", status, target=first)
                return
        if kind == stat.S_IFREG:
            self._file(directory, name, path)
        elif kind == stat.S_IFLNK:
            self._header(path, b"2", status, target=os.readlink(name, dir_fd=directory))
        elif kind == stat.S_IFIFO:
            self._header(path, b"6", status)
        else:
            raise AgentosError("image-damaged", "a layer holds a device or a socket", f"entry {show(path)}")

    def _file(self, directory: int, name: bytes, path: bytes) -> None:
        descriptor = os.open(name, _READ, dir_fd=directory)
        try:
            status = os.fstat(descriptor)
            kept = tuple((key, value) for key, value in _xattrs(descriptor) if not key.startswith(_OVERLAY))
            self._header(path, b"0", status, size=status.st_size, xattrs=kept)
            left = status.st_size
            while left:
                size = os.readv(descriptor, [self._buffer[: min(left, len(self._buffer))]])
                if not size:
                    raise AgentosError("image-damaged", "a file of a layer became shorter", f"entry {show(path)}")
                self._write(self._buffer[:size])
                left -= size
            self._write(padding(status.st_size))
        finally:
            os.close(descriptor)

    def _header(
        self,
        path: bytes,
        kind: bytes,
        status: os.stat_result,
        *,
        size: int = 0,
        target: bytes = b"",
        xattrs: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        member = Member(
            path=path,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size=size,
            mtime=status.st_mtime_ns // 1_000_000_000,
            target=target,
            xattrs=xattrs,
        )
        self._write(header(member))

    def _write(self, data: bytes | memoryview) -> None:
        self._size += len(data)
        self._out(data)


def _xattrs(descriptor: int) -> tuple[tuple[str, bytes], ...]:
    """The attributes that an image keeps, by name, file capabilities in the form that every kernel reads."""
    found = []
    for name in sorted(os.listxattr(descriptor)):
        if name == _CAPABILITY:
            found.append((name, version_2(os.getxattr(descriptor, name))))
        elif name.startswith("user."):
            found.append((name, os.getxattr(descriptor, name)))
    return tuple(found)


def version_2(capability: bytes) -> bytes:
    """A ``security.capability`` without the id of the root that it counts for (struct vfs_ns_cap_data: 24 bytes); an
    image's are for its own root, capabilities(7)."""
    magic = int.from_bytes(capability[:4], "little")
    if len(capability) != 24 or magic & _VFS_CAP_REVISION_MASK != _VFS_CAP_REVISION_3:
        return capability
    return (magic & ~_VFS_CAP_REVISION_MASK | _VFS_CAP_REVISION_2).to_bytes(4, "little") + capability[4:20]
