"""The API of images: importing streams a tar through a pipe to the store, which unpacks it in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from starlette.requests import Request

from agentos_native.errors import AgentosError
from agentos_native.images.model import Image
from agentos_native.images.store import ImageStore
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.routes import Endpoint, path_word
from agentos_native.supervisor.streams import write_all
from agentos_native.supervisor.views import image_view
from agentos_native.wire import images as wire


class ImageRoutes:
    """Handlers; one per supervisor."""

    def __init__(self, host: Host, store: ImageStore) -> None:
        self._host = host
        self._store = store

    def table(self) -> list[Endpoint]:
        """The rows of the API."""
        source = ("name", "source")
        return [
            Endpoint("GET", "/v1/images", self.list, "Images", None, wire.ImageList),
            Endpoint("POST", "/v1/images", self.import_, "Import a tree or a tar", None, wire.ImageBody, query=source),
            Endpoint("GET", "/v1/images/{ref}", self.show, "One image", None, wire.ImageBody),
            Endpoint("DELETE", "/v1/images/{ref}", self.remove, "Remove a name or an image", status=204),
        ]

    async def list(self, _request: Request) -> wire.ImageList:
        """All of them."""
        return wire.ImageList(images=[image_view(image) for image in await asyncio.to_thread(self._store.list)])

    async def show(self, request: Request) -> wire.ImageBody:
        """By name or digest."""
        return image_view(await asyncio.to_thread(self._store.get, path_word(request, "ref")))

    async def remove(self, request: Request) -> None:
        """Refused while an agent uses it."""
        ref = path_word(request, "ref")
        image = await asyncio.to_thread(self._store.get, ref)
        await asyncio.to_thread(self._store.remove, ref, self._host.images_in_use())
        self._host.forget_image(image.digest)
        self._host.events.add("image-removed", image=ref)

    async def import_(self, request: Request) -> wire.ImageBody:
        """From ``source``, a path on this machine, or from the body: a tar, plain or compressed."""
        name = request.query_params.get("name", "")
        if not name:
            raise AgentosError("invalid-request", "an image needs a name", "query parameter name")
        source = request.query_params.get("source")
        if source is not None:
            image = await asyncio.to_thread(self._store.import_, name, Path(source))
        else:
            image = await self._import_stream(request, name)
        self._host.events.add("image-imported", image=name, digest=image.digest)
        return image_view(image)

    async def _import_stream(self, request: Request, name: str) -> Image:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writing, False)
        feeder = asyncio.create_task(_feed(request, writing))
        try:
            with open(reading, "rb", buffering=0) as file:
                return await asyncio.to_thread(self._store.import_, name, file)
        finally:
            feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await feeder


async def _feed(request: Request, fd: int) -> None:
    """The body into the pipe. A client that goes away in the middle leaves a cut archive, which the store refuses."""
    try:
        async for chunk in request.stream():
            if not await write_all(fd, chunk):
                return
    finally:
        os.close(fd)
