"""The allocator's turn, once per period, in a thread of its own, so that a slow tick delays no request.

`Shares` is what the rest of the supervisor sees. The `Ticker` has a lock of its own: a tick over a thousand groups
takes some milliseconds, during which an `add` waits.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from agentos_native.errors import AgentosError
from agentos_native.spec.model import TenantSpec
from agentos_native.supervisor.loop.controllers import Controller, Member
from agentos_native.supervisor.loop.ticker import Ticker

_log = logging.getLogger("agentos_native.supervisor")


class Shares:
    """The `Ticker` with its thread.

    Args:
        period: seconds between two ticks.
        chore: done after each tick in the same thread (the network looks after its table there).
        controllers: of the other resources, each called at its own pace after a tick.
    """

    def __init__(
        self, ticker: Ticker, period: float, chore: Callable[[], object], controllers: Sequence[Controller] = ()
    ) -> None:
        self._ticker = ticker
        self._period = period
        self._chore = chore
        self._controllers = list(controllers)
        self._due = [0.0] * len(self._controllers)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tick", daemon=True)
        self._trouble = ""

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the running tick."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._ticker.close()
        for controller in self._controllers:
            controller.close()

    def _loop(self) -> None:
        due = time.monotonic() + self._period
        while not self._stop.wait(max(due - time.monotonic(), 0.0)):
            self._turn()
            # A tick that came late is not made up for: shares are computed from what was used since the last one.
            due = max(due + self._period, time.monotonic())

    def _turn(self) -> None:
        steps: list[Callable[[], object]] = [lambda: self._ticker.tick(time.monotonic()), self._control, self._chore]
        trouble = ""
        for step in steps:
            try:
                step()
            except (AgentosError, OSError, ValueError, ArithmeticError) as error:
                # The others and the next turn are tried all the same; the same trouble is told once.
                trouble = str(error)
                if trouble != self._trouble:
                    _log.warning("a tick failed: %s", error)
        self._trouble = trouble

    def _control(self) -> None:
        """The turns of the other resources that are due."""
        for index, controller in enumerate(self._controllers):
            now = time.monotonic()
            if now >= self._due[index]:
                self._due[index] = now + controller.period - self._period / 2
                controller.turn(now)

    def add(self, member: Member) -> None:
        """An agent runs."""
        spec = member.spec
        requests, limits = spec.resources.requests, spec.resources.limits
        self._ticker.add(member.agent_id, member.ref, spec.weight, requests.cpu, limits.cpu, spec.type)
        for controller in self._controllers:
            controller.add(member)

    def remove(self, agent_id: str) -> None:
        """It has ended."""
        self._ticker.remove(agent_id)
        for controller in self._controllers:
            controller.remove(agent_id)

    def change(self, member: Member) -> None:
        """Its weight, request or limit is another now."""
        spec = member.spec
        requests, limits = spec.resources.requests, spec.resources.limits
        self._ticker.change(member.agent_id, spec.weight, requests.cpu, limits.cpu)
        for controller in self._controllers:
            controller.change(member)

    def set_tenant(self, spec: TenantSpec) -> None:
        """A tenant is declared, or declared anew."""
        self._ticker.set_tenant(spec.name, spec.weight, spec.priority, spec.requests.cpu, spec.limits.cpu)
        for controller in self._controllers:
            controller.set_tenant(spec)

    def remove_tenant(self, name: str) -> None:
        """Its declaration is gone."""
        self._ticker.remove_tenant(name)
        for controller in self._controllers:
            controller.remove_tenant(name)

    def rows(self, window: float | None = None) -> list[dict[str, Any]]:
        """The allocator's view of each agent, in CPUs; averaged over the last `window` seconds."""
        return [dataclasses.asdict(row) for row in self._ticker.rows(window)]

    def explain(self, agent_id: str) -> dict[str, Any]:
        """Why one agent has what it has."""
        return self._ticker.explain(agent_id)
