"""The API of images that come and go: imports, with their progress as lines of JSON when asked for, and exports.

Both run in a thread that starts and follows a confined process; between it and the client is a pipe, which the event
loop fills or empties. A client that goes away closes its end: an import then ends as cut off, an export as broken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agentos_native.errors import AgentosError
from agentos_native.images.oci.exporting import ExportOptions
from agentos_native.images.oci.importing import ImportOptions
from agentos_native.images.store import ImageStore
from agentos_native.supervisor import imagetypes
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.routes import Endpoint, Lines, as_error, flag, path_word, while_connected
from agentos_native.supervisor.streams import readable, write_all
from agentos_native.supervisor.threads import in_own_thread
from agentos_native.supervisor.views import image_view
from agentos_native.wire import images as wire

_PIECE: Final = 1 << 18
_EVENTS_MAX: Final = 256
"""Events that wait for a client; of more, those of progress are left out."""
_encode = msgspec.json.Encoder().encode


class TransferRoutes:
    """Handlers; one per supervisor."""

    def __init__(self, host: Host, store: ImageStore) -> None:
        self._host = host
        self._store = store

    def table(self) -> list[Endpoint]:
        """The rows of the API."""
        importing = ("name", "source", "options", "follow")
        exporting = ("format", "compression", "tag")
        return [
            Endpoint("POST", "/v1/images", self.import_, "Import an image", None, wire.ImageBody, query=importing),
            Endpoint("GET", "/v1/images/{ref}/export", self.export, "An image as a tar", query=exporting),
        ]

    # -- in

    async def import_(self, request: Request) -> wire.ImageBody | Response:
        """From ``source``, a path on this machine, or from the body: an archive, plain or compressed. With ``follow``,
        the answer is `wire.ImageEvent`s as lines of JSON."""
        name = request.query_params.get("name", "")
        if not name:
            raise AgentosError("invalid-request", "an image needs a name", "query parameter name")
        options = _import_options(request.query_params.get("options"))
        path = request.query_params.get("source")
        if path is not None and (not path.startswith("/") or "\0" in path):
            raise AgentosError("invalid-request", "source is no absolute path", path[:300])
        work = _Import(self._host, self._store, name, options)
        if not flag(request, "follow"):
            return await (work.from_path(Path(path)) if path else work.from_body(request))
        return _Followed(work, request, Path(path) if path else None)

    # -- out

    async def export(self, request: Request) -> Response:
        """The image as a tar in the body; cut off when it fails on its way."""
        ref = path_word(request, "ref")
        given = {key: value for key, value in request.query_params.items() if key in ("format", "compression")}
        tag = request.query_params.get("tag")
        options = msgspec.convert(given | ({} if tag is None else {"ref": tag}), ExportOptions)
        stream = _Export(self._store, ref, options)
        # what is wrong with the request or the image shows before the first byte
        first = await while_connected(request.receive, stream.next())
        if not first:
            await stream.finish()
        return _Tar(stream, first or b"")


def _import_options(text: str | None) -> ImportOptions:
    if text is None:
        return ImportOptions()
    given = msgspec.json.decode(text, type=wire.ImportSettings)
    imagetypes.check(given.labels)
    return ImportOptions(
        ref=given.ref,
        platform=given.platform,
        entrypoint=None if given.entrypoint is None else tuple(given.entrypoint),
        cmd=None if given.cmd is None else tuple(given.cmd),
        env=given.env,
        workdir=given.workdir,
        user=given.user,
        labels=given.labels,
    )


class _Import:
    """One import, in a thread. `watch` gets its events in that thread; what it raises ends the import."""

    def __init__(self, host: Host, store: ImageStore, name: str, options: ImportOptions) -> None:
        self._host = host
        self._store = store
        self._name = name
        self._options = options
        self.watch: Callable[[wire.ImageEvent], None] | None = None

    async def from_path(self, path: Path) -> wire.ImageBody:
        return await self._run(path)

    async def from_body(self, request: Request) -> wire.ImageBody:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writing, False)
        feeder = asyncio.create_task(_feed(request, writing))
        try:
            with open(reading, "rb", buffering=0) as file:
                return await self._run(file)
        finally:
            feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError, ClientDisconnect):
                await feeder

    async def _run(self, source: Path | BinaryIO) -> wire.ImageBody:
        def work() -> wire.ImageBody:
            image = self._store.import_(self._name, source, options=self._options, watch=self.watch)
            return image_view(image, self._store.sharing())

        image = await in_own_thread(work)
        self._host.events.add("image-imported", image=self._name, digest=image.digest)
        return image


async def _feed(request: Request, fd: int) -> None:
    """The body into the pipe. A client that goes away in the middle leaves a cut archive, which the store refuses."""
    try:
        async for chunk in request.stream():
            if not await write_all(fd, chunk):
                return
    finally:
        os.close(fd)


class _Followed(Lines):
    """An import's events as they come."""

    def __init__(self, work: _Import, request: Request, path: Path | None) -> None:
        super().__init__(self._events())
        self._work = work
        self._request = request
        self._path = path
        self._waiting: asyncio.Queue[wire.ImageEvent] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._gone = False
        work.watch = self._watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            if self._path is not None:
                await super().__call__(scope, receive, send)
            else:
                await self._send(send)  # the body's reader sees when the client goes
        finally:
            self._gone = True

    async def _events(self) -> AsyncIterator[bytes]:
        task = asyncio.create_task(self._import())
        try:
            while True:
                event = await self._waiting.get()
                yield _encode(event)
                if event.kind in ("done", "failed"):
                    return
        finally:
            self._gone = True
            await task

    async def _import(self) -> None:
        try:
            image = await (
                self._work.from_body(self._request) if self._path is None else self._work.from_path(self._path)
            )
            last = wire.ImageEvent(kind="done", image=image)
        except Exception as error:
            last = wire.ImageEvent(kind="failed", error=as_error(error).to_dict())
        self._waiting.put_nowait(last)

    def _watch(self, event: wire.ImageEvent) -> None:
        """In the import's thread."""
        if self._gone:
            raise AgentosError("cancelled", "the import was cancelled: its client has gone")
        if event.kind != "progress" or self._waiting.qsize() < _EVENTS_MAX:
            self._loop.call_soon_threadsafe(self._waiting.put_nowait, event)


class _Export:
    """One export: a thread writes to the pipe, the event loop reads from it."""

    def __init__(self, store: ImageStore, ref: str, options: ExportOptions) -> None:
        self._reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)

        def work() -> None:
            try:
                store.export(ref, writing, options)
            finally:
                os.close(writing)

        self._task = in_own_thread(work)

    async def next(self) -> bytes:
        """The next bytes; b"" at the end."""
        while True:
            try:
                return os.read(self._reading, _PIECE)
            except BlockingIOError:
                await readable(self._reading)

    async def finish(self) -> None:
        """Close the pipe, and raise what went wrong; a thread that still writes is ended by the closed pipe."""
        os.close(self._reading)
        await self._task


class _Tar(Response):
    """The archive; its end is sent only when the export ended well, so that a client sees one that was cut off."""

    media_type = "application/x-tar"

    def __init__(self, stream: _Export, first: bytes) -> None:
        super().__init__()
        self._stream = stream
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. Nothing is packed for a client that has gone."""
        await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        headers = [(b"content-type", b"application/x-tar"), (b"cache-control", b"no-store")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            piece = self._first
            while piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await self._stream.next()
        finally:
            await self._stream.finish()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
