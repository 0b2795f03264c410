"""What a client asks about images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import IO
from urllib.parse import quote

import msgspec

from agentos_native.client import transport
from agentos_native.client.door import Door, decoded, query
from agentos_native.errors import AgentosError
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

    def tag_image(self, ref: str, name: str) -> wire.ImageBody:
        """Let `name` mean the image `ref`, too."""
        return self._typed(wire.ImageBody, "POST", f"/v1/images/{quote(ref, safe='')}/tag", wire.TagRequest(name=name))

    def diff_image(self, ref: str, against: str | None = None) -> wire.DiffResult:
        """In which paths `ref` differs from the image `against`; None: what its top layer changes."""
        target = f"/v1/images/{quote(ref, safe='')}/diff" + query({"against": against})
        return self._typed(wire.DiffResult, "GET", target, None, None)

    def verify_images(self, ref: str | None = None) -> Iterator[wire.VerifyEvent]:
        """Have an image, or the whole store, read again: a finding for each record and layer as it comes.

        Raises:
            AgentosError: what is no finding, such as an unknown image.
        """
        target = "/v1/images/verify" + query({"ref": ref})
        for line in self._lines(target, "POST"):
            event = decoded(line, wire.VerifyEvent, target)
            if event.kind == "failed":
                raise AgentosError.from_dict(event.error or {})
            if event.kind == "done":
                return
            yield event
        raise transport.lost(ConnectionError("its answer has no end"), "POST /v1/images/verify")

    def collect_images(self, *, dry_run: bool = False, older_than: float | None = wire.CACHE_KEPT) -> wire.GcResult:
        """Free what nothing reaches; `older_than` seconds for steps of the build cache, None takes all of them."""
        wanted = wire.GcRequest(dry_run=dry_run, older_than=older_than)
        return self._typed(wire.GcResult, "POST", "/v1/images/gc", wanted, None)

    def import_image(
        self,
        name: str,
        source: str | IO[bytes],
        settings: wire.ImportSettings | None = None,
        *,
        watch: Callable[[wire.ImageEvent], None] | None = None,
    ) -> wire.ImageBody:
        """Import a path that the supervisor reads, or an open stream that is sent to it: a tree, a tar, an OCI layout,
        a ``docker save`` archive.

        Args:
            watch: called with the import's events.
        """
        fields: dict[str, str] = {"name": name}
        if settings is not None:
            fields["options"] = msgspec.json.encode(settings).decode()
        if watch is not None:
            fields["follow"] = "1"
        pieces: Iterator[bytes] | None = None
        if isinstance(source, str):
            fields["source"] = os.path.abspath(source)
        else:
            pieces = iter(lambda: source.read(_PIECE), b"")
        target = "/v1/images" + query(fields)
        with transport.Exchange(self.socket, "POST", target, body=pieces, content_type="application/x-tar") as exchange:
            if watch is None:
                return decoded(exchange.read(), wire.ImageBody, target)
            return _followed(exchange.lines(), watch, target)

    def export_image(
        self, ref: str, *, format: str = "oci", compression: str = "gzip", tag: str | None = None
    ) -> Iterator[bytes]:
        """An image as a tar, in pieces: an OCI layout, or what ``docker load`` reads."""
        fields = {"format": format, "compression": compression, "tag": tag}
        target = f"/v1/images/{quote(ref, safe='')}/export" + query(fields)
        with transport.Exchange(self.socket, "GET", target) as exchange:
            yield from exchange

    def build_image(self, request: wire.BuildRequest) -> Iterator[wire.ImageEvent]:
        """Build an image of what a Dockerfile says: its events as they come, the last one ``done`` or ``failed``.

        Whoever stops reading cancels the build.
        """
        for line in self._lines("/v1/builds", "POST", request):
            yield msgspec.json.decode(line, type=wire.ImageEvent)

    def pull_image(self, request: wire.PullRequest) -> Iterator[wire.ImageEvent]:
        """Pull an image from a registry: its events as they come, the last one ``done`` or ``failed``.

        Whoever stops reading cancels the pull; what has arrived is kept for the next one.
        """
        for line in self._lines("/v1/pulls", "POST", request):
            yield msgspec.json.decode(line, type=wire.ImageEvent)


def _followed(lines: Iterable[bytes], watch: Callable[[wire.ImageEvent], None], target: str) -> wire.ImageBody:
    """The image at the end of a stream of events; they go to `watch`."""
    for line in lines:
        event = decoded(line, wire.ImageEvent, target)
        if event.kind == "failed":
            raise AgentosError.from_dict(event.error or {})
        if event.kind == "done" and event.image is not None:
            return event.image
        watch(event)
    raise transport.lost(ConnectionError("its answer has no end"), f"POST {target.partition('?')[0]}")
