"""The door: who gets a slot, and whether a reservation can be kept. Pure but for `node_capacity`.

A reservation that cannot be honoured now is told here, with the numbers; whether its start waits or is refused is the
matter of `queueing`. A tenant's own reservation counts as ``max(own, sum of its agents')``, on the node and in every
sum above it. The arithmetic is `agentos_native.alloc.room.Room`; here are specs and errors.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, Requests, TenantSpec

if TYPE_CHECKING:
    from agentos_native.alloc.room import Account, Amounts, Obstacle, Room

BLOCKS: Final = 8
"""With 8 blocks all ids stay below 2³¹: devpts of Linux 6.12 reads its gid= option as a signed number (EINVAL)."""
BLOCK_STRIDE: Final = 2048
SLOTS: Final = 2048
"""Slots of a block."""
ID_BASE: Final = 0x40000000
ID_RANGE: Final = 65536
"""uids and gids of one agent."""
_DIRECTIONS: Final = ("egress", "ingress")
_RESERVED: Final = (("cpu", 0), ("memory", 1), ("egress", 4), ("ingress", 5))
"""What can be reserved, and its place in `Amounts`."""


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
    """Of the machine, for agents: `cpu` in millicores, `memory` in bytes.

    `network`: bits per second of the uplink in each direction; None: not known, so nothing of it can be reserved.
    """

    cpu: int
    memory: int
    network: int | None = None


def promised(specs: Iterable[AgentSpec], tenants: Mapping[str, TenantSpec]) -> Capacity:
    """What is reserved on the node by these (running) agents and the declared tenants."""
    total = room(specs, tenants, Capacity(1, 1)).promised
    return Capacity(int(total[0]), int(total[1]))


def asked(spec: AgentSpec, *, slot: bool = False) -> Amounts:
    """What a start of `spec` asks for; `slot`: it has none yet."""
    requests = spec.resources.requests
    return requests.cpu, requests.memory, int(slot), 1, *_wire(requests)


def _wire(requests: Requests) -> tuple[int, int]:
    """Egress and ingress."""
    rates = requests.network
    return (rates.egress or 0, rates.ingress or 0) if rates else (0, 0)


def account(tenant: TenantSpec) -> Account:
    """The tenant's terms."""
    from agentos_native.alloc.room import Account

    requests, limits = tenant.requests, tenant.limits
    bounds = [inf if limit is None else limit for limit in (limits.cpu, limits.memory, limits.agents)]
    floor = (requests.cpu, requests.memory, 0, 0, *_wire(requests))
    return Account(tenant.weight, floor, (bounds[0], bounds[1], inf, bounds[2], inf, inf))


def room(
    running: Iterable[AgentSpec], tenants: Mapping[str, TenantSpec], capacity: Capacity, *, slots: int = 0
) -> Room:
    """What is left beside `running`; `slots` of the node's are taken."""
    # Not at the top: the constants above are also used where NumPy (a thread for each core) must not be loaded.
    from agentos_native.alloc.room import Room

    accounts = {name: account(tenant) for name, tenant in tenants.items()}
    uplink = inf if capacity.network is None else capacity.network
    made = Room((capacity.cpu, capacity.memory, SLOTS, inf, uplink, uplink), accounts)
    sums: dict[str, list[int]] = {}
    for spec in running:
        requests, total = spec.resources.requests, sums.get(spec.tenant)
        if total is None:
            total = sums[spec.tenant] = [0, 0, 0, 0, 0, 0]
        total[0] += requests.cpu
        total[1] += requests.memory
        total[3] += 1
        if requests.network is not None:
            egress, ingress = _wire(requests)
            total[4] += egress
            total[5] += ingress
    for tenant, amounts in sums.items():
        made.take(tenant, tuple(amounts))
    made.take("", (0, 0, slots, 0, 0, 0))
    return made


def show(resource: str, amount: float) -> str:
    """An amount for people: 500m, 64Mi, 3."""
    if resource == "memory":
        return f"{amount / 2**20:.0f}Mi"
    if resource in _DIRECTIONS:
        return f"{amount / 1e6:g}M"
    return f"{amount:.0f}m" if resource == "cpu" else f"{amount:.0f}"


