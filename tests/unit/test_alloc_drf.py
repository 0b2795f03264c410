"""Dominant resource fairness: properties, a sequence of linear programmes as oracle, edge cases, both engines alike."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.alloc import compiled_drf, drf, engines, waterfill
from agentos_native.alloc.drf import Filled
from agentos_native.alloc.waterfill import Floats, Indices

ENGINES: dict[str, Callable[..., Filled]] = {"numpy": drf.fill, "numba": compiled_drf.fill}
EPS = 1e-9
NEAR = 1e-7


@dataclass(frozen=True)
class Case:
    weights: Floats
    usage: Floats
    floors: Floats
    ceilings: Floats
    starts: Indices
    capacity: Floats


def fill(case: Case, engine: str = "numba", guesses: Floats | None = None, real: Any = np.float64) -> Filled:
    arrays = drf.sanitise(case.weights, case.usage, case.floors, case.ceilings)
    return ENGINES[engine](*(array.astype(real) for array in arrays), case.starts, case.capacity, guesses)


def case(
    usage: list[list[float]],
    capacity: list[float],
    weights: list[float] | None = None,
    floors: list[float] | None = None,
    ceilings: list[float] | None = None,
    starts: list[int] | None = None,
) -> Case:
    n = len(usage)
    return Case(
        np.array(weights if weights is not None else [1.0] * n, dtype=float),
        np.array(usage, dtype=float).reshape(n, len(capacity)),
        np.array(floors if floors is not None else [0.0] * n, dtype=float),
        np.array(ceilings if ceilings is not None else [100.0] * n, dtype=float),
        np.array(starts if starts is not None else [0, n], dtype=np.int64),
        np.array(capacity, dtype=float),
    )


def rounded(one: Case) -> Case:
    """What is left of a case in single precision."""
    weights, usage, floors, ceilings = (
        a.astype(np.float32).astype(float) for a in (one.weights, one.usage, one.floors, one.ceilings)
    )
    return Case(weights, usage, floors, ceilings, one.starts, one.capacity)


@st.composite
def cases(draw: st.DrawFn, plain: bool = False, fitting: bool = True, most: int = 10) -> Case:
    """Agents of up to three tiers; `plain`: one tier, equal weights, no floors; `fitting`: floors fit."""
    n, m = draw(st.integers(1, most)), draw(st.integers(1, 4))
    tiers = 1 if plain else draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    usage = np.round(random.uniform(0, 1, (n, m)), 2) * (random.random((n, m)) < draw(st.sampled_from([0.5, 1.0])))
    usage = np.where(usage.max(axis=1, keepdims=True) > 0, usage, 1.0)
    usage /= usage.max(axis=1, keepdims=True)
    weights = np.ones(n) if plain else 10 ** random.uniform(0, 4, n)
    floors = np.zeros(n) if plain else np.round(random.uniform(0, 0.5, n), 2) * (random.random(n) < 0.5)
    ceilings = floors + np.round(random.exponential(1, n), 2) * (random.random(n) < 0.9)
    capacity = np.round(random.uniform(0.1, 3, m), 2)
    if fitting:
        floors *= min(1.0, float((capacity / np.maximum(floors @ usage, 1e-9)).min()) * 0.999)
    cuts = np.sort(random.integers(0, n + 1, tiers - 1))
    return Case(weights, usage, floors, ceilings, np.array([0, *cuts, n], dtype=np.int64), capacity)


def programme(objective: Floats, rows: Floats, bounds: Floats, lower: Floats, upper: Floats) -> Floats:
    """max objective · x subject to rows · x ≤ bounds, by HiGHS."""
    solver = highspy.Highs()
    solver.silent()
    solver.setOptionValue("primal_feasibility_tolerance", 1e-9)
    solver.setOptionValue("dual_feasibility_tolerance", 1e-9)
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(objective), len(bounds)
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_, model.col_lower_, model.col_upper_ = objective, lower, upper
    model.row_lower_, model.row_upper_ = np.full(len(bounds), -np.inf), bounds
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.arange(len(bounds) + 1) * len(objective)
    model.a_matrix_.index_ = np.tile(np.arange(len(objective)), len(bounds)).astype(np.int32)
    model.a_matrix_.value_ = rows.ravel()
    solver.passModel(model)
    solver.run()
    assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return np.array(solver.getSolution().col_value)


def max_min_by_programmes(one: Case) -> Floats:
    """Tier by tier: raise the level of those who can still rise; fix at that level whoever cannot; again.

    Whoever's floor is above the level stays at the floor. Knows nothing of saturation: that an agent cannot rise is
    found out by a programme that maximises its scale alone with everybody else held at the level.
    """
    n = len(one.weights)
    lower, upper = one.floors.copy(), one.floors.copy()
    for tier in range(len(one.starts) - 1):
        rising = set(range(one.starts[tier], one.starts[tier + 1]))
        while rising:
            for i in rising:
                upper[i] = one.ceilings[i]
            free = sorted(i for i in rising if one.ceilings[i] > lower[i])
            rising = set(free)
            if not free:
                break
            # s_i ≥ w_i t for the rising ones; rows: resources, then w_i t − s_i ≤ 0
            rows = np.zeros((len(one.capacity) + len(free), n + 1))
            rows[: len(one.capacity), :n] = one.usage.T
            for k, i in enumerate(free):
                rows[len(one.capacity) + k, i], rows[len(one.capacity) + k, n] = -1.0, one.weights[i]
            bounds = np.append(one.capacity, np.zeros(len(free)))
            objective = np.append(np.zeros(n), 1.0)
            best = programme(objective, rows, bounds, np.append(lower, 0.0), np.append(upper, np.inf))[n]
            held = lower.copy()
            for i in free:
                held[i] = min(max(held[i], one.weights[i] * best), one.ceilings[i])
            room = one.capacity - held @ one.usage
            for i in free:
                can = min((room[j] / one.usage[i, j] for j in range(len(room)) if one.usage[i, j] > 0), default=np.inf)
                if one.ceilings[i] - held[i] <= 1e-8 or can <= 1e-8:
                    rising.discard(i)
                    upper[i] = held[i]
            lower = np.where(np.isin(np.arange(n), free), held, lower)
            assert len(rising) < len(free)
        part = slice(one.starts[tier], one.starts[tier + 1])
        upper[part] = lower[part]
    return lower


@pytest.mark.parametrize("seed", range(40))
def test_it_is_what_a_sequence_of_linear_programmes_gives(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, m, tiers = int(random.integers(2, 8)), int(random.integers(1, 4)), int(random.integers(1, 3))
    usage = random.uniform(0.1, 1, (n, m)) * (random.random((n, m)) < 0.75)
    usage[np.arange(n), random.integers(0, m, n)] = 1.0
    floors = random.uniform(0, 0.2, n) * (random.random(n) < 0.5)
    one = Case(
        random.choice([1.0, 2.0, 5.0], n),
        usage,
        floors,
        floors + random.uniform(0, 1.5, n),
        np.array([0, *np.sort(random.integers(0, n + 1, tiers - 1)), n], dtype=np.int64),
        floors @ usage + random.uniform(0.05, 2, m),
    )
    expected = max_min_by_programmes(one)
    for engine in ENGINES:
        assert fill(one, engine).scales == pytest.approx(expected, abs=1e-6)


@settings(max_examples=200)
@given(cases(fitting=False), st.floats(0, 4), st.booleans())
def test_both_engines_give_the_same_in_both_precisions(one: Case, factor: float, warm: bool) -> None:
    expected = fill(one, "numpy")
    with np.errstate(invalid="ignore"):  # 0 · ∞: a guess of NaN is one more bad guess
        guesses = expected.levels * factor if warm else None
    got = fill(one, "numba", guesses)
    assert got.scales == pytest.approx(expected.scales, rel=1e-11, abs=1e-12)
    assert got.used == pytest.approx(expected.used, rel=1e-11, abs=1e-12)
    assert got.short.tolist() == expected.short.tolist()
    half = fill(one, "numba", guesses, np.float32)
    assert half.scales.dtype == np.float32
    if not (expected.short.any() or np.any(np.abs(expected.used - one.capacity) < 1e-5 * one.capacity)):
        assert half.scales == pytest.approx(fill(rounded(one), "numpy").scales, rel=1e-5, abs=1e-6)


@settings(max_examples=60)
@given(cases())
def test_feasible_efficient_and_reservations_met(one: Case) -> None:
    got = fill(one)
    assert got.used == pytest.approx(got.scales @ one.usage, abs=1e-9)
    assert np.all(got.used <= one.capacity + EPS)
    assert np.all(got.scales >= one.floors - EPS)
    assert np.all(got.scales <= one.ceilings + EPS)
    full = got.used >= one.capacity - NEAR
    for i in np.flatnonzero(got.scales < one.ceilings - NEAR):
        assert np.any(full & (one.usage[i] > 0)), "nobody can get more without another's getting less"


@settings(max_examples=60)
@given(cases())
def test_levels_explain_scales(one: Case) -> None:
    got = fill(one)
    for tier in range(len(one.starts) - 1):
        for i in range(one.starts[tier], one.starts[tier + 1]):
            level = min(got.levels[tier][one.usage[i] > 0], default=np.inf)
            expected = min(max(one.weights[i] * level, one.floors[i]), one.ceilings[i])
            assert got.scales[i] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=60)
@given(cases())
def test_nobody_has_a_justified_complaint(one: Case) -> None:
    """In a tier, s_i/w_i < s_k/w_k only if i is at its ceiling, k at its floor, or what stops i is nothing to k."""
    got = fill(one)
    full = got.used >= one.capacity - NEAR
    for tier in range(len(one.starts) - 1):
        members = range(one.starts[tier], one.starts[tier + 1])
        for i in members:
            for k in members:
                if got.scales[i] / one.weights[i] < got.scales[k] / one.weights[k] * (1 - 1e-6) - 1e-12:
                    excused = got.scales[i] >= one.ceilings[i] - NEAR or got.scales[k] <= one.floors[k] + NEAR
                    assert excused or np.any(full & (one.usage[i] > 0) & (one.usage[k] <= 0))


@settings(max_examples=60)
@given(cases(plain=True))
def test_nobody_envies_another(one: Case) -> None:
    """Equal weights, no floors: no other's bundle is better for me than mine."""
    got, n = fill(one).scales, len(one.weights)

    def worth(i: int, bundle: Floats) -> float:
        needs = one.usage[i] > 0
        return min(float((bundle[needs] / one.usage[i][needs]).min()), float(one.ceilings[i]))

    for i in range(n):
        for k in range(n):
            assert got[i] >= worth(i, got[k] * one.usage[k]) - NEAR


