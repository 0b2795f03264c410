"""``tools/bench alloc``: the engines of the allocator against the memory's own speed, and against HiGHS.

The *floor* reads every array of the problem twice and writes the answer once, vectorised, on the same arrays, the same
core and in the same round; nothing that looks at each member twice can be faster. Before each turn demands of one
member in twenty change, and the engine starts from its last levels, as a tick does. Everything runs on one thread.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from agentos_native.alloc import compiled, compiled_drf, drf, waterfill
from tools.benches.place import Place
from tools.benches.programming import first_programme
from tools.benches.report import Row, judge
from tools.benches.rounds import Comparison, Contender, Times, alternate, executed_p50
from tools.benches.stats import median

Reals = NDArray[Any]

BUDGET: Final = 2.0
PROGRAMME_BUDGET: Final = 1000.0
ERRORS: Final = {"f64": 1e-12, "f32": 1e-6}
REALS: Final[dict[str, type[np.floating[Any]]]] = {"f64": np.float64, "f32": np.float32}
CHANGED: Final = 0.05
RESOURCES: Final = 4
DRF: Final = f"DRF, {RESOURCES} resources"
TIERS: Final = (0.0, 0.2, 0.8, 1.0)
"""Where tiers begin, as parts of the members: the first has all it wants, the second shares, the third has floors."""
IN_VM: Final = {"--rounds": "7"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--members", type=int, default=100_000, help="how many agents")
    parser.add_argument("--rounds", type=int, default=12, help="turns of every contender")
    parser.add_argument("--count", type=int, default=40, help="allocations in one turn")
    parser.add_argument("--no-programme", action="store_true", help="without HiGHS, which takes a minute or so")


@njit(nogil=True, fastmath=True)
def _floor_one(weights: Reals, floors: Reals, ceilings: Reals, shares: Reals) -> None:
    """Two reads of three arrays, one write."""
    total = weights.dtype.type(0)
    for i in range(len(weights)):
        total += weights[i] + floors[i] + ceilings[i]
    for i in range(len(weights)):
        shares[i] = weights[i] + floors[i] + ceilings[i] + total


@njit(nogil=True, fastmath=True)
def _floor_four(weights: Reals, floors: Reals, ceilings: Reals, columns: Reals, shares: Reals) -> None:
    """Two reads of three arrays and four columns, one write."""
    total = weights.dtype.type(0)
    a, b, c, d = columns[0], columns[1], columns[2], columns[3]
    for i in range(len(weights)):
        total += weights[i] + floors[i] + ceilings[i] + a[i] + b[i] + c[i] + d[i]
    for i in range(len(weights)):
        shares[i] = weights[i] + floors[i] + ceilings[i] + a[i] + b[i] + c[i] + d[i] + total


@dataclass
class Load:
    """Agents with weights over a decade and more, reservations for a third of them, and demands that wander."""

    members: int
    real: type[np.floating[Any]]
    resources: int
    tiers: tuple[float, ...] = (0.0, 1.0)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        n, random = self.members, self.random
        weights = random.choice([50.0, 100.0, 200.0, 1000.0], n) * random.uniform(0.5, 2.0, n)
        floors = random.uniform(0.0, 0.1, n) * (random.random(n) < 0.3) / n
        usage = random.uniform(0.05, 1.0, (n, max(self.resources, 1)))
        usage /= usage.max(axis=1)[:, None]
        self.weights, self.floors = weights.astype(self.real), floors.astype(self.real)
        self.usage = np.asfortranarray(usage.astype(self.real))
        self.columns = self.usage.T
        self.ceilings = self.floors + self._demands(n)
        self.shares = np.empty(n, self.real)
        self.starts = np.array([round(part * n) for part in self.tiers], dtype=np.int64)
        self.capacity = np.ones(self.resources) if self.resources else np.full(1, 0.5)
        self.levels = np.zeros((len(self.starts) - 1, self.resources)) if self.resources else np.zeros(1)
        self.solve()

    def _demands(self, count: int) -> Reals:
        demands: Reals = (self.random.exponential(6.0, count) / self.members).astype(self.real)
        return demands

    def change(self) -> None:
        """New demands for one in twenty."""
        some = self.random.choice(self.members, int(self.members * CHANGED), replace=False)
        self.ceilings[some] = self.floors[some] + self._demands(len(some))

    def solve(self) -> None:
        """One allocation, from the last levels."""
        agents = (self.weights, self.floors, self.ceilings)
        if self.resources:
            weights, floors, ceilings = agents
            given = (weights, self.usage, floors, ceilings, self.starts, self.capacity, self.levels, self.shares)
            self.levels = compiled_drf.fill(*given).levels
        else:
            _, self.levels = compiled.waterfill(*agents, self.starts, self.capacity, self.levels, self.shares)

    def floor(self) -> None:
        """The two passes."""
        if self.resources:
            _floor_four(self.weights, self.floors, self.ceilings, self.columns, self.shares)
        else:
            _floor_one(self.weights, self.floors, self.ceilings, self.shares)

    def error(self) -> float:
        """The largest relative error of a share against the NumPy engine in doubles, from a cold start.

        That one is itself held against linear and quadratic programmes by the unit tests.
        """
        self.solve()
        doubles = [np.asfortranarray(a, dtype=np.float64) for a in (self.weights, self.floors, self.ceilings)]
        if self.resources:
            usage = np.asfortranarray(self.usage, dtype=np.float64)
            exact = drf.fill(doubles[0], usage, doubles[1], doubles[2], self.starts, self.capacity).scales
        else:
            exact, _ = waterfill.waterfill(doubles[0], doubles[1], doubles[2], self.starts, self.capacity, np.zeros(1))
        wanting = exact > 0
        return float(np.max(np.abs(self.shares[wanting] - exact[wanting]) / exact[wanting]))


@dataclass
class Runner:
    """An engine, or its floor, as a contender: a "start" is an allocation."""

    name: str
    load: Load
    work: Callable[[], None]
    stage_names: tuple[str, ...] = ()

    def run(self, count: int, depth: int) -> Times:
        """See `rounds.Contender.run`."""
        taken = []
        for _ in range(count):
            self.load.change()
            begun = time.perf_counter()
            self.work()
            taken.append((time.perf_counter() - begun) * 1e6)
        return Times(tuple(taken), tuple(taken), sum(taken))

    def processor_seconds(self) -> float:
        """Of this whole process, which does nothing else meanwhile."""
        return time.process_time()

    def settle(self) -> bool:
        return True


def run(options: argparse.Namespace, here: Place, progress: Callable[[str], None]) -> list[Row]:
    """Each engine in both precisions, and the first linear programme."""
    del here  # arrays only
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    progress("compiling")
    whole: tuple[float, ...] = TIERS[:1] + TIERS[-1:]
    kinds = [("one resource", 0, whole)]
    kinds += [(f"{DRF}, one tier", RESOURCES, whole), (f"{DRF}, three tiers", RESOURCES, TIERS)]
    loads = {
        f"{what}, {real}": Load(options.members, REALS[real], resources, tiers)
        for what, resources, tiers in kinds
        for real in REALS
    }
    everybody: list[Contender] = []
    for name, load in loads.items():
        everybody += [Runner(name, load, load.solve), Runner(f"floor of {name}", load, load.floor)]
    counts = {contender.name: options.count for contender in everybody}
    comparison = alternate(everybody, 1, options.rounds, counts, progress=progress)
    rows = [row for name in loads for row in _against_floor(comparison, name)]
    if not options.no_programme:
        progress("the first linear programme")
        name = f"{DRF}, three tiers, f64"
        rows.append(_against_programme(loads[name], comparison, name))
    return rows + [_error(name, load) for name, load in loads.items()]


def _against_floor(comparison: Comparison, name: str) -> list[Row]:
    names = (name, f"floor of {name}")
    ratios, unclean = comparison.compare(*names, lambda mine, theirs: executed_p50(mine) / executed_p50(theirs))
    verdict = judge(ratios, BUDGET, lost=comparison.lost(*names), otherwise=unclean)
    mine, floor = (_pooled(comparison, one) for one in names)
    return [
        Row(names[1], floor, "µs"),
        Row(name, mine, "µs", "two passes", verdict.middle, BUDGET, verdict.ok, verdict.reason, verdict.spread),
    ]


def _pooled(comparison: Comparison, name: str) -> float:
    batches, _ = comparison.to_show(name)
    return median([taken for batch in batches for taken in batch.times.executed])


def _against_programme(load: Load, comparison: Comparison, name: str) -> Row:
    """One run of HiGHS is enough for three orders of magnitude; the spread is that of the batches held against it."""
    seconds = first_programme(load.weights, load.usage, load.floors, load.ceilings, load.capacity)
    ratios = [seconds * 1e6 / executed_p50(batch.times) for batch in comparison.clean(name)]
    unclean = seconds * 1e6 / _pooled(comparison, name)
    verdict = judge(ratios, PROGRAMME_BUDGET, at_least=True, otherwise=unclean)
    return Row(
        "HiGHS, first programme of the max-min sequence", seconds * 1e6, "µs", name, verdict.middle, PROGRAMME_BUDGET,
        verdict.ok, verdict.reason, verdict.spread,
    )  # fmt: skip


def _error(name: str, load: Load) -> Row:
    error, budget = load.error(), ERRORS[name.rsplit(" ", 1)[1]]
    return Row(f"{name}: largest relative error", error, "", "NumPy, f64, cold", None, budget, error <= budget)
