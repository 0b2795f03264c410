"""The API of pulls: one request, answered by its events as lines of JSON for as long as it lasts."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from agentos_native.images.model import Image
from agentos_native.images.registry.pulling import Pull
from agentos_native.images.store import ImageStore
from agentos_native.supervisor.building.feed import Feed
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.routes import Endpoint, Lines, as_error, body
from agentos_native.supervisor.views import image_view
from agentos_native.wire.images import ImageEvent, PullRequest

_log = logging.getLogger("agentos_native.supervisor")
_AT_ONCE: Final = 4
"""Pulls under way at one time; more wait for their turn. They may take hours, so they have threads of their own."""


class PullRoutes:
    """Handlers; one per supervisor."""

    def __init__(self, host: Host, store: ImageStore) -> None:
        self._host = host
        self._store = store
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pull")
        self._running: set[Running] = set()

    def table(self) -> list[Endpoint]:
        """The rows of the API."""
        return [Endpoint("POST", "/v1/pulls", self.pull, "Pull an image, as JSON lines", PullRequest, ImageEvent)]

    async def pull(self, request: Request) -> Lines:
        """Ends with ``done`` or ``failed``; a client that goes away cancels it."""
        wanted = await body(request, PullRequest)
        running = Running(await asyncio.to_thread(Pull, self._store.catalog, wanted))
        task = asyncio.create_task(self._run(running))
        running.task = task
        self._running.add(running)
        task.add_done_callback(lambda _: self._running.discard(running))
        return _Progress(running)

    async def _run(self, running: Running) -> None:
        pull, events = running.pull, self._host.events
        loop = asyncio.get_running_loop()
        try:
            image: Image = await loop.run_in_executor(self._threads, pull.run, running.watch)
        except Exception as error:
            failure = as_error(error)
            if failure.code == "internal":
                _log.exception("a pull failed")
            events.add(
                "pull-failed", image=pull.name, reference=pull.reference, error=f"{failure.code}: {failure.what}"
            )
            running.feed.put(ImageEvent(kind="failed", error=failure.to_dict()))
        else:
            events.add(
                "image-pulled", image=pull.name, reference=pull.reference, digest=image.digest, fetched=pull.fetched
            )
            running.feed.put(ImageEvent(kind="done", image=image_view(image)))
        finally:
            running.feed.end()

    async def close(self) -> None:
        """Cancel what runs; a supervisor that stops waits for nobody's pull."""
        await asyncio.gather(*(running.cancel() for running in list(self._running)))
        self._threads.shutdown(wait=True)


class Running:
    """One pull under way."""

    task: asyncio.Task[None]

    def __init__(self, pull: Pull) -> None:
        self.pull = pull
        self.feed = Feed()

    def watch(self, event: ImageEvent) -> None:
        """Queue an event, in the pull's thread; a client that does not read misses progress, but nothing else."""
        if event.kind != "progress" or not self.feed.behind:
            self.feed.put_soon(event)

    async def cancel(self) -> None:
        """End it, if it has not ended; returns when nothing of it runs."""
        self.pull.cancel()
        await asyncio.wait([self.task])


class _Progress(Lines):
    """The lines of a pull, which does not outlive its client."""

    def __init__(self, running: Running) -> None:
        super().__init__(running.feed.lines())
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._running.cancel()
