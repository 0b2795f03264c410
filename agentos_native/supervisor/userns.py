"""User namespaces made ahead of the starts that will need them.

A namespace maps one agent's id range, which follows from its slot. The next slots to be given out are known (the
lowest free ones), so the launcher is asked for theirs while nothing else happens; a start then finds its namespace
ready. One is used for one run only: keyrings and other per-namespace state must not outlive an agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Collection

from agentos_native.errors import AgentosError
from agentos_native.supervisor import admission

Maker = Callable[[int, int], Awaitable[int]]


class UsernsPool:
    """Up to `depth` ready namespaces. Use on the event loop's thread only."""

    def __init__(self, make: Maker, block: int, used_slots: Callable[[], Collection[int]], depth: int = 8) -> None:
        self._make = make
        self._block = block
        self._used = used_slots
        self._depth = depth
        self._ready: dict[int, int] = {}
        self._filling: asyncio.Task[None] | None = None

    async def take(self, slot: int) -> int:
        """The fd (now the caller's) of an unused namespace for `slot`."""
        fd = self._ready.pop(slot, None)
        if fd is None:
            fd = await self._make(admission.id_base(self._block, slot), admission.ID_RANGE)
        return fd

    def refill(self) -> None:
        """Prepare namespaces for the next free slots, in the background and one after the other."""
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill())

    async def _fill(self) -> None:
        with contextlib.suppress(AgentosError):  # a start that needs the namespace meets the error itself
            wanted = self._next_slots()
            for slot in self._ready.keys() - wanted:  # slots that were given out meanwhile, or are not next any more
                os.close(self._ready.pop(slot))
            for slot in sorted(wanted - self._ready.keys()):
                fd = await self._make(admission.id_base(self._block, slot), admission.ID_RANGE)
                if slot in self._ready or slot in self._used():
                    os.close(fd)
                else:
                    self._ready[slot] = fd

    def _next_slots(self) -> set[int]:
        """The lowest free slots, which will be given out next."""
        used = self._used()
        slots: set[int] = set()
        slot = -1
        with contextlib.suppress(AgentosError):
            while len(slots) < self._depth:
                slot = admission.lowest_free_slot(used, slot + 1)
                slots.add(slot)
        return slots

    async def close(self) -> None:
        """Give all up."""
        if self._filling is not None:
            self._filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filling
        for fd in self._ready.values():
            os.close(fd)
        self._ready.clear()
