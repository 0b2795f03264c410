"""The policies: against linear programmes and simple code of their own, and what must hold for all of them."""

from __future__ import annotations

from dataclasses import fields, replace

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agentos_native.alloc import (
    TIERS,
    Experience,
    Inputs,
    Problem,
    Trims,
    Warm,
    kernel_weights,
    load_compiled,
    solve,
    turn,
    use_numpy,
)
from agentos_native.alloc import drf as one_drf
from agentos_native.alloc.dominant import fill_many
from agentos_native.alloc.engines import load_compiled_drf
from agentos_native.alloc.policies import DRF, MAXMIN, POLICIES, PRIORITY, UTILITY, describe
from agentos_native.alloc.waterfill import Floats, segments_of
from agentos_native.spec import model
from tests.treeproblems import HIGH, IDLE, INF, LOW, NORMAL, A, T, by_the_kernel, problem, problems

ALL = (MAXMIN, DRF, UTILITY, PRIORITY)
each_policy = pytest.mark.parametrize("policy", ALL, ids=[POLICIES[policy].name for policy in ALL])
mixtures = pytest.mark.parametrize("kinds", [*((policy,) for policy in ALL), ALL], ids=str)


def shares(policy: int, cpus: float, agents: list[A], tenants: list[T] | None = None) -> list[float]:
    return [float(share) for share in solve(problem(cpus, agents, tenants, policy)).share]


def test_the_spec_knows_the_same_policies_in_the_same_order() -> None:
    assert tuple(policy.name for policy in POLICIES) == model.POLICIES
    assert all(describe(name) for name in model.POLICIES)
    with pytest.raises(KeyError):
        describe("lottery")


class TestPriority:
    def test_a_higher_tier_goes_before_a_lower_ones_reservation(self) -> None:
        assert shares(PRIORITY, 2, [A(tier=HIGH), A(tier=LOW, floor=0.5)]) == pytest.approx([2, 0])
        assert shares(MAXMIN, 2, [A(tier=HIGH), A(tier=LOW, floor=0.5)]) == pytest.approx([1.5, 0.5])

    def test_inside_a_tier_reservations_hold(self) -> None:
        agents = [A(tier=HIGH, demand=0.5), A(weight=900), A(floor=0.4), A(tier=LOW, floor=0.3)]
        assert shares(PRIORITY, 2, agents) == pytest.approx([0.5, 1.1, 0.4, 0])

    def test_a_limit_protects_those_below(self) -> None:
        assert shares(PRIORITY, 2, [A(tier=HIGH, limit=1.2), A(tier=IDLE)]) == pytest.approx([1.2, 0.8])

    def test_of_tenants(self) -> None:
        agents = [A(tenant=0, floor=1), A(tenant=1, demand=1.5)]
        assert shares(PRIORITY, 2, agents, [T(tier=LOW), T(tier=HIGH)]) == pytest.approx([0.5, 1.5])

    def test_a_tenants_own_policy_leaves_its_reservation_alone(self) -> None:
        agents = [A(tenant=0, tier=HIGH), A(tenant=0, tier=LOW, floor=0.6), A(tenant=1)]
        tenants = [T(weight=10, policy=PRIORITY), T(weight=1000)]
        assert shares(MAXMIN, 2, agents, tenants) == pytest.approx([0.6, 0, 1.4])


class TestUtility:
    def test_all_to_the_heaviest(self) -> None:
        agents = [A(weight=100), A(weight=300, demand=0.7), A(weight=200, demand=0.9)]
        assert shares(UTILITY, 2, agents) == pytest.approx([0.4, 0.7, 0.9])

    def test_lighter_ones_starve_but_for_reservations(self) -> None:
        agents = [A(weight=101), A(weight=100), A(weight=1, floor=0.3)]
        assert shares(UTILITY, 2, agents) == pytest.approx([1.7, 0, 0.3])

    def test_equal_weights_share_by_max_min(self) -> None:
        agents = [A(weight=500, demand=0.2), A(), A(demand=0.1), A(floor=0.9), A(weight=50)]
        assert shares(UTILITY, 2, agents) == pytest.approx([0.2, 0.8, 0.1, 0.9, 0])

    def test_tiers_go_before_weights(self) -> None:
        assert shares(UTILITY, 2, [A(tier=HIGH, weight=1, demand=1.5), A(weight=900)]) == pytest.approx([1.5, 0.5])

    def test_of_tenants(self) -> None:
        agents = [A(tenant=0), A(tenant=1, demand=0.5), A(tenant=2)]
        assert shares(UTILITY, 2, agents, [T(weight=100), T(weight=300), T(weight=200)]) == pytest.approx([0, 0.5, 1.5])


