"""Explanations: every figure follows from the others, whatever the problem; and the words are words."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native import alloc
from agentos_native.alloc import Trims
from agentos_native.alloc.waterfill import Floats
from agentos_native.cgroup import GroupRef
from agentos_native.spec.model import POLICIES, PRIORITIES
from agentos_native.supervisor.loop.derivation import CLOSE, derive
from agentos_native.supervisor.loop.equations import equations
from agentos_native.supervisor.loop.explain import View, explain
from agentos_native.supervisor.loop.meter import Measured
from agentos_native.supervisor.loop.rows import build
from agentos_native.supervisor.loop.slots import Agent, Slots, Tenant
from agentos_native.supervisor.loop.whatif import Present

Figures = dict[str, Any]
CPUS = 4.0


def present(
    agents: list[tuple[str, str, int, float, float, float]], tenants: list[Tenant] | None = None, capacity: float = CPUS
) -> Present:
    """`agents`: tenant, tier, weight, request, limit, demand."""
    slots = Slots()
    for tenant in tenants or []:
        slots.set_tenant(tenant)
    demand = np.zeros(slots.capacity)
    for number, (owner, tier, weight, request, limit, wanted) in enumerate(agents):
        ref = GroupRef(owner, tier, f"{number:012x}")
        slot = slots.add(Agent(ref.agent_id, ref, -1, weight, request, limit)).slot
        demand[slot] = wanted
    return Present(slots, demand, capacity, CPUS)


def view(state: Present, trims: Trims | None = None) -> View:
    solved = state.solved()
    plan = state.slots.plan()
    count = len(plan.slots)
    used: Floats = solved.solution.share.copy()
    measured = Measured(used, np.zeros(count), 1.0, state.capacity, np.zeros(count, dtype=bool))
    usage = np.zeros(state.slots.capacity, dtype=np.int64)
    kernel = np.zeros(state.slots.capacity, dtype=np.int64)
    kernel[plan.slots] = alloc.kernel_weights(solved.problem, solved.solution, trims).agent
    return View(build(state.slots, solved.problem, solved.solution, measured, usage, kernel), state, trims)


def close(found: float, expected: float) -> bool:
    return found == pytest.approx(expected, rel=1e-7, abs=1e-8)


def or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def check_priorities(capacity: float, rows: list[Figures]) -> float:
    """Floors first, then from the highest what is wanted; returns what is used."""
    floors = sum(row["floor"] for row in rows)
    scale = min(1.0, capacity / floors) if floors > 0 else 1.0
    left = max(capacity - floors, 0.0)
    for row in rows:
        more = min(row["wanted"] - row["floor"] * scale, left)
        assert close(row["budget"], row["floor"] * scale + more)
        left -= more
    return float(sum(row["budget"] for row in rows))


def check_members(level: Figures) -> None:
    """Σ share = budget, and each share by the rule that the state names."""
    members = level["members"]
    floors = sum(member["floor"] for member in members)
    assert close(sum(member["share"] for member in members), level["budget"])
    for member in members:
        low, high, margin = member["floor"], member["ceiling"], level["margin"]
        if level["state"] == "satisfied" or (level["state"] == "margin" and member["weight"] > margin):
            expected = high
        elif level["state"] == "short":
            expected = low * level["budget"] / floors if floors else 0.0
        elif level["state"] == "margin" and member["weight"] < margin:
            expected = low
        else:
            expected = min(max(member["weight"] * level["level"], low), high)
        assert close(member["share"], expected), member
        assert member["at"] == (
            "ceiling"
            if member["share"] >= high - CLOSE
            else "floor"
            if member["share"] <= low + CLOSE
            else "level"
        )


def check_kernel(figures: Figures, agent_id: str) -> None:
    """The W-rule, from the figures of the level above it."""
    kernel, level = figures["kernel"], figures["agents"]
    by_id = {member["agent_id"]: member for member in level["members"]}
    if kernel["rule"] is None:  # ranks: only told
        assert level["policy"] == "utility"
        return
    own = next(member for member in figures["tenants"]["members"] if member["tenant"] == figures["tenant"])
    room = min(max(or_infinite(own["limit"]) - own["share"], 0.0), figures["machine"]["slack"])
    assert close(kernel["room"], room)
    reserved = sum(member["request"] for member in by_id.values())
    weights = sum(member["weight"] for member in by_id.values())
    used = kernel["level"]
    if level["state"] == "satisfied" and used != 1.0:
        assert close(used, (max(level["budget"] + room, reserved) - reserved) / weights)
    elif level["state"] == "level" and level["policy"] != "drf":
        assert close(used, level["level"])
    for member in kernel["members"]:
        other = by_id[member["agent_id"]]
        assert close(member["plain"], other["weight"] * used)
        claim = max(other["weight"] * used, member["floor"] * (kernel["wake"] if member["asleep"] else 1.0))
        assert close(member["rate"], (other["share"] if member["held"] else claim) * member["trim"])
        assert close(member["scale"], other["share"] if member["asleep"] else member["rate"])
        assert close(member["floor"], other["request"]) or close(member["floor"], other["floor"])
    if kernel["rule"] == "alone":
        assert len(by_id) == 1
        assert kernel["due"] == min(max(round(by_id[agent_id]["weight"]), 1), 10_000)
        return
    unit = max(used, 1e-12)
    highest = max(member["scale"] for member in kernel["members"])
    doublings = math.ceil(math.log2(max(highest / (unit * 10_000), 1.0)))
    told = [m for m in kernel["members"] if m["held"] and m["rate"] < m["plain"] * (1 - 1e-9)]
    if any(member["rate"] < 32 * unit * 2**doublings for member in told):  # too coarse: the unit is halved
        doublings -= math.floor(math.log2(10_000 * unit * 2**doublings / highest))
    assert kernel["doublings"] == doublings
    assert close(kernel["unit"], unit * 2 ** kernel["doublings"])
    assert kernel["exact"] == pytest.approx(kernel["rate"] / kernel["unit"])
    assert kernel["plain"] == pytest.approx(by_id[agent_id]["weight"] * used)
    whole = round(kernel["exact"]) if kernel["own"] else math.ceil(kernel["exact"] - 1e-6)
    assert kernel["due"] == min(max(whole, 1), 10_000)


def recompute(figures: Figures, agent_id: str) -> None:
    """Every figure of a derivation, from others of the same."""
    figures = json.loads(json.dumps(figures, allow_nan=False))
    machine, tenants, own = figures["machine"], figures["tenants"], figures["priorities"]
    used = check_priorities(machine["capacity"], machine["priorities"])
    assert close(machine["slack"], machine["capacity"] - used)
    assert close(
        tenants["budget"], next(row["budget"] for row in machine["priorities"] if row["tier"] == tenants["tier"])
    )
    check_members(tenants)
    for member in tenants["members"]:
        assert close(member["ceiling"], min(or_infinite(member["limit"]), member["agents_wanted"]))
        floor = min(max(member["request"], member["agents_floor"]), member["ceiling"])
        assert close(member["floor"], floor) or (tenants["policy"] == "drf" and member["floor"] > floor)
    tenant = next(member for member in tenants["members"] if member["tenant"] == figures["tenant"])
    assert close(own["capacity"], tenant["share"])
    assert close(check_priorities(own["capacity"], own["priorities"]), tenant["share"])
    assert close(sum(row["wanted"] for row in own["priorities"]), tenant["agents_wanted"])
    if own["policy"] in ("maxmin", "utility"):
        assert close(sum(row["floor"] for row in own["priorities"]), tenant["agents_floor"])
    level = figures["agents"]
    row = next(row for row in own["priorities"] if row["tier"] == figures["tier"])
    assert close(level["budget"], row["budget"])
    assert close(sum(member["ceiling"] for member in level["members"]), row["wanted"])
    floors = sum(member["floor"] for member in level["members"])
    assert close(floors, row["floor"]) or (own["policy"] == "priority" and row["floor"] == 0)
    check_members(level)
    for member in level["members"]:
        assert close(member["ceiling"], min(or_infinite(member["limit"]), or_infinite(member["demand"])))
        floor = min(member["request"], member["ceiling"])
        assert close(member["floor"], floor) or (level["policy"] == "drf" and member["floor"] > floor)
    check_kernel(figures, agent_id)


amounts = st.sampled_from([0.0, 0.05, 0.3, 1.0, 1.7, 4.0])
limits = st.sampled_from([math.inf, math.inf, 0.2, 1.0, 3.0])
agent_rows = st.tuples(
    st.sampled_from(["home", "work", "lab"]),
    st.sampled_from(PRIORITIES),
    st.sampled_from([1, 7, 100, 250, 10_000]),
    amounts,
    limits,
    st.floats(0.01, CPUS),
)
tenant_rows = st.builds(
    Tenant,
    name=st.sampled_from(["home", "work", "empty"]),
    weight=st.sampled_from([1, 100, 300]),
    tier=st.sampled_from([1, 2, 4]),
    request=amounts,
    limit=limits,
)


@settings(max_examples=150)
@given(
    st.lists(agent_rows, min_size=1, max_size=9), st.lists(tenant_rows, max_size=2), st.sampled_from([0.1, 2.0, 4.0])
)
def test_every_figure_follows_from_the_others(rows: Any, tenants: list[Tenant], capacity: float) -> None:
    state = present(rows, tenants, capacity)
    solved = state.solved()
    for index, agent in enumerate(solved.agents):
        figures = derive(solved, index)
        recompute(figures, agent.agent_id)
        text = equations(figures, agent.agent_id, None, str)
        assert all(line and not re.search(r"\b(nan|inf)\b", line) for line in text)


@settings(max_examples=100)
@given(st.lists(agent_rows, min_size=1, max_size=8), st.sampled_from(range(4)), st.sampled_from([0.3, 2.0]), st.data())
def test_other_policies_explain_themselves_too(rows: Any, policy: int, capacity: float, data: st.DataObject) -> None:
    solved = present(rows, capacity=capacity).solved()
    profile = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=len(rows), max_size=len(rows))))
    problem = replace(solved.problem, policy=policy, tenant_policy=None, profile=profile[:, None])
    solved = replace(solved, problem=problem, solution=alloc.solve(problem))
    for index, agent in enumerate(solved.agents):
        figures = derive(solved, index)
        assert figures["agents"]["policy"] == POLICIES[policy]
        recompute(figures, agent.agent_id)
        assert equations(figures, agent.agent_id, 1, str)


@settings(max_examples=60)
@given(st.lists(agent_rows, min_size=2, max_size=8), st.data())
def test_trims_are_in_the_figures(rows: Any, data: st.DataObject) -> None:
    state = present(rows)
    solved = state.solved()
    factors = data.draw(st.lists(st.sampled_from([0.5, 1.0, 1.3, 3.0]), min_size=len(rows), max_size=len(rows)))
    groups = solved.solution.group_share.shape
    trims = Trims(np.array(factors), np.ones(groups), np.ones(groups[0]))
    due = alloc.kernel_weights(solved.problem, solved.solution, trims).agent
    for index, agent in enumerate(solved.agents):
        figures = derive(solved, index, trims)
        assert figures["kernel"]["due"] == due[index]
        recompute(figures, agent.agent_id)


HOME = [
    ("home", "high", 100, 0.0, 0.3, 2.0),
    ("home", "normal", 200, 0.0, math.inf, 2.0),
    ("home", "normal", 100, 0.0, math.inf, 2.0),
    ("home", "normal", 100, 0.0, math.inf, 0.05),
    ("home", "low", 100, 0.15, math.inf, 2.0),
    ("security", "normal", 50, 0.3, math.inf, 2.0),
    ("security", "normal", 250, 0.0, math.inf, 2.0),
]
NAMES = ["thermostat", "assistant", "cleaner", "lamp", "habits", "cameras", "listener"]


def name(agent_id: str) -> str:
    return NAMES[int(agent_id, 16)]


def explained(number: int) -> Figures:
    state = present(HOME, [Tenant("home", weight=200, request=0.5)], capacity=2.0)
    return explain(f"{number:012x}", view(state), name)


def test_who_is_where() -> None:
    said = explained(1)
    assert said["bound"] == "share"
    assert [name(agent_id) for agent_id in said["at_level"]] == ["assistant", "cleaner"]
    assert [name(agent_id) for agent_id in said["content"]] == ["lamp"]
    assert [name(agent_id) for agent_id in said["higher"]] == ["thermostat"]
    assert [name(agent_id) for agent_id in explained(6)["lifted"]] == ["cameras"]
    words = "\n".join(said["words"])
    assert "assistant is entitled to 0.556 of 2.00 CPUs: others want the processor too" in words
    assert "at the level: assistant, cleaner" in words
    assert "below it, with all they want: lamp" in words
    assert len(said["words"]) < 40


@pytest.mark.parametrize(
    ("number", "bound"), [(0, "limit"), (1, "share"), (3, "demand"), (4, "request"), (5, "request"), (6, "share")]
)
def test_words_say_what_binds(number: int, bound: str) -> None:
    said = explained(number)
    assert said["bound"] == bound
    advice = "\n".join(said["words"])
    assert ("No change gives it more" in advice) == (bound == "demand")
    assert json.loads(json.dumps(said["derivation"], allow_nan=False)) == said["derivation"]


def test_a_remedy_does_what_it_says() -> None:
    said = explained(1)
    tried = {remedy["words"]: remedy for remedy in said["remedies"]}
    heavier = tried["weight 400 instead of 200"]
    changed = [*HOME]
    changed[1] = ("home", "normal", 400, 0.0, math.inf, 2.0)
    after = present(changed, [Tenant("home", weight=200, request=0.5)], capacity=2.0).entitled()
    assert heavier["after"] == pytest.approx(after[f"{1:012x}"])
    assert heavier["after"] > heavier["before"] == pytest.approx(said["entitled"])
    assert [name(loser["agent_id"]) for loser in heavier["at_cost_of"]] == ["cleaner"]
    assert heavier["patch"] == {"weight": 400}
    reserved = tried["a reservation of 850m"]
    assert reserved["after"] == pytest.approx(0.85)
    assert not tried["priority high instead of normal"]["live"]
    assert any(remedy["target"] == "tenant" and remedy["after"] > remedy["before"] for remedy in said["remedies"])


def test_a_limit_that_binds_is_seen_through() -> None:
    tried = {remedy["words"]: remedy for remedy in explained(0)["remedies"]}
    assert tried["weight 200 instead of 100"]["after"] == pytest.approx(0.3)
    assert tried["no limit instead of 300m"]["after"] > 0.9


def test_what_the_kernel_is_told_is_explained() -> None:
    said = explained(5)
    kernel = said["derivation"]["kernel"]
    assert not kernel["own"]
    assert kernel["due"] == said["kernel_weight"]
    assert any("its reservation lifts it" in line for line in said["words"])
    assert any(f"cpu.weight is {kernel['due']}, due {kernel['due']}" in line for line in said["equations"])


def test_another_policy_is_told_in_words() -> None:
    state = present(HOME, [Tenant("home", weight=200, request=0.5, policy=POLICIES.index("utility"))], capacity=2.0)
    heavy, light = (explain(f"{number:012x}", view(state), name) for number in (1, 2))
    assert heavy["entitled"] > light["entitled"] == 0.0
    words = "\n".join(light["words"])
    assert "divides by the policy utility: all to the heaviest" in words
    assert "heavier agents are served first" in words
    twice = next(remedy for remedy in light["remedies"] if remedy["words"] == "weight 200 instead of 100")
    assert twice["after"] > 0.2  # as heavy as the heaviest


def test_who_has_all_of_its_cpu_is_told_that_it_has_one_thread() -> None:
    """It waits, since the machine's own work takes a tenth of its CPU; no weight is proposed for that."""
    state = present([("home", "normal", 100, 0.0, math.inf, 0.9), ("home", "normal", 100, 0.0, math.inf, 0.5)])
    shown = view(state)
    rows = [replace(row, stalled=0.1, measured=0.9 if row.demand > 0.5 else 0.45) for row in shown.rows]
    said = explain("000000000000", replace(shown, rows=rows))["words"][-1]
    assert "each of its threads has what one CPU gives" in said
    said = explain("000000000001", replace(shown, rows=rows))["words"][-1]
    assert "each of its threads" not in said
