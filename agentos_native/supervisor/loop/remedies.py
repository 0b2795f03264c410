"""What would give an agent more CPU: changes of its spec or its tenant's, each tried by solving the problem again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from agentos_native.spec.model import (
    POLICIES,
    PRIORITIES,
    AgentSpec,
    Limits,
    Requests,
    Resources,
    TenantLimits,
    TenantSpec,
)
from agentos_native.spec.quantities import format_cpu
from agentos_native.supervisor.loop.slots import Agent, Tenant
from agentos_native.supervisor.loop.whatif import Change, Present, Solved, moved

HIGHEST_WEIGHT: Final = 10_000
STEP: Final = 50
"""Millicores: reservations are proposed in such steps."""


@dataclass(frozen=True)
class Remedy:
    """A change and what it would do.

    Attributes:
        words: the change, for example ``weight 200 instead of 100``.
        target: whose spec it changes, "agent" or "tenant"; `patch` is what would be different in it, as users write it.
        live: whether `set` can do it; otherwise an edited document, applied, makes the agent anew.
        before, after: CPUs.
        at_cost_of: who would have less, and how much: agent_id, before, after.
    """

    words: str
    target: str
    patch: dict[str, Any]
    live: bool
    before: float
    after: float
    at_cost_of: list[dict[str, Any]]


@dataclass(frozen=True)
class _Candidate:
    words: str
    target: str
    patch: dict[str, Any]
    change: Change
    live: bool = True


def _millis(cpus: float) -> int | None:
    return round(cpus * 1000) if math.isfinite(cpus) else None


def spec_of(agent: Agent) -> AgentSpec:
    """As much of an agent's spec as the division of CPU goes by."""
    resources = Resources(requests=Requests(cpu=_millis(agent.request) or 0), limits=Limits(cpu=_millis(agent.limit)))
    tier = PRIORITIES[agent.tier]
    return AgentSpec(
        name=agent.agent_id, tenant=agent.ref.tenant, image="", priority=tier, weight=agent.weight, resources=resources
    )


def _tenant_spec(tenant: Tenant) -> TenantSpec:
    return TenantSpec(
        name=tenant.name,
        weight=tenant.weight,
        priority=PRIORITIES[tenant.tier],
        policy=None if tenant.policy is None else POLICIES[tenant.policy],
        requests=Requests(cpu=_millis(tenant.request) or 0),
        limits=TenantLimits(cpu=_millis(tenant.limit)),
    )


def _of_agent(agent: Agent, share: float, cpus: float) -> Iterator[_Candidate]:
    """Changes of the agent's own spec."""
    spec = spec_of(agent)
    requests, limits = spec.resources.requests, spec.resources.limits

    def candidate(words: str, patch: dict[str, Any], changed: AgentSpec, live: bool = True) -> _Candidate:
        return _Candidate(words, "agent", patch, Change({agent.agent_id: changed}), live)

    if agent.weight < HIGHEST_WEIGHT:
        weight = min(2 * agent.weight, HIGHEST_WEIGHT)
        changed = msgspec.structs.replace(spec, weight=weight)
        yield candidate(f"weight {weight} instead of {agent.weight}", {"weight": weight}, changed)
    wished = math.ceil(max(1.5 * share, share + 0.05, agent.request + 0.05) * 1000 / STEP) * STEP
    wished = min(wished, limits.cpu or wished, round(cpus * 1000))
    if wished > requests.cpu:
        changed = replace_resources(spec, requests=Requests(cpu=wished))
        patch = {"resources": {"requests": {"cpu": format_cpu(wished)}}}
        was = f" instead of {format_cpu(requests.cpu)}" if requests.cpu else ""
        yield candidate(f"a reservation of {format_cpu(wished)}{was}", patch, changed)
    if limits.cpu is not None:
        changed = replace_resources(spec, limits=Limits())
        words = f"no limit instead of {format_cpu(limits.cpu)}"
        yield candidate(words, {"resources": {"limits": {"cpu": None}}}, changed)
    if agent.tier > 0:
        tier = PRIORITIES[agent.tier - 1]
        changed = msgspec.structs.replace(spec, priority=tier)
        yield candidate(f"priority {tier} instead of {spec.priority}", {"priority": tier}, changed, live=False)


def replace_resources(spec: AgentSpec, **parts: Any) -> AgentSpec:
    """`spec` with other requests or limits."""
    return msgspec.structs.replace(spec, resources=msgspec.structs.replace(spec.resources, **parts))


def _of_tenant(tenant: Tenant) -> Iterator[_Candidate]:
    """Changes of its tenant's."""

    def candidate(words: str, patch: dict[str, Any], changed: Tenant) -> _Candidate:
        return _Candidate(words, "tenant", patch, Change(tenants={tenant.name: _tenant_spec(changed)}))

    if tenant.weight < HIGHEST_WEIGHT:
        weight = min(2 * tenant.weight, HIGHEST_WEIGHT)
        words = f"tenant weight {weight} instead of {tenant.weight}"
        yield candidate(words, {"weight": weight}, replace(tenant, weight=weight))
    limit = _millis(tenant.limit)
    if limit is not None:
        words = f"no limit of the tenant instead of {format_cpu(limit)}"
        yield candidate(words, {"limits": {"cpu": None}}, replace(tenant, limit=float("inf")))


def remedies(present: Present, solved: Solved, index: int) -> list[Remedy]:
    """Every change that is tried for the agent at `index`, also those that do nothing."""
    agent = solved.agents[index]
    before = solved.entitled()
    tenant = next(tenant for tenant in solved.tenants if tenant.name == agent.ref.tenant)
    made = []
    for candidate in (*_of_agent(agent, before[agent.agent_id], present.cpus), *_of_tenant(tenant)):
        after = present.entitled(candidate.change)
        losers = [
            {"agent_id": row.agent_id, "before": row.before, "after": row.after}
            for row in moved("cpu", before, after)
            if row.after < row.before and row.agent_id != agent.agent_id
        ]
        made.append(
            Remedy(
                words=candidate.words,
                target=candidate.target,
                patch=candidate.patch,
                live=candidate.live,
                before=before[agent.agent_id],
                after=after[agent.agent_id],
                at_cost_of=losers,
            )
        )
    return made
