"""What a build holds in the store: the images that it begins with, and the stages so far as images without a name."""

from __future__ import annotations

import asyncio
import contextlib
import time

from agentos_native.errors import AgentosError
from agentos_native.images.catalog import Catalog
from agentos_native.images.model import Image, ImageConfig, Layer, Manifest
from agentos_native.supervisor.agents import BUILD_LABEL
from agentos_native.supervisor.host import Host


class Pins:
    """Of one build. The label in a pin's configuration makes its digest this build's own."""

    def __init__(self, host: Host, catalog: Catalog, build: str) -> None:
        self._host = host
        self._catalog = catalog
        self._label = {BUILD_LABEL: build}
        self._held: set[str] = set()
        self._stages: dict[str, Image] = {}

    def keep(self, image: Image) -> Image:
        """Hold an image of the store until `drop`."""
        self._held.add(image.digest)
        self._host.pin(image.digest)
        return image

    async def pin(self, stage: str, layers: tuple[Layer, ...]) -> Image:
        """An image of these layers, which agents can run; it takes the place of the stage's pin before."""
        before = self._stages.get(stage)
        if before is not None and before.stack == layers:
            return before
        manifest = Manifest(config=ImageConfig(labels=self._label), layers=layers, created=time.time())
        image = await asyncio.shield(asyncio.ensure_future(self._commit(stage, manifest)))
        if before is not None and before.digest not in {held.digest for held in self._stages.values()}:
            await self._remove(before)
        return image

    async def _commit(self, stage: str, manifest: Manifest) -> Image:
        image = await asyncio.to_thread(self._catalog.commit, None, manifest)
        self._stages[stage] = image
        self._host.pin(image.digest)
        return image

    async def drop(self) -> None:
        """Let go of everything."""
        for digest in {image.digest: image for image in self._stages.values()}:
            await self._remove(self._catalog.get(digest))
        self._stages.clear()
        for digest in self._held:
            self._host.unpin(digest)
        self._held.clear()

    async def _remove(self, image: Image) -> None:
        self._host.unpin(image.digest)
        with contextlib.suppress(AgentosError):  # removed by hand
            await asyncio.to_thread(self._catalog.remove, image.digest)
        self._host.forget_image(image.digest)


def recover(catalog: Catalog) -> list[str]:
    """Remove the pins that a killed supervisor left; their digests."""
    gone = []
    for image in catalog.list():
        if BUILD_LABEL in image.config.labels and not image.names:
            with contextlib.suppress(AgentosError):
                catalog.remove(image.digest)
                gone.append(image.digest)
    return gone
