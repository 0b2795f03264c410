"""How requests become calls and errors become answers; the table of routes is what OpenAPI is made from."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agentos_native.errors import AgentosError
from agentos_native.faults import InjectedFault
from agentos_native.kernel.libc import SyscallError
from agentos_native.supervisor.registry import refused
from agentos_native.wire.api import ErrorBody

T = TypeVar("T")
MAX_BODY: Final = 8 << 20
"""Bytes of a JSON body; images come as streams and are not bounded by it."""
_STATUS: Final = {
    "agent-not-found": 404,
    "tenant-not-found": 404,
    "image-not-found": 404,
    "not-found": 404,
    "method-not-allowed": 405,
    "name-taken": 409,
    "agent-running": 409,
    "agent-not-running": 409,
    "tenant-in-use": 409,
    "image-in-use": 409,
    "layer-in-use": 409,
    "layer-missing": 409,
    "disk-full": 507,
    "reservation-too-large": 409,
    "tenant-full": 409,
    "node-full": 409,
    "queue-full": 409,
    "agent-queued": 409,
    "unenforceable": 422,
    "permission": 403,
    "too-large": 413,
    "internal": 500,
    "launcher-lost": 503,
    "stopping": 503,
}
_encode = msgspec.json.Encoder().encode

Handler = Callable[[Request], Awaitable[Any]]


@dataclass(frozen=True)
class Endpoint:
    """One row of the API: `handler` gives a body (encoded as JSON), a `Response`, or None (204)."""

    method: str
    path: str
    handler: Handler
    summary: str
    request: Any = None
    response: Any = None
    status: int = 200
    query: tuple[str, ...] = ()


def error_response(error: AgentosError) -> Response:
    """The body that every failure has, with the HTTP status that fits its code."""
    default = 400 if error.code.startswith(("invalid-", "unknown-", "missing-")) else 422
    status = _STATUS.get(error.code, default)
    return Response(_encode(ErrorBody(error=error.to_dict())), status, media_type="application/json")


def as_error(error: BaseException) -> AgentosError:
    """Any failure as one that users can read; what was not foreseen is ``internal``."""
    if isinstance(error, AgentosError):
        return error
    if isinstance(error, msgspec.MsgspecError):
        return AgentosError("invalid-request", str(error), "request body")
    if isinstance(error, ClientDisconnect):
        return AgentosError("disconnected", "the client went away in the middle of its request", "request body")
    if isinstance(error, sqlite3.OperationalError):
        return refused(error)
    return _unforeseen(error)


def _unforeseen(error: BaseException) -> AgentosError:
    if isinstance(error, SyscallError):
        return AgentosError("internal", str(error), error.path)
    if isinstance(error, InjectedFault):
        return AgentosError("injected-fault", f"fault point {error} raised", "", "AGENTOS_FAULT is set.")
    return AgentosError("internal", f"{type(error).__name__}: {error}")


def endpoint(row: Endpoint) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """The row's handler as Starlette wants it."""

    async def call(request: Request) -> Response:
        try:
            result = await row.handler(request)
        except Exception as error:
            failure = as_error(error)
            if failure.code == "internal":
                request.app.state.log_failure(error)
            return error_response(failure)
        if isinstance(result, Response):
            return result
        if result is None:
            return Response(status_code=204)
        return Response(_encode(result), row.status, media_type="application/json")

    return call


async def body(request: Request, kind: type[T]) -> T:
    """The request's JSON as `kind`; an empty body is an empty object."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_BODY:
            raise AgentosError("too-large", f"the request has more than {MAX_BODY} bytes")
    try:
        return msgspec.json.decode(received or b"{}", type=kind)
    except RecursionError:
        raise AgentosError("invalid-request", "the request is nested too deeply")


def path_word(request: Request, name: str) -> str:
    """A part of the path as it was meant (``TENANT%2FNAME``: the server routes on the raw path)."""
    return unquote(request.path_params[name])


def flag(request: Request, name: str) -> bool:
    """A query parameter that is on or off."""
    return request.query_params.get(name, "0").lower() in {"1", "true", "yes"}


def number(request: Request, name: str, kind: Callable[[str], T]) -> T | None:
    """A numeric query parameter."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        raise AgentosError("invalid-request", f"{name} is no number: {text[:40]!r}", f"query parameter {name}")


def count(text: str) -> int:
    """How many, for `number`; any more than there can be are all."""
    value = int(text)
    if value < 0:
        raise ValueError
    return min(value, 2**31)


class Lines(Response):
    """JSON lines as they come; ends when the source ends or the client goes, whichever is first."""

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        super().__init__(media_type="application/x-ndjson")
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. An idle stream must not outlive its client."""
        await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with contextlib.suppress(OSError):
            async for line in self._lines:
                await send({"type": "http.response.body", "body": line + b"\n", "more_body": True})
                await asyncio.sleep(0)  # nothing holds a send up whose client has gone: only a turn of the loop tells
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """`work`'s result, or None when the client has gone first (`work` is then cancelled)."""
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(disconnected(receive))
    either: list[asyncio.Future[Any]] = [worker, watcher]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return worker.result() if worker.done() else None
    finally:
        for task in either:
            task.cancel()
        await asyncio.gather(*either, return_exceptions=True)
