"""What happened, for those who watch: a bounded ring of events, numbered without gaps."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from agentos_native.wire.api import Event

RING: Final = 4096
"""Events kept; a reader that falls further behind sees the gap in `seq`."""


class Events:
    """Made and read on the event loop's thread only."""

    def __init__(self, size: int = RING) -> None:
        self._ring: deque[Event] = deque(maxlen=size)
        self._next = 1
        self._news = asyncio.Event()
        self.on_event: Callable[[Event], None] | None = None

    def add(self, kind: str, *, agent_id: str = "", name: str = "", tenant: str = "", **detail: Any) -> Event:
        """Record one event and wake its followers."""
        event = Event(
            seq=self._next, ts=time.time(), type=kind, agent_id=agent_id, name=name, tenant=tenant, detail=detail
        )
        self._next += 1
        self._ring.append(event)
        self._news.set()
        self._news = asyncio.Event()
        if self.on_event is not None:
            self.on_event(event)
        return event

    def since(self, when: float = 0.0, after: int = 0) -> list[Event]:
        """The kept events not older than `when` (seconds since the epoch) with `seq` > `after`."""
        return [event for event in self._ring if event.seq > after and event.ts >= when]

    async def follow(self, when: float = 0.0) -> AsyncIterator[Event]:
        """All kept events since `when`, then every new one, for ever."""
        seen = 0
        while True:
            news = self._news
            for event in self.since(when, seen):
                seen = event.seq
                yield event
            await news.wait()
