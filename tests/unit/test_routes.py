"""What requests may say: bodies and query parameters that no client of ours sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from agentos_native.errors import AgentosError
from agentos_native.supervisor.routes import body, count, number
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