class TestDominant:
    def test_who_needs_much_memory_counts_by_its_memory(self) -> None:
        """Equal dominant shares: of CPU alone one wants all; the other half of that, and all memory."""
        agents = [A(parts=(0.0,)), A(parts=(1.0,), demand=1.0)]
        # CPU: s + s/2 = 1 → s = 2/3
        assert shares(DRF, 2, agents) == pytest.approx([4 / 3, 2 / 3])
        assert shares(MAXMIN, 2, agents) == pytest.approx([1, 1])

    def test_what_is_left_is_filled(self) -> None:
        """Memory is used up at half of each dominant share; the CPU that leaves is nobody's loss."""
        agents = [A(demand=0.5, parts=(1.0,)), A(demand=1.5, parts=(1.0,)), A(demand=0.3, parts=(0.0,))]
        assert sum(shares(DRF, 2, agents)) == pytest.approx(2)

    def test_without_other_resources_it_is_max_min(self) -> None:
        agents = [A(weight=300, floor=0.1), A(demand=0.3), A(floor=0.8), A(tier=LOW)]
        assert shares(DRF, 2, agents) == pytest.approx(shares(MAXMIN, 2, agents))

    def test_reservations_hold_whatever_else_is_wanted(self) -> None:
        agents = [A(floor=0.8, parts=(1.0,)), A(floor=0.8, parts=(1.0,)), A(parts=(1.0,), weight=1000)]
        got = shares(DRF, 2, agents)
        assert min(got[:2]) >= 0.8 - 1e-9

    def test_of_tenants(self) -> None:
        half = A(tenant=1, parts=(0.5,), demand=0.5)
        assert shares(DRF, 2, [A(tenant=0, parts=(0.0,)), half, half]) == pytest.approx([4 / 3, 1 / 3, 1 / 3])


# -- oracles ------------------------------------------------------------------------------------------------------


class Linear:
    """``max c·x`` with ``A x ≤ b``, ``low ≤ x ≤ high``, by HiGHS."""

    def __init__(self, cost: Floats, low: Floats, high: Floats) -> None:
        self.cost, self.low, self.high = cost, low, high
        self.rows: list[tuple[Floats, float]] = []

    def below(self, row: Floats, bound: float) -> None:
        self.rows.append((row, bound))

    def solve(self) -> Floats:
        solver = highspy.Highs()
        solver.silent()
        solver.setOptionValue("primal_feasibility_tolerance", 1e-10)
        solver.setOptionValue("dual_feasibility_tolerance", 1e-10)
        n = len(self.cost)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = n, len(self.rows)
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = -self.cost, self.low, self.high
        lp.row_lower_ = np.full(len(self.rows), -highspy.kHighsInf)
        lp.row_upper_ = np.array([bound for _, bound in self.rows])
        matrix = np.array([row for row, _ in self.rows]).reshape(len(self.rows), n)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.arange(len(self.rows) + 1) * n
        lp.a_matrix_.index_ = np.tile(np.arange(n, dtype=np.int32), len(self.rows))
        lp.a_matrix_.value_ = matrix.ravel()
        solver.passModel(lp)
        solver.run()
        assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return np.array(solver.getSolution().col_value)


@st.composite
def singles(draw: st.DrawFn, policy: int, tiers: int = 3) -> Problem:
    """One tenant; whatever numbers."""
    n = draw(st.integers(1, 6))
    values = st.floats(0.05, 2.0)
    some = [
        A(
            tier=draw(st.integers(1, tiers)),
            weight=draw(st.sampled_from([10.0, 100.0, 100.0, 333.0, 1000.0])),
            floor=draw(st.sampled_from([0.0, 0.0, 0.1, 0.25])),
            limit=draw(values),
            demand=draw(values),
            parts=(draw(st.sampled_from([0.0, 0.2, 0.9])), draw(st.floats(0, 0.5))),
        )
        for _ in range(n)
    ]
    some.sort(key=lambda agent: agent.tier)
    floors = sum(min(agent.floor, agent.limit, agent.demand) for agent in some)
    return problem(floors + draw(st.floats(0.1, 3.0)), some, policy=policy)


