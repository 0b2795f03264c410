"""Trims against a kernel that keeps threads on their CPUs (tests/lanes.py): what is due is had soon, and kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.alloc import TIERS, Experience, Inputs, Problem, Trims, Warm, demand, turn
from agentos_native.alloc.trim import BOUNDS, IGNORED, ODDS
from tests.lanes import Sibling, run

CPUS = 2.0
AVERAGED = 1.0 - np.exp(-1.0 / 4.0)
"""As `supervisor.loop.trims` does it at one tick a second."""
TOLERANCE = 0.02 * CPUS


class Machine:
    """Siblings of one tenant and tier, or each in a tier of its own, under the allocator's turns, one a second.

    Args:
        lanes: what the machine's own work leaves of each CPU.
        tiers: of the siblings, ascending; None: all the same.
    """

    def __init__(
        self, siblings: list[Sibling], weights: list[float], lanes: list[float], tiers: list[int] | None = None
    ) -> None:
        self.siblings, self.lanes = siblings, lanes
        count = len(siblings)
        self.tiers = tiers or [2] * count
        self.weight = np.array(weights)
        self.floor = np.zeros(count)
        self.told = [float(w) for w in weights]
        self.groups = [100.0] * count  # of the tiers, by sibling
        self.trims = Trims(np.ones(count), np.ones((1, TIERS)), np.ones(1))
        self.warm = Warm()
        self.average: Experience | None = None
        self.due = np.zeros(count)
        self.used = np.zeros(count)
        self.writes = 0

    def second(self) -> None:
        """Run, measure, allocate."""
        run(self.siblings, self.groups if len(set(self.tiers)) > 1 else self.told, self.lanes)
        self.used = np.array([sibling.used for sibling in self.siblings])
        wants = np.array([sibling.wanted for sibling in self.siblings])
        had = self.used if self.average is None else self.average.used
        wanted = demand.in_parallel(wants, had, sum(self.lanes) / CPUS, CPUS)
        problem = Problem(
            capacity=sum(self.lanes),
            tenant_weight=np.array([100.0]),
            tenant_tier=np.array([2]),
            tenant_floor=np.zeros(1),
            tenant_ceiling=np.array([np.inf]),
            starts=np.searchsorted(np.array(self.tiers), np.arange(TIERS + 1)).astype(np.int64),
            weight=self.weight,
            floor=self.floor,
            ceiling=np.full(len(wants), np.inf),
            demand=wanted,
        )
        outcome = turn(Inputs(problem, self.warm, self.trims, self.average, CPUS, 1.0))
        self.warm, self.due = outcome.warm, outcome.solution.share
        assert outcome.trims is not None
        self.trims = outcome.trims
        told = outcome.weights.agent.tolist()
        self.writes += sum(a != b for a, b in zip(told, self.told, strict=True))
        self.told, self.groups = told, [float(outcome.weights.group[0, tier]) for tier in self.tiers]
        old = self.average or Experience(self.used, self.due)
        self.average = Experience(
            old.used + AVERAGED * (self.used - old.used), old.due + AVERAGED * (self.due - old.due)
        )

    def history(self, seconds: int) -> list[float]:
        """What the first sibling has beyond what it is due, in each of them."""
        found = []
        for _ in range(seconds):
            self.second()
            found.append(float(self.used[0] - self.due[0]))
        return found


def test_nearly_a_whole_cpu_is_a_matter_of_odds() -> None:
    """By weight 8 : 2 it has 0.8 of its CPU; what it is due, all of it, takes a weight many times as high."""
    heavy = Machine([Sibling((1, 0)), Sibling((1, 2))], [800.0, 600.0], [1.0, 1.0])
    heavy.second()
    assert heavy.used[0] == pytest.approx(0.8)
    assert heavy.due[0] == pytest.approx(1.0)
    off = heavy.history(20)
    assert off[-1] == pytest.approx(0.0, abs=TOLERANCE)
    assert max(abs(value) for value in heavy.history(60)) <= TOLERANCE
    assert BOUNDS[1] < heavy.trims.agent[0] <= ODDS


def test_a_higher_tier_is_served_on_its_own_cpu() -> None:
    """A floor below keeps the margin's weight in proportion, so the odds on one CPU are those of the shares."""
    machine = Machine([Sibling((1, 0)), Sibling((1, 1)), Sibling((1, 1))], [100.0] * 3, [1.0, 1.0], [1, 2, 3])
    machine.floor[2] = 0.4
    machine.history(30)
    assert max(abs(value) for value in machine.history(60)) <= TOLERANCE


