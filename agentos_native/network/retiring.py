"""Wires whose agents have ended: cut off at once, deleted a little later, many at a time.

Theory of operation. A wire without elements passes nothing (`ruleset`), so nobody has to wait until its device is
deleted; and mostly nobody has to delete it, because it goes with the agent's namespace, which the kernel takes apart by
itself. What is left after a moment (somebody still holds the namespace) one thread deletes with one request; then it
forgets the connections, since until the device is gone the host itself may still track some.
A slot is no other agent's until then: `NodeNetwork.retiring` tells which to keep away from, and `finish` is for the one
who cannot.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Final

_log = logging.getLogger(__name__)
GRACE_SECONDS: Final = 0.1
"""Longer than the kernel takes for a namespace when it has little to do (cleanup_net)."""
RETRY_SECONDS: Final = 10.0
"""After the kernel has refused."""

Remove = Callable[[Iterable[int]], None]


class Retiring:
    """Thread-safe. Its thread begins with the first wire.

    Args:
        remove: deletes these slots' wires, all that are there at once, and their connections; idempotent.
    """

    def __init__(self, remove: Remove) -> None:
        self._remove = remove
        self._slots: set[int] = set()
        self._changed = threading.Condition()
        self._removing = threading.Lock()
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, slot: int) -> None:
        """The wire of `slot` is cut off and may go."""
        with self._changed:
            self._slots.add(slot)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wires-retire", daemon=True)
                self._thread.start()

    def slots(self) -> set[int]:
        """Those whose wire may still be there."""
        with self._changed:
            return self._slots.copy()

    def finish(self, slot: int) -> None:
        """Return when the wire of `slot` is gone, if it was retired.

        Raises:
            OSError: the kernel refused.
        """
        if slot not in self.slots():
            return
        with self._removing:
            if slot in self.slots():
                self._remove_and_forget({slot})

    def close(self) -> None:
        """Remove what is left, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._slots or self._closing)
                self._changed.wait_for(lambda: self._closing, GRACE_SECONDS)
                last = self._closing
            removed = self._remove_all()
            if last:
                return
            if not removed:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)

    def _remove_all(self) -> bool:
        with self._removing:
            try:
                self._remove_and_forget(self.slots())
            except OSError as error:
                _log.warning("wires of ended agents stay for now: %s", error)
                return False
        return True

    def _remove_and_forget(self, batch: set[int]) -> None:
        """While `_removing` is held: a slot that is not retired any more may have a new wire."""
        self._remove(batch)
        with self._changed:
            self._slots -= batch
