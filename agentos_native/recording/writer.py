"""The thread between the tick and the disk.

Who has something to record calls `put` with a function that makes the entry: a few microseconds, whatever the disk
does. The thread calls it, gathers entries for some seconds, and appends them to the ring as frames. When it cannot keep
up, entries are dropped and counted. When the disk will not take them, it says so once, and tries again after a while:
until then everything is dropped. It goes on in a segment of its own, since the last one may end in half a frame.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from agentos_native.recording import batch, frames
from agentos_native.recording.model import Entry, Happening, Opening, Roster, Rows, Tick
from agentos_native.recording.ring import Ring

FLUSH: Final = 10.0
"""Seconds between two writes: the disk is often flash memory."""
RETRY: Final = 60.0
"""Seconds until a disk that would not take anything is tried again."""
QUEUE: Final = 1024
"""Entries that may wait for the thread."""
LARGE: Final = 8
"""A batch is written when its arrays have this many times the size of a segment; they are compressed about as much."""


class Writer:
    """Owns the ring and the thread.

    Args:
        directory: of the ring.
        limit: bytes that the ring may have.
        warn: told in words when nothing can be recorded, once until something can be again.
        sample: called before each write, for entries that nobody puts.
        period: seconds between two writes.
        retry: seconds; see `RETRY`.
    """

    def __init__(
        self,
        directory: str,
        limit: int,
        warn: Callable[[str], None],
        sample: Callable[[], Iterable[Entry]] = tuple,
        period: float = FLUSH,
        retry: float = RETRY,
    ) -> None:
        self._directory = directory
        self._limit = limit
        self._warn = warn
        self._sample = sample
        self._period = period
        self._retry = retry
        self._ring: Ring | None = None
        self._opening = Opening()
        self._queue: deque[Callable[[], Entry]] = deque()
        self._dropped = 0
        self._told: Roster | None = None  # the last roster that this segment has
        self._number = 0
        self._wake = threading.Event()
        self._closing = False
        self._broken = False
        self._refused = False  # by the disk, the last time
        self._idle_until = 0.0
        self._thread = threading.Thread(target=self._loop, name="record", daemon=True)

    @property
    def failed(self) -> bool:
        """Whether nothing is recorded now: the disk has refused lately, or what was to be written made no sense."""
        return self._broken or time.monotonic() < self._idle_until

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, make: Callable[[], Entry]) -> None:
        """Record what `make` gives, which is called in the thread."""
        if self.failed or len(self._queue) >= QUEUE:
            self._dropped += 1
            return
        self._queue.append(make)
        if len(self._queue) == QUEUE // 2:
            self._wake.set()

    def close(self) -> None:
        """Write what waits, and end."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while not self._closing and not self._broken:
            self._wake.wait(self._period)
            self._wake.clear()
            self.flush()

    def flush(self) -> None:
        """Write everything that waits (in the thread, or where none was started)."""
        if self.failed:
            return
        try:
            self._write()
        except OSError as error:
            self._pause(error)
        except Exception as error:  # a defect of ours: a record is never worth more than the work
            self._broken = True
            self._queue.clear()
            self._warn(f"ticks are no longer recorded: {error}: {self._directory}")

    def _pause(self, error: OSError) -> None:
        self._idle_until = time.monotonic() + self._retry
        self._dropped += len(self._queue)
        self._queue.clear()
        if self._ring is not None:
            self._ring.abandon()
            self._ring = None
        if not self._refused:
            again = f"it is tried again every {self._retry:g} s"
            self._warn(f"ticks are not recorded: {error.strerror or error}: {self._directory}; {again}")
        self._refused = True

    def _write(self) -> None:
        ticks: list[tuple[Tick, batch.Table]] = []
        rows: list[Rows] = []
        happenings: list[Happening] = []
        layout: tuple[object, ...] = ()
        size = 0
        for entry in self._entries():
            if isinstance(entry, Rows):
                rows.append(entry)
            elif isinstance(entry, Happening):
                happenings.append(entry)
            else:
                table = batch.table_of(entry)
                wanted = (id(entry.roster), *batch.layout_of(entry, table))
                if ticks and (wanted != layout or size > LARGE * self._room()):
                    self._emit(ticks, rows, happenings)
                    ticks, rows, happenings, size = [], [], [], 0
                layout = wanted
                ticks.append((entry, table))
                size += sum(leaf.nbytes for leaf in table.values() if leaf is not None)
        if ticks or rows or happenings:
            self._emit(ticks, rows, happenings)

    def _entries(self) -> Iterable[Entry]:
        while self._queue:
            yield self._queue.popleft()()
        yield from self._sample()

    def _room(self) -> int:
        return self._open().room

    def _open(self) -> Ring:
        if self._ring is None:
            self._ring = Ring(self._directory, self._limit)
        return self._ring

    def _emit(self, ticks: list[tuple[Tick, batch.Table]], rows: list[Rows], happenings: list[Happening]) -> None:
        ring = self._open()
        dropped, self._dropped = self._dropped, 0
        roster = ticks[0][0].roster if ticks else None

        def frame() -> bytes:
            known = roster is None or roster is self._told
            body = batch.pack(
                ticks,
                self._number if known else self._number + 1,
                session=self._opening.session,
                with_roster=not known,
                rows=rows,
                happenings=happenings,
                dropped=dropped,
            )
            return frames.pack(frames.BATCH, body)

        try:
            data = frame()
            if not ring.fits(len(data)):
                self._begin_segment(ring)
                data = frame()
            taken = ring.append(data)
        except OSError:
            self._dropped += dropped + len(ticks)
            raise
        self._refused = False
        if not taken:
            self._dropped += dropped + len(ticks)
        elif roster is not None and roster is not self._told:
            self._told = roster
            self._number += 1

    def _begin_segment(self, ring: Ring) -> None:
        """A new segment, which knows no roster yet."""
        ring.rotate()
        self._told = None
        self._opening.numba = _version_of_numba()
        ring.append(frames.pack(frames.OPENING, msgspec.msgpack.encode(self._opening)))


def _version_of_numba() -> str:
    """Of the numba that is loaded; empty where it is not (it is not loaded for this)."""
    return str(getattr(sys.modules.get("numba"), "__version__", ""))
