"""What would be if: the same as really doing it; and who is told about it."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.cgroup import GroupRef
from agentos_native.spec.model import PRIORITIES, AgentSpec, Limits, Requests, Resources, TenantLimits, TenantSpec
from agentos_native.supervisor.loop.remedies import remedies, spec_of
from agentos_native.supervisor.loop.slots import Agent, Slots
from agentos_native.supervisor.loop.whatif import Change, Moved, Present, agent_of, moved, tenant_of

CPUS = 4.0


def spec(tenant: str, tier: Any, weight: int, request: int, limit: int | None) -> AgentSpec:
    resources = Resources(requests=Requests(cpu=request), limits=Limits(cpu=limit))
    return AgentSpec(name="x", image="", tenant=tenant, priority=tier, weight=weight, resources=resources)


def present(specs: dict[str, AgentSpec], demand: dict[str, float], tenants: list[TenantSpec]) -> Present:
    """Made from nothing, as if it had always been so."""
    slots = Slots()
    for tenant in tenants:
        slots.set_tenant(tenant_of(tenant))
    wanted = np.zeros(slots.capacity)
    for agent_id, one in specs.items():
        wanted[slots.add(agent_of(agent_id, one)).slot] = demand.get(agent_id, CPUS)
    return Present(slots, wanted, CPUS, CPUS)


specs = st.builds(
    spec,
    tenant=st.sampled_from(["home", "work"]),
    tier=st.sampled_from(PRIORITIES),
    weight=st.sampled_from([1, 100, 300]),
    request=st.sampled_from([0, 100, 900]),
    limit=st.sampled_from([None, 950, 2000]),
)
tenants = st.builds(
    TenantSpec,
    name=st.sampled_from(["home", "work"]),
    weight=st.sampled_from([50, 100]),
    priority=st.sampled_from(["normal", "low"]),
    limits=st.builds(TenantLimits, cpu=st.sampled_from([None, 1000])),
)
ids = st.sampled_from([f"{number:012x}" for number in range(6)])


@settings(max_examples=200)
@given(
    st.dictionaries(ids, specs, min_size=1),
    st.dictionaries(ids, st.floats(0.01, CPUS)),
    st.dictionaries(ids, specs),
    st.lists(tenants, max_size=1),
    st.sets(ids),
)
def test_the_answer_is_what_doing_it_gives(
    now: dict[str, AgentSpec],
    demand: dict[str, float],
    then: dict[str, AgentSpec],
    owners: list[TenantSpec],
    gone: set[str],
) -> None:
    gone -= then.keys()
    demand = {agent_id: wanted for agent_id, wanted in demand.items() if agent_id in now}
    state = present(now, demand, [])
    before = state.entitled()
    change = Change(then, {owner.name: owner for owner in owners}, gone)
    guessed = state.entitled(change)
    done = {agent_id: one for agent_id, one in {**now, **then}.items() if agent_id not in gone}
    assert guessed == pytest.approx(present(done, demand, owners).entitled(), abs=1e-9)
    assert state.entitled() == before  # nothing has been changed


def test_gainers_come_first_and_noise_is_not_told() -> None:
    before = {"a": 1.0, "b": 1.0, "c": 0.5, "gone": 0.3, "same": 0.2}
    after = {"a": 0.4, "b": 1.2, "c": 0.5001, "new": 0.9, "same": 0.2}
    assert moved("cpu", before, after) == [
        Moved("new", "cpu", 0.0, 0.9),
        Moved("b", "cpu", 1.0, 1.2),
        Moved("a", "cpu", 1.0, 0.4),
        Moved("gone", "cpu", 0.3, 0.0),
    ]
    assert moved("memory", {"a": 1e9}, {"a": 1e9 + 4096}) == []


def test_a_new_agent_may_have_all_that_it_can() -> None:
    state = present({"0" * 12: spec("home", "normal", 100, 0, None)}, {}, [])
    after = state.entitled(Change({"1" * 12: spec("home", "normal", 300, 0, 2500)}))
    assert after == pytest.approx({"0" * 12: 1.5, "1" * 12: 2.5})
    many = {f"{number:012x}": spec("home", "normal", 100, 0, None) for number in range(1, 101)}
    assert len(state.entitled(Change(many))) == 101  # more than the slots there were


def test_another_priority_is_another_group() -> None:
    two = {"0" * 12: spec("home", "normal", 100, 0, None), "1" * 12: spec("home", "normal", 100, 0, None)}
    lifted = msgspec.structs.replace(two["0" * 12], priority="high")
    assert present(two, {}, []).entitled(Change({"0" * 12: lifted})) == pytest.approx({"0" * 12: CPUS, "1" * 12: 0.0})


@settings(max_examples=50)
@given(st.dictionaries(ids, specs, min_size=1), st.dictionaries(ids, st.floats(0.01, CPUS)))
def test_every_remedy_can_be_taken_at_its_word(now: dict[str, AgentSpec], demand: dict[str, float]) -> None:
    demand = {agent_id: wanted for agent_id, wanted in demand.items() if agent_id in now}
    state = present(now, demand, [])
    solved = state.solved()
    for index, agent in enumerate(solved.agents):
        for remedy in remedies(state, solved, index):
            assert remedy.before == pytest.approx(float(solved.solution.share[index]))
            if remedy.target == "agent":
                asked = dict(remedy.patch)
                limits = {**asked.pop("resources", {}).get("limits", {})}
                done = msgspec.structs.replace(now[agent.agent_id], **asked)
                if "cpu" in limits:
                    done = msgspec.structs.replace(done, resources=Resources(requests=done.resources.requests))
                if "resources" not in remedy.patch or limits:
                    after = present({**now, agent.agent_id: done}, demand, []).entitled()
                    assert remedy.after == pytest.approx(after[agent.agent_id], abs=1e-9)
            assert all(loser["after"] < loser["before"] for loser in remedy.at_cost_of)


def test_specs_and_slots_say_the_same() -> None:
    for limit in (None, 1500):
        agent = agent_of("a" * 12, spec("home", "low", 7, 250, limit), slot=3)
        ceiling = limit / 1000 if limit else math.inf
        assert agent == Agent("a" * 12, GroupRef("home", "low", "a" * 12), 3, 7, 0.25, ceiling, "task")
        assert agent_of(agent.agent_id, spec_of(agent), slot=3) == agent
