"""What the API shows of agents, tenants and the node."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import msgspec

from agentos_native import __version__
from agentos_native.images.model import Image, ImageConfig
from agentos_native.spec import to_builtins
from agentos_native.spec.model import DEFAULT_TYPE, TenantSpec
from agentos_native.supervisor import admission, imagetypes
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
        type=spec.type or DEFAULT_TYPE,
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


def image_view(image: Image, sharing: Mapping[str, int] | None = None) -> wire.ImageBody:
    """One image; `sharing` is how many images have a layer (`ImageStore.sharing`), without which all is its own."""
    sharing = sharing or {}
    sizes = {layer.digest: layer.size for layer in image.stack}
    shared = sum(size for digest, size in sizes.items() if sharing.get(digest, 1) > 1)
    return wire.ImageBody(
        digest=image.digest,
        name=image.name or (image.names[0] if image.names else ""),
        names=list(image.names),
        created=image.created,
        size=image.size,
        entries=image.entries,
        own_size=sum(sizes.values()) - shared,
        shared_size=shared,
        architecture=image.architecture,
        author=image.author,
        type=imagetypes.said(image.config) or "",
        config=_config_view(image.config),
        layers=[
            wire.LayerBody(
                digest=layer.digest,
                size=layer.size,
                entries=layer.entries,
                shared=max(sharing.get(layer.digest, 1) - 1, 0),
            )
            for layer in image.stack
        ],
        history=_history_view(image),
        notes=[*image.notes, *_unserved(image.config)],
    )


def _unserved(config: ImageConfig) -> list[str]:
    """What the image asks of a container engine and agents do not get, in words."""
    notes = imagetypes.warnings(config)
    if config.volumes:
        paths = ", ".join(config.volumes)
        notes.append(f"VOLUME {paths} makes no volume: what is written there is the agent's; see `run --volume`")
    if config.healthcheck is not None and config.healthcheck.test[:1] != ("NONE",):
        notes.append("HEALTHCHECK is kept and exported; nothing runs it")
    if config.exposed:
        notes.append(f"EXPOSE {', '.join(config.exposed)} opens nothing: an agent's ports are reached at its address")
    return notes


def _config_view(config: ImageConfig) -> dict[str, Any]:
    """What the image says of its program; what it says nothing of is left out but for the usual."""
    shown: dict[str, Any] = {
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "env": [f"{name}={value}" for name, value in config.env],
        "user": config.user,
        "workdir": config.workdir,
        "labels": config.labels,
    }
    more = {
        "exposed": list(config.exposed),
        "volumes": list(config.volumes),
        "stop_signal": config.stop_signal,
        "healthcheck": msgspec.to_builtins(config.healthcheck),
        "shell": list(config.shell),
        "on_build": list(config.on_build),
    }
    return shown | {name: value for name, value in more.items() if value}


def _history_view(image: Image) -> list[wire.HistoryBody]:
    """Its steps, oldest first, with the layers that they made; a layer that no step tells of has a row, too."""
    layers = list(image.stack)
    steps = list(image.history)
    untold = len(layers) - sum(not step.empty for step in steps)
    rows = []
    for step in steps:
        layer = layers.pop(0) if not step.empty and layers else None
        rows.append(
            wire.HistoryBody(
                created_by=step.created_by,
                created=step.created,
                comment=step.comment,
                layer=layer.digest if layer else "",
                size=layer.size if layer else 0,
            )
        )
    if untold > 0:
        rows += [wire.HistoryBody(layer=layer.digest, size=layer.size) for layer in layers]
    return rows
