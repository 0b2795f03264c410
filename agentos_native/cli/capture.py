"""A program's output as part of a JSON result."""

from __future__ import annotations

from typing import Any, Final

from agentos_native.cli.output import print_json
from agentos_native.wire import api

LIMIT: Final = 16 * 2**20
"""Bytes kept of each stream; a result says when there was more."""


class Capture:
    """Takes frames of output; `report` prints the result with them."""

    def __init__(self) -> None:
        self._kept = {api.CHANNEL_STDOUT: bytearray(), api.CHANNEL_STDERR: bytearray()}
        self._truncated = False

    def __call__(self, channel: int, data: bytes) -> None:
        kept = self._kept[channel]
        room = LIMIT - len(kept)
        self._truncated |= len(data) > room
        kept += data[:room]

    def report(self, result: dict[str, Any]) -> None:
        """Print `result` with ``stdout`` and ``stderr`` as text (bytes that are not UTF-8 become U+FFFD)."""
        texts = {channel: bytes(kept).decode(errors="replace") for channel, kept in self._kept.items()}
        said = {"stdout": texts[api.CHANNEL_STDOUT], "stderr": texts[api.CHANNEL_STDERR]}
        print_json({**result, **said, **({"truncated": True} if self._truncated else {})})