@settings(max_examples=150)
@given(singles(UTILITY, tiers=1))
def test_utility_is_the_linear_programme(one: Problem) -> None:
    solution = solve(one)
    floors = np.minimum(one.floor, solution.wanted)
    programme = Linear(one.weight / 100, floors, solution.wanted)
    programme.below(np.ones(len(one.weight)), one.capacity)
    best = programme.solve()
    assert one.weight @ solution.share == pytest.approx(one.weight @ best, rel=1e-9)
    alone = [list(one.weight).count(weight) == 1 for weight in one.weight]
    assert solution.share[alone] == pytest.approx(best[alone], abs=1e-9)  # elsewhere it has a choice
    for weight in set(one.weight):
        same = one.weight == weight
        mine, wanted = solution.share[same], solution.wanted[same]
        held = mine < wanted - 1e-9
        if held.any():  # max-min among equals: nobody has more than one who wants more, but by its floor
            assert np.all(mine <= np.maximum(mine[held].min(), floors[same]) + 1e-9)


@settings(max_examples=100)
@given(singles(UTILITY))
def test_utility_over_tiers_is_a_programme_in_which_tiers_outweigh(one: Problem) -> None:
    solution = solve(one)
    tier = segments_of(one.starts) % TIERS
    programme = Linear(one.weight / 1000 * 1e3 ** (3.0 - tier), np.minimum(one.floor, solution.wanted), solution.wanted)
    programme.below(np.ones(len(one.weight)), one.capacity)
    best = programme.solve()
    for weight, rank in set(zip(one.weight, tier, strict=True)):
        same = (one.weight == weight) & (tier == rank)
        assert solution.share[same].sum() == pytest.approx(best[same].sum(), abs=1e-7)


def simple_fill(weights: Floats, floors: Floats, wanted: Floats, amount: float) -> Floats:
    """Weighted max-min by bisection; floors that do not fit are scaled."""
    if floors.sum() >= amount:
        return floors * (amount / floors.sum()) if floors.sum() else floors
    low, high = 0.0, 1e6
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.clip(weights * level, floors, wanted).sum() < amount else (low, level)
    return np.clip(weights * low, floors, wanted)


@settings(max_examples=200)
@given(singles(PRIORITY))
def test_priority_is_one_tier_after_the_other(one: Problem) -> None:
    solution = solve(one)
    tier, left = segments_of(one.starts) % TIERS, one.capacity
    for rank in range(TIERS):
        mine = tier == rank
        if mine.any():
            floors = np.minimum(one.floor, solution.wanted)[mine]
            expected = simple_fill(one.weight[mine], floors, solution.wanted[mine], left)
            assert solution.share[mine] == pytest.approx(expected, abs=1e-8)
            left = max(left - expected.sum(), 0.0)


def progressive(weights: Floats, usage: Floats, floors: Floats, ceilings: Floats, capacity: Floats) -> Floats:
    """Dominant fairness in one tier as a sequence of linear programmes: raise the level, freeze who cannot rise."""
    n, scales = len(weights), floors.copy()
    active = np.ones(n, dtype=bool)
    while active.any():
        low, high = np.where(active, floors, scales), np.where(active, ceilings, scales)
        level = Linear(np.append(np.zeros(n), 1.0), np.append(low, 0.0), np.append(high, 1e6))
        for row, bound in zip(usage.T, capacity, strict=True):
            level.below(np.append(row, 0.0), bound)
        for i in np.flatnonzero(active):  # w_i · level ≤ s_i
            row = np.zeros(n + 1)
            row[i], row[n] = -1.0, weights[i]
            level.below(row, 0.0)
        at = float(level.solve()[n])
        base = np.where(active, np.maximum(weights * at, floors), scales)
        stuck = []
        for i in np.flatnonzero(active):
            more = Linear(np.eye(n)[i], np.minimum(base, high), high)
            for row, bound in zip(usage.T, capacity, strict=True):
                more.below(row, max(bound, float(row @ more.low)))
            if more.solve()[i] <= max(base[i], weights[i] * at) + 1e-7:
                stuck.append(i)
        assert stuck
        scales[stuck] = np.minimum(base, ceilings)[stuck]
        active[stuck] = False
    return scales


