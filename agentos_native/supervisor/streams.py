"""One client's WebSocket with Kubernetes' channel framing (`agentos_native.wire.api`), and fds on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.supervisor.logs import Stream
from agentos_native.wire import api

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

_CHUNK: Final = 1 << 15
_HIGH_WATER: Final = 1 << 18
"""Bytes that may wait for a client before its agent's output is no longer read."""
CHANNELS: Final[dict[Stream, int]] = {"stdout": api.CHANNEL_STDOUT, "stderr": api.CHANNEL_STDERR}


class Channels:
    """The server's end of one stream. `send` waits while the client does not read (the transport's flow control)."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self.gone = False

    async def accept(self) -> None:
        """Take the connection, once it is clear that there is something to stream."""
        await self._websocket.accept(subprotocol=api.STREAM_PROTOCOL)

    async def send(self, channel: int, data: bytes) -> None:
        """One frame; nothing when the client has gone."""
        from starlette.websockets import WebSocketDisconnect  # imported by then, but not before the first tick

        if self.gone:
            return
        try:
            await self._websocket.send_bytes(bytes((channel,)) + data)
        except (WebSocketDisconnect, RuntimeError, OSError):
            self.gone = True

    async def receive(self) -> tuple[int, bytes] | None:
        """One frame (channel, data); None when the client has gone."""
        while not self.gone:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                self.gone = True
                break
            data = message.get("bytes") or (message.get("text") or "").encode()
            if data:
                return data[0], data[1:]
        return None

    async def finish(self, status: api.StreamStatus) -> None:
        """The last frame, and the end of the connection."""
        from starlette.websockets import WebSocketDisconnect

        await self.send(api.CHANNEL_STATUS, msgspec.json.encode(status))
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
            await self._websocket.close()


def check_protocol(websocket: WebSocket) -> None:
    """Raise AgentosError unless the client offers the one subprotocol that is spoken here."""
    offered = websocket.scope.get("subprotocols", [])
    if api.STREAM_PROTOCOL not in offered:
        raise AgentosError(
            "invalid-protocol", f"streams need the subprotocol {api.STREAM_PROTOCOL}", ", ".join(offered)
        )


class Listener:
    """An attached client's queue: filled by the agent's drain, emptied by `pump`.

    Args:
        resume: called when the queue has become short enough again.
    """

    def __init__(self, resume: Callable[[], None]) -> None:
        self._queue: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._news = asyncio.Event()
        self._resume = resume
        self._ended = False

    @property
    def behind(self) -> bool:
        """More is waiting than the client should be allowed to owe."""
        return self._size > _HIGH_WATER

    def feed(self, stream: Stream, data: bytes) -> None:
        """Queue output."""
        self._queue.append((CHANNELS[stream], data))
        self._size += len(data)
        self._news.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._news.set()

    async def pump(self, channels: Channels) -> None:
        """Send until `end` was called and all is sent, or the client has gone."""
        while not channels.gone:
            while self._queue and not channels.gone:
                channel, data = self._queue.popleft()
                await channels.send(channel, data)
                was_behind = self.behind
                self._size -= len(data)
                if was_behind and not self.behind:
                    self._resume()
            if self._ended and not self._queue:
                return
            self._news.clear()
            await self._news.wait()


async def read_some(fd: int) -> bytes:
    """What a non-blocking `fd` has, b"" at its end (a terminal whose other side is gone has ended, too)."""
    while True:
        try:
            return os.read(fd, _CHUNK)
        except BlockingIOError:
            await readable(fd)
        except OSError:
            return b""


async def write_all(fd: int, data: bytes) -> bool:
    """Write all of `data` to a non-blocking `fd`; False when nobody reads there any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await _ready(fd, writing=True)
        except OSError:
            return False
    return True


async def readable(fd: int) -> None:
    """Wait until `fd` can be read (a pidfd: until its process has ended)."""
    await _ready(fd, writing=False)


async def _ready(fd: int, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    # A duplicate, so that two waiters of one file (a terminal is read and written) do not share one registration.
    own = os.dup(fd)
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    try:
        add(own, wake)
        await future
    finally:
        remove(own)
        os.close(own)


def set_window(fd: int, data: bytes) -> None:
    """Give a terminal the size in a resize frame; anything that is none is ignored, as a terminal would."""
    with contextlib.suppress(msgspec.MsgspecError, OSError, struct.error):
        size = msgspec.json.decode(data, type=dict[str, int])
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.get("Height", 0), size.get("Width", 0), 0, 0))
