"""The judge of the benchmarks: what it says about few, noisy, stolen or borderline samples."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.benches.report import Row, judge, print_json
from tools.benches.stats import median, median_interval, percentile

figures = st.floats(min_value=0.001, max_value=1e6, allow_nan=False)


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1.0) == 100
    assert percentile([7.0], 0.5) == 7


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@given(st.lists(figures, min_size=1, max_size=40))
def test_the_median_splits_the_values_in_half(values: list[float]) -> None:
    middle = median(values)
    assert sum(value < middle for value in values) <= len(values) / 2
    assert sum(value > middle for value in values) <= len(values) / 2


@pytest.mark.parametrize(("n", "low", "high"), [(6, 0, 5), (9, 1, 7), (12, 2, 9), (20, 5, 14)])
def test_the_interval_is_the_sign_tests(n: int, low: int, high: int) -> None:
    # The published order statistics of the 95 % sign interval for these sample sizes.
    assert median_interval([float(value) for value in range(n)]) == (low, high)


def test_five_samples_give_no_interval() -> None:
    assert median_interval([1.0] * 5) is None


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    source = random.Random(20)
    covered = 0
    for _ in range(500):
        interval = median_interval([source.expovariate(1.0) for _ in range(12)])
        assert interval is not None
        covered += interval[0] <= 0.6931 <= interval[1]
    assert covered >= 0.95 * 500 - 15


def test_clear_samples_get_a_clear_verdict() -> None:
    assert judge([1.2, 1.25, 1.3, 1.22, 1.28, 1.24], 1.6).ok is True
    assert judge([1.9, 1.95, 2.0, 1.92, 1.98, 1.94], 1.6).ok is False
    assert judge([0.9, 0.95, 0.8, 0.85, 0.88, 0.91], 0.7, at_least=True).ok is True
    assert judge([0.5, 0.55, 0.6, 0.52, 0.58, 0.54], 0.7, at_least=True).ok is False


def test_samples_around_the_budget_are_inconclusive_and_never_ok() -> None:
    verdict = judge([1.4, 1.5, 1.55, 1.58, 1.7, 1.8], 1.6)
    assert verdict.ok is None
    assert "holds the budget" in verdict.reason


def test_too_few_clean_samples_are_inconclusive_and_say_where_the_others_went() -> None:
    verdict = judge([1.1, 1.1, 1.1], 1.6, lost="9 of 12 pairs dropped")
    assert (verdict.ok, verdict.middle) == (None, 1.1)
    assert "3 clean samples" in verdict.reason
    assert "9 of 12 pairs dropped" in verdict.reason
    assert judge([], 1.6).ok is None


@given(st.lists(figures, max_size=30), figures, st.booleans())
def test_no_verdict_contradicts_its_own_median(samples: list[float], budget: float, at_least: bool) -> None:
    verdict = judge(samples, budget, at_least=at_least)
    if verdict.ok is not None:
        assert verdict.middle is not None
        assert verdict.ok == (verdict.middle >= budget if at_least else verdict.middle <= budget)


def test_json_is_the_promised_shape_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("start", [Row("a", 1.23456, "ms", "C", 1.1, 1.6, True), Row("b", None, "ms", reason="why")])
    result = json.loads(capsys.readouterr().out)
    assert result["bench"] == "start"
    first = {"name": "a", "value": 1.235, "unit": "ms", "against": "C", "ratio": 1.1, "budget": 1.6, "ok": True}
    assert result["rows"][0] == first
    assert result["rows"][1]["ok"] is None
    assert result["rows"][1]["reason"] == "why"
