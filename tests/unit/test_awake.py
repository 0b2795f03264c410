"""Weights are told for the reservations of who was awake lately, not only for the demand of the last tick."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from agentos_native.alloc import Inputs, Outcome, Problem, Solution, Warm, demand, kernel_weights, solve, turn
from agentos_native.alloc.waterfill import Floats
from agentos_native.cgroup import GroupRef
from agentos_native.supervisor.loop.derivation import derive
from agentos_native.supervisor.loop.equations import equations
from agentos_native.supervisor.loop.explain import explain
from agentos_native.supervisor.loop.slots import Agent, Slots
from agentos_native.supervisor.loop.whatif import Present
from tests.kernelmodel import Group
from tests.unit.test_explain import check_kernel, view

CAPACITY = 1.7
"""Of `tools/bench loop`: three who talk, each with 0.4 reserved, and two other tenants' hogs."""
TALKS, HOGS = 3, 4


def slots() -> Slots:
    made = Slots()
    for number in range(TALKS + HOGS):
        tenant = "home" if number < TALKS else f"guests{number % 2}"
        request = 0.4 if number < TALKS else 0.0
        ref = GroupRef(tenant, "normal", f"{number:012x}")
        made.add(Agent(ref.agent_id, ref, -1, 100, request, math.inf))
    return made


def outcome(wants: list[float], lately: Floats | None) -> Outcome:
    """One turn; `wants`: of those who talk."""
    one = slots().problem(CAPACITY, in_order([*wants, *([2.0] * HOGS)]))
    return turn(Inputs(one, Warm(), lately=lately))


def in_order(values: list[float]) -> Floats:
    """By the plan's order, which is that of the tenants' names; those who talk come last."""
    return np.array([*values[TALKS:], *values[:TALKS]])


def kernel(told: Outcome, wants: list[float]) -> list[float]:
    """What those who talk would use by these weights if they wanted so much now."""
    root = Group(children={f"guests{n}": Group(weight=float(told.weights.tenant[n])) for n in range(2)})
    for number in range(HOGS):
        root.children[f"guests{number % 2}"].children[str(number)] = Group(want=2.0)
    home = root.children["home"] = Group(weight=float(told.weights.tenant[2]))
    for number, want in enumerate(wants):
        home.children[str(number)] = Group(weight=float(told.weights.agent[HOGS + number]), want=want)
    root.fill(CAPACITY)
    return [child.share for child in home.children.values()]


def test_a_burst_that_begins_between_two_ticks_finds_its_reservation() -> None:
    """One has talked without end, so its tenant has no more than its share by weight, when the others begin."""
    wants = [1.0, 0.05, 0.05]
    without = kernel(outcome(wants, None), [1.0, 1.0, 1.0])
    assert min(without) < 0.3  # as it would be
    lately = in_order([1.0, 0.9, 0.6, *([2.0] * HOGS)])
    shares = kernel(outcome(wants, lately), [1.0, 1.0, 1.0])
    assert min(shares) >= 0.4 * 0.99
    assert kernel(outcome(wants, lately), wants)[1:] == pytest.approx([0.05, 0.05])


def test_shares_are_those_of_the_present_demand_all_the_same() -> None:
    wants = [1.0, 0.05, 0.05]
    lately = in_order([1.0, 0.9, 0.6, *([2.0] * HOGS)])
    assert np.array_equal(outcome(wants, lately).solution.share, outcome(wants, None).solution.share)


def test_who_slept_for_long_does_not_count() -> None:
    """Else the one that never sleeps would have the others' reservations for good."""
    most = demand.lately(np.array([1.0, 0.9, 0.6]), np.array([1.0, 0.0, 0.0]), 300.0)
    lately = in_order([*most.tolist(), *([2.0] * HOGS)])
    wants = [1.0, 0.0, 0.0]
    told, plain = outcome(wants, lately).weights, outcome(wants, None).weights
    assert np.array_equal(told.tenant, plain.tenant)


@pytest.mark.parametrize("wrong", [math.nan, -1.0, math.inf, -math.inf])
def test_memory_that_went_wrong_is_forgotten(wrong: float) -> None:
    most = demand.lately(np.full(3, wrong), np.array([0.2, 0.1, 0.0]), 1.0)
    assert np.isfinite(most).all() or wrong == math.inf
    assert np.isfinite(demand.awake(np.array([0.2, 0.1, 0.0]), np.full(3, 0.4), most)).all()


def test_an_explanation_tells_what_the_weight_follows_from() -> None:
    """Its figures are those of the problem that weights are told for, and can be recomputed from them."""
    made = slots()
    present = Present(made, np.zeros(made.capacity), CAPACITY, 2.0)
    present.demand[: TALKS + HOGS] = [1.0, 0.05, 0.05, *([2.0] * HOGS)]
    awake = replace(present, demand=np.maximum(present.demand, made.request))
    solved, told = present.solved(), awake.solved()
    due = kernel_weights(told.problem, told.solution).agent
    for index, agent in enumerate(solved.agents):
        figures = derive(solved, index, told=told)
        assert figures["kernel"]["due"] == due[index]
        check_kernel({**figures, **figures["kernel"]["awake"]}, agent.agent_id)
        assert any(line.startswith("for the kernel: as if") for line in equations(figures, agent.agent_id, 1, str))
    assert figures["tenants"]["members"] != figures["kernel"]["awake"]["tenants"]["members"]
    said = explain(f"{0:012x}", replace(view(present), awake=awake))
    assert said["derivation"]["kernel"]["awake"] is not None
    assert explain(f"{0:012x}", view(present))["derivation"]["kernel"]["awake"] is None


def test_nothing_is_solved_twice_when_nobody_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[Problem] = []

    def counting(problem: Problem, warm: Warm) -> Solution:
        solved.append(problem)
        return solve(problem, warm)

    monkeypatch.setitem(turn.__globals__, "solve", counting)
    outcome([1.0, 1.0, 1.0], in_order([2.0] * (TALKS + HOGS)))
    assert len(solved) == 1
    outcome([1.0, 1.0, 0.0], in_order([2.0] * (TALKS + HOGS)))
    assert len(solved) == 3