@settings(max_examples=60)
@given(cases(plain=True))
def test_sharing_is_worth_it(one: Case) -> None:
    """Usage in parts of the whole, equal weights, no floors: nobody has less than with an nth of everything."""
    whole = replace(one, capacity=np.ones_like(one.capacity))
    assert np.all(fill(whole).scales >= np.minimum(1 / len(one.weights), one.ceilings) - NEAR)


@settings(max_examples=60)
@given(cases(), st.floats(1.01, 20), st.data())
def test_more_weight_never_gives_less(one: Case, factor: float, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(one.weights) - 1))
    weights = one.weights.copy()
    weights[index] *= factor
    assert fill(replace(one, weights=weights)).scales[index] >= fill(one).scales[index] - NEAR


@settings(max_examples=60)
@given(cases(), st.floats(0.01, 100))
def test_neither_the_scale_of_weights_nor_units_count(one: Case, factor: float) -> None:
    plain = fill(one).scales
    assert fill(replace(one, weights=one.weights * factor)).scales == pytest.approx(plain, abs=NEAR)
    scaled = replace(one, floors=one.floors * factor, ceilings=one.ceilings * factor, capacity=one.capacity * factor)
    assert fill(scaled).scales / factor == pytest.approx(plain, abs=NEAR)
    units = factor ** np.arange(len(one.capacity))
    assert fill(replace(one, usage=one.usage * units, capacity=one.capacity * units)).scales == pytest.approx(
        plain, abs=NEAR
    )


