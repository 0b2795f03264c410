"""Four ways to divide a machine, for ``tools/bench loop``: this loop, static weights, Kubernetes' way, and none."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from agentos_native.cgroup import GroupRef, GroupSettings, Tree, discover
from agentos_native.spec.model import AgentSpec
from agentos_native.supervisor.loop.aside import Aside
from agentos_native.supervisor.loop.controllers import Controller, Member
from agentos_native.supervisor.loop.memory import MemoryController
from agentos_native.supervisor.loop.ticker import Ticker
from agentos_native.supervisor.resources import group_settings
from tools.benches.mixed import TENANTS
from tools.benches.place import cgroup2_mount, make_group, remove_group

CPUS: Final = float(os.cpu_count() or 1)


class Static:
    """The product's tree as it makes it, and nobody who moves anything: weights, limits and reservations of the specs.

    Args:
        bound: the group that everything runs in.
        period: seconds between two ticks, for who has them.
    """

    name = "static"

    def __init__(self, bound: Path, period: float) -> None:
        self.tree = Tree(discover(), "mixed", f"/{bound.relative_to(cgroup2_mount())}")
        self.tree.open()
        self.members: dict[int, Member] = {}
        for tenant in TENANTS:
            self.tree.set_tenant(tenant.name, GroupSettings(cpu_weight=tenant.weight))

    def enter(self, number: int, spec: AgentSpec) -> str:
        """See `mixed.Regime`."""
        ref = GroupRef(spec.tenant, spec.priority, f"{number:012x}")
        group = self.tree.get(ref)
        if number not in self.members:
            self.tree.create(ref, group_settings(spec, "/"))
            os.close(group.leaf("main"))
            self.members[number] = Member(ref.agent_id, number, ref, group.path, spec)
        return f"{group.path}/main"

    def started(self) -> None:
        """See `mixed.Regime`."""

    def step(self) -> None:
        """See `mixed.Regime`."""

    def close(self) -> None:
        """See `mixed.Regime`."""
        for member in self.members.values():
            self.tree.get(member.ref).remove()
        self.tree.teardown()


class Loop(Static):
    """The same tree, with the closed loop over CPU and memory."""

    name = "loop"

    def __init__(self, bound: Path, period: float) -> None:
        super().__init__(bound, period)
        self._period, self._next = period, 0.0
        self.ticker = Ticker(self.tree, CPUS)
        self.controllers: list[Controller] = [Aside(MemoryController(self.tree, _no_news))]
        self._due = [0.0] * len(self.controllers)
        for tenant in TENANTS:
            self.ticker.set_tenant(tenant.name, tenant.weight, tenant.priority, 0, None)
            for controller in self.controllers:
                controller.set_tenant(tenant)

    def started(self) -> None:
        for member in self.members.values():
            requests, limits = member.spec.resources.requests, member.spec.resources.limits
            self.ticker.add(member.agent_id, member.ref, member.spec.weight, requests.cpu, limits.cpu)
            for controller in self.controllers:
                controller.add(member)

    def step(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._period - 0.5
        self.ticker.tick(now)
        for index, controller in enumerate(self.controllers):
            if now >= self._due[index]:
                self._due[index] = now + controller.period - 0.5
                controller.turn(now)

    def close(self) -> None:
        self.ticker.close()
        for controller in self.controllers:
            controller.close()
        super().close()


class Kubernetes:
    """As a kubelet does it for Burstable pods: flat, weights from requests, ``cpu.max`` and ``memory.max`` from limits.

    It knows neither an agent's weight nor a tenant's.
    """

    name = "kubernetes"

    def __init__(self, bound: Path, period: float) -> None:
        self.pods = bound / "burstable"
        make_group(self.pods)

    def enter(self, number: int, spec: AgentSpec) -> str:
        """See `mixed.Regime`."""
        pod = self.pods / f"pod-{number}"
        requests, limits = spec.resources.requests, spec.resources.limits
        if not pod.exists():
            pod.mkdir()
            (pod / "cpu.weight").write_text(str(weight_of(requests.cpu)))
            if limits.cpu is not None:
                (pod / "cpu.max").write_text(f"{limits.cpu * 100} 100000")
            if limits.memory is not None:
                (pod / "memory.max").write_text(str(limits.memory))
        return str(pod)

    def started(self) -> None:
        """See `mixed.Regime`."""

    def step(self) -> None:
        """See `mixed.Regime`."""

    def close(self) -> None:
        """See `mixed.Regime`."""
        remove_group(self.pods)


def _no_news(kind: str, agent_id: str, **detail: object) -> None:
    """Events of the loop, which nobody follows here."""


def weight_of(millis: int) -> int:
    """``cpu.weight`` for a CPU request: millicores to shares to weight, as kubelet and OCI runtimes convert them."""
    shares = max(2, millis * 1024 // 1000)
    return 1 + (shares - 2) * 9999 // 262142


class Nothing:
    """One group for all: the kernel divides among threads, and the OOM killer chooses."""

    name = "nothing"

    def __init__(self, bound: Path, period: float) -> None:
        self.group = bound / "all"
        self.group.mkdir()

    def enter(self, number: int, spec: AgentSpec) -> str:
        """See `mixed.Regime`."""
        return str(self.group)

    def started(self) -> None:
        """See `mixed.Regime`."""

    def step(self) -> None:
        """See `mixed.Regime`."""

    def close(self) -> None:
        """See `mixed.Regime`."""
        remove_group(self.group)


REGIMES: Final = (Loop, Static, Kubernetes, Nothing)
"""The product first: it is held against the best of the others."""
