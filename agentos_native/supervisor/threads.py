"""Work in threads of its own: such as waits for a client, or has something to say as it goes, as lines of JSON."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec

Event = TypeVar("Event", bound=msgspec.Struct)
T = TypeVar("T")


def in_own_thread(work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    """`work` in a new thread and in this context; its result.

    What takes as long as a client likes must not be in a pool: where an export waits for its reader, which is an import
    that waits for a thread, a pool of any size can be full of exports for ever. A supervisor that ends does not wait.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.set_result(context.run(work, *arguments))
        except BaseException as error:  # handed over: it is the caller's
            outcome.set_exception(error)

    threading.Thread(target=run, name="work", daemon=True).start()
    return asyncio.wrap_future(outcome)


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

    thread = in_own_thread(run)
    try:
        while (line := await queue.get()) is not None:
            yield line
        await thread
    finally:
        gone = True
