"""What a client asks about images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO
from urllib.parse import quote

import msgspec

from agentos_native.client import transport
from agentos_native.client.door import Door, decoded, query
from agentos_native.wire import images as wire

_PIECE = 1 << 18


class ImageCalls(Door):
    """The methods of `client.Client` for images."""

    def images(self) -> list[wire.ImageBody]:
        return self._typed(wire.ImageList, "GET", "/v1/images").images

    def image(self, ref: str) -> wire.ImageBody:
        return self._typed(wire.ImageBody, "GET", "/v1/images/" + quote(ref, safe=""))

    def remove_image(self, ref: str) -> None:
        self._exchange("DELETE", "/v1/images/" + quote(ref, safe=""), None, None)

    def import_image(self, name: str, source: str | IO[bytes]) -> wire.ImageBody:
        """Unpack a root filesystem: a path that the supervisor reads, or an open tar stream that is sent to it."""
        if isinstance(source, str):
            target = "/v1/images" + query({"name": name, "source": os.path.abspath(source)})
            return self._typed(wire.ImageBody, "POST", target, None, None)
        target = "/v1/images" + query({"name": name})
        pieces = iter(lambda: source.read(_PIECE), b"")
        with transport.Exchange(self.socket, "POST", target, body=pieces, content_type="application/x-tar") as exchange:
            return decoded(exchange.read(), wire.ImageBody, target)

    def build_image(self, request: wire.BuildRequest) -> Iterator[wire.ImageEvent]:
        """Build an image of what a Dockerfile says: its events as they come, the last one ``done`` or ``failed``.

        Whoever stops reading cancels the build.
        """
        for line in self._lines("/v1/builds", "POST", request):
            yield msgspec.json.decode(line, type=wire.ImageEvent)