@settings(max_examples=60)
@given(cases(), st.floats(0, 4), st.data())
def test_a_false_demand_gains_nothing(one: Case, claimed: float, data: st.DataObject) -> None:
    liar = data.draw(st.integers(0, len(one.weights) - 1))
    ceilings = one.ceilings.copy()
    ceilings[liar] = max(claimed, one.floors[liar])
    lied = fill(replace(one, ceilings=ceilings)).scales[liar]
    assert min(lied, one.ceilings[liar]) <= fill(one).scales[liar] + NEAR


@settings(max_examples=60)
@given(cases(plain=True), st.data())
def test_a_false_usage_gains_nothing(one: Case, data: st.DataObject) -> None:
    """Whatever usage an agent claims, it can run no more of its true mix with what it then gets."""
    liar = data.draw(st.integers(0, len(one.weights) - 1))
    claims = st.lists(st.floats(0, 1), min_size=len(one.capacity), max_size=len(one.capacity))
    claim = np.array(data.draw(claims))
    claim = claim / claim.max() if claim.max() > 1e-3 else np.ones_like(claim)
    usage = one.usage.copy()
    usage[liar] = claim
    unlimited = np.full_like(one.ceilings, 50.0)
    bundle = fill(replace(one, usage=usage, ceilings=unlimited)).scales[liar] * claim
    needs = one.usage[liar] > 0
    worth = float((bundle[needs] / one.usage[liar][needs]).min())
    assert worth <= fill(replace(one, ceilings=unlimited)).scales[liar] + NEAR


