"""Demand from use and waiting, and the trims: what one tick concludes from what it measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.alloc import TIERS, Problem, Trims, demand, solve, trim
from agentos_native.alloc.waterfill import Floats

fractions = st.floats(0.01, 1.0)


def one(used: float, stalled: float) -> float:
    return float(demand.estimate(np.array([used]), np.array([stalled]))[0])


@given(fractions)
def test_one_thread_that_computes_without_end_wants_one_cpu(share: float) -> None:
    """Whatever it gets: the rest of the time it waits."""
    estimate = one(share, 1.0 - share)
    assert estimate == pytest.approx(1.0) or (estimate == np.inf and share < 0.02)


@given(st.floats(0.05, 0.95), st.floats(0.1, 1.0))
def test_one_thread_that_sleeps_in_between(duty: float, slowed: float) -> None:
    """Of the time in which it does not wait it runs for `duty`; the estimate is that, however much it waits."""
    running = duty * slowed
    waiting = 1.0 - slowed
    assert one(running, waiting) == pytest.approx(duty, rel=1e-6)


@given(st.integers(2, 16), fractions, fractions)
def test_several_threads_are_never_underestimated(threads: int, duty: float, slowed: float) -> None:
    """PSI counts the time in which any of them waits: at least the time in which one of them does."""
    waiting_one = 1.0 - slowed
    used = threads * duty * slowed
    for any_waits in (waiting_one, min(1.0, 1.0 - (1.0 - waiting_one) ** threads)):
        assert one(used, any_waits) >= threads * duty * (1 - 1e-9)


def test_without_psi_who_uses_its_share_wants_more() -> None:
    wanted = demand.without_pressure(np.array([0.5, 0.3, 0.0]), np.array([0.5, 0.5, 0.5]))
    assert wanted[0] == np.inf
    assert wanted[1] == pytest.approx(1 / 3)
    assert wanted[2] == 0.0


def test_demand_rises_at_once_and_falls_slowly() -> None:
    rising = demand.smooth(np.array([0.1]), np.array([1.0]), 1.0)
    falling = demand.smooth(np.array([1.0]), np.array([0.1]), 1.0)
    assert rising[0] == 1.0
    assert 0.4 < falling[0] < 0.9
    assert demand.smooth(np.array([1.0]), np.array([0.1]), 60.0)[0] == pytest.approx(0.1, abs=1e-6)


def test_a_throttled_thread_wants_a_whole_cpu() -> None:
    """0.25 s of each second used, 0.75 s held by cpu.max."""
    held = demand.throttled_fraction(np.array([0.75]), np.array([0.25]), np.array([1.0]))
    assert one(0.25, float(held[0])) == pytest.approx(1.0)


# -- trims --------------------------------------------------------------------------------------------------------


def world(demands: list[float], floors: list[float] | None = None) -> Problem:
    """Agents of one tenant and tier on two CPUs."""
    n = len(demands)
    starts = np.array([0, 0, 0, n, n, n], dtype=np.int64)
    return Problem(
        2.0,
        np.array([100.0]),
        np.array([2]),
        np.array([0.0]),
        np.array([np.inf]),
        starts,
        np.full(n, 100.0),
        np.array(floors or [0.0] * n),
        np.full(n, 2.0),
        np.array(demands),
    )


def trimmed(problem: Problem, used: list[float], seconds: int = 1, start: float = 1.0) -> Floats:
    solution = solve(problem)
    trims = Trims(np.full(len(used), start), np.ones((1, TIERS)), np.ones(1))
    seen = trim.Experience(np.array(used), solution.share)
    for _ in range(seconds):
        trims = trim.step(trims, problem, solution, seen, 2.0, 1.0)
    return trims.agent


def test_an_exact_kernel_is_never_corrected() -> None:
    assert trimmed(world([2.0, 2.0]), [1.0, 1.0], 100).tolist() == [1.0, 1.0]
    assert trimmed(world([2.0, 2.0]), [1.008, 0.992], 100).tolist() == [1.0, 1.0]


def test_who_is_short_becomes_heavier_and_the_other_lighter() -> None:
    short, rich = trimmed(world([2.0, 2.0]), [0.8, 1.2], 5)
    assert 1.0 < short < 1.25
    assert 0.8 < rich < 1.0


def test_corrections_are_bounded() -> None:
    low, high = trim.BOUNDS
    short, rich = trimmed(world([2.0, 2.0]), [0.01, 1.99], 1000)
    assert (short, rich) == (high, low)


def test_all_short_alike_is_not_an_error_of_weights() -> None:
    """The machine gave less to everybody: no weight can mend that."""
    assert trimmed(world([2.0, 2.0]), [0.6, 0.6], 50).tolist() == [1.0, 1.0]


def test_a_correction_is_forgotten_when_nobody_wants_more() -> None:
    factors = trimmed(world([0.2, 0.3]), [0.2, 0.3], 100, start=2.0)
    assert factors == pytest.approx([1.0, 1.0], abs=1e-4)


def test_a_waiting_agent_is_helped_although_it_is_entitled_to_all_it_wants() -> None:
    """It is due 0.5 and gets 0.4, since another one is in its way."""
    assert trimmed(world([0.5, 2.0]), [0.4, 1.6], 3)[0] > 1.0


def test_a_thread_wants_what_a_cpu_gives_or_what_it_has_of_one() -> None:
    wanted = np.array([1.0, 1.0, 1.03, 0.6, 1.9, 2.0, np.inf])
    used = np.array([0.7, 0.96, 0.5, 0.2, 1.0, 1.0, 1.0])
    found = demand.in_parallel(wanted, used, 0.9, 4.0)
    assert found.tolist() == pytest.approx([0.9, 0.96, 0.9, 0.6, 1.8, 1.8, np.inf])
    # as many threads as there are CPUs can have all of them
    assert demand.in_parallel(np.array([2.0]), np.array([1.0]), 0.9, 2.0).tolist() == [2.0]
    assert demand.in_parallel(np.array([1.0]), np.array([0.5]), 1.0, 2.0).tolist() == [1.0]


def test_most_wanted_lately_fades() -> None:
    most = demand.lately(np.array([0.5]), np.array([1.0]), 1.0)
    assert most.tolist() == [1.0]
    later = demand.lately(most, np.array([0.2]), demand.LATELY)
    assert later.tolist() == pytest.approx([np.exp(-1.0)])
    assert demand.awake(np.array([0.2]), np.array([0.4]), later).tolist() == pytest.approx([np.exp(-1.0)])
    assert demand.awake(np.array([0.2]), np.array([0.3]), later).tolist() == [0.3]
