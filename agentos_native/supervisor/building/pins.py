"""What a build holds in the store: a lease on all that it looks up and makes, and its stages so far as images."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from agentos_native.errors import AgentosError
from agentos_native.images import leases
from agentos_native.images.catalog import Catalog
from agentos_native.images.model import Image, ImageConfig, Layer, Manifest
from agentos_native.supervisor.agents import BUILD_LABEL
from agentos_native.supervisor.host import Host


@contextlib.asynccontextmanager
async def leased(catalog: Catalog) -> AsyncIterator[None]:
    """This task, and the threads that it asks, work under a lease of the store.

    The store's lock is waited for in threads: whoever has it may be writing to the disk.
    """
    lease = await _whole(catalog.begin_lease)
    try:
        with leases.under(lease):
            yield
    finally:
        await _whole(catalog.end_lease, lease)


async def _whole(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `call` in a thread, to whose end it comes even when this task is cancelled meanwhile."""
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, call, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


class Pins:
    """The stages of one build as images without a name, which agents can run.

    The label in a pin's configuration makes its digest this build's own, and says whose it was.
    """

    def __init__(self, host: Host, catalog: Catalog, build: str) -> None:
        self._host = host
        self._catalog = catalog
        self._label = {BUILD_LABEL: build}
        self._stages: dict[tuple[Layer, ...], Image] = {}

    async def pin(self, layers: tuple[Layer, ...]) -> Image:
        """An image of these layers."""
        if layers not in self._stages:
            await _whole(contextvars.copy_context().run, self._commit, layers)
        return self._stages[layers]

    def _commit(self, layers: tuple[Layer, ...]) -> None:
        manifest = Manifest(config=ImageConfig(labels=self._label), layers=layers, created=time.time())
        self._stages[layers] = self._catalog.commit(None, manifest)

    async def drop(self) -> None:
        """Remove them all."""
        for image in self._stages.values():
            with contextlib.suppress(AgentosError):  # removed by hand
                await asyncio.to_thread(self._catalog.remove, image.digest)
            self._host.forget_image(image.digest)
        self._stages.clear()


def recover(catalog: Catalog) -> list[str]:
    """Remove the pins that a killed supervisor left; their digests."""
    gone = []
    for image in catalog.list():
        if BUILD_LABEL in image.config.labels and not image.names:
            with contextlib.suppress(AgentosError):
                catalog.remove(image.digest)
                gone.append(image.digest)
    return gone