@settings(max_examples=60)
@given(cases(plain=True, most=6), st.data())
def test_who_leaves_makes_the_poorest_no_poorer(one: Case, data: st.DataObject) -> None:
    """Population monotonicity in full holds where all use everything; else the first to stop still stop no earlier."""
    dense = replace(one, usage=np.maximum(one.usage, 0.05))
    gone = data.draw(st.integers(0, len(one.weights) - 1))
    stay = np.arange(len(one.weights)) != gone
    rest = Case(dense.weights[stay], dense.usage[stay], dense.floors[stay], dense.ceilings[stay],
                np.array([0, stay.sum()], dtype=np.int64), dense.capacity)  # fmt: skip
    assert np.all(fill(rest).scales >= fill(dense).scales[stay] - NEAR)


@settings(max_examples=60)
@given(cases(fitting=False))
def test_one_resource_is_the_water_fill(one: Case) -> None:
    alone = replace(one, usage=np.ones((len(one.weights), 1)), starts=np.array([0, len(one.weights)]),
                    capacity=one.capacity[:1])  # fmt: skip
    arrays = waterfill.sanitise(one.weights, one.floors, one.ceilings)
    shares, _ = waterfill.waterfill(*arrays, alone.starts, alone.capacity, np.zeros(1))
    for engine in ENGINES:
        assert fill(alone, engine).scales == pytest.approx(shares, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
class TestEdges:
    def test_nobody_and_nothing(self, engine: str) -> None:
        got = fill(case([], [1.0, 1.0]), engine)
        assert got.scales.shape == (0,)
        assert got.levels.tolist() == [[np.inf, np.inf]]
        assert fill(case([[], []], []), engine).scales.tolist() == [100, 100]

    def test_the_textbook_example(self, engine: str) -> None:
        """9 CPUs, 18 GB; tasks of 1 CPU and 4 GB, and of 3 CPUs and 1 GB: 3 and 2 of them (Ghodsi et al., 2011)."""
        usage, dominant = drf.normalise(np.array([[1.0, 4.0], [3.0, 1.0]]), np.array([9.0, 18.0]))
        got = fill(case(usage.tolist(), [1.0, 1.0]), engine)
        assert got.scales / dominant == pytest.approx([3.0, 2.0])
        assert got.levels[0] == pytest.approx([2 / 3, np.inf])

    def test_who_does_not_use_what_is_full_goes_on(self, engine: str) -> None:
        got = fill(case([[1, 0], [1, 0], [0, 1]], [1.0, 1.0]), engine)
        assert got.scales == pytest.approx([0.5, 0.5, 1.0])
        assert got.levels[0] == pytest.approx([0.5, 1.0])

    def test_a_resource_of_which_there_is_nothing(self, engine: str) -> None:
        for nothing in (0.0, -1.0, float("nan")):
            got = fill(case([[1, 0.5], [1, 0]], [1.0, nothing], floors=[0.2, 0.1]), engine)
            assert got.scales == pytest.approx([0.0, 1.0])
            assert got.short.tolist() == [False, True]

    def test_floors_that_do_not_fit_are_missed_alike_only_by_those_concerned(self, engine: str) -> None:
        got = fill(case([[1, 0], [1, 1], [0, 1]], [1.0, 4.0], floors=[1, 3, 1], ceilings=[9, 9, 2]), engine)
        assert got.short.tolist() == [True, False]
        assert got.scales == pytest.approx([0.25, 0.75, 2.0])

    def test_floors_of_all_tiers_come_first(self, engine: str) -> None:
        got = fill(case([[1.0]] * 3, [1.0], floors=[0, 0, 0.4], starts=[0, 1, 2, 3]), engine)
        assert got.scales == pytest.approx([0.6, 0.0, 0.4])
        assert got.levels[:, 0] == pytest.approx([0.6, 0.0, 0.0])

    def test_empty_tiers_and_no_tier(self, engine: str) -> None:
        assert fill(case([[1.0]], [1.0], starts=[0, 0, 1, 1]), engine).scales == pytest.approx([1.0])
        assert fill(case([], [1.0], starts=[0]), engine).levels.shape == (0, 1)

    def test_more_than_all_want_and_no_demand(self, engine: str) -> None:
        got = fill(case([[1, 0.5]] * 3, [9.0, 9.0], ceilings=[1, 2, 0]), engine)
        assert got.scales == pytest.approx([1, 2, 0])
        assert np.all(got.levels == np.inf)

    def test_fixed_scales_and_flat_pieces(self, engine: str) -> None:
        assert fill(case([[1.0]] * 2, [1.0], floors=[0.5, 0], ceilings=[0.5, 2]), engine).scales == pytest.approx(0.5)
        got = fill(case([[1.0]] * 2, [1.5], weights=[100, 1], floors=[0, 1], ceilings=[0.5, 2]), engine)
        assert got.scales == pytest.approx([0.5, 1.0])

    def test_who_uses_nothing_has_what_it_wants(self, engine: str) -> None:
        got = fill(case([[0, 0], [1, 1]], [1.0, 1.0], ceilings=[7, 7]), engine)
        assert got.scales == pytest.approx([7, 1])

    def test_not_a_number_hurts_only_itself(self, engine: str) -> None:
        nan, inf = float("nan"), float("inf")
        one = case([[nan, 1], [1, 1], [inf, 0], [1, -3]], [1.0, 1.0], weights=[1, 1, 1, nan], floors=[0, nan, 0, 0])
        assert fill(one, engine).scales == pytest.approx([0, 1, 0, 0], abs=1e-6)

    def test_weights_far_apart_and_equal_breakpoints(self, engine: str) -> None:
        got = fill(case([[1, 1]] * 2, [1.0, 2.0], weights=[1e-3, 1e6]), engine)
        assert got.scales == pytest.approx([1e-9, 1.0], rel=1e-6)
        assert fill(case([[1, 1]] * 6, [1.8, 1.8], ceilings=[0.4] * 6), engine).scales == pytest.approx(0.3)

    def test_a_bad_guess_does_not_matter(self, engine: str) -> None:
        one = case([[1, 0.5], [0.5, 1], [1, 0]], [1.0, 1.0], weights=[1, 2, 3])
        plain = fill(one, engine)
        for factor in (1.0, 1e-9, 1e9, -1.0, float("inf"), float("nan")):
            guesses = np.where(np.isfinite(plain.levels), plain.levels, 1.0) * factor
            assert fill(one, engine, guesses).scales == pytest.approx(plain.scales)


def large(n: int, seed: int) -> Case:
    """As the benchmark's: long enough for several blocks, a bracket and a remainder."""
    random = np.random.default_rng(seed)
    usage = np.asfortranarray(random.uniform(0.05, 1, (n, 4)))
    if seed % 2:
        usage *= random.random((n, 4)) < 0.9
    floors = random.uniform(0, 0.1, n) * (random.random(n) < 0.3) / n
    ceilings = floors + random.exponential(6, n) / n
    starts = np.array([0, n // 5, 4 * n // 5, n], dtype=np.int64)
    return Case(random.uniform(50, 2000, n), usage, floors, ceilings, starts, np.full(4, random.uniform(0.2, 2)))


@pytest.mark.parametrize("seed", range(6))
def test_many_agents_from_a_warm_start(seed: int) -> None:
    """A sequence of answers, each from the levels of the one before, is exact at each step.

    Where not all use everything (odd seeds), the last ones divide what the others leave, a small difference of large
    sums, so they inherit these sums' rounding: what counts is then the error in parts of the mean scale.
    """
    one, mean = large(5003, seed), 1 / 5003 if seed % 2 else 0.0
    levels, random = fill(one).levels, np.random.default_rng(seed)
    for _ in range(4):
        ceilings = np.where(random.random(5003) < 0.05, one.floors + random.exponential(6, 5003) / 5003, one.ceilings)
        one = replace(one, ceilings=ceilings)
        expected, got = fill(one, "numpy").scales, fill(one, "numba", levels)
        assert got.scales == pytest.approx(expected, rel=1e-12, abs=1e-11 * mean)
        exact = fill(rounded(one), "numpy").scales
        assert fill(one, "numba", levels, np.float32).scales == pytest.approx(exact, rel=1e-6, abs=1e-3 * mean)
        levels = got.levels


def test_the_compiled_engine_stays_on_the_callers_thread() -> None:
    before = threading.active_count(), len(list(threading.enumerate()))
    fill(large(5003, 1))
    assert (threading.active_count(), len(list(threading.enumerate()))) == before
    assert not compiled_drf.kernel(np.float64).targetoptions.get("parallel", False)


def test_the_kernels_are_loaded_when_they_are_wanted() -> None:
    one = large(100, 0)
    arrays = drf.sanitise(one.weights, one.usage, one.floors, one.ceilings)
    try:
        assert engines.load_compiled()
        assert engines.load_compiled_drf()
        compiled = engines.drf_fill(*arrays, one.starts, one.capacity).scales
    finally:
        engines.use_numpy()
    assert engines.drf_fill(*arrays, one.starts, one.capacity).scales == pytest.approx(compiled, rel=1e-12)
