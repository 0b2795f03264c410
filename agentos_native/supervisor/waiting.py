"""Why a queued agent waits, and what would let it in, each answer tried with the arithmetic of admission."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, TenantSpec
from agentos_native.spec.quantities import format_cpu, format_memory
from agentos_native.supervisor import admission
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.host import Host
from agentos_native.wire.api import QueuePlace

NAMED: Final = 5
"""Agents that are named as those whose end would make room."""


def explain(host: Host, agent: Agent, place: QueuePlace | None) -> dict[str, Any]:
    """Words and figures.

    Returns:
        ``queue`` (its place), ``words``, ``enough``: the largest reservation that would be let in now (None: no smaller
        one would), and ``room_makers``: agents of which each, alone, would leave enough room by ending.
    """
    spec = agent.record.spec
    promised = [other.record.spec for other in host.agents if other.live or other.record.state == "backoff"]
    obstacle = _obstacle(host, spec, promised)
    words = [f"{spec.name} waits for its start: nothing runs yet, so it has nothing."]
    if place is not None:
        words.append(f"It is number {place.place} on the node and {place.tenant_place} of its tenant {spec.tenant}.")
        words.append(f"It waits for {place.waiting_for}.")
    if obstacle is None:
        words.append("There is room for it: it starts when those that wait ahead of it have been served.")
        return {"queue": msgspec.to_builtins(place), "words": words, "enough": None, "room_makers": []}
    ahead = place.tenant_place - 1 if place is not None else 0
    words.append("What would let it in" + (f", after the {ahead} of its tenant ahead of it:" if ahead else ":"))
    enough = _enough(host, spec, promised, obstacle)
    if enough is not None:
        resource, amount = obstacle.details["resource"], format_of(obstacle.details["resource"], enough)
        words.append(
            f"  a {resource} reservation of {amount}: agentos-native set {spec.tenant}/{spec.name}"
            f" --{resource}-request {amount}"
        )
    makers = [other for other in promised if _obstacle(host, spec, _without(promised, other)) is None]
    names = [f"{other.tenant}/{other.name}" for other in makers]
    if names:
        more = f" or one of {len(names) - NAMED} more" if len(names) > NAMED else ""
        words.append(f"  the end of {' or '.join(names[:NAMED])}{more}")
    else:
        words.append("  the end of several agents: no single one reserves enough")
    words += _unused(host, spec, promised, str(obstacle.details.get("resource")))
    if str(obstacle.details.get("where", "")).startswith("tenant ") or obstacle.code == "tenant-full":
        words.append(f"  a higher limit of its tenant {spec.tenant}: agentos-native tenant set {spec.tenant} …")
    return {"queue": msgspec.to_builtins(place), "words": words, "enough": enough, "room_makers": names}


def _unused(host: Host, spec: AgentSpec, promised: list[AgentSpec], resource: str) -> list[str]:
    """Tenants of which each reserves so much more than its agents that it alone keeps `spec` out."""
    lines = []
    for name, tenant in host.tenants.items():
        without = msgspec.structs.replace(tenant, requests=msgspec.structs.replace(tenant.requests, cpu=0, memory=0))
        if name != spec.tenant and _obstacle(host, spec, promised, {**host.tenants, name: without}) is None:
            lines.append(
                f"  less of tenant {name}'s own reservation, which its agents do not use:"
                f" agentos-native tenant set {name} --{resource}-request …"
            )
    return lines


def format_of(resource: str, amount: int) -> str:
    """A quantity as users write it."""
    return format_cpu(amount) if resource == "cpu" else format_memory(amount)


def _without(promised: list[AgentSpec], one: AgentSpec) -> list[AgentSpec]:
    return [other for other in promised if other is not one]


def _obstacle(
    host: Host, spec: AgentSpec, promised: list[AgentSpec], tenants: Mapping[str, TenantSpec] | None = None
) -> AgentosError | None:
    try:
        admission.admit(spec, promised, host.tenants if tenants is None else tenants, host.capacity)
    except AgentosError as error:
        return error
    return None


def _enough(host: Host, spec: AgentSpec, promised: list[AgentSpec], obstacle: AgentosError) -> int | None:
    """How much of the resource that lacks could be reserved now."""
    resource, free = obstacle.details.get("resource"), int(obstacle.details.get("free", 0))
    if resource not in {"cpu", "memory"} or free <= 0:
        return None
    requests = msgspec.structs.replace(spec.resources.requests, **{resource: free})
    resources = msgspec.structs.replace(spec.resources, requests=requests)
    smaller = msgspec.structs.replace(spec, resources=resources)
    return free if _obstacle(host, smaller, promised) is None else None
