"""What the API shows of agents, tenants and the node."""

from __future__ import annotations

import os
import platform
from typing import Any

from agentos_native import __version__
from agentos_native.images.model import Image
from agentos_native.spec import to_builtins
from agentos_native.spec.model import TenantSpec
from agentos_native.supervisor import admission
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.host import Host
from agentos_native.wire import api
from agentos_native.wire import images as wire


def agent_view(host: Host, agent: Agent, *, usage: dict[str, Any] | None = None) -> api.Agent:
    """One agent; `usage` is its cgroup's figures where they were asked for."""
    record, spec = agent.record, agent.record.spec
    wire = host.addresses(host.block, record.slot) if spec.network != "none" and record.slot >= 0 else None
    written = to_builtins(spec)
    return api.Agent(
        id=record.id,
        name=spec.name,
        tenant=spec.tenant,
        type=spec.type,
        image=spec.image,
        image_digest=record.image_digest,
        state=record.state,
        reason=record.reason,
        exit_status=record.exit_status,
        oom_killed=record.oom_killed,
        oom=record.oom,
        pid=record.pid if agent.live else None,
        slot=record.slot,
        restarts=record.restarts,
        created_at=record.created_at,
        started_at=record.started_at,
        ended_at=record.ended_at,
        addresses=api.AddressesBody(ipv4=wire.ipv4 if wire else None, ipv6=wire.ipv6 if wire else None),
        cgroup=agent.run.group.path if agent.run else "",
        priority=spec.priority,
        weight=spec.weight,
        resources=written.get("resources", {}),
        unenforced=record.unenforced,
        warnings=record.warnings,
        timings=agent.timings,
        usage=usage or {},
        spec=written,
        queue=host.queue_place(agent),
    )


def tenant_view(host: Host, name: str) -> api.Tenant:
    """One tenant, declared or only named by its agents."""
    declared = host.tenants.get(name)
    spec = declared or TenantSpec(name=name)
    members = [agent for agent in host.agents if agent.record.spec.tenant == name]
    live = [agent.record.spec for agent in members if agent.live]
    written = to_builtins(spec)
    return api.Tenant(
        name=name,
        declared=declared is not None,
        weight=spec.weight,
        priority=spec.priority,
        policy=spec.policy or host.options.settings.policy,
        requests=written.get("requests", {}),
        limits=written.get("limits", {}),
        agents=len(members),
        running=len(live),
        queued=sum(agent.record.state == "queued" for agent in members),
        requested_cpu_millis=sum(member.resources.requests.cpu for member in live),
        requested_memory=sum(member.resources.requests.memory for member in live),
    )


def tenant_names(host: Host) -> list[str]:
    """Every tenant that is declared or has agents."""
    return sorted({*host.tenants, *(agent.record.spec.tenant for agent in host.agents)})


def node_view(host: Host, extra: dict[str, Any]) -> api.Node:
    """The machine; `extra` is what only the composition root knows."""
    live = [agent.record.spec for agent in host.agents if agent.live]
    promised = admission.promised(live, host.tenants)
    settings = host.options.settings
    return api.Node(
        name=settings.node,
        version=__version__,
        kernel=platform.release(),
        state_dir=settings.state_dir,
        socket=settings.socket,
        block=host.block,
        controllers=sorted(host.controllers),
        cpu=_reservation(host.capacity.cpu, promised.cpu),
        memory=_reservation(host.capacity.memory, promised.memory),
        slots=admission.SLOTS,
        agents=len(host.agents),
        running=len(live),
        queued=sum(agent.record.state == "queued" for agent in host.agents),
        tick_period=settings.tick_period,
        supervisor_pid=os.getpid(),
        **extra,
    )


def _reservation(capacity: int, promised: int) -> api.Reservation:
    return api.Reservation(capacity=capacity, promised=promised, free=max(capacity - promised, 0))


def image_view(image: Image) -> wire.ImageBody:
    """One image."""
    config = image.config
    return wire.ImageBody(
        digest=image.digest,
        name=image.name or (image.names[0] if image.names else ""),
        names=list(image.names),
        created=image.created,
        size=image.size,
        entries=image.entries,
        config={
            "entrypoint": list(config.entrypoint),
            "cmd": list(config.cmd),
            "env": [f"{name}={value}" for name, value in config.env],
            "user": config.user,
            "workdir": config.workdir,
            "labels": config.labels,
        },
    )
