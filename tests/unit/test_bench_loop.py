"""What ``tools/bench loop`` makes of reports: turns that were never served, what specs entitle to, and verdicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tools.benches.loop import METRICS, Metric, compare, entitled, rows_of, shortfalls, unfairness
from tools.benches.mixed import _REPORT, AGENTS, Outcome, Played, Turns, _Running

LESS = Metric("latency", "ms", lambda played: 0.0, equal=10.0)
MORE = Metric("work", "units/s", lambda played: 0.0, equal=0.0, more_is_better=True)


@pytest.mark.parametrize(
    ("metric", "mine", "theirs", "verdict"),
    [
        (LESS, [100, 110, 120], [200, 210, 230], "better"),
        (LESS, [200, 210, 230], [100, 110, 120], "worse"),
        (LESS, [105, 104, 106], [100, 101, 99], "equal"),  # lost each time, but by what nobody notices
        (LESS, [90, 250, 120], [100, 110, 120], "equal"),  # won one, lost one
        (MORE, [200, 210], [100, 110], "better"),
        (MORE, [100, 110], [200, 210], "worse"),
        (MORE, [99, 99.5], [100, 100], "equal"),
    ],
)
def test_a_verdict_takes_every_round(metric: Metric, mine: list[float], theirs: list[float], verdict: str) -> None:
    assert compare(mine, theirs, metric) == verdict


def outcome(index: int, used: float, wanted: float, work: int = 10) -> Outcome:
    return Outcome(AGENTS[index], used, wanted, work)


def test_what_the_specs_entitle_to() -> None:
    """heavy and light of one tenant (weights 300 and 100), a guest of another tenant of the same weight."""
    heavy, light, guest = (next(i for i, spec in enumerate(AGENTS) if spec.name == name)
                           for name in ("heavy", "light", "guest-1"))  # fmt: skip
    played = Played([outcome(heavy, 0.5, 2.0), outcome(light, 0.5, 2.0), outcome(guest, 1.0, 1.0)], 0, 10.0, 0.0, 0, "")
    assert entitled(played) == pytest.approx([0.75, 0.25, 1.0])
    assert unfairness(played) == pytest.approx(12.5)
    assert shortfalls(played) == [0.0, 0.0, 0.0]


def test_what_is_wanted_only_at_times_is_due_only_then() -> None:
    """A dialogue agent (reservation 0.4) has something to do in half of the window, beside a hog of another tenant."""
    hog = next(index for index, spec in enumerate(AGENTS) if spec.name == "heavy")
    talks = Outcome(AGENTS[0], 0.5, 0.5, 1, Turns(pending=[(2.0, 7.0)]))
    played = Played([talks, outcome(hog, 1.5, 2.0)], 0, 10.0, 0.0, 0, "")
    limit = 1.5  # of the hog
    assert entitled(played) == pytest.approx([0.5 * 1.0, 0.5 * 1.0 + 0.5 * limit])


def test_turns_that_are_never_served_count_with_the_time_they_have_waited(tmp_path: Path) -> None:
    spec = AGENTS[0]
    report = np.zeros(1, dtype=_REPORT)
    turns = report["turn"][0]
    turns[0] = [5.0, 10, 5.0, 5.5, 0.4]  # before the window
    turns[1] = [11.0, 10, 11.0, 12.0, 0.3]  # 0.3 of the 0.4 CPUs that are reserved
    turns[2] = [11.5, 20, 12.0, 12.5, 0.5]  # waited for the turn before
    turns[3] = [18.0, 40, 0.0, 0.0, 0.0]
    turns[4] = [25.0, 10, 0.0, 0.0, 0.0]  # after the window
    turns[5:, 0] = 1e9
    path = tmp_path / f"{spec.name}-0"
    report.tofile(path)
    running = _Running(0, spec, [], tmp_path)
    running._lives.append((path, 0.0))
    found = running.turns(10.0, 20.0)
    assert found.latency == pytest.approx([1.0, 1.0, 2.0])
    assert found.offered == 70
    assert found.pending == [(1.0, 2.0), (2.0, 2.5), (8.0, 10.0)]
    assert found.busy == pytest.approx(1.5)
    assert found.missing == pytest.approx(0.1)
    assert Outcome(spec, 0.3, 0.5, 30, found).shortfall == pytest.approx(0.1 / 1.5)
    starved = Outcome(spec, 0.1, 0.5, 30, found)  # 1 CPU second in the 3.5 seconds in which it had turns to answer
    assert starved.shortfall == pytest.approx(0.4 - 1.0 / 3.5)


def test_only_the_first_regime_is_judged() -> None:
    played = {name: [Played([outcome(3, 1.0, 2.0, work)], 0, 1.0, 0.0, 0, "")] for name, work in (("a", 1), ("b", 9))}
    metric = next(metric for metric in METRICS if metric.name == "work done")
    mine, theirs = rows_of(metric, played)
    assert (mine.ok, theirs.ok) == (False, None)
    assert "b" in mine.reason
