"""Which rows the start benchmark makes of its batches, and which of them are held to a budget."""

from __future__ import annotations

from tools.benches.machine import Shares
from tools.benches.report import Row
from tools.benches.rounds import Batch, Comparison, Times
from tools.benches.start import rows_of


def batches(microseconds: float, steals: list[float]) -> list[Batch]:
    """One batch of four equal starts for each steal; a start takes twice as long to end as to be executed."""
    times = Times((microseconds,) * 4, (microseconds * 2,) * 4, microseconds * 8)
    return [Batch(times, Shares(steal, 0.1), 0.02) for steal in steals]


def rows(depth: int, figures: dict[str, float], steals: list[float]) -> dict[tuple[str, str], Row]:
    comparison = Comparison(depth, {name: batches(figure, steals) for name, figure in figures.items()})
    return {(row.name, row.against): row for row in rows_of(comparison, list(figures))}


QUIET = [0.0] * 8


def test_the_stages_are_bound_by_both_ratios_to_the_c_program() -> None:
    made = rows(1, {"C": 4000, "stages": 6000}, QUIET)
    latency = made["stages, 1 in flight: request to exec p50, ratio", "C"]
    assert (latency.value, latency.ratio, latency.budget, latency.ok) == (6.0, 1.5, 1.6, True)
    rate = made["stages, 1 in flight: rate, ratio", "C"]
    assert (rate.budget, rate.ok) == (0.7, False)
    assert rate.ratio is not None
    assert abs(rate.ratio - 2 / 3) < 1e-9


def test_with_several_in_flight_only_the_rate_is_bound() -> None:
    made = rows(4, {"C": 4000, "stages": 9000}, QUIET)
    assert made["stages, 4 in flight: request to exec p50, ratio", "C"].budget is None
    assert made["stages, 4 in flight: rate, ratio", "C"].ok is False


def test_the_api_may_add_two_milliseconds_and_must_beat_runc_fourfold() -> None:
    made = rows(1, {"stages": 6000, "API": 7500, "runc": 31_000}, QUIET)
    above = made["API, 1 in flight: request to exec p50 above the stages'", "stages"]
    assert (above.value, above.budget, above.ok) == (1.5, 2.0, True)
    beaten = made["runc, 1 in flight: request to exec p50, ratio", "API"]
    assert (beaten.budget, beaten.ok) == (4.0, True)
    assert made["runc, 1 in flight: request to exec p50, ratio", "stages"].budget is None


def test_peers_are_told_but_bind_nothing() -> None:
    made = rows(1, {"C": 4000, "bwrap": 40_000}, QUIET)
    assert all(row.ok is None and row.budget is None for row in made.values())


def test_stolen_batches_make_the_row_inconclusive_with_the_reason() -> None:
    made = rows(1, {"C": 4000, "stages": 4400}, [0.5] * 6 + [0.0] * 2)
    row = made["stages, 1 in flight: request to exec p50, ratio", "C"]
    assert row.ok is None
    assert "6 of 8 pairs dropped" in row.reason


def test_without_a_clean_batch_figures_are_shown_but_prove_nothing() -> None:
    made = rows(1, {"C": 4000, "stages": 4400}, [0.5] * 8)
    assert "no clean batch" in made["C, 1 in flight: request to exec p50", ""].reason
    bound = made["stages, 1 in flight: request to exec p50, ratio", "C"]
    assert (bound.ratio, bound.ok) == (1.1, None)
    assert "no clean sample" in bound.reason
