"""The door: who gets a slot, and whether a reservation can be kept. Pure but for `node_capacity`.

A reservation that cannot be honoured is refused here, with the numbers; queueing for a full node is not part of this
version. A tenant's own reservation counts as ``max(own, sum of its agents')``, on the node and in every sum above it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, TenantSpec

BLOCKS: Final = 8
"""With 8 blocks all ids stay below 2³¹: devpts of Linux 6.12 reads its gid= option as a signed number (EINVAL)."""
BLOCK_STRIDE: Final = 2048
SLOTS: Final = 2048
"""Slots of a block."""
ID_BASE: Final = 0x40000000
ID_RANGE: Final = 65536
"""uids and gids of one agent."""


def id_base(block: int, slot: int) -> int:
    """The host id of the agent's root."""
    return ID_BASE + (block * BLOCK_STRIDE + slot) * ID_RANGE


def lowest_free_slot(used: Collection[int], start: int = 0) -> int:
    """The lowest slot >= `start` that is not in `used`."""
    for slot in range(start, SLOTS):
        if slot not in used:
            return slot
    raise AgentosError(
        "node-full", f"all {SLOTS} agent slots of this supervisor are taken", "", "Remove ended agents (rm)."
    )


class Capacity(NamedTuple):
    """Of the machine, for agents: `cpu` in millicores, `memory` in bytes."""

    cpu: int
    memory: int


def promised(specs: Iterable[AgentSpec], tenants: Mapping[str, TenantSpec]) -> Capacity:
    """What is reserved on the node by these (running) agents and the declared tenants."""
    sums: dict[str, list[int]] = {name: [0, 0] for name in tenants}
    for spec in specs:
        total = sums.setdefault(spec.tenant, [0, 0])
        total[0] += spec.resources.requests.cpu
        total[1] += spec.resources.requests.memory
    cpu = memory = 0
    for name, (sum_cpu, sum_memory) in sums.items():
        own = tenants.get(name)
        cpu += max(sum_cpu, own.requests.cpu if own else 0)
        memory += max(sum_memory, own.requests.memory if own else 0)
    return Capacity(cpu, memory)


def _show(resource: str, amount: int) -> str:
    return f"{amount}m" if resource == "cpu" else f"{amount / 2**20:.0f}Mi"


def _refuse(resource: str, where: str, asked: int, free: int, total: int) -> AgentosError:
    return AgentosError(
        "reservation-too-large",
        f"the {resource} reservation of {_show(resource, asked)} does not fit: "
        f"{_show(resource, max(free, 0))} of {_show(resource, total)} left",
        where,
        f"Ask for less in resources.requests.{resource}, or stop an agent that reserves some.",
        details={"resource": resource, "asked": asked, "free": max(free, 0), "capacity": total, "where": where},
    )


def admit(
    spec: AgentSpec, running: Collection[AgentSpec], tenants: Mapping[str, TenantSpec], capacity: Capacity
) -> None:
    """Raise unless one more agent `spec` can run beside `running`, within its tenant and within the node."""
    siblings = [other for other in running if other.tenant == spec.tenant]
    own = tenants.get(spec.tenant)
    if own is not None:
        _admit_in_tenant(spec, siblings, own)
    before = promised(running, tenants)
    after = promised([*running, spec], tenants)
    for resource in ("cpu", "memory"):
        total: int = getattr(capacity, resource)
        asked: int = getattr(spec.resources.requests, resource)
        if asked and getattr(after, resource) > total:
            raise _refuse(resource, f"agent {spec.tenant}/{spec.name}", asked, total - getattr(before, resource), total)


def _admit_in_tenant(spec: AgentSpec, siblings: list[AgentSpec], tenant: TenantSpec) -> None:
    limit = tenant.limits.agents
    if limit is not None and len(siblings) >= limit:
        raise AgentosError(
            "tenant-full",
            f"tenant {tenant.name} already runs {len(siblings)} of at most {limit} agents",
            f"agent {spec.tenant}/{spec.name}",
            "Stop one of them, or raise limits.agents of the tenant.",
            details={"resource": "agents", "asked": 1, "free": 0, "capacity": limit},
        )
    for resource in ("cpu", "memory"):
        total: int | None = getattr(tenant.limits, resource)
        asked: int = getattr(spec.resources.requests, resource)
        used = sum(getattr(other.resources.requests, resource) for other in siblings)
        if total is not None and used + asked > total:
            raise _refuse(resource, f"tenant {tenant.name}", asked, total - used, total)


def admit_tenant(
    tenant: TenantSpec, running: Collection[AgentSpec], tenants: Mapping[str, TenantSpec], capacity: Capacity
) -> None:
    """Raise unless the tenant's own reservation fits on the node beside the others'."""
    others = {name: spec for name, spec in tenants.items() if name != tenant.name}
    before = promised(running, others)
    after = promised(running, {**others, tenant.name: tenant})
    for resource in ("cpu", "memory"):
        total: int = getattr(capacity, resource)
        if getattr(after, resource) > total:
            asked: int = getattr(tenant.requests, resource)
            raise _refuse(resource, f"tenant {tenant.name}", asked, total - getattr(before, resource), total)


def node_capacity() -> Capacity:
    """CPUs that this process may use, and the machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Capacity(1000 * len(os.sched_getaffinity(0)), memory)
