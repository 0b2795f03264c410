"""HTTP/1.1 over a unix socket, and what its failures mean to a user."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterable, Mapping
from typing import IO, Any, Final

from agentos_native.errors import AgentosError

MAX_SOCKET_PATH: Final = 107
"""Bytes of sun_path less its NUL (unix(7))."""


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


class UnixConnection(http.client.HTTPConnection):
    """`http.client` with the one method replaced that knows about addresses."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("agentos", timeout=timeout)
        self._path = path
        self._seconds = timeout

    def connect(self) -> None:
        self.sock = connect(self._path, self._seconds)


def send(
    path: str,
    method: str,
    target: str,
    *,
    body: bytes | IO[bytes] | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> tuple[UnixConnection, http.client.HTTPResponse]:
    """One request; the answer's body is unread. An answer of 400 or more is raised as the `AgentosError` it carries."""
    connection = UnixConnection(path, timeout)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # the server may have refused a long body before its end: its answer says why
            connection.request(method, target, body, dict(headers or {}))
        response = connection.getresponse()
        if response.status >= 400:
            raise error_of(response.status, response.read())
        return connection, response
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise lost(error, f"{method} {target.partition('?')[0]}")
    except BaseException:
        connection.close()
        raise


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
        carried: Any = json.loads(body)["error"]
        return AgentosError.from_dict(carried)
    except (ValueError, KeyError, TypeError, AttributeError):
        return AgentosError("internal", f"the supervisor answered {status}", body[:200].decode(errors="replace"))
