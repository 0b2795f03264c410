"""The figures behind one agent's share of CPU, level by level, so that each can be computed again from the others.

    machine → priorities of tenants → tenants of one priority → priorities of agents → agents of one priority → weight

Three rules suffice. Priorities: every one's floor first (scaled down alike where the floors do not fit), then from the
highest downwards what it wants, as long as something is left. Members of one priority by ``maxmin``:
``share = clip(weight · level, floor, ceiling)`` with ``Σ share = budget``; the state says when there is no level:
``satisfied`` (everybody has its ceiling) or ``short`` (the floors do not fit: ``share = floor · budget / Σ floor``).
The kernel's weight: the W-rule of `agentos_native.alloc.weights`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from agentos_native import alloc
from agentos_native.alloc import TIERS, Trims
from agentos_native.alloc.hierarchy import HUNGRY
from agentos_native.alloc.waterfill import LARGE
from agentos_native.alloc.weights import HIGHEST, LOWEST, TINY
from agentos_native.spec.model import PRIORITIES
from agentos_native.supervisor.loop.whatif import Solved

Figures = dict[str, Any]
State = Literal["level", "satisfied", "short"]
CLOSE: Final = 1e-9
"""CPUs: nearer than this, a share is at its bound."""


def finite(value: float) -> float | None:
    """None for "no bound": JSON knows no infinity."""
    return float(value) if value < LARGE else None


def derive(solved: Solved, index: int, trims: Trims | None = None) -> Figures:
    """All figures for the agent at `index` of the problem.

    Args:
        trims: the corrections by which the kernel's weights are computed; None: there are none.
    """
    group = int(np.searchsorted(solved.problem.starts, index, side="right")) - 1
    tenant, tier = divmod(group, TIERS)
    return {
        "machine": _machine(solved),
        "tenants": _tenants(solved, int(solved.problem.tenant_tier[tenant])),
        "priorities": _priorities(solved, tenant),
        "agents": _agents(solved, group),
        "kernel": _kernel(solved, group, index, trims),
        "tenant": solved.tenants[tenant].name,
        "tier": PRIORITIES[tier],
    }


def _rows(floors: Sequence[float], wanted: Sequence[float], budgets: Sequence[float]) -> list[Figures]:
    """Priorities that have somebody in them, the highest first."""
    return [
        {"tier": PRIORITIES[tier], "floor": float(floor), "wanted": float(most), "budget": float(budget)}
        for tier, (floor, most, budget) in enumerate(zip(floors, wanted, budgets, strict=True))
        if most > 0 or floor > 0
    ]


def _machine(solved: Solved) -> Figures:
    """The capacity over the priorities of tenants."""
    solution, tiers = solved.solution, solved.problem.tenant_tier

    def summed(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
        return [float(values[tiers == tier].sum()) for tier in range(TIERS)]

    floors, wanted = summed(solution.tenant_floor), summed(solution.tenant_wanted)
    return {
        "capacity": float(solution.capacity),
        "slack": float(solution.slack),
        "priorities": _rows(floors, wanted, summed(solution.tenant_share)),
    }


def _level(level: float) -> tuple[State, float | None]:
    if math.isinf(level):
        return "satisfied", None
    return ("level", float(level)) if level > 0 else ("short", None)


def place(share: float, floor: float, ceiling: float) -> Literal["ceiling", "floor", "level"]:
    """Which part of ``clip(weight · level, floor, ceiling)`` decides."""
    if share >= ceiling - CLOSE:
        return "ceiling"
    return "floor" if share <= floor + CLOSE else "level"


def _tenants(solved: Solved, tier: int) -> Figures:
    """The budget of one priority of tenants over its members that have agents (the others take nothing)."""
    solution, problem = solved.solution, solved.problem
    members: list[Figures] = []
    for index in np.flatnonzero((problem.tenant_tier == tier) & (solution.tenant_wanted > 0)).tolist():
        tenant = solved.tenants[index]
        share, floor, ceiling = (
            float(values[index]) for values in (solution.tenant_share, solution.tenant_floor, solution.tenant_wanted)
        )
        members.append(
            {
                "tenant": tenant.name,
                "weight": float(problem.tenant_weight[index]),
                "request": tenant.request,
                "limit": finite(tenant.limit),
                "agents_floor": float(solution.group_floor[index].sum()),
                "agents_wanted": float(solution.group_wanted[index].sum()),
                "floor": floor,
                "ceiling": ceiling,
                "share": share,
                "at": place(share, floor, ceiling),
            }
        )
    state, level = _level(float(solution.tenant_level[tier]))
    return {
        "tier": PRIORITIES[tier],
        "budget": float(sum(member["share"] for member in members)),
        "state": state,
        "level": level,
        "members": members,
    }


def _priorities(solved: Solved, tenant: int) -> Figures:
    """The tenant's share over the priorities of its agents."""
    solution = solved.solution
    rows = (solution.group_floor[tenant], solution.group_wanted[tenant], solution.group_share[tenant])
    floors, wanted, budgets = (values.tolist() for values in rows)
    return {"capacity": float(solution.tenant_share[tenant]), "priorities": _rows(floors, wanted, budgets)}


