"""Tenants, tiers and agents: what each level is promised, and that the kernel arrives there by the weights written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from agentos_native.alloc import (
    TIERS,
    Problem,
    Warm,
    Weights,
    kernel_weights,
    load_compiled,
    solve,
    use_numpy,
)
from tests.treeproblems import HIGH, IDLE, INF, LOW, NORMAL, SYSTEM, A, T, by_the_kernel, problem, problems


def shares(cpus: float, agents: list[A], tenants: list[T] | None = None) -> list[float]:
    return [float(share) for share in solve(problem(cpus, agents, tenants)).share]


class TestTiers:
    def test_the_higher_tier_goes_first(self) -> None:
        assert shares(2, [A(tier=HIGH, demand=1.5), A(), A(tier=LOW)]) == pytest.approx([1.5, 0.5, 0])

    def test_every_floor_comes_before_any_tier(self) -> None:
        agents = [A(tier=HIGH), A(floor=0.3), A(tier=IDLE, floor=0.2)]
        assert shares(2, agents) == pytest.approx([1.5, 0.3, 0.2])

    def test_an_unwanted_floor_is_given_on(self) -> None:
        assert shares(2, [A(tier=HIGH), A(tier=LOW, floor=0.5, demand=0.1)]) == pytest.approx([1.9, 0.1])

    def test_a_tier_is_of_its_tenant_only(self) -> None:
        """Nobody lifts itself above other tenants by calling its agents important."""
        assert shares(2, [A(tenant=0, tier=SYSTEM), A(tenant=1, tier=LOW)]) == pytest.approx([1, 1])

    def test_the_administrator_ranks_tenants(self) -> None:
        agents = [A(tenant=0, tier=SYSTEM), A(tenant=1, tier=LOW, demand=1.2)]
        assert shares(2, agents, [T(), T(tier=HIGH)]) == pytest.approx([0.8, 1.2])


class TestTenants:
    def test_by_weight(self) -> None:
        agents = [A(tenant=0), A(tenant=1), A(tenant=1)]
        assert shares(2, agents, [T(weight=300), T()]) == pytest.approx([1.5, 0.25, 0.25])

    def test_many_agents_do_not_make_a_tenant_heavier(self) -> None:
        agents = [A(tenant=0)] + [A(tenant=1)] * 9
        assert shares(2, agents)[0] == pytest.approx(1)

    def test_own_floor_and_limit(self) -> None:
        agents = [A(tenant=0), A(tenant=1), A(tenant=2)]
        assert shares(2, agents, [T(limit=0.2), T(floor=1.2), T()]) == pytest.approx([0.2, 1.2, 0.6])

    def test_agents_floors_add_up(self) -> None:
        agents = [A(tenant=0, floor=0.7), A(tenant=0, floor=0.7), A(tenant=1)]
        assert shares(2, agents) == pytest.approx([0.7, 0.7, 0.6])

    def test_a_tenant_without_agents_takes_nothing(self) -> None:
        assert shares(2, [A(tenant=1)], [T(weight=900, floor=1), T()]) == pytest.approx([2])

    def test_nobody_at_all(self) -> None:
        empty = replace(problem(2, [A()]), starts=np.zeros(TIERS + 1, dtype=np.int64))
        nobody = np.zeros(0)
        empty = replace(empty, weight=nobody, floor=nobody, ceiling=nobody, demand=nobody)
        solution = solve(empty)
        assert solution.slack == 2
        assert len(kernel_weights(empty, solution).agent) == 0


def test_floors_that_no_longer_fit_are_missed_alike() -> None:
    """A machine that lost a CPU: admission cannot have foreseen it."""
    assert shares(1, [A(tier=HIGH, floor=1), A(tier=LOW, floor=0.5), A(tier=LOW)]) == pytest.approx([2 / 3, 1 / 3, 0])


def test_what_is_not_known_is_not_held_against_anybody() -> None:
    assert shares(2, [A(demand=float("nan")), A()]) == pytest.approx([1, 1])


# -- the kernel's side --------------------------------------------------------------------------------------------


@settings(max_examples=500)
@given(problems())
def test_the_kernel_arrives_at_the_shares_by_the_weights(one: Problem) -> None:
    """Within 1 % of the machine for everybody (weights are whole numbers, and 1 is the least)."""
    solution = solve(one)
    got = by_the_kernel(one, kernel_weights(one, solution))
    assert np.abs(np.array(got) - solution.share).max() <= 0.01 * one.capacity


@settings(max_examples=200)
@given(problems())
def test_levels_of_the_tree_add_up(one: Problem) -> None:
    solution = solve(one)
    group = np.repeat(np.arange(len(one.starts) - 1), np.diff(one.starts))
    sums = np.bincount(group, solution.share, minlength=len(one.starts) - 1)
    assert sums == pytest.approx(solution.group_share.ravel(), abs=1e-8)
    assert solution.group_share.sum(axis=1) == pytest.approx(solution.tenant_share, abs=1e-8)
    wanted = min(one.capacity, float(solution.tenant_wanted.sum()))
    assert solution.tenant_share.sum() == pytest.approx(wanted, abs=1e-8)
    floors = np.minimum(one.floor, solution.wanted)
    fits = solution.tenant_floor >= floors.sum() - 1e-9 if len(one.tenant_weight) == 1 else np.array([True])
    if np.all(one.tenant_ceiling >= one.capacity) and np.all(fits):
        assert np.all(solution.share >= floors - 1e-8)


@settings(max_examples=100)
@given(problems())
def test_both_engines_and_a_warm_start_agree(one: Problem) -> None:
    use_numpy()
    plain, warm = solve(one), Warm()
    solve(replace(one, capacity=one.capacity * 0.9), warm)
    again = solve(one, warm)
    try:
        assert load_compiled()
        compiled = solve(one, warm)
    finally:
        use_numpy()
    assert again.share == pytest.approx(plain.share, abs=1e-9)
    assert compiled.share == pytest.approx(plain.share, abs=1e-9)


class TestWeights:
    def weights(self, cpus: float, agents: list[A], tenants: list[T] | None = None) -> Weights:
        one = problem(cpus, agents, tenants)
        return kernel_weights(one, solve(one))

    def test_without_reservation_everybody_keeps_its_own(self) -> None:
        agents = [A(weight=50), A(weight=100, demand=0.01), A(weight=700, limit=0.2)]
        assert self.weights(2, agents).agent.tolist() == [50, 100, 700]

    def test_changing_demand_writes_nothing(self) -> None:
        before = self.weights(2, [A(), A(weight=300), A(demand=0.5)])
        after = self.weights(2, [A(), A(weight=300), A(demand=0.1)])
        assert before.agent.tolist() == after.agent.tolist()
        assert before.group.tolist() == after.group.tolist()

    def test_a_reservation_lifts(self) -> None:
        """0.5 of 2 CPUs against five of weight 500: they have 1.5, so 500 is worth 0.3 and 0.5 is worth 833.3."""
        agents = [A(weight=50, floor=0.5)] + [A(weight=500)] * 5
        assert self.weights(2, agents).agent.tolist() == [834, 500, 500, 500, 500, 500]

    def test_a_sleeper_is_lifted_as_if_awake(self) -> None:
        agents = [A(weight=50, floor=0.5, demand=0.0)] + [A(weight=500)] * 5
        assert self.weights(2, agents).agent[0] == 834

    def test_too_much_lift_scales_the_siblings_down(self) -> None:
        agents = [A(weight=1, floor=1.9)] + [A(weight=10_000)] * 4
        one = problem(2, agents)
        weights = kernel_weights(one, solve(one))
        assert weights.agent.max() <= 10_000
        assert by_the_kernel(one, weights)[0] == pytest.approx(1.9, abs=0.01)

    def test_idle_tier_is_idle_unless_it_has_a_reservation(self) -> None:
        assert self.weights(2, [A(), A(tier=IDLE)]).group_idle[0, IDLE] == 1
        assert self.weights(2, [A(), A(tier=IDLE, floor=0.1)]).group_idle[0, IDLE] == 0

    def test_a_lower_tier_leaks_next_to_nothing(self) -> None:
        weights = self.weights(2, [A(tier=HIGH), A(tier=NORMAL), A(tier=LOW)]).group[0]
        assert weights[HIGH] >= 4000 * weights[NORMAL]

    def test_a_burst_of_a_higher_tier_is_served_before_the_next_tick(self) -> None:
        """Weights of the time when it slept; now it wants everything."""
        asleep = [A(tier=HIGH, demand=0.05), A(tier=NORMAL), A(tier=LOW)]
        weights = self.weights(2, asleep)
        awake = problem(2, [replace(asleep[0], demand=INF), *asleep[1:]])
        assert by_the_kernel(awake, weights)[0] >= 0.85 * 2

    def test_a_burst_of_a_higher_tier_leaves_the_reservation_below(self) -> None:
        asleep = [A(tier=HIGH, demand=0.05), A(tier=LOW, floor=0.5)]
        weights = self.weights(2, asleep)
        awake = problem(2, [replace(asleep[0], demand=INF), asleep[1]])
        assert by_the_kernel(awake, weights)[1] >= 0.5 - 0.01

    def test_a_sleeping_reservation_wakes_to_its_share(self) -> None:
        asleep = [A(tenant=0, floor=0.6, demand=0.0), A(tenant=1), A(tenant=1, weight=900)]
        weights = self.weights(2, asleep, [T(weight=10), T(weight=200)])
        awake = problem(2, [replace(asleep[0], demand=INF), *asleep[1:]], [T(weight=10), T(weight=200)])
        assert by_the_kernel(awake, weights)[0] >= 0.6 - 0.01

    @pytest.mark.parametrize("weight", [1, 10_000])
    def test_within_the_kernels_range(self, weight: int) -> None:
        agents = [A(weight=weight, floor=0.3), A(tier=LOW, weight=weight), A(tenant=1, weight=weight, tier=SYSTEM)]
        agents.sort(key=lambda agent: agent.tenant * TIERS + agent.tier)
        found = self.weights(2, agents, [T(weight=weight), T(weight=10_001 - weight)])
        for array in (found.agent, found.tenant, found.group[found.group > 0]):
            assert array.min() >= 1
            assert array.max() <= 10_000