@settings(max_examples=60)
@given(singles(DRF))
def test_drf_promises_what_a_sequence_of_linear_programmes_gives(one: Problem) -> None:
    solution = solve(one)
    if solution.wanted.sum() <= one.capacity:
        assert solution.share == pytest.approx(solution.wanted)
        return
    assert one.profile is not None
    parts = np.column_stack([np.minimum(solution.wanted, one.capacity) / one.capacity, one.profile])
    most = parts.max(axis=1)
    usage = parts / most[:, None]
    floors = np.minimum(np.minimum(one.floor, solution.wanted) / (usage[:, 0] * one.capacity), most)
    tier = segments_of(one.starts) % TIERS
    capacity = np.maximum(float(solution.tenant_share[0]) / one.capacity, floors @ usage)
    scales = floors.copy()
    for rank in np.unique(tier):
        mine = tier == rank
        left = capacity - scales[~mine] @ usage[~mine]
        scales[mine] = progressive(one.weight[mine], usage[mine], floors[mine], most[mine], left)
    assert solution.promise == pytest.approx(scales * usage[:, 0] * one.capacity, abs=2e-6)
    filled = solve(replace(one, policy=MAXMIN, tenant_policy=None, floor=solution.promise))
    assert solution.share == pytest.approx(filled.share, abs=1e-9)


@settings(max_examples=100)
@given(st.integers(1, 5), st.integers(0, 2**32))
def test_many_parents_at_once_are_as_each_alone(parents: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 4, parents * TIERS)
    starts = np.append(0, np.cumsum(sizes)).astype(np.int64)
    n, m = int(starts[-1]), 3
    usage = random.choice([0.0, 0.3, 1.0], (n, m))
    usage[:, 0] = np.where(usage.max(axis=1, initial=0.0) > 0, usage[:, 0], 1.0)
    weights, ceilings = random.choice([1.0, 2.0, 10.0], n), random.uniform(0, 1, n)
    floors = ceilings * random.choice([0.0, 0.0, 0.5], n)
    of = segments_of(starts) // TIERS
    least = np.array([floors[of == p] @ usage[of == p] for p in range(parents)])
    capacity = least + random.uniform(0.01, 1.0, (parents, m))
    together = fill_many(weights, usage, floors, ceilings, starts, capacity)
    for p in range(parents):
        own = of == p
        mine = starts[p * TIERS : (p + 1) * TIERS + 1] - starts[p * TIERS]
        alone = one_drf.fill(weights[own], np.asfortranarray(usage[own]), floors[own], ceilings[own], mine, capacity[p])
        assert together[own] == pytest.approx(alone.scales, abs=1e-8)


# -- what holds for all -------------------------------------------------------------------------------------------


@mixtures
@settings(max_examples=150)
@given(data=st.data())
def test_the_kernel_arrives_at_the_shares_by_the_weights(kinds: tuple[int, ...], data: st.DataObject) -> None:
    """Within 1 % of the machine for everybody; a reservation that the policy keeps is not short by more than 3 %."""
    one = data.draw(problems(kinds))
    solution = solve(one)
    got = np.array(by_the_kernel(one, kernel_weights(one, solution)))
    assert np.abs(got - solution.share).max() <= 0.01 * one.capacity
    due = np.minimum(one.floor, solution.wanted)
    kept = solution.share >= due - 1e-9
    assert np.all(got[kept] >= 0.97 * due[kept] - 1e-3)


@mixtures
@settings(max_examples=100)
@given(data=st.data())
def test_feasible_efficient_and_true_to_reservations(kinds: tuple[int, ...], data: st.DataObject) -> None:
    one = data.draw(problems(kinds))
    solution = solve(one)
    assert np.all(solution.share >= 0)
    assert np.all(solution.share <= solution.wanted + 1e-9)
    tenants = len(one.tenant_weight)
    tenant_of = segments_of(one.starts) // TIERS
    sums = np.bincount(tenant_of, solution.share, minlength=tenants)
    assert sums == pytest.approx(solution.tenant_share, abs=1e-8)
    assert sums.sum() == pytest.approx(min(one.capacity, float(solution.tenant_wanted.sum())), abs=1e-8)
    assert np.all(sums <= one.tenant_ceiling + 1e-9)
    floors = np.minimum(one.floor, solution.wanted)
    fit = np.bincount(tenant_of, floors, minlength=tenants) <= one.tenant_ceiling
    if one.policy != PRIORITY:  # else tenants of higher priority go first
        bound = fit[tenant_of] & (one.tenant_policies != PRIORITY)[tenant_of]
        assert np.all(solution.share[bound] >= floors[bound] - 1e-8)


