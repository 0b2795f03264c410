"""Alternation and steal: who runs when, and which pairs are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.benches.machine import TICKS, ProcessorTimes, Shares, read_processor_times, shares
from tools.benches.place import BenchError
from tools.benches.programs import parse_times
from tools.benches.rounds import Times, alternate, executed_p50, per_second


class Script:
    """A contender that takes a fixed time and notes its turns."""

    stage_names: tuple[str, ...] = ()

    def __init__(self, name: str, microseconds: float, turns: list[str]) -> None:
        self.name = name
        self._microseconds = microseconds
        self._turns = turns

    def run(self, count: int, depth: int) -> Times:
        self._turns.append(self.name)
        return Times((self._microseconds,) * count, (self._microseconds,) * count, self._microseconds * count / depth)

    def processor_seconds(self) -> float:
        return 0.25 * self._turns.count(self.name)

    def settle(self) -> bool:
        return True


def readings(steals: list[float], foreign: float = 0.0) -> Iterator[ProcessorTimes]:
    """Before and after each batch: of 200 ticks `steals` are stolen, 25 are the contender's, `foreign` are others'."""
    now = ProcessorTimes(0, 0, 0)
    for share in steals:
        yield now
        now = ProcessorTimes(now.stolen + int(share * 200), now.busy + 25 + int(foreign * 200), now.total + 200)
        yield now


def p50_ratio(mine: Times, theirs: Times) -> float:
    return executed_p50(mine) / executed_p50(theirs)


def test_everybody_runs_once_a_round_and_nobody_always_first() -> None:
    turns: list[str] = []
    contenders = [Script("a", 10, turns), Script("b", 20, turns)]
    result = alternate(contenders, 1, 3, {"a": 4, "b": 4}, read=lambda: ProcessorTimes(0, 0, 0))
    assert turns == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [batch.used for batch in result.batches["a"]] == [0.25] * 3


def test_the_warming_round_is_not_counted_and_a_stolen_batch_spoils_its_pair_only() -> None:
    steals = [0.9, 0.9, 0.0, 0.5, 0.1, 0.1, 0.0, 0.0]  # warming, then (b, a), (a, b), (b, a)
    source = readings(steals)
    contenders = [Script("a", 30, []), Script("b", 20, [])]
    result = alternate(contenders, 2, 3, {"a": 6, "b": 6}, read=lambda: next(source))
    assert len(result.batches["a"]) == 3
    assert result.compare("a", "b", p50_ratio) == ([1.5, 1.5], 1.5)
    assert "1 of 3 pairs dropped" in result.lost("a", "b")
    assert (len(result.clean("a")), len(result.clean("b"))) == (2, 3)
    rates, _ = result.compare("b", "a", lambda mine, theirs: per_second(mine) / per_second(theirs))
    assert rates == pytest.approx([1.5, 1.5])


def test_other_work_on_this_machine_spoils_a_pair_as_steal_does() -> None:
    source = readings([0.0] * 4, foreign=0.5)
    result = alternate([Script("a", 30, []), Script("b", 20, [])], 1, 1, {"a": 6, "b": 6}, read=lambda: next(source))
    assert result.batches["a"][0].shares == Shares(0.0, 0.5)
    assert result.compare("a", "b", p50_ratio) == ([], 1.5)
    shown, reason = result.to_show("a")
    assert len(shown) == 1
    assert "no clean batch" in reason


def test_steal_is_the_eighth_figure_and_guest_time_is_not_counted_twice(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 20 30 40 50 60 70 80 900 900\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    before = read_processor_times(str(stat))
    assert before == ProcessorTimes(80, 190, 360)
    after = ProcessorTimes(95, 250, 460)
    assert shares(before, after, 0.0) == Shares(0.15, 0.6)
    assert shares(before, after, 40 / TICKS).foreign == pytest.approx(0.2)
    assert shares(before, after, 100.0) == Shares(0.15, 0.0)
    assert shares(before, before, 0.0) == Shares(0.0, 0.0)


def test_the_answer_of_a_program_is_parsed_and_a_dead_program_is_an_error() -> None:
    assert parse_times("C", "900.5 10.0,20.0,1.0 11.0,21.5,1.0\n") == Times(
        (10.0, 11.0), (20.0, 21.5), 900.5, ((1.0,), (1.0,))
    )
    with pytest.raises(BenchError, match="C could not"):
        parse_times("C", "")
