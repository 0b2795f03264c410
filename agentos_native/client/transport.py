"""HTTP/1.1 over a unix socket (by h11, which streams need anyway), and what its failures mean to a user.

Not http.client: it pulls in ssl and the e-mail parser, a third of what a short command costs in all.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any, Final

import h11
import msgspec

from agentos_native.errors import AgentosError

MAX_SOCKET_PATH: Final = 107
"""Bytes of sun_path less its NUL (unix(7))."""
_READ: Final = 64 * 1024


def connect(path: str, timeout: float | None) -> socket.socket:
    """A connected stream socket. Raises ``no-supervisor``, ``permission-denied`` or ``invalid-path``."""
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise AgentosError("invalid-path", f"the socket's path has more than {MAX_SOCKET_PATH} bytes", path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise AgentosError("permission-denied", "the supervisor's socket may not be used", path, "run this as root")
        hint = "start one with: agentos-native supervise\nor name its socket by --socket or AGENTOS_SOCKET"
        why = "there is no socket" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
        raise AgentosError("no-supervisor", f"no supervisor answers ({why})", path, hint)
    return sock


class Exchange:
    """One request and its answer on a connection of their own; a context that closes it.

    Args:
        path: the socket.
        target: path and query.
        body: all of it, or its pieces (sent in chunked coding as they come).
        timeout: seconds for each step; None: no limit.

    Raises the `AgentosError` that an answer of 400 or more carries, or ``connection-lost`` or ``timeout``.
    """

    def __init__(
        self,
        path: str,
        method: str,
        target: str,
        *,
        body: bytes | Iterable[bytes] | None = None,
        content_type: str = "application/json",
        timeout: float | None = None,
    ) -> None:
        self._where = f"{method} {target.partition('?')[0]}"
        self._http = h11.Connection(h11.CLIENT)
        self._sock = connect(path, timeout)
        try:
            self._send(method, target, body, content_type)
            response = self._response()
            if response.status_code >= 400:
                raise error_of(response.status_code, self.read())
        except BaseException:
            self.close()
            raise

    def _send(self, method: str, target: str, body: bytes | Iterable[bytes] | None, content_type: str) -> None:
        headers = [("Host", "agentos"), ("Connection", "close")]
        if isinstance(body, bytes):
            headers += [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        elif body is not None:
            headers += [("Content-Type", content_type), ("Transfer-Encoding", "chunked")]
        pieces = [body] if isinstance(body, bytes) else body or ()
        try:
            self._sock.sendall(self._bytes(h11.Request(method=method, target=target, headers=headers)))
            for piece in pieces:
                self._sock.sendall(self._bytes(h11.Data(data=piece)))
            self._sock.sendall(self._bytes(h11.EndOfMessage()))
        except (BrokenPipeError, ConnectionResetError):
            pass  # a server may refuse a long body before its end; then its answer says why
        except OSError as error:
            raise lost(error, self._where)

    def _bytes(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> bytes:
        return self._http.send(event) or b""

    def _event(self) -> Any:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(self._sock.recv(_READ))
            return event
        except (OSError, h11.RemoteProtocolError) as error:
            raise lost(error, self._where)

    def _response(self) -> h11.Response:
        while not isinstance(event := self._event(), h11.Response):
            if isinstance(event, h11.ConnectionClosed):
                raise lost(ConnectionError("it closed the connection"), self._where)
        return event

    def __iter__(self) -> Iterator[bytes]:
        """The answer's body in pieces, as they arrive."""
        while isinstance(event := self._event(), h11.Data):
            yield bytes(event.data)

    def read(self) -> bytes:
        """The rest of the answer's body."""
        return b"".join(self)

    def lines(self) -> Iterator[bytes]:
        """The answer's body line by line, each as soon as it is there; without empty ones."""
        begun = b""
        for piece in self:
            *whole, begun = (begun + piece).split(b"\n")
            yield from filter(None, whole)
        if begun:
            yield begun

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lost(error: Exception, where: str) -> AgentosError:
    """A connection that broke after it was made."""
    if isinstance(error, TimeoutError):
        return AgentosError("timeout", "the supervisor did not answer in time", where)
    said = str(error) or type(error).__name__
    hint = "it may have been stopped or be starting again; agents keep running meanwhile"
    return AgentosError("connection-lost", f"the supervisor went away ({said})", where, hint)


def error_of(status: int, body: bytes) -> AgentosError:
    """The error in the body of an answer of 400 or more."""
    try:
        carried: Any = msgspec.json.decode(body)["error"]
        return AgentosError.from_dict(carried)
    except (ValueError, KeyError, TypeError, AttributeError):
        return AgentosError("internal", f"the supervisor answered {status}", body[:200].decode(errors="replace"))
