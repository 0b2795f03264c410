"""``tools/bench loop --vm``: does the loop help? One mixed load (`mixed`) under four regimes (`regimes`), in rounds.

Every round plays the same specs, seeds and programs under each regime, in an order that rotates. The product is held
against the best of the others in each metric: *better* when it won every pair of rounds, *worse* when it lost every
pair by more than what counts as equal, else *equal*.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from agentos_native.alloc import TIERS, Problem, solve
from agentos_native.spec.model import PRIORITIES
from tools.benches.mixed import AGENTS, MEMORY, TENANTS, Outcome, Played, Regime, Stage
from tools.benches.place import BenchError, Place, make_group
from tools.benches.report import Row
from tools.benches.stats import median, percentile

VM_OPTIONS: Final = ("--steady",)
"""Time counted in instructions: what the host's other work takes does not show."""
IN_VM: Final = {"--period": "2"}
"""Emulated, a tick takes a hundred times as long as on a machine of its own."""
QUICK: Final = (2, 12.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5, help="how often each regime plays")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured in each play, after --settle")
    parser.add_argument("--settle", type=float, default=8.0, help="seconds before that")
    parser.add_argument("--period", type=float, default=1.0, help="seconds between two ticks of the loop")
    parser.add_argument("--regimes", default="loop,static,kubernetes,nothing", help="who plays; the first is judged")
    parser.add_argument("--quick", action="store_true", help="two short rounds: shows that it works, proves little")
    parser.add_argument("--vm", action="store_true", help="run in the virtual machine, where cgroup v2 is real")


@dataclass(frozen=True)
class Metric:
    """What is compared; `equal` is a difference that nobody would notice, in its unit."""

    name: str
    unit: str
    of: Callable[[Played], float]
    equal: float
    more_is_better: bool = False


def shortfalls(played: Played) -> list[float]:
    """Of each agent with a reservation, in CPUs."""
    return [agent.shortfall for agent in played.agents if agent.spec.resources.requests.cpu]


def entitled(played: Played) -> list[float]:
    """What the specs entitle each agent to, of the CPUs that were used: the water-fill of what they wanted and when.

    A dialogue agent wants a CPU while it has a turn to answer, and nothing in between.
    """
    edges = {0.0, played.seconds}
    for agent in played.agents:
        edges.update(at for pending in agent.pending for at in pending)
    shares: dict[tuple[bool, ...], np.ndarray] = {}
    total = np.zeros(len(played.agents))
    for begin, end in itertools.pairwise(sorted(edges)):
        busy = tuple(any(a <= begin < b for a, b in agent.pending) for agent in played.agents)
        if busy not in shares:
            shares[busy] = _water_fill(played, busy)
        total += shares[busy] * (end - begin)
    return [float(share) for share in total / played.seconds]


def _water_fill(played: Played, busy: tuple[bool, ...]) -> np.ndarray:
    """The shares of a moment, by the tree of tenants; shape (agents,)."""
    names = sorted(tenant.name for tenant in TENANTS)
    tenants = {tenant.name: tenant for tenant in TENANTS}
    group = [names.index(a.spec.tenant) * TIERS + PRIORITIES.index(a.spec.priority) for a in played.agents]
    order = np.argsort(group, kind="stable")
    specs = [played.agents[index].spec for index in order]
    problem = Problem(
        capacity=sum(agent.used for agent in played.agents),
        tenant_weight=np.array([tenants[name].weight for name in names], dtype=np.float64),
        tenant_tier=np.array([PRIORITIES.index(tenants[name].priority) for name in names]),
        tenant_floor=np.zeros(len(names)),
        tenant_ceiling=np.full(len(names), np.inf),
        starts=np.searchsorted(np.array(group)[order], np.arange(len(names) * TIERS + 1)).astype(np.int64),
        weight=np.array([spec.weight for spec in specs], dtype=np.float64),
        floor=np.array([spec.resources.requests.cpu / 1000 for spec in specs]),
        ceiling=np.array([(spec.resources.limits.cpu or np.inf) / 1000 for spec in specs]),
        demand=np.array([_wanted(played.agents[index], busy[index]) for index in order]),
    )
    result = np.empty(len(order))
    result[order] = solve(problem).share
    return result


def _wanted(agent: Outcome, busy: bool) -> float:
    """CPUs in one moment."""
    return float(busy) if agent.turns is not None else agent.wanted


def unfairness(played: Played) -> float:
    """The part of the used CPU time that went to somebody else than the specs say."""
    used = [agent.used for agent in played.agents]
    return sum(abs(a - b) for a, b in zip(used, entitled(played), strict=True)) / 2 / sum(used) * 100


def _latency(share: float) -> Callable[[Played], float]:
    def of(played: Played) -> float:
        turns = [latency for agent in played.agents if agent.turns is not None for latency in agent.turns.latency]
        return percentile(turns, share) * 1e3

    return of


def work(played: Played) -> float:
    """Units of useful work in a second."""
    return sum(agent.work for agent in played.agents) / played.seconds


