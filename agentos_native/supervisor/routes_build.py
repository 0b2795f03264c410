"""The API of builds: one request, answered by its events as lines of JSON for as long as it lasts."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from agentos_native.errors import AgentosError
from agentos_native.images.store import ImageStore
from agentos_native.supervisor.building.builder import Builder, Running
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.routes import Endpoint, Lines, body
from agentos_native.supervisor.views import image_view
from agentos_native.wire.images import BuildRequest, ImageEvent


class BuildRoutes:
    """Handlers; one per supervisor."""

    def __init__(self, lifecycle: Lifecycle, store: ImageStore) -> None:
        self._builder = Builder(lifecycle, store, image_view)
        self.recover = self._builder.recover
        self.close = self._builder.close

    def table(self) -> list[Endpoint]:
        """The rows of the API."""
        return [Endpoint("POST", "/v1/builds", self.build, "Build an image, as JSON lines", BuildRequest, ImageEvent)]

    async def build(self, request: Request) -> Lines:
        """Ends with ``done`` or ``failed``; a client that goes away cancels it."""
        wanted = await body(request, BuildRequest)
        if not wanted.context.startswith("/") or "\0" in wanted.context:
            raise AgentosError("invalid-request", "context is no absolute path", wanted.context[:300])
        if "\0" in wanted.file:
            raise AgentosError("invalid-request", "file is no path", wanted.file[:300])
        return _Progress(self._builder.begin(wanted))


class _Progress(Lines):
    """The lines of a build, which does not outlive its client."""

    def __init__(self, running: Running) -> None:
        super().__init__(running.lines())
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._running.cancel()
