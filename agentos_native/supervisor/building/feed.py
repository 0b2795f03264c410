"""The events of one build on their way to its client, and the output of its sandboxes as lines."""

from __future__ import annotations

import asyncio
import codecs
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from agentos_native.supervisor.logs import Stream
from agentos_native.wire.images import ImageEvent

_HIGH_WATER: Final = 1 << 20
"""Bytes of events that a client may owe before the sandbox's output waits for it."""
_LINE_MAX: Final = 16 << 10
"""Characters of a line of output; a longer one is cut into several."""
KEPT_LINES: Final = 30
"""Lines of output that a failure shows."""

_encode = msgspec.json.Encoder().encode


class Feed:
    """A queue of encoded events. Use on the event loop's thread; `put_soon` from any other."""

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._news = asyncio.Event()
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self.on_room: Callable[[], None] = lambda: None
        """Called when the client has caught up."""

    @property
    def behind(self) -> bool:
        """More is waiting than a client should owe."""
        return self._size > _HIGH_WATER

    def put(self, event: ImageEvent) -> None:
        """Queue one."""
        line = _encode(event)
        self._queue.append(line)
        self._size += len(line)
        self._news.set()

    def put_soon(self, event: ImageEvent) -> None:
        """Queue one from another thread."""
        self._loop.call_soon_threadsafe(self.put, event)

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._news.set()

    async def lines(self) -> AsyncIterator[bytes]:
        """What is put, until `end`."""
        while True:
            while self._queue:
                line = self._queue.popleft()
                yield line
                was_behind = self.behind
                self._size -= len(line)
                if was_behind and not self.behind:
                    self.on_room()
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()


class Output:
    """A sandbox's listener (`supervisor.drain.Listener`): bytes of its two streams → lines as events."""

    def __init__(self, feed: Feed, step: int) -> None:
        self._feed = feed
        self._step = step
        self._begun: dict[Stream, str] = {"stdout": "", "stderr": ""}
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: decoder("replace") for stream in self._begun}
        self.last: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def behind(self) -> bool:
        """See `drain.Listener`."""
        return self._feed.behind

    def feed(self, stream: Stream, data: bytes) -> None:
        """Take output."""
        *whole, begun = (self._begun[stream] + self._decoders[stream].decode(data)).split("\n")
        for line in whole:
            self._say(stream, line)
        while len(begun) > _LINE_MAX:
            self._say(stream, begun[:_LINE_MAX])
            begun = begun[_LINE_MAX:]
        self._begun[stream] = begun

    def finish(self) -> None:
        """There is no more: lines that have no end are told, too."""
        for stream, begun in self._begun.items():
            if begun:
                self._say(stream, begun)
            self._begun[stream] = ""

    def _say(self, stream: Stream, line: str) -> None:
        line = line.removesuffix("\r")
        for start in range(0, max(len(line), 1), _LINE_MAX):
            part = line[start : start + _LINE_MAX]
            self.last.append(part)
            self._feed.put(ImageEvent(kind="log", step=self._step, text=part, stream=stream))
