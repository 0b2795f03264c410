"""A real HTTP and WebSocket server on a unix socket, with canned answers: what the client is tested against.

`StubSupervisor` answers from `answers` ((method, path without query) → status and JSON body, or raw bytes, or a
function that writes its own answer) and keeps what it was asked in `asked`.
"""

from __future__ import annotations

import http.server
import json
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Request

Answer = tuple[int, Any]


class Asked:
    """One request that came."""

    def __init__(self, method: str, target: str, body: bytes) -> None:
        parts = urlsplit(target)
        self.method, self.path, self.query, self.body = method, parts.path, parse_qsl(parts.query), body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class StubSupervisor(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, path: str) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.streams: dict[str, Callable[[Socket], None]] = {}
        self.asked: list[Asked] = []
        super().__init__(path, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no failure of the test; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Socket:
    """The server's end of one WebSocket."""

    def __init__(self, handler: _Handler) -> None:
        self._connection = handler.connection
        self._ws = WSConnection(ConnectionType.SERVER)
        headers = [(name.encode(), value.encode()) for name, value in handler.headers.items()]
        self._ws.initiate_upgrade_connection(headers, handler.path)
        (request,) = list(self._ws.events())
        assert isinstance(request, Request)
        self.subprotocols = request.subprotocols
        self.target = request.target
        self._connection.sendall(self._ws.send(AcceptConnection(subprotocol=request.subprotocols[0])))
        self._received: list[bytes] = []
        self._partial = bytearray()
        self.closed = False

    def send(self, channel: int, data: bytes) -> None:
        self._connection.sendall(self._ws.send(BytesMessage(data=bytes((channel,)) + data)))

    def receive(self) -> bytes | None:
        """The next message, None when the client has closed."""
        while not self._received and not self.closed:
            data = self._connection.recv(65536)
            self._ws.receive_data(data or None)
            for event in self._ws.events():
                if isinstance(event, BytesMessage):
                    self._partial += event.data
                    if event.message_finished:
                        self._received.append(bytes(self._partial))
                        self._partial.clear()
                elif isinstance(event, CloseConnection):
                    self.closed = True
        return self._received.pop(0) if self._received else None

    def finish(self, **status: Any) -> None:
        """Say how it ended and close."""
        self.send(3, json.dumps(status).encode())
        self._connection.sendall(self._ws.send(CloseConnection(code=1000)))
        while not self.closed and self.receive() is not None:
            pass


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubSupervisor

    def log_message(self, *_: object) -> None:
        """Quiet: a unix socket's peer has no address to log."""

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = b""
            while size := int(self.rfile.readline(), 16):
                pieces += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return pieces
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _serve(self) -> None:
        asked = Asked(self.command, self.path, self._body())
        self.server.asked.append(asked)
        self.close_connection = True
        if asked.path in self.server.streams and self.headers.get("Upgrade"):
            self.server.streams[asked.path](Socket(self))
            return
        missing = (404, {"error": {"code": "not-found", "what": f"no {asked.path}", "hint": "look elsewhere"}})
        answer = self.server.answers.get((asked.method, asked.path), missing)
        if callable(answer):
            answer(self)
            return
        status, value = answer
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = do_PATCH = _serve


@contextmanager
def serving(path: str) -> Iterator[StubSupervisor]:
    """A server on `path` for as long as the context lasts."""
    with StubSupervisor(path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def agent_body(**changed: Any) -> dict[str, Any]:
    """An agent as the API shows it."""
    return {
        "id": "0123456789ab",
        "name": "a",
        "tenant": "home",
        "type": "task",
        "image": "python",
        "image_digest": "d",
        "state": "running",
        "slot": 0,
        "created_at": time.time(),
        "priority": "normal",
        "weight": 100,
        "resources": {"requests": {"cpu": "200m"}, "limits": {"memory": 2**28}},
        **changed,
    }
