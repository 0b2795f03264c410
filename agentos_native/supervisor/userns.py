"""User namespaces made ahead of the starts that will need them.

A namespace maps one agent's id range, which follows from its slot. So a new agent is given a slot whose namespace is
ready, and the launcher is asked for the next one while nothing else happens. A namespace is used for one run only:
keyrings and other state of a namespace must not outlive an agent. Slots whose former agent has left something that
still goes away are passed over as long as there are others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

from agentos_native.errors import AgentosError
from agentos_native.supervisor import admission
from agentos_native.supervisor.launcher_link import CloneError

Maker = Callable[[int, int], Awaitable[int]]


class UsernsPool:
    """Up to `depth` ready namespaces. Use on the event loop's thread only."""

    def __init__(
        self,
        make: Maker,
        block: int,
        used_slots: Callable[[], set[int]],
        depth: int = 8,
        *,
        unready: Callable[[], set[int]] = set,
    ) -> None:
        self._make = make
        self._block = block
        self._used = used_slots
        self._unready = unready
        self._depth = depth
        self._ready: dict[int, int] = {}
        self._filling: asyncio.Task[None] | None = None

    def free_slot(self) -> int:
        """The slot for the next new agent: one that is prepared, otherwise the lowest free one.

        Raises:
            AgentosError: ``node-full``.
        """
        used, unready = self._used(), self._unready()
        prepared = self._ready.keys() - used - unready
        if prepared:
            return min(prepared)
        try:
            return admission.lowest_free_slot(used | unready)
        except AgentosError:
            return admission.lowest_free_slot(used)

    async def take(self, slot: int) -> int:
        """The fd (now the caller's) of an unused namespace for `slot`."""
        fd = self._ready.pop(slot, None)
        if fd is None:
            fd = await self._make(admission.id_base(self._block, slot), admission.ID_RANGE)
        return fd

    def refill(self) -> None:
        """Prepare namespaces for further slots, in the background and one after the other."""
        if len(self._ready) < self._depth and (self._filling is None or self._filling.done()):
            self._filling = asyncio.create_task(self._fill())

    async def _fill(self) -> None:
        with contextlib.suppress(AgentosError, CloneError):  # a start that needs the namespace meets the error itself
            while len(self._ready) < self._depth:
                slot = admission.lowest_free_slot(self._used() | self._unready() | self._ready.keys())
                fd = await self._make(admission.id_base(self._block, slot), admission.ID_RANGE)
                if slot in self._ready:
                    os.close(fd)
                else:
                    self._ready[slot] = fd

    async def close(self) -> None:
        """Give all up."""
        if self._filling is not None:
            self._filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filling
        for fd in self._ready.values():
            os.close(fd)
        self._ready.clear()
