"""From a tar stream to checked entries; `tarfile` parses the headers and does nothing else.

None of tarfile's own extraction or its filters is used: CVE-2025-4517, -4138 and -4330 are ways round them. An entry
that comes out of `entries` has a relative name without "..", plain ids, and a kind that an image may hold.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import tarfile
from collections.abc import Iterator
from typing import IO, Final, Literal, cast

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.confine import ID_RANGE
from agentos_native.images.model import Limits
from agentos_native.images.unpack.header import Fields, Header, usual
from agentos_native.images.unpack.stream import Forward, corrupt

Kind = Literal["file", "directory", "symlink", "hardlink", "fifo", "whiteout"]

_KINDS: Final[dict[bytes, Kind]] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.FIFOTYPE: "fifo",
}
_XATTR_KEY: Final = "SCHILY.xattr."
DEVICE_HINT: Final = (
    "every agent gets its own /dev, so leave them out:\nmmdebstrap --skip=output/dev …, or tar --exclude='./dev/*' …"
)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of an image. `path` is relative to its root, b"" for the root itself; `mode` has the permission bits
    only.

    `segments` are the parts (offset, length) of a sparse file that are stored, one after the other; None for all of it.
    `target` is what a link points to (for a hard link, relative to the root like `path`). A ``whiteout`` hides what the
    layers below have there, an `opaque` directory all that they have in it; neither comes out of an archive as it is.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    target: bytes = b""
    segments: tuple[tuple[int, int], ...] | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()
    opaque: bool = False


def entry_of(
    path: bytes,
    kind: Kind,
    status: os.stat_result,
    *,
    target: bytes = b"",
    segments: tuple[tuple[int, int], ...] | None = None,
    xattrs: tuple[tuple[str, bytes], ...] = (),
    opaque: bool = False,
) -> Entry:
    """The entry that something on disk would be."""
    return Entry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind == "file" else 0,
        target=target,
        segments=segments,
        xattrs=xattrs,
        opaque=opaque,
    )


def show(path: bytes) -> str:
    """A path for an error message: quoted, without control characters, and not too long."""
    return repr(os.fsdecode(path[:200])) + ("…" if len(path) > 200 else "")


def hostile(what: str, path: bytes, hint: str = "") -> AgentosError:
    """The archive holds something that no image may hold."""
    return AgentosError(
        "hostile-archive", what, f"entry {show(path)}", hint or "nothing of it was kept; get the image from elsewhere"
    )


def check_path(raw: bytes, limits: Limits) -> bytes:
    """`raw` without "." and empty components.

    Raises:
        AgentosError: ``hostile-archive``; it is absolute, has "..", a NUL, or is too long or too deep.
    """
    if raw.startswith(b"/"):
        raise hostile("an absolute name", raw)
    if b"\0" in raw:
        raise hostile("a name with a NUL byte", raw)
    parts = [part for part in raw.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise hostile('a name with ".."', raw)
    if len(raw) > limits.name and any(len(part) > limits.name for part in parts):
        raise hostile(f"a name of more than {limits.name} bytes", raw)
    if len(parts) > limits.depth:
        raise hostile(f"a path of more than {limits.depth} levels", raw)
    path = b"/".join(parts)
    if len(path) > limits.path:
        raise hostile(f"a path of more than {limits.path} bytes", raw)
    return path


def entries(stream: Forward, limits: Limits) -> Iterator[Entry]:
    """The checked entries of a tar stream, in its order; the content of a file is next in `stream` when its entry
    comes.

    Raises:
        AgentosError: ``hostile-archive``, ``invalid-archive``, ``image-too-large``.
    """
    with _errors(stream):
        tar = tarfile.TarFile(
            fileobj=cast(IO[bytes], stream), mode="r", tarinfo=Header, errors="surrogateescape", encoding="utf-8"
        )
        read: list[tarfile.TarInfo] = vars(tar)["members"]
        while (member := tar.next()) is not None:
            read.clear()  # tarfile keeps all members; memory must not grow with the archive
            entry = _entry(member, limits)
            if entry.kind == "file":
                stream.seek(member.offset_data)
            yield entry
            if not tar.pax_headers:  # which hold for all that follows
                yield from _usual_entries(stream, tar, limits)
        if stream.last_header.strip(b"\0") or len(stream.last_header) != tarfile.BLOCKSIZE:
            # tarfile takes a damaged header and a missing end for the end of the archive
            raise corrupt("the archive has no end, or a damaged header", f"at byte {stream.tell()}")
        stream.drain()


def _usual_entries(stream: Forward, tar: tarfile.TarFile, limits: Limits) -> Iterator[Entry]:
    """The next entries of the usual kind, without tarfile, which takes three times as long; it goes on after them."""
    while (fields := usual(stream.at_hand(tar.offset))) is not None and fields.size >= 0:
        entry = _usual_entry(fields, limits)
        begin = tar.offset + tarfile.BLOCKSIZE
        stream.seek(begin)
        stored = fields.size if entry.kind == "file" else 0  # as tarfile has it: no other kind has content
        tar.offset = begin + -(-stored // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        yield entry


@contextlib.contextmanager
def _errors(stream: Forward) -> Iterator[None]:
    try:
        yield
    except tarfile.ReadError as error:
        if stream.tell() <= tarfile.BLOCKSIZE:
            raise AgentosError(
                "invalid-archive",
                f"this is not a tar archive: {error}",
                hint="an image is a directory or a tar, plain or as gzip, xz, bzip2 or zstd",
            ) from None
        raise corrupt(f"the archive is damaged: {error}", f"at byte {stream.tell()}") from None
    except (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError, UnicodeError, struct.error) as error:
        # what tarfile raises for headers that somebody crafted
        raise corrupt(f"the archive is damaged: {type(error).__name__}: {error}", f"at byte {stream.tell()}") from None
    except RecursionError:
        raise corrupt("headers of the archive are nested without end", f"at byte {stream.tell()}") from None


def _usual_entry(fields: Fields, limits: Limits) -> Entry:
    kind = _KINDS[fields.kind]
    path = check_path(fields.name, limits)
    _check_place(path, kind, fields.uid, fields.gid, fields.name)
    return Entry(
        path=path,
        kind=kind,
        mode=fields.mode & 0o7777,
        uid=fields.uid,
        gid=fields.gid,
        mtime_ns=_nanoseconds(fields.mtime),
        size=fields.size if kind == "file" else 0,
        target=_target(fields.name, fields.link, kind, limits),
    )


def _check_place(path: bytes, kind: Kind, uid: int, gid: int, raw: bytes) -> None:
    if not path and kind != "directory":
        raise hostile("the root is not a directory", raw)
    if not (0 <= uid < ID_RANGE and 0 <= gid < ID_RANGE):
        raise hostile(f"owner {uid}:{gid}; an image has ids 0 to {ID_RANGE - 1}", raw)


def _entry(member: tarfile.TarInfo, limits: Limits) -> Entry:
    raw = os.fsencode(member.name)
    path = check_path(raw, limits)
    if member.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        raise hostile("a device node", raw, DEVICE_HINT)
    kind = _KINDS.get(member.type)
    if kind is None:
        raise hostile(f"an entry of the unknown type {member.type!r}", raw)
    _check_place(path, kind, member.uid, member.gid, raw)
    if member.size < 0:
        raise hostile(f"a file of {member.size} bytes", raw)
    return Entry(
        path=path,
        kind=kind,
        mode=member.mode & 0o7777,
        uid=member.uid,
        gid=member.gid,
        mtime_ns=_nanoseconds(member.mtime),
        size=member.size if kind == "file" else 0,
        target=_target(raw, os.fsencode(member.linkname), kind, limits),
        segments=_segments(member),
        xattrs=_xattrs(member, raw, limits),
    )


def _target(name: bytes, link: bytes, kind: Kind, limits: Limits) -> bytes:
    if kind == "hardlink":
        target = check_path(link, limits)
        if not target:
            raise hostile("a hard link to the root", name)
        return target
    if kind == "symlink" and (not link or len(link) > limits.path or b"\0" in link):
        raise hostile("a symbolic link without a usable target", name)
    return link if kind == "symlink" else b""


def _segments(member: tarfile.TarInfo) -> tuple[tuple[int, int], ...] | None:
    sparse: list[tuple[int, int]] | None = getattr(member, "sparse", None)
    if sparse is None:
        return None
    end = 0
    for offset, length in sparse:
        if length < 0 or offset < end or offset + length > member.size:
            raise hostile("a sparse file whose parts overlap or lie outside it", os.fsencode(member.name))
        end = offset + length
    return tuple((offset, length) for offset, length in sparse if length)


def _xattrs(member: tarfile.TarInfo, raw: bytes, limits: Limits) -> tuple[tuple[str, bytes], ...]:
    headers = member.pax_headers
    if not headers:
        return ()
    found = tuple(
        (key.removeprefix(_XATTR_KEY), str(value).encode("utf-8", "surrogateescape"))
        for key, value in headers.items()
        if key.startswith(_XATTR_KEY)
    )
    if sum(len(name) + len(value) for name, value in found) > limits.xattr_bytes:
        raise hostile(f"more than {limits.xattr_bytes} bytes of extended attributes", raw)
    return found


def _nanoseconds(seconds: float) -> int:
    """A time that the kernel takes (it clamps to what the filesystem can hold): 0 for what is no time at all."""
    if not -(1 << 62) < seconds * 1e9 < 1 << 62:
        return 0
    return int(seconds) * 1_000_000_000 + int(seconds % 1 * 1e9)
