"""The ring on disk: numbered segment files of bounded size; the oldest is removed when there is no room for more.

Nothing is ever written over. A segment is only appended to, by one process (the state directory's lock sees to that),
and a new process begins a new one, so that what a killed one was writing stays at the end of its segment.

Not synced: what is in the page cache survives the process, and after a power failure the checksums tell what is whole.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import Final

from agentos_native.errors import AgentosError

DIRECTORY: Final = "recording"
"""Below the state directory."""
SEGMENTS: Final = 8
"""Into which the ring is divided: so much of it is lost when the oldest goes."""
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_NAME: Final = re.compile(r"([0-9]{10})\.ticks\Z")


def segments(directory: str) -> list[str]:
    """Paths of the segments, oldest first; none where there is no recording."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise AgentosError("cannot-read", error.strerror or str(error), directory)
    return [os.path.join(directory, name) for name in sorted(names) if _NAME.match(name)]


class Ring:
    """Appends frames; OSError where the disk will not take them.

    Args:
        directory: made if necessary.
        limit: bytes of all segments together.
    """

    def __init__(self, directory: str, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._segment_limit = max(limit // SEGMENTS, 1)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._kept = [(path, os.stat(path).st_size) for path in segments(directory)]
        self._path = ""
        self._size = 0

    @property
    def room(self) -> int:
        """Bytes that a segment holds at most, but for a frame that is larger alone."""
        return self._segment_limit

    def fits(self, size: int) -> bool:
        """Whether the open segment takes that many bytes more."""
        return bool(self._path) and self._size + size <= self._segment_limit

    def rotate(self) -> None:
        """Begin a new segment."""
        last = os.path.basename(self._kept[-1][0]).partition(".")[0] if self._kept else "0"
        path = os.path.join(self._directory, f"{int(last) + 1:010d}.ticks")
        os.close(os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600))
        self._kept.append((path, 0))
        self._path, self._size = path, 0

    def abandon(self) -> None:
        """Remove the open segment if nothing whole is in it: the disk did not take its beginning."""
        if self._path and not self._size:
            self._kept.pop()
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def append(self, data: bytes) -> bool:
        """Write `data` to the open segment; False when the whole ring could not hold it."""
        if len(data) > self._limit - self._size:
            return False
        while len(self._kept) > 1 and sum(size for _, size in self._kept) + len(data) > self._limit:
            path, _ = self._kept.pop(0)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        fd = os.open(self._path, _FLAGS)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        self._size += len(data)
        self._kept[-1] = (self._path, self._size)
        return True
