"""Until when a start may wait: a timer for each one that does not wait for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from agentos_native.supervisor.agents import Agent


class Deadlines:
    """Of the starts that wait.

    Args:
        over: called with an agent whose start has waited as long as its spec allows.
    """

    def __init__(self, over: Callable[[Agent], object]) -> None:
        self._over = over
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def set(self, agent: Agent) -> None:
        """From its arrival in the queue, by what its spec says now."""
        self.forget(agent)
        seconds = agent.record.spec.wait_timeout
        if seconds is None:
            return
        left = (agent.record.queued_at or time.time()) + seconds - time.time()
        loop = asyncio.get_running_loop()
        self._timers[agent.id] = loop.call_later(max(left, 0.0), self._ring, agent)

    def forget(self, agent: Agent) -> None:
        """It waits no more."""
        timer = self._timers.pop(agent.id, None)
        if timer is not None:
            timer.cancel()

    def _ring(self, agent: Agent) -> None:
        del self._timers[agent.id]
        self._over(agent)
