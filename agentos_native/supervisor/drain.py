"""From an agent's output pipes to its log and to whoever is attached.

Theory of operation
    stdout and stderr of an agent are FIFOs in its directory. The agent holds them open for reading *and* writing, so
    the death of a reader (this process) gives it no SIGPIPE; the next supervisor opens the same FIFOs again. A
    terminal's master works alike, with one stream. Reads are bounded per turn of the event loop, and pause while an
    attached client is
    behind: the pipe then fills and the agent waits, as it would for any slow reader. Nobody else is slowed down.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from typing import Final, Protocol

from agentos_native.supervisor.logs import LogWriter, Stream

_CHUNK: Final = 1 << 16
_PARTIAL_AFTER: Final = 0.25
"""Seconds until an unfinished line is written to the log as a partial one."""


class Listener(Protocol):
    """An attached client."""

    def feed(self, stream: Stream, data: bytes) -> None:
        """Take output; must not block."""

    @property
    def behind(self) -> bool:
        """Whether it has more waiting than it should; it calls `Drain.resume` when that has changed."""


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
        self._paused = False
        self._flush: asyncio.TimerHandle | None = None

    def add(self, fd: int, stream: Stream) -> None:
        """Read `fd` (non-blocking; closed here at its end) as `stream`."""
        os.set_blocking(fd, False)
        self._sources[fd] = stream
        if not self._paused:
            self._loop.add_reader(fd, self._readable, fd)

    def _readable(self, fd: int) -> None:
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
        if any(listener.behind for listener in self._listeners):
            self._pause()

    def _deliver(self, stream: Stream, data: bytes) -> None:
        self._log.write(stream, data)
        if self._flush is None:
            self._flush = self._loop.call_later(_PARTIAL_AFTER, self._flush_partial)
        for listener in self._listeners:
            listener.feed(stream, data)

    def _flush_partial(self) -> None:
        self._flush = None
        self._log.flush()

    def _pause(self) -> None:
        self._paused = True
        for fd in self._sources:
            self._loop.remove_reader(fd)

    def resume(self) -> None:
        """An attached client has caught up or left."""
        if self._paused and not any(listener.behind for listener in self._listeners):
            self._paused = False
            for fd in self._sources:
                self._loop.add_reader(fd, self._readable, fd)

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
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        self._log.close()
