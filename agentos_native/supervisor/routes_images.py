"""The API of images: what is in the store and its upkeep; `routes_transfer` has those that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from starlette.requests import Request

from agentos_native.images.model import Image
from agentos_native.images.store import ImageStore
from agentos_native.images.verify import Finding
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.routes import Endpoint, Lines, as_error, body, path_word
from agentos_native.supervisor.threads import lines_of
from agentos_native.supervisor.views import image_view
from agentos_native.wire import images as wire

CHANGES_MAX = 100_000
"""Paths that one answer about differences holds."""


class ImageRoutes:
    """Handlers; one per supervisor."""

    def __init__(self, host: Host, store: ImageStore) -> None:
        self._host = host
        self._store = store

    def table(self) -> list[Endpoint]:
        """The rows of the API."""
        return [
            Endpoint("GET", "/v1/images", self.list, "Images", None, wire.ImageList),
            Endpoint("GET", "/v1/images/{ref}", self.show, "One image", None, wire.ImageBody),
            Endpoint("DELETE", "/v1/images/{ref}", self.remove, "Remove a name or an image", status=204),
            Endpoint("POST", "/v1/images/{ref}/tag", self.tag, "A further name", wire.TagRequest, wire.ImageBody),
            Endpoint(
                "GET", "/v1/images/{ref}/diff", self.diff, "Changed paths", None, wire.DiffResult, query=("against",)
            ),
            Endpoint("POST", "/v1/images/gc", self.gc, "Free what nothing reaches", wire.GcRequest, wire.GcResult),
            Endpoint(
                "POST",
                "/v1/images/verify",
                self.verify,
                "Read all again, as JSON lines",
                None,
                wire.VerifyEvent,
                query=("ref",),
            ),
        ]

    async def list(self, _request: Request) -> wire.ImageList:
        """All of them."""
        images, sharing = await asyncio.to_thread(lambda: (self._store.list(), self._store.sharing()))
        return wire.ImageList(images=[image_view(image, sharing) for image in images])

    async def show(self, request: Request) -> wire.ImageBody:
        """By name or digest."""
        return await self._view(await asyncio.to_thread(self._store.get, path_word(request, "ref")))

    async def remove(self, request: Request) -> None:
        """Refused while an agent uses it."""
        ref = path_word(request, "ref")
        for gone in await asyncio.to_thread(self._store.remove, ref, self._host.images_kept):
            self._host.forget_image(gone)
        self._host.events.add("image-removed", image=ref)

    async def tag(self, request: Request) -> wire.ImageBody:
        """What the name meant before stays by digest."""
        wanted = await body(request, wire.TagRequest)
        ref = path_word(request, "ref")
        image = await asyncio.to_thread(self._store.tag, ref, wanted.name)
        self._host.events.add("image-tagged", image=ref, tag=image.name, digest=image.digest)
        return await self._view(image)

    async def diff(self, request: Request) -> wire.DiffResult:
        """``against`` another image; without it, what the top layer changes of those below it."""
        return await asyncio.to_thread(self._diff, path_word(request, "ref"), request.query_params.get("against"))

    def _diff(self, ref: str, against: str | None) -> wire.DiffResult:
        found = self._store.diff(ref, against, CHANGES_MAX + 1)
        changes = sorted((change.path, change.kind) for change in found[:CHANGES_MAX])
        return wire.DiffResult(
            changes=[
                wire.ChangeBody(kind=kind, path=path.decode("utf-8", "backslashreplace")) for path, kind in changes
            ],
            truncated=len(found) > CHANGES_MAX,
        )

    async def gc(self, request: Request) -> wire.GcResult:
        """Never what an agent uses, nor what is being made."""
        wanted = await body(request, wire.GcRequest)
        collect = partial(self._store.gc, self._host.images_kept, dry_run=wanted.dry_run, older_than=wanted.older_than)
        freed = await asyncio.to_thread(collect)
        if not wanted.dry_run:
            for digest in freed.images:
                self._host.forget_image(digest)
            self._host.events.add(
                "images-collected",
                images=len(freed.images),
                layers=len(freed.layers),
                steps=freed.steps,
                bytes=freed.bytes,
            )
        return wire.GcResult(
            images=list(freed.images),
            layers=list(freed.layers),
            steps=freed.steps,
            bytes=freed.bytes,
            caches=freed.caches,
            kept_steps=freed.kept_steps,
            kept_bytes=freed.kept_bytes,
            notes=list(freed.notes),
        )

    async def verify(self, request: Request) -> Lines:
        """``ref`` or everything; the last line is ``done`` or ``failed``."""
        ref = request.query_params.get("ref")

        def work(say: Callable[[wire.VerifyEvent], None]) -> None:
            def report(found: Finding, done: int, total: int) -> None:
                finding = wire.Finding(image=found.image, layer=found.layer, problem=found.problem)
                say(wire.VerifyEvent(kind="finding", finding=finding, done=done, total=total))

            try:
                self._store.verify(ref, report)
            except Exception as error:
                say(wire.VerifyEvent(kind="failed", error=as_error(error).to_dict()))
            else:
                say(wire.VerifyEvent(kind="done"))

        return Lines(lines_of(work))

    async def _view(self, image: Image) -> wire.ImageBody:
        return image_view(image, await asyncio.to_thread(self._store.sharing))
