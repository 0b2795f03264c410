"""The allocator's turn, once per period, in a thread of its own, so that a slow tick delays no request.

`Shares` is what the rest of the supervisor sees. The `Ticker` has a lock of its own: a tick over a thousand groups
takes some milliseconds, during which an `add` waits.

CPU is divided from `start` on, which comes before the recovery. The other resources' controllers `join` for the
recovery to tell them of the agents that it adopts, and turn when that is over (`settle`).
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from agentos_native.errors import AgentosError
from agentos_native.spec.model import DEFAULT_TYPE, Resource, TenantSpec
from agentos_native.supervisor.loop.controllers import Controller, Member
from agentos_native.supervisor.loop.names import Namer
from agentos_native.supervisor.loop.others import explain as others_of
from agentos_native.supervisor.loop.others import moved_here
from agentos_native.supervisor.loop.ticker import Ticker
from agentos_native.supervisor.loop.whatif import Change, Moved, moved

_log = logging.getLogger("agentos_native.supervisor")
HASTE = 0.25
"""Of a period: no sooner after a tick does a change bring about the next one, since less is too short to measure."""


class Shares:
    """The `Ticker` with its thread.

    Args:
        period: seconds between two ticks.
    """

    def __init__(self, ticker: Ticker, period: float) -> None:
        self._ticker = ticker
        self._period = period
        self._chore: Callable[[], object] = lambda: None
        self._controllers: list[Controller] = []
        self._due: list[float] = []
        self._settled = False
        self._members: dict[str, Member] = {}
        self._stop = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tick", daemon=True)
        self._trouble = ""
        self.first_tick: float | None = None
        """When the first tick was done, CLOCK_BOOTTIME; None before."""

    def start(self) -> None:
        """Make the first tick, and begin to tick.

        The first one here and not in the thread: whoever starts this has much to import then, and a thread that reads
        files gets the interpreter back from one that computes only after 5 ms each time (sys.setswitchinterval).
        """
        self._turn()
        self.first_tick = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._thread.start()

    def join(self, controllers: Sequence[Controller], chore: Callable[[], object]) -> None:
        """Have the other resources' controllers told of who comes and goes from now on; once, before `settle`.

        Args:
            controllers: each called at its own pace after a tick.
            chore: done after each tick in the same thread (the network looks after its table there).
        """
        self._controllers = list(controllers)
        self._due = [0.0] * len(self._controllers)
        self._chore = chore

    def settle(self) -> None:
        """All agents are known, to the controllers, too: every resource has its turns from now on."""
        self._settled = True
        self._hurry()

    def close(self) -> None:
        """Stop after the running tick; nothing happens the second time."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        self._ticker.close()
        for controller in self._controllers:
            controller.close()

    def _loop(self) -> None:
        last = time.monotonic()
        due = last + self._period
        while not self._stop.is_set():
            if self._woken.wait(max(due - time.monotonic(), 0.0)):
                self._woken.clear()
                due = min(due, last + HASTE * self._period)
                continue
            self._turn()
            last = time.monotonic()
            # A tick that came late is not made up for: shares are computed from what was used since the last one.
            due = max(due + self._period, last)

    def _hurry(self) -> None:
        """Something has been changed: let the next tick come soon, and with it every other resource's turn."""
        self._due = [0.0] * len(self._controllers)
        self._woken.set()

    def _turn(self) -> None:
        steps: list[Callable[[], object]] = [self._tick]
        if self._settled:
            steps = [self._profile, self._tick, self._control, self._chore]
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

    def _tick(self) -> None:
        self._ticker.tick(time.monotonic())

    def _profile(self) -> None:
        """Tell the ticker what agents want of the other resources, if any policy in use divides by it."""
        if self._ticker.profiled:
            self._ticker.set_profile({controller.resource: controller.fractions() for controller in self._controllers})

    def _control(self) -> None:
        """The turns of the other resources that are due."""
        for index, controller in enumerate(self._controllers):
            now = time.monotonic()
            if now >= self._due[index]:
                self._due[index] = now + controller.period - self._period / 2
                controller.turn(now)

    def add(self, member: Member) -> None:
        """An agent runs. One that was known before the recovery, and lives, is measured on."""
        spec = member.spec
        requests, limits = spec.resources.requests, spec.resources.limits
        if self._members.get(member.agent_id) != member:
            self._members[member.agent_id] = member
            self._ticker.add(
                member.agent_id, member.ref, spec.weight, requests.cpu, limits.cpu, spec.type or DEFAULT_TYPE
            )
        for controller in self._controllers:
            controller.add(member)

    def remove(self, agent_id: str) -> None:
        """It has ended."""
        self._members.pop(agent_id, None)
        self._ticker.remove(agent_id)
        for controller in self._controllers:
            controller.remove(agent_id)

    def change(self, member: Member) -> None:
        """Its weight, request or limit is another now."""
        spec = member.spec
        requests, limits = spec.resources.requests, spec.resources.limits
        self._members[member.agent_id] = member
        self._ticker.change(member.agent_id, spec.weight, requests.cpu, limits.cpu)
        for controller in self._controllers:
            controller.change(member)
        self._hurry()

    def set_tenant(self, spec: TenantSpec) -> None:
        """A tenant is declared, or declared anew."""
        requests, limits = spec.requests.cpu, spec.limits.cpu
        self._ticker.set_tenant(spec.name, spec.weight, spec.priority, requests, limits, spec.policy)
        for controller in self._controllers:
            controller.set_tenant(spec)
        self._hurry()

    def remove_tenant(self, name: str) -> None:
        """Its declaration is gone."""
        self._ticker.remove_tenant(name)
        for controller in self._controllers:
            controller.remove_tenant(name)

    def rows(self, window: float | None = None, resources: Sequence[Resource] = ("cpu",)) -> list[dict[str, Any]]:
        """The allocator's view of each agent, one row for each of `resources`, in its unit.

        Args:
            window: seconds that CPU is averaged over; the other resources have their controllers' own.
        """
        rows: list[dict[str, Any]] = []
        if "cpu" in resources:
            rows += [{"resource": "cpu", **dataclasses.asdict(row)} for row in self._ticker.rows(window)]
        for controller in self._controllers:
            if controller.resource in resources:
                rows += self._rows_of(controller)
        return rows

    def _rows_of(self, controller: Controller) -> list[dict[str, Any]]:
        rows = []
        for agent_id, row in controller.rows().items():
            member = self._members.get(agent_id)
            if member is not None:  # else it has just ended
                who = {"tenant": member.spec.tenant, "tier": member.spec.priority, "weight": member.spec.weight}
                rows.append({"resource": controller.resource, **who, "agent_id": agent_id, **row})
        return rows

    def effects(self, change: Change) -> list[Moved]:
        """Whose entitlement of which resource would move by `change`, by the demand measured lately.

        Agents that are new or gone in `change` are counted for CPU only: other controllers know only who runs.
        """
        found = moved("cpu", self._ticker.entitled(), self._ticker.entitled(change))
        specs = {agent_id: spec for agent_id, spec in change.specs.items() if agent_id in self._members}
        for controller in self._controllers:
            here = {agent_id for agent_id, row in controller.rows().items() if moved_here(row)}
            if here and (specs or change.tenants):
                before, after = controller.entitled({}, {}), controller.entitled(specs, change.tenants)
                found += [row for row in moved(controller.resource, before, after) if row.agent_id in here]
        return found

    def explain(self, agent_id: str, name: Namer = str) -> dict[str, Any]:
        """Why one agent has what it has: CPU on top, the other resources under ``others``."""
        found = self._ticker.explain(agent_id, name)
        member = self._members.get(agent_id)
        others = {
            controller.resource: others_of(controller, member, row, name)
            for controller in self._controllers
            if member is not None and (row := controller.rows().get(agent_id)) is not None
        }
        for other in others.values():
            found["words"] += other["words"]
            found["equations"] += other["equations"]
        return {**found, "others": others}
