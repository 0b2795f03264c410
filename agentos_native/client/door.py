"""The one door to a supervisor: an exchange of JSON over its socket, typed by `wire`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from agentos_native.client import transport
from agentos_native.errors import AgentosError

DEFAULT_SOCKET = "/run/agentos/agentos.sock"
_Body = TypeVar("_Body")


class Door:
    """See `client.Client`, which is the class to use."""

    def __init__(self, socket: str | None = None, timeout: float = 120.0) -> None:
        self.socket = socket or os.environ.get("AGENTOS_SOCKET") or DEFAULT_SOCKET
        self.timeout = timeout

    def request(self, method: str, target: str, body: Any = None, *, timeout: float | None = -1.0) -> Any:
        """One exchange of JSON; `target` is the path with its query. For what has no method here."""
        return msgspec.json.decode(self._exchange(method, target, body, timeout) or b"null")

    def _exchange(self, method: str, target: str, body: Any, timeout: float | None) -> bytes:
        encoded = None if body is None else msgspec.json.encode(body)
        seconds = self.timeout if timeout == -1.0 else timeout
        with transport.Exchange(self.socket, method, target, body=encoded, timeout=seconds) as exchange:
            return exchange.read()

    def _typed(
        self, kind: type[_Body], method: str, target: str, body: Any = None, timeout: float | None = -1.0
    ) -> _Body:
        return decoded(self._exchange(method, target, body, timeout), kind, target)

    def _lines(self, target: str, method: str = "GET", body: Any = None) -> Iterator[bytes]:
        encoded = None if body is None else msgspec.json.encode(body)
        with transport.Exchange(self.socket, method, target, body=encoded) as exchange:
            yield from exchange.lines()


def decoded(answer: bytes, kind: type[_Body], target: str) -> _Body:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:
        raise AgentosError(
            "internal", f"an answer that is not understood ({error})", target, "are both of one version?"
        )


def query(fields: dict[str, Any]) -> str:
    """`fields` that are not None as the query of a target, with its question mark."""
    given = {name: value for name, value in fields.items() if value is not None}
    return "?" + urlencode(given) if given else ""
