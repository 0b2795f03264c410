"""The figures behind one agent's share of CPU, level by level, so that each can be computed again from the others.

    machine → priorities of tenants → tenants of one priority → priorities of agents → agents of one priority → weight

Priorities: every one's floor first (scaled down alike where the floors do not fit), then from the highest downwards
what it wants, as long as something is left; under the policy ``priority`` floors do not come first. Of one priority:
``share = clip(weight · level, floor, ceiling)`` with ``Σ share = budget``; under ``drf`` the floor is what dominant
fairness promises; under ``utility`` that rule is for those of one weight (`margin`), the heavier have their ceiling
and the lighter their floor. The state says when there is no level: ``satisfied`` (everybody has its ceiling) or
``short`` (the floors do not fit: ``share = floor · budget / Σ floor``). The kernel's weight: the W-rule of
`agentos_native.alloc.weights`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from agentos_native import alloc
from agentos_native.alloc import TIERS, Trims
from agentos_native.alloc.hierarchy import HUNGRY
from agentos_native.alloc.siblings import COARSE
from agentos_native.alloc.waterfill import LARGE
from agentos_native.alloc.weights import HIGHEST, LOWEST, TINY
from agentos_native.spec.model import POLICIES, PRIORITIES, Policy
from agentos_native.supervisor.loop.whatif import Solved

Figures = dict[str, Any]
State = Literal["level", "margin", "satisfied", "short"]
CLOSE: Final = 1e-9
"""CPUs: nearer than this, a share is at its bound."""


def finite(value: float) -> float | None:
    """None for "no bound": JSON knows no infinity."""
    return float(value) if value < LARGE else None


def derive(solved: Solved, index: int, trims: Trims | None = None, told: Solved | None = None) -> Figures:
    """All figures for the agent at `index` of the problem.

    Args:
        trims: the corrections by which the kernel's weights are computed; None: there are none.
        told: of the same agents, what the kernel's weights follow from; its levels are ``awake`` below ``kernel``.
            None: `solved`.
    """
    awake = None if told is None else levels(told, index)
    kernel = _kernel(told or solved, _group(solved, index), index, trims)
    return {**levels(solved, index), "kernel": {**kernel, "awake": awake}}


def _group(solved: Solved, index: int) -> int:
    return int(np.searchsorted(solved.problem.starts, index, side="right")) - 1


def levels(solved: Solved, index: int) -> Figures:
    """The levels from the machine down to the agent at `index`, of any resource."""
    group = _group(solved, index)
    tenant, tier = divmod(group, TIERS)
    return {
        "machine": _machine(solved),
        "tenants": _tenants(solved, int(solved.problem.tenant_tier[tenant])),
        "priorities": _priorities(solved, tenant),
        "agents": _agents(solved, group),
        "tenant": solved.tenants[tenant].name,
        "tier": PRIORITIES[tier],
    }


def _rows(policy: Policy, floors: Sequence[float], wanted: Sequence[float], budgets: Sequence[float]) -> list[Figures]:
    """Priorities that have somebody in them, the highest first."""
    return [
        {
            "tier": PRIORITIES[tier],
            "floor": 0.0 if policy == "priority" else float(floor),
            "wanted": float(most),
            "budget": float(budget),
        }
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
        "policy": POLICIES[solved.problem.policy],
        "priorities": _rows(POLICIES[solved.problem.policy], floors, wanted, summed(solution.tenant_share)),
    }


def _level(policy: Policy, level: float, budget: float, members: list[Figures]) -> Figures:
    """How the members' shares follow from their floors and ceilings: state, level, and the weight at the margin."""
    by_level = policy in ("maxmin", "priority")
    full, floors = all(member["at"] == "ceiling" for member in members), sum(member["floor"] for member in members)
    if math.isinf(level) if by_level else full:
        return {"state": "satisfied", "level": None, "margin": None}
    if level <= 0 if by_level else budget <= floors * (1 + 1e-12):
        return {"state": "short", "level": None, "margin": None}
    if policy == "utility":
        served = [member for member in members if member["share"] > member["floor"] + CLOSE]
        if not served:  # what is left beyond the floors is less than anybody could notice
            return {"state": "short", "level": None, "margin": None}
        margin = min(member["weight"] for member in served)
        level = implied_level([member for member in members if member["weight"] == margin])
        return {"state": "margin", "level": level, "margin": margin}
    return {"state": "level", "level": level if by_level else implied_level(members), "margin": None}


def implied_level(members: Sequence[Figures]) -> float:
    """The level that the shares of `members` follow from."""
    for member in members:
        if member["at"] == "level":
            return float(member["share"] / member["weight"])
    full = [member for member in members if member["at"] == "ceiling" and member["floor"] < member["ceiling"]]
    return max((float(member["ceiling"] / member["weight"]) for member in full), default=0.0)


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
        own = slice(int(problem.starts[index * TIERS]), int(problem.starts[(index + 1) * TIERS]))
        share, floor, ceiling = (
            float(values[index]) for values in (solution.tenant_share, solution.tenant_floor, solution.tenant_wanted)
        )
        members.append(
            {
                "tenant": tenant.name,
                "weight": float(problem.tenant_weight[index]),
                "request": tenant.request,
                "limit": finite(tenant.limit),
                "agents_floor": float(np.minimum(problem.floor[own], solution.wanted[own]).sum()),
                "agents_wanted": float(solution.group_wanted[index].sum()),
                "floor": floor,
                "ceiling": ceiling,
                "share": share,
                "at": place(share, floor, ceiling),
            }
        )
    policy, budget = POLICIES[problem.policy], float(sum(member["share"] for member in members))
    return {
        "tier": PRIORITIES[tier],
        "policy": policy,
        "budget": budget,
        **_level(policy, float(solution.tenant_level[tier]), budget, members),
        "members": members,
    }