def _agents(solved: Solved, group: int) -> Figures:
    """A priority's budget over its agents."""
    solution, problem = solved.solution, solved.problem
    members = []
    for index in range(int(problem.starts[group]), int(problem.starts[group + 1])):
        agent, share, ceiling = solved.agents[index], float(solution.share[index]), float(solution.wanted[index])
        floor = min(max(agent.request, 0.0), ceiling)
        members.append(
            {
                "agent_id": agent.agent_id,
                "weight": float(agent.weight),
                "request": agent.request,
                "limit": finite(agent.limit),
                "demand": finite(float(problem.demand[index])),
                "floor": floor,
                "ceiling": ceiling,
                "share": share,
                "at": place(share, floor, ceiling),
            }
        )
    state, level = _level(float(solution.group_level[group]))
    return {"budget": float(solution.group_share.ravel()[group]), "state": state, "level": level, "members": members}


def _kernel(solved: Solved, group: int, index: int, trims: Trims | None) -> Figures:
    """The weight that the kernel is to be told; its figures where the W-rule alone decides it."""
    due = int(alloc.kernel_weights(solved.problem, solved.solution, trims).agent[index])
    figures = w_rule(solved, group, index, trims)
    return {"due": due, **(figures if figures["weight"] == due else {"rule": None})}


def w_rule(solved: Solved, group: int, index: int, trims: Trims | None) -> Figures:
    """The W-rule within one group, step by step, and the weight it comes to for the agent at `index`."""
    solution, problem = solved.solution, solved.problem
    begin, end = int(problem.starts[group]), int(problem.starts[group + 1])
    tenant = group // TIERS
    limit = float(problem.tenant_ceiling[tenant])
    budget, share = float(solution.group_share.ravel()[group]), float(solution.tenant_share[tenant])
    room = min(max(limit - share, 0.0), float(solution.slack))
    level = float(solution.group_level[group])
    reserved = sum(max(agent.request, 0.0) for agent in solved.agents[begin:end])
    weights = sum(float(agent.weight) for agent in solved.agents[begin:end])
    used = level if math.isfinite(level) else (max(budget + room, reserved) - reserved) / max(weights, TINY)

    requests = [agent.request for agent in solved.agents[begin:end]]
    wanted = solution.wanted[begin:end].tolist()
    asleep = [math.isfinite(level) and w < lo - HUNGRY for w, lo in zip(wanted, requests, strict=True)]
    factor = _wake(solved, begin, budget, asleep)
    members: list[Figures] = []
    for i, sleeps in zip(range(begin, end), asleep, strict=True):
        agent, trim = solved.agents[i], 1.0 if trims is None else float(trims.agent[i])
        plain, floor = agent.weight * used, max(agent.request, 0.0) * (factor if sleeps else 1.0)
        rate = max(plain, floor) * trim
        scale = float(solution.share[i]) if sleeps else rate
        members.append({"agent_id": agent.agent_id, "asleep": sleeps, "trim": trim, "rate": rate, "scale": scale})
    highest: float = max(member["scale"] for member in members)
    doublings = math.ceil(math.log2(max(highest / (max(used, TINY) * HIGHEST), 1.0)))
    unit = max(used, TINY) * 2.0**doublings
    agent, rate = solved.agents[index], float(members[index - begin]["rate"])
    plain = agent.weight * used
    lifted = rate > plain * (1 + 1e-9)
    exact = rate / unit
    whole = math.ceil(exact - 1e-6) if lifted else round(exact)
    alone = end - begin == 1
    return {
        "rule": "alone" if alone else "w-rule",
        "weight": min(max(round(agent.weight) if alone else whole, LOWEST), HIGHEST),
        "level": used,
        "room": room,
        "wake": factor,
        "doublings": doublings,
        "unit": unit,
        "plain": plain,
        "rate": rate,
        "lifted": lifted,
        "exact": exact,
        "members": members,
    }


def _wake(solved: Solved, begin: int, budget: float, asleep: Sequence[bool]) -> float:
    """The factor on the floors of those that sleep: what gives them their floor when they wake."""
    sleepers = [begin + offset for offset, sleeps in enumerate(asleep) if sleeps]
    others = max(budget - sum(float(solved.solution.share[i]) for i in sleepers), TINY)
    left = budget - sum(solved.agents[i].request for i in sleepers)
    return min(max(others / max(left, TINY), 1.0), 100.0) if left > 0.01 * others else 100.0
