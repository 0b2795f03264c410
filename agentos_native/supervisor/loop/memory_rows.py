"""What the memory loop tells of each agent, and how specs and carried state become its arrays."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Final

import numpy as np

from agentos_native.alloc.hierarchy import HUNGRY
from agentos_native.alloc.memory import UNIT, Figures, Outcome, Reclaim, State
from agentos_native.alloc.waterfill import Indices
from agentos_native.cgroup import GroupRef
from agentos_native.spec.model import PRIORITIES, AgentSpec, TenantSpec
from agentos_native.supervisor.loop.controllers import Member
from agentos_native.supervisor.loop.slots import Agent, Tenant

EVENT_FIGURES: Final = ("high", "measured", "working_set", "demand", "entitled", "stalled", "refaults", "capacity")
"""Of a row, what goes into an event."""


def row(
    index: int, agent: Agent, figures: Figures, outcome: Outcome, written: float, reclaimed: float, kills: int
) -> dict[str, Any]:
    """One agent's figures; `written`: what ``memory.high`` holds (∞: ``max``, negative: not known)."""
    known = bool(np.isfinite(figures.current[index]))
    return {
        "request": round(agent.request * UNIT),
        "limit": _whole(agent.limit * UNIT),
        "demand": _whole(outcome.wanted[index]) if known else None,
        "entitled": _whole(outcome.share[index]) if known else None,
        "measured": _whole(figures.current[index]),
        "bound": _bound(index, agent, outcome) if known else None,
        "working_set": _whole(outcome.working_set[index]) if known else None,
        "high": _whole(written) if written >= 0 else None,
        "stalled": _finite(figures.stalled[index]),
        "refaults": _finite(figures.refaults[index]),
        "squeezed": bool(outcome.squeezed[index]) and known,
        "idle": bool(figures.idle[index]),
        "reclaimed": round(reclaimed),
        "oom_kills": max(kills, 0),
        "capacity": round(outcome.capacity),
    }


def note(index: int, figures: Figures, outcome: Outcome, *, present: bool, enforced: bool) -> str:
    """What the figures do not say."""
    if not present:
        return "not enforced: cgroup v2 has no memory controller on this host"
    if not np.isfinite(figures.current[index]):
        return "not measured yet, or its group is gone"
    if not enforced:
        return "not moved: memory is not among the resources to control"
    if outcome.squeezed[index] and outcome.state.high[index] > outcome.share[index] * 1.02:
        return "above its share: memory is taken back slowly, and not at all what only swap could take"
    if outcome.trimmed[index]:
        return "has all it needs; of its cache, what goes beyond its fair share is taken for others"
    return ""


def _bound(index: int, agent: Agent, outcome: Outcome) -> str:
    """As `rows.AllocationRow.bound`."""
    if not outcome.squeezed[index]:
        return "limit" if outcome.wanted[index] >= agent.limit * UNIT * (1 - HUNGRY) else "demand"
    return "request" if outcome.share[index] <= agent.request * UNIT * (1 + HUNGRY) else "share"


def agent_of(agent_id: str, member: Member) -> Agent:
    return changed_agent(Agent(agent_id, member.ref, -1, 0, 0.0, 0.0), member.spec)


def changed_agent(agent: Agent, spec: AgentSpec | None) -> Agent:
    """The agent with another spec's figures, in the allocator's unit."""
    if spec is None:
        return agent
    requests, limits = spec.resources.requests, spec.resources.limits
    ref = GroupRef(agent.ref.tenant, spec.priority, agent.agent_id)
    limit = np.inf if limits.memory is None else limits.memory / UNIT
    return replace(agent, ref=ref, weight=spec.weight, request=requests.memory / UNIT, limit=limit)


def tenant_of(spec: TenantSpec) -> Tenant:
    limit = np.inf if spec.limits.memory is None else spec.limits.memory / UNIT
    return Tenant(spec.name, spec.weight, PRIORITIES.index(spec.priority), spec.requests.memory / UNIT, limit)


def joined(first: State | Reclaim, second: State | Reclaim) -> list[Any]:
    return [np.append(getattr(first, part.name), getattr(second, part.name)) for part in fields(first)]


def taken_of(state: State | Reclaim, slots: Indices) -> list[Any]:
    return [getattr(state, part.name)[slots] for part in fields(state)]


def put(state: State | Reclaim, slots: Indices, values: State | Reclaim) -> None:
    for part in fields(state):
        getattr(state, part.name)[slots] = getattr(values, part.name)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _whole(value: float) -> int | None:
    return round(float(value)) if np.isfinite(value) else None


def text_of(value: float) -> str:
    return "max" if np.isinf(value) else str(round(value))
