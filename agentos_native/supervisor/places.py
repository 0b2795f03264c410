"""The places of starts that wait, worked out when somebody asks."""

from __future__ import annotations

from typing import Final

from agentos_native.alloc.queueing import Entry, FairQueue
from agentos_native.alloc.room import Room

_MANY: Final = 8
"""Places that are asked for one after the other before all of them are worked out at once."""


class Places:
    """Of one queue."""

    def __init__(self, fair: FairQueue) -> None:
        self._fair = fair
        self._asked_for = 0
        self._known: dict[str, tuple[int, int]] | None = None

    def forget(self) -> None:
        """Something has changed."""
        self._asked_for, self._known = 0, None

    def of(self, entry: Entry, room: Room) -> tuple[int, int]:
        """Its place on the node and in its tenant's queue, both from 1."""
        self._asked_for += 1
        if self._known is None and self._asked_for <= _MANY:
            return self._fair.place(entry.key, room)
        if self._known is None:
            self._known = {}
            seen: dict[str, int] = {}
            for number, one in enumerate(self._fair.order(room), 1):
                seen[one.tenant] = seen.get(one.tenant, 0) + 1
                self._known[one.key] = number, seen[one.tenant]
        return self._known[entry.key]
