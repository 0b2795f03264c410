"""A controller whose turns take their time: they run in a thread of their own, beside the tick.

The kernel takes memory back while ``memory.high`` is written to, and a disk's figures may be slow to come; the CPU's
tick shall wait for neither. A turn that is due while the last one still runs is left out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, Resource, TenantSpec
from agentos_native.supervisor.loop.controllers import Controller, Member, Solvable
from agentos_native.supervisor.loop.whatif import Solved

_log = logging.getLogger("agentos_native.supervisor")


class Aside:
    """Implements `controllers.Controller` around another one."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._due = threading.Condition()
        self._time: float | None = None
        self._busy = self._closed = False
        self._trouble = ""
        self._thread: threading.Thread | None = None

    @property
    def resource(self) -> Resource:
        return self._controller.resource

    @property
    def period(self) -> float:
        return self._controller.period

    def add(self, member: Member) -> None:
        self._controller.add(member)

    def change(self, member: Member) -> None:
        self._controller.change(member)

    def remove(self, agent_id: str) -> None:
        self._controller.remove(agent_id)

    def set_tenant(self, spec: TenantSpec) -> None:
        self._controller.set_tenant(spec)

    def remove_tenant(self, name: str) -> None:
        self._controller.remove_tenant(name)

    def rows(self) -> dict[str, dict[str, Any]]:
        return self._controller.rows()

    def fractions(self) -> Mapping[str, float]:
        return self._controller.fractions()

    def entitled(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> dict[str, float]:
        return self._controller.entitled(specs, tenants)

    def solved(self) -> Mapping[str, tuple[Solved, str]]:
        """See `others.Solvable`."""
        return self._controller.solved() if isinstance(self._controller, Solvable) else {}

    def turn(self, now: float) -> None:
        """Have a turn done soon, unless one is still being done."""
        with self._due:
            if self._busy or self._closed:
                return
            self._time = now
            if self._thread is None:
                name = f"turn-{self._controller.resource}"
                self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
                self._thread.start()
            self._due.notify()

    def _loop(self) -> None:
        while True:
            with self._due:
                self._busy = False
                self._due.wait_for(lambda: self._closed or self._time is not None)
                if self._closed or self._time is None:
                    return
                now, self._time, self._busy = self._time, None, True
            trouble = ""
            try:
                self._controller.turn(now)
            except (AgentosError, OSError, ValueError, ArithmeticError) as error:
                trouble = str(error)
                if trouble != self._trouble:  # the same trouble is told once
                    _log.warning("a turn of %s failed: %s", self._controller.resource, error)
            self._trouble = trouble

    def close(self) -> None:
        """After the running turn."""
        with self._due:
            self._closed = True
            self._due.notify()
        if self._thread is not None:
            self._thread.join()
        self._controller.close()
