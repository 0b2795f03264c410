"""Weighted max-min of one segment: properties, an independent QP as oracle, edge cases, and both engines alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.alloc import compiled, waterfill
from agentos_native.alloc.waterfill import Floats

Engine = Callable[..., tuple[Floats, Floats]]
ENGINES: dict[str, Engine] = {"numpy": waterfill.waterfill, "numba": compiled.waterfill}
EPS = 1e-9


@dataclass(frozen=True)
class Case:
    weights: Floats
    floors: Floats
    ceilings: Floats
    budget: float


def fill(case: Case, engine: str = "numpy", guess: float = 0.0) -> tuple[Floats, float]:
    arrays = waterfill.sanitise(case.weights, case.floors, case.ceilings)
    starts = np.array([0, len(case.weights)], dtype=np.int64)
    shares, levels = ENGINES[engine](*arrays, starts, np.array([case.budget]), np.array([guess]))
    return shares, float(levels[0])


def case(weights: list[float], floors: list[float], ceilings: list[float], budget: float) -> Case:
    return Case(np.array(weights), np.array(floors), np.array(ceilings), budget)


@st.composite
def cases(draw: st.DrawFn, fitting: bool = False, most: int = 12) -> Case:
    """Agents with weights over four decades, reservations, limits and demands; with `fitting`, floors that fit."""
    n = draw(st.integers(1, most))
    amounts = st.floats(0, 4, allow_nan=False).map(lambda x: round(x, 4))
    weights = draw(st.lists(st.floats(1, 10_000), min_size=n, max_size=n))
    floors = draw(st.lists(amounts, min_size=n, max_size=n))
    more = draw(st.lists(amounts, min_size=n, max_size=n))
    ceilings = [low + extra for low, extra in zip(floors, more, strict=True)]
    budget = draw(st.floats(0.001, 20))
    if fitting and sum(floors) > budget:
        floors = [low * budget / sum(floors) * 0.999 for low in floors]
    return case(weights, floors, ceilings, budget)


@given(cases())
def test_feasible_and_efficient(one: Case) -> None:
    shares, _ = fill(one)
    assert np.all(shares >= -EPS)
    assert np.all(shares <= one.ceilings + EPS)
    assert shares.sum() == pytest.approx(min(one.budget, one.ceilings.sum()), rel=1e-9, abs=1e-9)


@given(cases(fitting=True))
def test_reservations_are_met(one: Case) -> None:
    shares, _ = fill(one)
    assert np.all(shares >= one.floors - EPS)


@given(cases(fitting=True))
def test_nobody_has_a_justified_complaint(one: Case) -> None:
    """x_i/w_i < x_j/w_j only where i is at its ceiling or j at its floor."""
    shares, _ = fill(one)
    ratio = shares / one.weights
    for i in range(len(shares)):
        for j in range(len(shares)):
            if ratio[i] < ratio[j] * (1 - 1e-7) - 1e-12:
                at_ceiling = shares[i] >= one.ceilings[i] - 1e-7
                at_floor = shares[j] <= one.floors[j] + 1e-7
                assert at_ceiling or at_floor


@given(cases(fitting=True), st.floats(1.01, 20), st.data())
def test_more_weight_never_gives_less(one: Case, factor: float, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(one.weights) - 1))
    weights = one.weights.copy()
    weights[index] *= factor
    heavier, _ = fill(Case(weights, one.floors, one.ceilings, one.budget))
    assert heavier[index] >= fill(one)[0][index] - 1e-7


@given(cases(), st.floats(0.01, 100))
def test_only_ratios_of_weights_count(one: Case, factor: float) -> None:
    scaled, _ = fill(Case(one.weights * factor, one.floors, one.ceilings, one.budget))
    assert scaled == pytest.approx(fill(one)[0], abs=1e-7)


@given(cases(), st.floats(0.01, 100))
def test_units_do_not_count(one: Case, factor: float) -> None:
    scaled, _ = fill(Case(one.weights, one.floors * factor, one.ceilings * factor, one.budget * factor))
    assert scaled / factor == pytest.approx(fill(one)[0], abs=1e-7)


@given(cases(fitting=True), st.data())
def test_who_leaves_makes_nobody_poorer(one: Case, data: st.DataObject) -> None:
    gone = data.draw(st.integers(0, len(one.weights) - 1))
    stay = np.arange(len(one.weights)) != gone
    rest, _ = fill(Case(one.weights[stay], one.floors[stay], one.ceilings[stay], one.budget))
    assert np.all(rest >= fill(one)[0][stay] - 1e-7)


@given(cases(fitting=True), st.floats(0, 8), st.data())
def test_a_false_demand_gains_nothing(one: Case, claimed: float, data: st.DataObject) -> None:
    """What an agent can use of the share that a lie brings is never more than the truth brings."""
    liar = data.draw(st.integers(0, len(one.weights) - 1))
    ceilings = one.ceilings.copy()
    ceilings[liar] = max(claimed, one.floors[liar])
    lied, _ = fill(Case(one.weights, one.floors, ceilings, one.budget))
    assert min(lied[liar], one.ceilings[liar]) <= fill(one)[0][liar] + 1e-7


def quadratic_oracle(one: Case) -> Floats:
    """min Σ x²/2w under the same constraints, by HiGHS."""
    n = len(one.weights)
    solver = highspy.Highs()
    solver.silent()
    model = highspy.HighsModel()
    lp = model.lp_
    lp.num_col_, lp.num_row_ = n, 1
    lp.col_cost_ = np.zeros(n)
    lp.col_lower_, lp.col_upper_ = one.floors, one.ceilings
    total = min(one.budget, float(one.ceilings.sum()))
    lp.row_lower_ = lp.row_upper_ = np.array([total])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.arange(n + 1)
    lp.a_matrix_.index_ = np.zeros(n, dtype=np.int32)
    lp.a_matrix_.value_ = np.ones(n)
    model.hessian_.dim_ = n
    model.hessian_.format_ = highspy.HessianFormat.kTriangular
    model.hessian_.start_ = np.arange(n + 1)
    model.hessian_.index_ = np.arange(n, dtype=np.int32)
    model.hessian_.value_ = one.weights.mean() / one.weights
    solver.passModel(model)
    solver.run()
    assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return np.array(solver.getSolution().col_value)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_minimiser_of_the_quadratic_programme(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(2, 9))
    floors = random.uniform(0, 0.3, n) * random.integers(0, 2, n)
    one = Case(
        random.choice([50.0, 100.0, 200.0, 1000.0], n),
        floors,
        floors + random.uniform(0, 2, n),
        float(floors.sum() + random.uniform(0.1, 3)),
    )
    assert fill(one)[0] == pytest.approx(quadratic_oracle(one), abs=2e-5)


@settings(max_examples=300)
@given(st.lists(cases(), min_size=1, max_size=5), st.floats(0, 10))
def test_both_engines_give_the_same(several: list[Case], guess: float) -> None:
    """Many segments at once, warm-started from anywhere, in one call."""
    sizes = [len(one.weights) for one in several]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    arrays = [np.concatenate([getattr(one, name) for one in several]) for name in ("weights", "floors", "ceilings")]
    budgets = np.array([one.budget for one in several])
    guesses = np.full(len(several), guess)
    results = [engine(*waterfill.sanitise(*arrays), starts, budgets, guesses) for engine in ENGINES.values()]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-9)
    assert np.array_equal(np.isinf(results[0][1]), np.isinf(results[1][1]))
    for index, one in enumerate(several):
        alone, _ = fill(one)
        assert results[0][0][starts[index] : starts[index + 1]] == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
class TestEdges:
    def test_nobody(self, engine: str) -> None:
        shares, level = fill(case([], [], [], 2.0), engine)
        assert len(shares) == 0
        assert level == np.inf

    def test_floors_that_do_not_fit_are_all_missed_alike(self, engine: str) -> None:
        shares, level = fill(case([100, 900], [2, 1], [2, 2], 1.5), engine)
        assert shares == pytest.approx([1.0, 0.5])
        assert level == 0.0

    def test_floors_that_just_fit(self, engine: str) -> None:
        assert fill(case([100, 900], [1, 1], [2, 2], 2.0), engine)[0] == pytest.approx([1, 1])

    def test_more_than_all_want(self, engine: str) -> None:
        shares, level = fill(case([1, 1], [0, 0], [0.5, 1], 4.0), engine)
        assert shares == pytest.approx([0.5, 1])
        assert level == np.inf

    def test_fixed_shares(self, engine: str) -> None:
        assert fill(case([1, 1, 1], [0.5, 0, 0], [0.5, 2, 2], 1.5), engine)[0] == pytest.approx([0.5, 0.5, 0.5])

    def test_a_flat_piece(self, engine: str) -> None:
        """Between the first's ceiling and the second's floor the level may be anything; the shares are not in doubt."""
        assert fill(case([100, 1], [0, 1], [0.5, 2], 1.5), engine)[0] == pytest.approx([0.5, 1.0])

    def test_no_demand(self, engine: str) -> None:
        assert fill(case([1, 1], [0, 0], [0, 3], 2.0), engine)[0] == pytest.approx([0, 2])

    def test_nothing_to_divide(self, engine: str) -> None:
        assert fill(case([1, 1], [0, 0], [1, 3], 0.0), engine)[0] == pytest.approx([0, 0])

    def test_equal_breakpoints(self, engine: str) -> None:
        assert fill(case([1] * 6, [0.2] * 6, [0.4] * 6, 1.8), engine)[0] == pytest.approx([0.3] * 6)

    def test_weights_far_apart(self, engine: str) -> None:
        shares, _ = fill(case([1e-3, 1e6], [0, 0], [5, 5], 1.0), engine)
        assert shares == pytest.approx([1e-9, 1.0], rel=1e-6)

    def test_not_a_number_hurts_only_itself(self, engine: str) -> None:
        nan, inf = float("nan"), float("inf")
        one = case([nan, 100, 100, -5], [0, nan, 0, 0], [inf, inf, nan, 4], 2.0)
        shares, _ = fill(one, engine)
        assert shares == pytest.approx([0, 2, 0, 0], abs=1e-6)

    def test_infinite_weight_and_floor(self, engine: str) -> None:
        inf = float("inf")
        shares, _ = fill(case([inf, 1], [0, 0], [1, 3], 2.0), engine)
        assert shares == pytest.approx([1, 1])
        assert fill(case([1, 1], [inf, 0], [1, 3], 2.0), engine)[0] == pytest.approx([1, 1])

    def test_a_bad_guess_does_not_matter(self, engine: str) -> None:
        one = case([100, 200, 700], [0.1, 0, 0], [1, 1, 1], 1.2)
        plain, level = fill(one, engine)
        for guess in (level, level * 1e-9, level * 1e9, -1.0, float("inf"), float("nan")):
            assert fill(one, engine, guess)[0] == pytest.approx(plain, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_long_and_short_segments_from_a_warm_start(seed: int) -> None:
    """Each answer starts from the last one's levels: a bracket where the segment is long, also if it misses."""
    random, sizes = np.random.default_rng(seed), [4999, 3, 0, 1500, 1]
    starts, n = np.cumsum([0, *sizes]), sum(sizes)
    weights, floors = random.uniform(50, 2000, n), random.uniform(0, 0.1, n) * (random.random(n) < 0.3)
    ceilings = floors + random.exponential(1, n)
    budgets = np.array([800.0, 0.7, 1.0, 300.0, 0.1])
    levels = compiled.waterfill(weights, floors, ceilings, starts, budgets, np.zeros(5))[1]
    for drift in (0.05, 0.05, 1.0):
        ceilings = np.where(random.random(n) < drift, floors + random.exponential(1, n), ceilings)
        expected, _ = waterfill.waterfill(weights, floors, ceilings, starts, budgets, np.zeros(5))
        shares, new = compiled.waterfill(weights, floors, ceilings, starts, budgets, levels)
        assert shares == pytest.approx(expected, rel=1e-12, abs=0)
        half = tuple(array.astype(np.float32) for array in (weights, floors, ceilings))
        exact = tuple(array.astype(np.float64) for array in half)
        expected, _ = waterfill.waterfill(exact[0], exact[1], exact[2], starts, budgets, np.zeros(5))
        shares, _ = compiled.waterfill(half[0], half[1], half[2], starts, budgets, levels)
        assert shares.dtype == np.float32
        assert shares == pytest.approx(expected, rel=1e-6, abs=0)
        levels = new * random.choice([1.0, 1.1, 30.0])


def test_equal_breakpoints_in_a_long_segment() -> None:
    """All bends in one place: the bracket is of no use, the answer still right."""
    n = 3000
    starts, guess = np.array([0, n]), np.array([0.3])
    shares, _ = compiled.waterfill(np.ones(n), np.full(n, 0.2), np.full(n, 0.3), starts, np.array([0.299 * n]), guess)
    assert shares == pytest.approx(np.full(n, 0.299), rel=1e-12)


def test_the_compiled_engine_is_not_parallel() -> None:
    assert not compiled.kernel(np.float64).targetoptions.get("parallel", False)