@mixtures
@settings(max_examples=100)
@given(data=st.data())
def test_higher_tiers_go_first(kinds: tuple[int, ...], data: st.DataObject) -> None:
    """Whoever wants more leaves those of lower tiers nothing but what the policy promises them."""
    one = data.draw(problems(kinds))
    solution = solve(one)
    strict = one.tenant_policies == PRIORITY
    for tenant in range(len(one.tenant_weight)):
        hungry = np.flatnonzero(solution.group_share[tenant] < solution.group_wanted[tenant] - 1e-7)
        if len(hungry):
            below = slice(hungry[0] + 1, TIERS)
            promised = 0.0 if strict[tenant] else solution.group_floor[tenant, below]
            assert np.all(solution.group_share[tenant, below] <= promised + 1e-7)


@mixtures
@settings(max_examples=60)
@given(data=st.data())
def test_both_engines_agree_and_each_gives_the_same_bits_again(kinds: tuple[int, ...], data: st.DataObject) -> None:
    one = data.draw(problems(kinds))
    use_numpy()
    plain, again = solve(one), solve(one)
    warm = Warm()
    solve(replace(one, capacity=0.8 * one.capacity), warm)
    warmed = solve(one, warm)
    try:
        assert load_compiled()
        assert load_compiled_drf()
        compiled, second = solve(one), solve(one)
    finally:
        use_numpy()
    for field in fields(plain):
        assert np.array_equal(getattr(plain, field.name), getattr(again, field.name), equal_nan=True)
        assert np.array_equal(getattr(compiled, field.name), getattr(second, field.name), equal_nan=True)
    assert compiled.share == pytest.approx(plain.share, abs=1e-9)
    assert warmed.share == pytest.approx(plain.share, abs=1e-9)


@settings(max_examples=100)
@given(problems(ALL))
def test_each_tenant_divides_as_if_it_were_alone_with_its_share(one: Problem) -> None:
    """Tenants of one node may have different policies."""
    together = solve(one)
    for tenant, policy in enumerate(one.tenant_policies.tolist()):
        begin, end = tenant * TIERS, (tenant + 1) * TIERS
        first, last = int(one.starts[begin]), int(one.starts[end])
        if policy == DRF or first == last:
            continue  # dominant shares are parts of the machine, which is another one alone
        own = slice(first, last)
        share = np.array([together.tenant_share[tenant]])
        alone = Problem(
            float(share[0]),
            np.ones(1),
            np.array([NORMAL]),
            np.zeros(1),
            np.array([INF]),
            one.starts[begin : end + 1] - first,
            one.weight[own],
            one.floor[own],
            one.ceiling[own],
            one.demand[own],
            policy,
        )
        assert together.share[own] == pytest.approx(solve(alone).share, abs=1e-8)


@each_policy
def test_nobody_at_all(policy: int) -> None:
    none, whole = np.zeros(0), np.zeros(1, dtype=np.int64)
    nobody = Problem(2.0, none, np.zeros(0, dtype=np.int64), none, none, whole, none, none, none, none, policy=policy)
    assert solve(nobody).slack == 2
    assert len(kernel_weights(nobody, solve(nobody)).agent) == 0


@each_policy
@pytest.mark.parametrize("capacity", [0.0, 1e-9, 0.5, 1e6])
def test_too_little_and_too_much(policy: int, capacity: float) -> None:
    agents = [A(floor=0.5, demand=1.0), A(floor=0.5, demand=0.0), A(demand=2.0), A(tier=IDLE, floor=0.25, limit=0.25)]
    got = np.array(shares(policy, capacity, [replace(agent, parts=(0.5,)) for agent in agents]))
    assert got.sum() == pytest.approx(min(capacity, sum(min(agent.demand, agent.limit, capacity) for agent in agents)))
    assert np.all(got >= 0)


@each_policy
@pytest.mark.parametrize("compiled", [False, True])
def test_who_has_all_it_wants_has_no_level_whatever_the_order_of_adding(policy: int, compiled: bool) -> None:
    """Else a content tier's weights would follow the last bits of a sum."""
    random = np.random.default_rng(policy)
    agents = [A(tier=HIGH, demand=demand, parts=(0.001,)) for demand in random.uniform(0.001, 0.1, 500)]
    agents += [A(tier=NORMAL, demand=1.0, floor=floor, parts=(0.001,)) for floor in random.uniform(0, 0.01, 99)]
    one = problem(40.0, agents, policy=policy)
    try:
        assert not compiled or (load_compiled() and load_compiled_drf())
        solution = solve(one)
    finally:
        use_numpy()
    assert solution.group_level[HIGH] == np.inf
    if policy != UTILITY:
        assert set(kernel_weights(one, solution).agent[:500].tolist()) == {100}


