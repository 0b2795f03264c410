"""One exec or attach stream: WebSocket (RFC 6455, by wsproto) with Kubernetes' channel framing, over a unix socket.

Each binary message begins with its channel (`wire.api`). The socket does not block once the stream stands: what cannot
be sent at once waits in `_unsent`, so that a program which writes before it reads cannot bring both sides to a halt.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from agentos_native.client import transport
from agentos_native.errors import AgentosError
from agentos_native.wire import api

_READ: Final = 256 * 1024
_HANDSHAKE_SECONDS: Final = 60.0
_REFUSAL_LIMIT: Final = 1 << 20


class Frame(NamedTuple):
    """One message of a channel."""

    channel: int
    data: bytes


class Stream:
    """The client's end. Iterate for its frames, or poll `fileno` and call `receive` and `flush`.

    `status` is the server's last word (``exit_status``, ``reason``, ``error``) once its frame came.
    """

    def __init__(self, socket_path: str, target: str) -> None:
        self.status: api.StreamStatus | None = None
        self.closed = False
        self._where = target.partition("?")[0]
        self._unsent = bytearray()
        self._partial = bytearray()
        self._early: list[Frame] = []
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._sock = transport.connect(socket_path, _HANDSHAKE_SECONDS)
        try:
            self._open(target)
            self._sock.setblocking(False)
        except OSError as error:
            self._sock.close()
            raise transport.lost(error, self._where)
        except BaseException:
            self._sock.close()
            raise

    def _open(self, target: str) -> None:
        self._sock.sendall(self._ws.send(Request(host="agentos", target=target, subprotocols=[api.STREAM_PROTOCOL])))
        refusal: RejectConnection | None = None
        said = bytearray()
        while True:
            data = self._sock.recv(_READ)
            self._ws.receive_data(data or None)
            for event in self._ws.events():
                if isinstance(event, AcceptConnection):
                    if event.subprotocol != api.STREAM_PROTOCOL:
                        raise AgentosError(
                            "internal", f"the supervisor does not speak {api.STREAM_PROTOCOL}", self._where
                        )
                    self._early = self._frames()
                    return
                if isinstance(event, RejectConnection):
                    refusal = event
                elif isinstance(event, RejectData):
                    said += event.data
                over = isinstance(event, RejectData) and event.body_finished
                if refusal is not None and (over or not refusal.has_body or len(said) > _REFUSAL_LIMIT):
                    raise transport.error_of(refusal.status_code, bytes(said))
            if not data:
                raise transport.error_of(refusal.status_code if refusal else 502, bytes(said))

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, channel: int, data: bytes) -> None:
        """Queue one frame and send what can be sent now."""
        if not self.closed:
            self._unsent += self._ws.send(BytesMessage(data=bytes((channel,)) + data))
            self.flush()

    def close_stdin(self) -> None:
        """Half-close: the program reads end of file, its output goes on."""
        self.send(api.CHANNEL_CLOSE, bytes((api.CHANNEL_STDIN,)))

    def resize(self, columns: int, rows: int) -> None:
        """The terminal's new size."""
        self.send(api.CHANNEL_RESIZE, msgspec.json.encode({"Width": columns, "Height": rows}))

    @property
    def unsent(self) -> int:
        """Bytes that wait for the socket; above zero, poll it for writing and call `flush`."""
        return len(self._unsent)

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # the reader learns of it

    # -- receiving -----------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """For select and poll."""
        return self._sock.fileno()

    def receive(self) -> list[Frame]:
        """The frames that have arrived, perhaps none; `closed` is set with the last of them."""
        early, self._early = self._early, []
        if early or self.closed:
            return early
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self._ws.receive_data(data or None)
        return self._frames()

    @property
    def pending(self) -> bool:
        """Whether `receive` has frames that polling the socket would not show."""
        return bool(self._early)

    def _frames(self) -> list[Frame]:
        frames = []
        for event in self._ws.events():
            if isinstance(event, BytesMessage | TextMessage):
                self._partial += event.data.encode() if isinstance(event, TextMessage) else event.data
                if event.message_finished and self._partial:
                    frames.append(Frame(self._partial[0], bytes(self._partial[1:])))
                    self._partial.clear()
            elif isinstance(event, Ping):
                self._unsent += self._ws.send(event.response())
                self.flush()
            elif isinstance(event, CloseConnection):
                self._unsent += self._ws.send(event.response()) if not self.closed and event.code != 1006 else b""
                self.flush()
                self.closed = True
        for frame in frames:
            if frame.channel == api.CHANNEL_STATUS:
                self.status = _status(frame.data)
        return frames

    def __iter__(self) -> Iterator[Frame]:
        while not self.closed or self.pending:
            if not self.pending:
                writing = [self._sock] if self._unsent else []
                select.select([self._sock], writing, [])
                self.flush()
            yield from self.receive()

    def result(self) -> api.StreamStatus:
        """How the stream ended. Raises the error that it carries, or ``connection-lost`` if it said nothing."""
        if self.status is None:
            raise transport.lost(ConnectionError("the stream ended early"), self._where)
        if self.status.error:
            raise AgentosError.from_dict(self.status.error)
        return self.status

    def result_at_the_end(self) -> api.StreamStatus:
        """`result`, when nothing but the end is still to come."""
        for _ in self:
            pass
        return self.result()

    def close(self) -> None:
        """Leave; the program goes on."""
        if not self.closed:
            self.closed = True
            try:
                self._sock.setblocking(True)
                self._sock.settimeout(1.0)
                self._sock.sendall(bytes(self._unsent) + self._ws.send(CloseConnection(code=1000)))
            except OSError:
                pass
        self._sock.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _status(data: bytes) -> api.StreamStatus:
    try:
        return msgspec.json.decode(data, type=api.StreamStatus)
    except msgspec.DecodeError:
        return api.StreamStatus(error=AgentosError("internal", "a stream status that is not understood").to_dict())


def write_all(fd: int, data: bytes) -> None:
    """Every byte, also to a descriptor that is in non-blocking mode."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
