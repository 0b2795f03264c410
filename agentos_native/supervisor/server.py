"""The HTTP server: Starlette's routing and uvicorn's protocol classes on a unix socket of this module's own making.

uvicorn's `Server` is not used: its main loop wakes ten times a second, and it wants the process's signals. A protocol
needs only a `Config` and a `ServerState`.

The socket's directory is created for root only; the peer of every connection is checked all the same (`peers`), because
whoever starts the supervisor may have put the socket elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from agentos_native.errors import AgentosError
from agentos_native.supervisor.peers import HttpProtocol, StreamProtocol, is_administrator
from agentos_native.supervisor.routes import Endpoint, endpoint, error_response
from agentos_native.supervisor.routes_streams import StreamRoutes

_log = logging.getLogger("agentos_native.supervisor")
_SHUTDOWN_SECONDS = 3.0


class Gate:
    """ASGI: only the administrator passes, and routing is done on the raw path (``%2F`` in a name stays one word)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if not is_administrator(scope):
            uid = (scope.get("client") or ("", -1))[1]
            refusal = error_response(
                AgentosError("permission", f"uid {uid} may not use this supervisor", "", "Only root may: use sudo.")
            )
            await _refuse(refusal, scope, receive, send)
            return
        raw = scope.get("raw_path") or scope["path"].encode()
        await self._app({**scope, "path": raw.decode("ascii", "replace")}, receive, send)


async def _refuse(refusal: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send(
            {"type": "websocket.http.response.start", "status": refusal.status_code, "headers": refusal.raw_headers}
        )
        await send({"type": "websocket.http.response.body", "body": refusal.body})
    else:
        await refusal(scope, receive, send)


def application(rows: Sequence[Endpoint], streams: StreamRoutes) -> ASGIApp:
    """The ASGI application of these endpoints."""
    routes: list[Route | WebSocketRoute] = [Route(row.path, endpoint(row), methods=[row.method]) for row in rows]
    routes.append(WebSocketRoute("/v1/agents/{ref}/exec", streams.exec))
    routes.append(WebSocketRoute("/v1/agents/{ref}/attach", streams.attach))
    app = Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_allowed})
    app.state.log_failure = lambda error: _log.error("a request failed", exc_info=error)
    return Gate(app)


async def _not_found(request: Request, _error: Exception) -> Response:
    return error_response(AgentosError("not-found", "no such endpoint", request.url.path, "See /openapi.json."))


async def _not_allowed(request: Request, _error: Exception) -> Response:
    return error_response(
        AgentosError("method-not-allowed", f"{request.method} is not possible here", request.url.path)
    )


def bind(path: str) -> socket.socket:
    """A listening socket at `path`, for root only. A socket that nobody answers on is replaced.

    Raises:
        AgentosError: ``socket-in-use`` when another supervisor answers there, ``socket`` when it cannot be made.
    """
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _remove_stale(path)
        old = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(old)
        sock.listen(256)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise AgentosError("socket", f"cannot listen: {error.strerror or error}", path, "Choose another --socket.")
    except AgentosError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AgentosError("socket", "there is a file that is no socket", path, "Choose another --socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise AgentosError(
        "socket-in-use", "another supervisor answers on this socket", path, "Choose another --socket, or use that one."
    )


class Server:
    """Accepts connections between `start` and `close`."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        self._sock = sock
        self._path = sock.getsockname()
        self._state = ServerState()
        self._config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws=StreamProtocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            ws_ping_interval=None,
            timeout_keep_alive=60,
        )
        self._config.load()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """From now on requests are answered."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: HttpProtocol(self._config, self._state, {}, loop), sock=self._sock
        )

    async def close(self) -> None:
        """Refuse new connections, let running requests end for a few seconds, and remove the socket."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = list(self._state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_SHUTDOWN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if isinstance(self._path, str) and os.path.exists(self._path):
            os.unlink(self._path)
