"""The builds of one supervisor: begun for a request, told as lines, ended with their client."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable

from agentos_native.errors import AgentosError
from agentos_native.images.model import Image
from agentos_native.images.store import ImageStore
from agentos_native.supervisor.building import pins
from agentos_native.supervisor.building.execution import Build
from agentos_native.supervisor.building.feed import Feed
from agentos_native.supervisor.building.workshop import Workshop
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.wire.images import BuildRequest, ImageBody, ImageEvent

_log = logging.getLogger("agentos_native.supervisor")


class Running:
    """One build under way."""

    def __init__(self, feed: Feed, task: asyncio.Task[None]) -> None:
        self._feed = feed
        self._task = task

    def lines(self) -> AsyncIterator[bytes]:
        """Its events, the last one ``done`` or ``failed``."""
        return self._feed.lines()

    async def cancel(self) -> None:
        """End it, if it has not ended; returns when nothing of it is left."""
        self._task.cancel()
        await asyncio.wait([self._task])


class Builder:
    """One per supervisor. `view` shows an image to the API."""

    def __init__(self, lifecycle: Lifecycle, store: ImageStore, view: Callable[[Image], ImageBody]) -> None:
        self._lifecycle = lifecycle
        self._workshop = Workshop(store)
        self._view = view
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    async def recover(self) -> list[str]:
        """Before the first build: remove what a killed supervisor left in the store."""
        return await asyncio.to_thread(pins.recover, self._workshop.catalog)

    def begin(self, request: BuildRequest) -> Running:
        """Start a build. What it does not like of the request is told as an event, too."""
        if self._closed:
            raise AgentosError("stopping", "the supervisor is stopping")
        feed = Feed()
        task = asyncio.get_running_loop().create_task(self._build(request, feed))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return Running(feed, task)

    async def _build(self, request: BuildRequest, feed: Feed) -> None:
        build = secrets.token_hex(4)
        events = self._lifecycle.host.events
        try:
            image = await Build(self._lifecycle, self._workshop, request, build, feed).run()
        except AgentosError as error:
            feed.put(_failed(error))
            events.add("build-failed", build=build, error=f"{error.code}: {error.what}")
        except asyncio.CancelledError:
            feed.put(_failed(AgentosError("cancelled", "the build was cancelled")))
            events.add("build-cancelled", build=build)
            raise
        except Exception as error:
            _log.exception("a build failed")
            feed.put(_failed(_explained(error)))
        else:
            feed.put(ImageEvent(kind="done", image=self._view(image)))
            events.add("image-built", image=" ".join(request.names), digest=image.digest, build=build)
        finally:
            feed.end()

    async def close(self) -> None:
        """Cancel what runs; a supervisor that stops waits for nobody's build."""
        self._closed = True
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._workshop.threads.shutdown(wait=False)


def _explained(error: Exception) -> AgentosError:
    """What nobody foresaw, and a disk without room, which can show anywhere."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, sqlite3.OperationalError):  # SQLITE_IOERR: the journal's memory map had no room
        full = getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR"))
    if full:
        hint = "`agentos-native image gc` and `agentos-native rm` of ended agents make room"
        return AgentosError("disk-full", f"the build has no room: {error}", "state directory", hint)
    return AgentosError("internal", f"{type(error).__name__}: {error}")


def _failed(error: AgentosError) -> ImageEvent:
    failed_image = str(error.details.get("failed_image", ""))
    shell = [str(word) for word in error.details.get("argv", ())] if failed_image else []
    return ImageEvent(kind="failed", error=error.to_dict(), failed_image=failed_image, shell=shell)
