"""Where the files of an image lie in a plain tar, by its headers alone: the confined child's half of `oci.members`.

The headers of an OCI layout or a ``docker save`` archive say where each blob begins; the blobs are passed over by
seeking. This understands little, and nothing that could be meant in two ways: usual headers whose checksum holds, names
that are spelled out below, each once, sizes inside the file, and extended headers that say when and whose, no more. Of
anything else, a single header is enough, it says that it does not know, and the archive is unpacked.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from typing import Final

from agentos_native.images.unpack.header import Fields, usual
from agentos_native.images.unpack.messages import FOUND_MAX, Found

FILE: Final = (
    r"oci-layout|index\.json|manifest\.json|repositories|blobs/sha256/[0-9a-f]{64}"
    r"|(?:sha256:)?[0-9a-f]{64}(?:\.json|\.tar(?:\.gz)?)?|[0-9a-f]{64}/(?:VERSION|json|layer\.tar)"
)
LINK: Final = r"[0-9a-f]{64}/layer\.tar"
LINKED: Final = r"[0-9a-f]{64}(?:/layer)?\.tar"
"""What a link leads to, seen from the archive's root."""

_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = bytes(2 * _BLOCK)
_HEADERS_MAX: Final = 4 * FOUND_MAX
"""Files with an extended header each, and directories; a longer archive is made to waste time."""
_KINDS: Final = frozenset((tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.XHDTYPE))
_EXTENDED_MAX: Final = 4096
_MARKS: Final = frozenset(("oci-layout", "manifest.json"))

_DIRECTORY: Final = re.compile(rb"\.|(?:\./)?(?:blobs(?:/sha256)?|[0-9a-f]{64})")
_FILE: Final = re.compile(rb"(?:\./)?(%s)" % FILE.encode())
_LINK: Final = re.compile(rb"(?:\./)?(%s)" % LINK.encode())
_TARGET: Final = re.compile(rb"\.\./(%s)" % LINKED.encode())
_RECORD: Final = re.compile(
    rb"([0-9]{1,4}) (?:[acm]time|[ug]id|[ug]name|comment|LIBARCHIVE\.creationtime|SCHILY\.(?:dev|ino|nlink))=[^\n]*\n"
)
"""A record of an extended header that changes neither a name nor where anything lies (pax, POSIX.1-2001)."""


def find(source: int) -> Found | None:
    """What is in the archive that begins where the fd `source` stands, and stays there; None: it has to be unpacked.

    Takes two or three system calls for what is no such archive, and one for each member of one that is.
    """
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode):
        return None
    at = os.lseek(source, 0, os.SEEK_CUR)
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    for _ in range(_HEADERS_MAX):
        block = os.pread(source, len(_END), at)
        if block == _END:
            return _found(files, links)
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


def _found(files: dict[str, tuple[int, int]], links: dict[str, str]) -> Found | None:
    """The answer, when all that was read makes sense together."""
    directories = {path.partition("/")[0] for path in (*files, *links) if "/" in path}
    if directories & files.keys() or not _MARKS & files.keys() or len(files) + len(links) > FOUND_MAX:
        return None
    return Found(tuple((path, *where) for path, where in files.items()), tuple(links.items()))


def _is_harmless(extended: bytes) -> bool:
    """Whether each record is one of those that do not matter here, and as long as it says."""
    at = 0
    while at < len(extended):
        record = _RECORD.match(extended, at)
        if record is None or record.end() - at != int(record.group(1)):
            return False
        at = record.end()
    return True


def _take(fields: Fields, content: int, files: dict[str, tuple[int, int]], links: dict[str, str]) -> bool:
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
        files[path] = content, fields.size
        return True
    target = _TARGET.fullmatch(fields.link)
    if target is None or fields.size:
        return False
    links[path] = target.group(1).decode("ascii")
    return True
