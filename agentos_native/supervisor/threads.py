"""Work in a thread that has something to say as it goes, as lines of JSON for a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import msgspec

Event = TypeVar("Event", bound=msgspec.Struct)


class ClientGone(Exception):
    """Raised in the work's thread by what it says to nobody."""


async def lines_of(work: Callable[[Callable[[Event], None]], None]) -> AsyncIterator[bytes]:
    """Run `work` in a thread; what it says, encoded. When nobody reads any more, saying something ends it."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    gone = False

    def say(event: Event) -> None:
        if gone:
            raise ClientGone
        loop.call_soon_threadsafe(queue.put_nowait, msgspec.json.encode(event))

    def run() -> None:
        try:
            work(say)
        except ClientGone:
            pass
        finally:
            loop.call_soon_threadsafe(queue.put_nowait, None)

    thread = loop.run_in_executor(None, run)
    try:
        while (line := await queue.get()) is not None:
            yield line
        await thread
    finally:
        gone = True