def test_many_starved_siblings_take_little() -> None:
    """Weight 1 is the least there is: 99 starved ones take up to 2 % from one that is to have everything."""
    one = problem(1.0, [A(weight=200), *[A(weight=100)] * 99], policy=UTILITY)
    assert by_the_kernel(one, kernel_weights(one, solve(one)))[0] >= 0.98


@pytest.mark.parametrize("policy", [MAXMIN, PRIORITY])
def test_many_starved_tenants_take_little(policy: int) -> None:
    """Also where the tier before theirs sinks, since one above it is content for the moment."""
    agents = [A(tenant=0, demand=0.1), *(A(tenant=tenant) for tenant in range(1, 40))]
    one = problem(2.0, agents, [T(tier=HIGH), T(), *[T(tier=LOW)] * 38], policy)
    assert by_the_kernel(one, kernel_weights(one, solve(one)))[1] >= 1.9 - 0.02 * 2


def test_weights_under_utility_stay_while_demands_wander() -> None:
    random = np.random.default_rng(3)
    demand = random.uniform(0.01, 0.3, 100)
    agents = [A(weight=100.0 + 10 * (k % 10), floor=0.01 * (k % 3)) for k in range(100)]
    one = problem(8.0, agents, policy=UTILITY)
    before, changed = None, []
    for _ in range(30):
        demand = demand * random.uniform(0.98, 1.02, 100)
        now = replace(one, demand=demand)
        weights = kernel_weights(now, solve(now)).agent
        changed.append(0 if before is None else int((np.abs(weights - before) > 0.02 * before).sum()))
        before = weights
    assert np.median(changed) <= 10  # the ten of the weight at the margin, no others


# -- hostile inputs -----------------------------------------------------------------------------------------------

wild = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([float("nan"), INF, -INF, 0.0, -0.0, -1.0, 1e-300, 1e300, 5e-324, 1.0]),
)


@settings(max_examples=400)
@given(st.data(), st.integers(0, 6), st.integers(1, 3), st.sampled_from(ALL))
def test_whatever_comes_in_only_weights_go_out(data: st.DataObject, n: int, tenants: int, policy: int) -> None:
    def hostile(*shape: int) -> Floats:
        return data.draw(arrays(np.float64, shape, elements=wild))

    group = np.sort(data.draw(arrays(np.int64, n, elements=st.integers(0, tenants * TIERS - 1))))
    one = Problem(
        data.draw(wild),
        hostile(tenants),
        data.draw(arrays(np.int64, tenants, elements=st.integers(0, TIERS - 1))),
        hostile(tenants),
        hostile(tenants),
        np.searchsorted(group, np.arange(tenants * TIERS + 1)).astype(np.int64),
        hostile(n),
        hostile(n),
        hostile(n),
        hostile(n),
        policy,
        data.draw(arrays(np.int64, tenants, elements=st.sampled_from(ALL))),
        data.draw(st.none() | arrays(np.float64, (n, 2), elements=wild)),
    )
    trims = Trims(hostile(n), hostile(tenants, TIERS), hostile(tenants))
    seen = Experience(hostile(n), hostile(n))
    warm = Warm(hostile(TIERS), hostile(tenants * TIERS))
    with np.errstate(all="ignore"):
        outcome = turn(Inputs(one, warm, trims, seen, data.draw(wild), data.draw(wild)))
    weights, solution = outcome.weights, outcome.solution
    for array in (weights.agent, weights.group[weights.group != 0], weights.tenant[weights.tenant != 0]):
        assert array.dtype == np.int64
        assert np.all((array >= 1) & (array <= 10_000))
    present = np.diff(one.starts).reshape(-1, TIERS) > 0
    assert np.array_equal(weights.group > 0, present)
    assert set(np.unique(weights.group_idle)) | set(np.unique(weights.tenant_idle)) <= {0, 1}
    for amounts in (solution.share, solution.group_share, solution.tenant_share):
        assert np.all(np.isfinite(amounts) & (amounts >= 0))
    assert solution.share.sum() <= solution.capacity * (1 + 1e-6) + 1e-6
    assert outcome.trims is not None
    for factors in (outcome.trims.agent, outcome.trims.group, outcome.trims.tenant):
        assert np.all(np.isfinite(factors))
