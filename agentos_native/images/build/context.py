"""The context of a build, and keys of what a COPY takes: the same for the same files, whenever they were made."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.build.ignore import PatternError, parse_ignore
from agentos_native.images.build.model import Copy
from agentos_native.images.build.selecting import Selected, Selection, Tree
from agentos_native.images.unpack.archive import show
from agentos_native.images.unpack.reading import Reading, open_beneath, stamp_of

__all__ = ["Hashes", "Selection", "Tree", "content_key", "open_context", "origin_key", "read_beneath"]

_IGNORE_MAX: Final = 1 << 20
_KEPT: Final = 200_000
_SETTLED_NS: Final = 2_000_000_000
"""A file that changed more recently is hashed again: it may change once more within one tick of its clock (4 ms, on
FAT 2 s).
"""
_LETTERS: Final = {
    stat.S_IFREG: b"f",
    stat.S_IFDIR: b"d",
    stat.S_IFLNK: b"l",
    stat.S_IFIFO: b"p",
    stat.S_IFSOCK: b"s",
}


def read_beneath(root: int, path: str, limit: int) -> bytes:
    """The plain file `path` below the fd `root`; no link is followed.

    Raises:
        OSError: ENOENT, ELOOP, …; EFBIG: it is larger than `limit`; EINVAL: it is no plain file.
    """
    descriptor = open_beneath(root, os.fsencode(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes")
    return content


def open_context(root: int, dockerfile: str = "Dockerfile") -> Tree:
    """The context below the fd `root`, without what ``<dockerfile>.dockerignore``, else ``.dockerignore``, takes out.

    Raises:
        AgentosError: ``invalid-dockerignore``.
    """
    for name in (f"{dockerfile}.dockerignore", ".dockerignore"):
        try:
            return Tree(root, parse_ignore(read_beneath(root, name, _IGNORE_MAX), name))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            raise AgentosError("invalid-dockerignore", f"it cannot be read: {error.strerror}", name) from None
        except PatternError as error:
            raise AgentosError("invalid-dockerignore", str(error)) from None
    return Tree(root)


class Hashes:
    """sha256 of files that were read before and have not changed since. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, ...], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, root: int, selected: Selected, reading: Reading) -> bytes:
        """The digest of a file's content.

        Raises:
            AgentosError: ``context-changed``.
        """
        stamp = stamp_of(selected.status)
        known = self._known.get(stamp)
        if known is not None:
            return known
        found = hashlib.sha256()
        try:
            with reading.opened(root, selected.source) as (descriptor, status):
                if stamp_of(status) != stamp:
                    raise _changed(selected.source)
                for piece in reading.data(descriptor, None):
                    found.update(piece)
                if stamp_of(os.fstat(descriptor)) != stamp:
                    raise _changed(selected.source)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise _changed(selected.source) from None
            raise AgentosError(
                "context-not-read", f"a file cannot be read: {error.strerror}", show(selected.source)
            ) from None
        digest = found.digest()
        if time.time_ns() - selected.status.st_ctime_ns > _SETTLED_NS:
            with self._lock:
                self._known[stamp] = digest
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return digest


def content_key(copy: Copy, selection: Selection, hashes: Hashes) -> str:
    """``sha256:…`` of the instruction and of all that it takes: paths, kinds, modes, contents and links.

    Owners and times are no part of it: a COPY from the context sets owners, and a time alone is no change.

    Raises:
        AgentosError: ``context-changed``, ``context-not-read``.
    """
    key = hashlib.sha256(b"agentos-native copy 1\n" + msgspec.msgpack.encode(copy))
    reading = Reading()
    links: dict[tuple[int, int], bytes] = {}
    for selected in selection.entries:
        status = selected.status
        kind = stat.S_IFMT(status.st_mode)
        content = selected.target
        if kind == stat.S_IFREG:
            content = hashes.of(selection.root, selected, reading)
        first = b""
        if status.st_nlink > 1 and kind == stat.S_IFREG:
            first = links.setdefault((status.st_dev, status.st_ino), selected.destination)
        fields = (_LETTERS[kind], stat.S_IMODE(status.st_mode), selected.single, selected.destination, first)
        key.update(b"%b%o %d %b\0%b\0" % fields)
        key.update(b"%d %b\0" % (len(content), content))
    return f"sha256:{key.hexdigest()}"


def origin_key(copy: Copy, layers: Sequence[str]) -> str:
    """The key of a COPY from another stage or an image, whose layers say all about it."""
    key = hashlib.sha256(b"agentos-native copy from 1\n" + msgspec.msgpack.encode([copy, list(layers)]))
    return f"sha256:{key.hexdigest()}"


def _changed(path: bytes) -> AgentosError:
    return AgentosError(
        "context-changed",
        "a file changed while the build read it",
        show(path),
        "build again when nothing writes there",
    )
