"""The files of a layout or a ``docker save`` archive where they lie in a plain tar, found by its headers alone.

Such an archive need not be unpacked to be recognised: the headers say where each blob begins, the blobs are passed over
by seeking, and of those whose layers the store has nothing is read at all.

This is read where the store is, not in a confined child, so it understands little, and nothing that could be meant in
two ways: usual headers whose checksum holds, names that are spelled out below, each once, sizes inside the file, and
extended headers that say when and whose, no more. Of anything else, a single header is enough, it says that it does not
know (`look` is None), and the archive goes to the unpacker, which decides about it. What is in the members is verified
as it is everywhere: documents and layers by their digests, the rest by `survey`.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import tarfile
from typing import Final, NamedTuple

from agentos_native.images.oci.layout import Opened, missing
from agentos_native.images.oci.survey import invalid
from agentos_native.images.unpack.header import Fields, usual

_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = bytes(2 * _BLOCK)
_HEADERS_MAX: Final = 10_000
"""Several images of 499 layers; a longer archive is none of these, or made to waste time."""
_KINDS: Final = frozenset((tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.XHDTYPE))
_EXTENDED_MAX: Final = 4096

_DIRECTORY: Final = re.compile(rb"\.|(?:\./)?(?:blobs(?:/sha256)?|[0-9a-f]{64})")
_FILE: Final = re.compile(
    rb"(?:\./)?(oci-layout|index\.json|manifest\.json|repositories|blobs/sha256/[0-9a-f]{64}"
    rb"|(?:sha256:)?[0-9a-f]{64}(?:\.json|\.tar(?:\.gz)?)?|[0-9a-f]{64}/(?:VERSION|json|layer\.tar))"
)
_LINK: Final = re.compile(rb"(?:\./)?([0-9a-f]{64}/layer\.tar)")
_TARGET: Final = re.compile(rb"\.\./([0-9a-f]{64}(?:/layer)?\.tar)")
_RECORD: Final = re.compile(
    rb"([0-9]{1,4}) (?:[acm]time|[ug]id|[ug]name|comment|LIBARCHIVE\.creationtime|SCHILY\.(?:dev|ino|nlink))=[^\n]*\n"
)
"""A record of an extended header that changes neither a name nor where anything lies (pax, POSIX.1-2001)."""


class _Member(NamedTuple):
    offset: int
    size: int


class Members:
    """The files of the archive at the fd `source`, which must stay open; see `layout.Files`."""

    def __init__(self, source: int, files: dict[str, _Member], links: dict[str, str]) -> None:
        self._source = source
        self._files = files
        self._links = links

    @property
    def at_root(self) -> set[str]:
        """The names that are not in a directory, and the directories that have something in them."""
        return {path.partition("/")[0] for path in (*self._files, *self._links)}

    def open(self, path: str, *, links: bool = False) -> Opened:
        """See `layout.Files.open`; with an offset of its own, so that several may be read at once."""
        found = posixpath.normpath(path)
        if found in self._links:
            if not links:
                raise invalid("a file of the image is a link", repr(path[:200]))
            found = self._links[found]
        member = self._files.get(found)
        if member is None:
            raise missing(path)
        descriptor = os.open(f"/proc/self/fd/{self._source}", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        os.lseek(descriptor, member.offset, os.SEEK_SET)
        return Opened(descriptor, member.size, within=True)


def look(source: int) -> Members | None:
    """What is in the archive that begins where the fd `source` stands, and stays there; None: the unpacker shall see.

    Takes two or three system calls for what is no such archive, and one for each member of one that is.
    """
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode):
        return None
    at = os.lseek(source, 0, os.SEEK_CUR)
    files: dict[str, _Member] = {}
    links: dict[str, str] = {}
    for _ in range(_HEADERS_MAX):
        block = os.pread(source, len(_END), at)
        if block == _END:
            directories = {path.partition("/")[0] for path in (*files, *links) if "/" in path}
            return None if directories & files.keys() else Members(source, files, links)
        fields = usual(block[:_BLOCK], _KINDS)
        if fields is None or not 0 <= fields.size <= status.st_size - at - _BLOCK:
            return None
        content = at + _BLOCK
        at = content + fields.size + -fields.size % _BLOCK
        if fields.kind == tarfile.XHDTYPE:
            if fields.size > _EXTENDED_MAX or not _is_harmless(os.pread(source, fields.size, content)):
                return None
        elif not _take(fields, content, files, links):
            return None
    return None


def _is_harmless(extended: bytes) -> bool:
    """Whether each record is one of those that do not matter here, and as long as it says."""
    at = 0
    while at < len(extended):
        record = _RECORD.match(extended, at)
        if record is None or record.end() - at != int(record.group(1)):
            return False
        at = record.end()
    return True


def _take(fields: Fields, content: int, files: dict[str, _Member], links: dict[str, str]) -> bool:
    """Note a member; false when it is not one of those that are understood."""
    if fields.kind == tarfile.DIRTYPE:
        return fields.size == 0 and _DIRECTORY.fullmatch(fields.name) is not None
    kind = _LINK if fields.kind == tarfile.SYMTYPE else _FILE
    match = kind.fullmatch(fields.name)
    if match is None:
        return False
    path = match.group(1).decode("ascii")
    if path in files or path in links:
        return False
    if fields.kind == tarfile.REGTYPE:
        files[path] = _Member(content, fields.size)
        return True
    target = _TARGET.fullmatch(fields.link)
    if target is None or fields.size:
        return False
    links[path] = target.group(1).decode("ascii")
    return True
