"""What a build holds in the store: a lease on all that it looks up and makes, and its stages so far as images."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from agentos_native.errors import AgentosError
from agentos_native.images.catalog import Catalog
from agentos_native.images.model import Image, ImageConfig, Layer, Manifest
from agentos_native.supervisor.agents import BUILD_LABEL
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.threads import in_own_thread

T = TypeVar("T")


class Leased:
    """Calls in threads that work under one lease of the store; one at a time. Use as a context.

    The lease is a matter of the context (contextvars(3)) that it was begun in, so all calls run in that one. None is
    left behind by a task that is cancelled: it waits for their end.
    """

    def __init__(self, catalog: Catalog, threads: Executor) -> None:
        self._threads = threads
        self._context = contextvars.copy_context()
        self._lease = catalog.lease()

    async def __aenter__(self) -> Leased:
        try:
            await self.call(self._lease.__enter__)
        except asyncio.CancelledError:
            await self.__aexit__()  # it was begun all the same
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.call(self._lease.__exit__, None, None, None)

    async def call(self, work: Callable[..., T], *arguments: Any, interrupt: Callable[[], object] = lambda: None) -> T:
        """The result of `work`. When this task is cancelled, `interrupt` is called (in a thread) to make it short."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, self._context.run, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await _whatever_comes({future, in_own_thread(interrupt)})
            raise


async def _whatever_comes(futures: set[asyncio.Future[Any]]) -> None:
    """Wait for their ends, however often this task is cancelled meanwhile: what comes next works in the same context,
    in which two threads cannot be."""
    while futures:
        with contextlib.suppress(asyncio.CancelledError):
            ended, futures = await asyncio.wait(futures)
            for future in ended:
                future.exception()  # as interrupted work may have


class Pins:
    """The stages of one build as images without a name, which agents can run.

    The label in a pin's configuration makes its digest this build's own, and says whose it was.
    """

    def __init__(self, host: Host, catalog: Catalog, build: str) -> None:
        self._host = host
        self._catalog = catalog
        self._label = {BUILD_LABEL: build}
        self._stages: dict[tuple[Layer, ...], Image] = {}

    def pin(self, layers: tuple[Layer, ...]) -> Image:
        """An image of these layers. Blocks."""
        if layers not in self._stages:
            manifest = Manifest(config=ImageConfig(labels=self._label), layers=layers, created=time.time())
            self._stages[layers] = self._catalog.commit(None, manifest)
        return self._stages[layers]

    def drop(self) -> None:
        """Remove them all. Blocks."""
        for image in self._stages.values():
            with contextlib.suppress(AgentosError):  # removed by hand
                self._catalog.remove(image.digest)

    def forget(self) -> None:
        """After `drop`, on the event loop's thread: nobody remembers them."""
        for image in self._stages.values():
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