def work_given_back(played: Played) -> float:
    """The same, had the regime cost nothing: emulated, Python is dozens of times dearer than elsewhere."""
    used = sum(agent.used for agent in played.agents)
    return work(played) * (used + played.own) / used


METRICS: Final = (
    Metric("worst reservation shortfall", "CPUs", lambda played: max(shortfalls(played)), 0.02),
    Metric("mean reservation shortfall", "CPUs", lambda played: sum(shortfalls(played)) / len(AGENTS), 0.01),
    Metric("CPU time given to the wrong agent", "%", unfairness, 1.0),
    Metric("a turn's latency, p50", "ms", _latency(0.5), 20.0),
    Metric("a turn's latency, p99", "ms", _latency(0.99), 100.0),
    Metric("work done", "units/s", work, 0.0, True),
    Metric("work done, the regime's own CPU time given back", "units/s", work_given_back, 0.0, True),
    Metric("OOM kills", "", lambda played: float(played.oom_kills), 0.0),
)
EQUAL_WORK: Final = 0.02


def run(options: argparse.Namespace, here: Place, progress: Callable[[str], None]) -> list[Row]:
    """Every metric of every regime."""
    controllers = (here.cgroup / "cgroup.controllers").read_text().split()
    if not {"cpu", "memory"} <= set(controllers):
        raise BenchError("cgroup v2 has no cpu and memory controllers here: tools/bench loop --vm")
    regimes = chosen(options.regimes)
    rounds, seconds = QUICK if options.quick else (options.rounds, options.seconds)
    bound = here.cgroup / "loop"
    make_group(bound)
    (bound / "memory.max").write_text(str(MEMORY))
    files = Path(tempfile.mkdtemp(prefix="agentos-bench-files-", dir="/var/tmp"))
    played: dict[str, list[Played]] = {regime.name: [] for regime in regimes}
    try:
        stage = Stage(here.programs / "agent", files, here.directory, bound)
        for number in range(rounds):
            for turn in range(len(regimes)):
                regime = regimes[(number + turn) % len(regimes)]
                progress(f"round {number + 1} of {rounds}: {regime.name}")
                latest = stage.play(regime(bound, options.period), options.settle, seconds)
                played[regime.name].append(latest)
                _tell(latest, progress)
    finally:
        shutil.rmtree(files)
    return [row for metric in METRICS for row in rows_of(metric, played)]


def chosen(names: str) -> list[type[Regime]]:
    """The regimes of these names. Raises BenchError for one that does not exist."""
    from tools.benches.regimes import REGIMES  # imports what it measures

    known = {regime.name: regime for regime in REGIMES}
    wanted = names.split(",")
    if unknown := set(wanted) - set(known):
        raise BenchError(f"no such regime: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def _tell(played: Played, progress: Callable[[str], None]) -> None:
    """Each agent's figures, for whoever looks for the reason of a verdict."""
    for agent, share in zip(played.agents, entitled(played), strict=True):
        text = f"  {agent.spec.name:10} wanted {agent.wanted:.3f} entitled {share:.3f} used {agent.used:.3f}"
        progress(f"{text} short {agent.shortfall:.3f} work {agent.work}")
    progress(f"  the regime itself and this program: {played.own:.3f} CPUs, {played.switches:.0f} context switches/s")
    progress(f"  memory at the end, MiB: {played.memory}; OOM kills {played.oom_kills}")


def rows_of(metric: Metric, played: dict[str, list[Played]]) -> list[Row]:
    """One metric: a row for each regime; that of the product has the verdict."""
    figures = {name: [metric.of(one) for one in rounds] for name, rounds in played.items()}
    product, *others = figures
    sign = -1.0 if metric.more_is_better else 1.0
    if not others:
        return [Row(f"{metric.name}: {product}", median(figures[product]), metric.unit)]
    best = min(others, key=lambda name: sign * median(figures[name]))
    verdict = compare(figures[product], figures[best], metric)
    rows = []
    for name, values in figures.items():
        middle, spread = median(values), (min(values), max(values))
        if name == product:
            reason = f"{verdict} than {best}" if verdict != "equal" else f"equal to {best} within the spread"
            ok = verdict != "worse"
            rows.append(Row(f"{metric.name}: {name}", middle, metric.unit, "", None, None, ok, reason, spread))
        else:
            rows.append(Row(f"{metric.name}: {name}", middle, metric.unit, spread=spread))
    return rows


def compare(mine: Sequence[float], theirs: Sequence[float], metric: Metric) -> str:
    """better, equal or worse, of the same rounds of two regimes."""
    sign = -1.0 if metric.more_is_better else 1.0
    equal = metric.equal or (EQUAL_WORK * median(theirs) if metric.more_is_better else 0.0)
    losses = [sign * (a - b) for a, b in zip(mine, theirs, strict=True)]
    if all(loss < 0 for loss in losses) and median(losses) < -equal:
        return "better"
    return "worse" if all(loss > 0 for loss in losses) and median(losses) > equal else "equal"