def test_what_the_machine_itself_takes_of_a_cpu_is_not_promised() -> None:
    """A tenth of each CPU is somebody else's: no weight gets more than what is left."""
    machine = Machine([Sibling((1, 0)), Sibling((1, 2))], [800.0, 300.0], [0.9, 0.9])
    machine.history(40)
    assert machine.due[0] == pytest.approx(0.9, abs=0.001)
    assert machine.used[0] == pytest.approx(0.9, abs=TOLERANCE)
    still = machine.trims.agent[0]
    machine.history(60)
    assert machine.trims.agent[0] == pytest.approx(still, rel=0.05)  # and none is looked for without end


def test_a_cpu_that_others_leave_alone_gives_more_than_the_average() -> None:
    machine = Machine([Sibling((1, 0)), Sibling((0, 2))], [300.0, 100.0], [1.0, 0.8])
    machine.history(10)
    assert machine.due.tolist() == pytest.approx([1.0, 0.8], abs=0.01)


def test_who_wants_more_again_is_not_left_with_the_odds() -> None:
    """Its weight was raised for a whole CPU; when it starts a second thread it is one hog among others at once."""
    machine = Machine([Sibling((1, 0)), Sibling((1, 2))], [800.0, 600.0], [1.0, 1.0])
    machine.history(40)
    assert machine.trims.agent[0] > BOUNDS[1]
    machine.siblings[0].threads = (1, 1)
    machine.second()
    assert machine.trims.agent[0] <= BOUNDS[1]


def test_trims_rest_where_shares_are_right() -> None:
    """Once what is due is had, nothing is written any more."""
    machine = Machine([Sibling((1, 0)), Sibling((1, 2))], [800.0, 600.0], [1.0, 1.0])
    machine.history(120)
    machine.writes = 0
    machine.history(60)
    assert machine.writes <= 2


@settings(max_examples=30)
@given(
    heavy=st.integers(300, 5000),
    hogs=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2)), min_size=1, max_size=3),
    lane=st.floats(0.7, 1.0),
    duty=st.sampled_from([1.0, 1.0, 0.9, 0.7]),
)
def test_it_converges_and_stays(heavy: int, hogs: list[tuple[int, int]], lane: float, duty: float) -> None:
    """Whatever is beside it on its CPU: it has what it is due within two minutes, and neither swings nor drifts after.

    What it is due it may also get without others being held back: then it has more, as far as it wants.
    """
    siblings = [Sibling((1, 0), duty), *(Sibling(threads) for threads in hogs)]
    machine = Machine(siblings, [float(heavy), *([100.0] * len(hogs))], [lane, lane])
    machine.history(120)
    after = machine.history(60)
    least = min(machine.due[0], siblings[0].wanted, lane) - machine.due[0]
    bounded = machine.trims.agent[0] >= 0.99 * BOUNDS[1]
    assert min(after) >= least - TOLERANCE or bounded
    swings = [abs(b - a) for a, b in itertools.pairwise(after)]
    assert max(swings) <= TOLERANCE
    assert np.all(machine.trims.agent >= BOUNDS[0])
    assert np.all(machine.trims.agent <= ODDS)
    assert IGNORED * CPUS < TOLERANCE
