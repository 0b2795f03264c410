"""What requests may say: bodies and query parameters that no client of ours sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from agentos_native.errors import AgentosError
from agentos_native.supervisor.routes import Lines, body, count, number
from agentos_native.wire import api


def test_a_body_that_is_nested_too_deeply_is_refused() -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b'{"spec":' + b"[" * 100_000

    request: Any = SimpleNamespace(stream=stream)
    with pytest.raises(AgentosError, match="nested too deeply"):
        asyncio.run(body(request, api.StartRequest))


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("7", 7), ("9" * 30, 2**31)])
def test_a_count_is_bounded(text: str, expected: int) -> None:
    assert count(text) == expected


@pytest.mark.parametrize("text", ["-5", "1.5", "", "x", "9" * 5000])
def test_what_is_no_count_is_refused(text: str) -> None:
    request: Any = SimpleNamespace(query_params={"tail": text})
    with pytest.raises(AgentosError, match="tail is no number"):
        number(request, "tail", count)


def test_a_stream_ends_with_its_client_however_much_there_is_to_say() -> None:
    lines = 100_000
    sent: list[Any] = []

    async def source() -> AsyncIterator[bytes]:
        for _ in range(lines):
            yield b"y"

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:  # never waits, as that of a client that has gone
        sent.append(message)

    asyncio.run(Lines(source())({}, receive, send))
    assert len(sent) < 10
