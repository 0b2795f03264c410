"""The files of a layout or a ``docker save`` archive where they lie in a plain tar, found by its headers alone.

Such an archive need not be unpacked to be recognised: blobs are passed over, and of those whose layers the store has
nothing is read at all. The headers are read by the confined child that would unpack the archive otherwise
(`unpack.finding`, by `Session.find_or_unpack`); it says names, offsets and sizes, and knows a header from content as
little as it likes. So what it says is looked at here before anything is opened: names of a closed form, each once, that
lie one after another inside the file, and not many. What is in them is verified as it is everywhere: documents and
layers by their digests, the rest by `survey`. A child that was taken over can choose among the archive's bytes no more
than it could by unpacking them.

What was found holds as long as the file is the same, by its inode and the times of its last changes, so that this
program asks once about an archive. Bytes that changed and left no trace are no more than a child that lies.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import threading
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.images.oci.layout import Opened, missing
from agentos_native.images.oci.survey import invalid
from agentos_native.images.unpack.finding import FILE, LINK, LINKED
from agentos_native.images.unpack.messages import FOUND_MAX, Found

_BLOCK: Final = 512
_FILE: Final = re.compile(FILE)
_LINK: Final = re.compile(LINK)
_LINKED: Final = re.compile(LINKED)
_REMEMBERED: Final = 32
_SETTLED: Final = 1_000_000_000
"""Nanoseconds after which another change shows in a file's times: those of some file systems are of whole seconds."""


class _Member(NamedTuple):
    offset: int
    size: int


class Members:
    """The files of an archive that was found to be one, and where it is.

    Args:
        source: an fd of it, which must stay open.
        begin: where it begins in the file.
        found: what the child says.

    Raises:
        AgentosError: ``import-failed``; that cannot be.
    """

    def __init__(self, source: int, begin: int, found: Found) -> None:
        if len(found.files) + len(found.links) > FOUND_MAX:
            raise lie("too many members")
        self._source = source
        self._files = {path: _Member(offset, size) for path, offset, size in found.files}
        self._links = dict(found.links)
        names = [*self._files, *self._links]
        if len({*names}) != len(found.files) + len(found.links) or {*map(_top, filter(_is_below, names))} & {*names}:
            raise lie("a name that is there twice")
        if not all(map(_FILE.fullmatch, self._files)) or not all(map(_LINK.fullmatch, self._links)):
            raise lie("a name that no image has")
        if not all(map(_LINKED.fullmatch, self._links.values())):
            raise lie("a link that leads elsewhere")
        end = begin
        for offset, size in sorted(self._files.values()):
            if (offset - begin) % _BLOCK or offset < end + _BLOCK or size < 0:
                raise lie("members where none can be")
            end = offset + size
        if end > os.fstat(source).st_size:
            raise lie("a member beyond the end")

    @property
    def at_root(self) -> set[str]:
        """The names that are not in a directory, and the directories that have something in them."""
        return {*map(_top, (*self._files, *self._links))}

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


def _top(path: str) -> str:
    return path.partition("/")[0]


def _is_below(path: str) -> bool:
    return "/" in path


def lie(what: str) -> AgentosError:
    """A child says what no child says that reads archives."""
    return AgentosError(
        "import-failed",
        f"the unpacker found {what}",
        hint="this cannot be in any archive: it was made to break the unpacker, or this is a bug",
    )


# -- once for each archive


class Place(NamedTuple):
    """An archive: the file that it is in, as it was, and where it begins."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int
    begin: int

    @classmethod
    def of(cls, source: int) -> Place | None:
        """The archive that begins where the fd `source` stands; None for a pipe and the like."""
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            return None
        begin = os.lseek(source, 0, os.SEEK_CUR)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, begin)


_lock: Final = threading.Lock()
_remembered: Final[OrderedDict[Place, Found]] = OrderedDict()


def recall(place: Place | None, source: int) -> Members | None:
    """What was found in the archive before."""
    with _lock:
        found = None if place is None else _remembered.get(place)
    return None if place is None or found is None else Members(source, place.begin, found)


def remember(place: Place, found: Found) -> None:
    """Have it recalled, unless the file may have been changed since without a trace; `place` is from before asking."""
    if time.time_ns() - max(place.modified, place.changed) < _SETTLED:
        return
    with _lock:
        _remembered[place] = found
        _remembered.move_to_end(place)
        while len(_remembered) > _REMEMBERED:
            _remembered.popitem(last=False)
