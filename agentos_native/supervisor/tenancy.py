"""The cgroups of tenants: the limits of declared ones, and the removal of those that nobody is in any more.

A tenant's group is made by its first agent, or by its declaration if that has limits. Empty groups are swept some
ticks after the last agent has left, not at once: the next agent often comes soon, and the tick must have let go of
the group's files.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final

from agentos_native.cgroup import GroupSettings
from agentos_native.errors import AgentosError
from agentos_native.spec.model import TenantSpec
from agentos_native.supervisor.host import Host

_TICKS: Final = 2.5
"""Periods between the last agent's removal and the sweep."""
CONTROLLERS: Final = ("cpu", "memory", "pids", "io")


class Tenancy:
    """One per supervisor. `spawn` keeps the background task."""

    def __init__(self, host: Host, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._host = host
        self._spawn = spawn
        self._sweeping = False

    async def enforce(self, spec: TenantSpec) -> None:
        """Write the tenant's own limits. What this host lacks the controller for is shown, but not enforced.

        One without any has no need of a group; but where there is one, earlier limits may be in it.
        """
        limits = GroupSettings(
            cpu_max_millis=spec.limits.cpu,
            cpu_min_millis=spec.requests.cpu,
            memory_max=spec.limits.memory,
            memory_low=spec.requests.memory or None,
        )
        if limits != GroupSettings() or os.path.isdir(self._host.groups.tenant_path(spec.name)):
            lacking = [name for name in CONTROLLERS if name not in self._host.controllers]
            await self._host.workers.call(self._host.groups.set_tenant, spec.name, limits, lacking)

    async def restore(self) -> None:
        """Every declared tenant's limits again (a supervisor starts, or empty groups have been removed)."""
        occupied = {agent.record.spec.tenant for agent in self._host.agents if agent.live}
        for spec in list(self._host.tenants.values()):
            if spec.name not in occupied:
                await self.enforce(spec)

    def sweep_soon(self) -> None:
        """An agent has been removed: see in a while whether its tenant's groups are empty."""
        if not self._sweeping:
            self._sweeping = True
            self._spawn(self._sweep())

    async def _sweep(self) -> None:
        await asyncio.sleep(_TICKS * self._host.options.settings.tick_period)
        self._sweeping = False
        try:
            await self._host.workers.call(self._host.groups.remove_empty_tenants)
            await self.restore()
        except (AgentosError, OSError) as error:
            self._host.events.add("sweep-failed", error=str(error))
