"""From an agent's output pipes to its log and to whoever is attached.

Theory of operation
    stdout and stderr of an agent are FIFOs in its directory. The agent holds them open for reading *and* writing, so
    the death of a reader (this process) gives it no SIGPIPE; the next supervisor opens the same FIFOs again. A
    terminal's master works alike, with one stream.

    Reading pauses in two cases; the pipe then fills and the agent waits, as it would for any slow reader. While an
    attached client is behind, because its output must not be lost. And in proportion to the time that the output has
    taken here: this time is not the agent's by its cgroup, so all agents together get only a part of it (`Pace`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from typing import Final, Protocol

from agentos_native.supervisor.logs import LogWriter, Stream

_CHUNK: Final = 1 << 16
_PARTIAL_AFTER: Final = 0.25
"""Seconds until an unfinished line is written to the log as a partial one."""
_REST: Final = 4.0
_REST_ATTACHED: Final = 0.5
_DEBT: Final = 0.01
"""Seconds of rest that are saved up before they are taken."""


class Listener(Protocol):
    """An attached client."""

    def feed(self, stream: Stream, data: bytes) -> None:
        """Take output; must not block."""

    @property
    def behind(self) -> bool:
        """Whether it has more waiting than it should; it calls `Drain.resume` when that has changed."""


class Pace:
    """How much of the event loop's time output may take: one part in `_REST` + 1, for all resting drains together, and
    more where somebody is attached, who has asked for it."""

    resting = 0

    def __init__(self) -> None:
        self._debt = 0.0
        self._at = time.monotonic()

    def charge(self, took: float, rest: float, now: float) -> float:
        """Seconds to rest after a read that took `took` seconds, `rest` times as long; 0 while the debt is small."""
        self._debt = max(self._debt - (now - self._at), 0.0) + took * rest * (1 + Pace.resting)
        self._at = now
        return self._debt if self._debt > _DEBT else 0.0


class Drain:
    """Reads one agent's output until its end. Use on the event loop's thread only.

    Args:
        listeners: the agent's attached clients; the list is shared and outlives the run.
    """

    def __init__(self, log: LogWriter, listeners: list[Listener]) -> None:
        self._log = log
        self._listeners = listeners
        self._loop = asyncio.get_running_loop()
        self._sources: dict[int, Stream] = {}
        self._held = False
        self._rest: asyncio.TimerHandle | None = None
        self._pace = Pace()
        self._flush: asyncio.TimerHandle | None = None

    def add(self, fd: int, stream: Stream) -> None:
        """Read `fd` (non-blocking; closed here at its end) as `stream`."""
        os.set_blocking(fd, False)
        self._sources[fd] = stream
        if not self._held and self._rest is None:
            self._loop.add_reader(fd, self._readable, fd)

    def _readable(self, fd: int) -> None:
        began = time.monotonic()
        stream = self._sources[fd]
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the last process let go of the terminal's other side, pty(7)
                self._log.write("stderr", f"[output lost: {error.strerror}]\n".encode())
            data = b""
        if not data:
            self._end(fd)
            return
        self._deliver(stream, data)
        self._hold(any(listener.behind for listener in self._listeners))
        now = time.monotonic()
        rest = self._pace.charge(now - began, _REST_ATTACHED if self._listeners else _REST, now)
        if rest:
            Pace.resting += 1
            self._rest = self._loop.call_later(rest, self._rested)
            self._listen()

    def _deliver(self, stream: Stream, data: bytes) -> None:
        self._log.write(stream, data)
        if self._flush is None:
            self._flush = self._loop.call_later(_PARTIAL_AFTER, self._flush_partial)
        for listener in self._listeners:
            listener.feed(stream, data)

    def _flush_partial(self) -> None:
        self._flush = None
        self._log.flush()

    def _listen(self) -> None:
        """Read, or do not, as both reasons for a pause have it."""
        for fd in self._sources:
            if self._held or self._rest is not None:
                self._loop.remove_reader(fd)
            else:
                self._loop.add_reader(fd, self._readable, fd)

    def _hold(self, held: bool) -> None:
        if held != self._held:
            self._held = held
            self._listen()

    def _rested(self) -> None:
        Pace.resting -= 1
        self._rest = None
        self._listen()

    def resume(self) -> None:
        """An attached client has caught up or left."""
        self._hold(any(listener.behind for listener in self._listeners))

    def _end(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        del self._sources[fd]
        os.close(fd)

    def finish(self) -> None:
        """All writers are gone: take what is still in the pipes, then close everything and the log."""
        for fd, stream in list(self._sources.items()):
            self._loop.remove_reader(fd)
            with contextlib.suppress(OSError):
                while data := os.read(fd, _CHUNK):
                    self._deliver(stream, data)
            os.close(fd)
        self._sources.clear()
        self.abandon()

    def abandon(self) -> None:
        """Close without reading further (the agents live on after this supervisor)."""
        for fd in self._sources:
            self._loop.remove_reader(fd)
            os.close(fd)
        self._sources.clear()
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
            Pace.resting -= 1
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        self._log.close()