def _priorities(solved: Solved, tenant: int) -> Figures:
    """The tenant's share over the priorities of its agents."""
    solution = solved.solution
    rows = (solution.group_floor[tenant], solution.group_wanted[tenant], solution.group_share[tenant])
    floors, wanted, budgets = (values.tolist() for values in rows)
    policy = POLICIES[int(solved.problem.tenant_policies[tenant])]
    return {
        "capacity": float(solution.tenant_share[tenant]),
        "policy": policy,
        "priorities": _rows(policy, floors, wanted, budgets),
    }


def _agents(solved: Solved, group: int) -> Figures:
    """A priority's budget over its agents."""
    solution, problem = solved.solution, solved.problem
    members = []
    for index in range(int(problem.starts[group]), int(problem.starts[group + 1])):
        agent, share, ceiling = solved.agents[index], float(solution.share[index]), float(solution.wanted[index])
        floor = float(solution.promise[index])
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
    policy = POLICIES[int(problem.tenant_policies[group // TIERS])]
    budget = float(solution.group_share.ravel()[group])
    return {
        "policy": policy,
        "budget": budget,
        **_level(policy, float(solution.group_level[group]), budget, members),
        "members": members,
    }


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
    hungry = math.isfinite(level)
    reserved = sum(max(agent.request, 0.0) for agent in solved.agents[begin:end])
    weights = sum(float(agent.weight) for agent in solved.agents[begin:end])
    used = level if hungry else (max(budget + room, reserved) - reserved) / max(weights, TINY)
    used = 1.0 if used <= 0 and reserved <= 0 else used  # nothing to divide: by weight, should it come

    floors, held, asleep = [], [], []
    for i in range(begin, end):
        promise, wanted, share_of = (float(v[i]) for v in (solution.promise, solution.wanted, solution.share))
        request = max(solved.agents[i].request, 0.0)
        floors.append(max(request, promise) if hungry else request)
        held.append(share_of < wanted - HUNGRY and budget > 0)
        asleep.append(wanted < floors[-1] - HUNGRY and hungry and not held[-1])
    factor = _wake(solved, begin, budget, floors, asleep)
    members: list[Figures] = []
    for i, floor, held_back, sleeps in zip(range(begin, end), floors, held, asleep, strict=True):
        agent, trim, share_of = solved.agents[i], 1.0 if trims is None else float(trims.agent[i]), solution.share[i]
        claim = max(agent.weight * used, floor * (factor if sleeps else 1.0))
        rate = (float(share_of) if held_back else claim) * trim
        row = {"agent_id": agent.agent_id, "held": held_back, "asleep": sleeps, "trim": trim, "rate": rate}
        scale = float(share_of) if sleeps else rate
        members.append({**row, "plain": agent.weight * used, "floor": floor, "scale": scale})
    doublings = _doublings(used, members)
    unit = max(used, TINY) * 2.0**doublings
    agent, rate = solved.agents[index], float(members[index - begin]["rate"])
    plain = float(members[index - begin]["plain"])
    own = abs(rate - plain) <= plain * 1e-9  # its weight alone, which nothing has changed
    exact = rate / unit
    whole = round(exact) if own else math.ceil(exact - 1e-6)
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
        "own": own,
        "exact": exact,
        "members": members,
    }


def _doublings(level: float, members: Sequence[Figures]) -> int:
    """How often the unit of weight is doubled so that the highest rate fits below 10000, and then halved (as often as
    that still allows) so that whole numbers can say what is held below its own weight."""
    highest, unit = max(member["scale"] for member in members), max(level, TINY)
    steps = math.ceil(math.log2(max(highest / (unit * HIGHEST), 1.0)))
    unit *= 2.0**steps
    coarse = any(
        member["held"] and member["rate"] < min(member["plain"] * (1 - 1e-9), COARSE * unit) for member in members
    )
    return steps - math.floor(math.log2(max(HIGHEST * unit / max(highest, TINY), 1.0))) if coarse else steps


def _wake(solved: Solved, begin: int, budget: float, floors: Sequence[float], asleep: Sequence[bool]) -> float:
    """The factor on the floors of those that sleep: what gives them their floor when they wake."""
    sleepers = [offset for offset, sleeps in enumerate(asleep) if sleeps]
    others = max(budget - sum(float(solved.solution.share[begin + i]) for i in sleepers), TINY)
    left = budget - sum(floors[i] for i in sleepers)
    return min(max(others / max(left, TINY), 1.0), 100.0) if left > 0.01 * others else 100.0