def refusal(spec: AgentSpec, obstacle: Obstacle) -> AgentosError:
    """The error of a start that is not to wait for `obstacle`."""
    agent = f"agent {spec.tenant}/{spec.name}"
    ahead = "; that much is set aside for starts that wait ahead of it" if obstacle.ahead else ""
    figures = {"resource": obstacle.resource, "asked": int(obstacle.asked), "free": max(int(obstacle.free), 0)}
    figures["capacity"] = int(obstacle.capacity)
    if obstacle.resource == "slots":
        what = f"all {SLOTS} agent slots of this supervisor are taken{ahead}"
        return AgentosError("node-full", what, agent, "Remove ended agents (rm).", details=figures)
    if obstacle.resource == "agents":
        runs, most = int(obstacle.capacity - obstacle.free), int(obstacle.capacity)
        what = f"tenant {spec.tenant} already runs {runs} of at most {most} agents{ahead}"
        hint = "Stop one of them, or raise limits.agents of the tenant."
        return AgentosError("tenant-full", what, agent, hint, details=figures)
    where = f"tenant {spec.tenant}" if obstacle.scope == "tenant" else agent
    return _too_large(obstacle.resource, where, obstacle.asked, obstacle.free, obstacle.capacity, ahead)


def _too_large(resource: str, where: str, wanted: float, free: float, total: float, ahead: str = "") -> AgentosError:
    left = max(int(free), 0)
    field = f"network.{resource}" if resource in _DIRECTIONS else resource
    otherwise = "there is no more than that" if wanted > total else "stop an agent that reserves some"
    return AgentosError(
        "reservation-too-large",
        f"the {resource} reservation of {show(resource, wanted)} does not fit: "
        f"{show(resource, left)} of {show(resource, total)} left{ahead}",
        where,
        f"Ask for less in resources.requests.{field}{':' if wanted > total else ', or'} {otherwise}.",
        details={
            "resource": resource, "asked": int(wanted), "free": left, "capacity": int(total), "where": where
        },
    )  # fmt: skip


def admit(
    spec: AgentSpec, running: Collection[AgentSpec], tenants: Mapping[str, TenantSpec], capacity: Capacity
) -> None:
    """Raise unless one more agent `spec` can run beside `running`, within its tenant and within the node.

    Beside nobody: whether it could ever run.
    """
    _check_uplink(spec.resources.requests, capacity, f"agent {spec.tenant}/{spec.name}")
    obstacle = room(running, tenants, capacity).obstacle(spec.tenant, asked(spec))
    if obstacle is not None:
        raise refusal(spec, obstacle)


def admit_tenant(
    tenant: TenantSpec, running: Collection[AgentSpec], tenants: Mapping[str, TenantSpec], capacity: Capacity
) -> None:
    """Raise unless the tenant's own reservation fits on the node beside the others'."""
    where = f"tenant {tenant.name}"
    _check_uplink(tenant.requests, capacity, where)
    others = {name: spec for name, spec in tenants.items() if name != tenant.name}
    before = room(running, others, capacity)
    after = room(running, {**others, tenant.name: tenant}, capacity)
    asked_for = account(tenant).floor
    for resource, index in _RESERVED:
        total = after.capacity[index]
        if after.promised[index] > total:
            raise _too_large(resource, where, asked_for[index], total - before.promised[index], total)


def _check_uplink(requests: Requests, capacity: Capacity, where: str) -> None:
    """A share of something unknown cannot be kept."""
    if capacity.network is None and any(_wire(requests)):
        raise AgentosError(
            "unenforceable",
            "the rate of this node's uplink is not known, so no part of it can be reserved",
            where,
            "Start the supervisor with --network-rate RATE (networkRate), or leave resources.requests.network out.",
            details={"controllers": ["network"]},
        )


def node_capacity() -> Capacity:
    """CPUs that this process may use, and the machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Capacity(1000 * len(os.sched_getaffinity(0)), memory)
