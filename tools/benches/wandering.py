"""How many weights a tick rewrites while demands wander: the product's tick over groups that are plain files.

The kernel is played by a model that delivers to each agent what the allocator entitles it to at its true demand, and
counts usage and stall as the real one does (an agent that gets u of d waits for 1 − u/d of the time). Weights go
through the very files, hysteresis and plans of the product; so this runs alike where there is no cpu controller.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from agentos_native.alloc import solve
from agentos_native.cgroup import CgroupMount, GroupRef, Tree
from agentos_native.spec.model import POLICIES, Policy, Resource
from agentos_native.supervisor.loop.ticker import Ticker
from tools.benches.report import Row
from tools.benches.stats import median, percentile

BUDGET: Final = 5.0
"""Per cent of the weights of a tick while all demands take small steps. Jumps are only told of: under ``drf`` one
demand that jumps moves the levels of several resources, and with them what many siblings truly are due."""
CPUS: Final = 64.0
TENANTS: Final = 20
WARM_UP, TICKS = 25, 40
STEP: Final = 0.05
"""Of a demand, the random walk's standard deviation in a tick."""
PROFILE_STEP: Final = 0.02
"""Of what agents want of the other resources, likewise: memory moves more slowly."""
WANTED: Final[Mapping[Resource, float]] = {"memory": 1.3, "io": 0.65, "network": 0.4}
"""Of the machine, by all agents together; only ``drf`` asks."""
JUMPING: Final = 0.05
"""Of all demands, those that are drawn anew in a tick."""
BEGIN: Final = 1_000_000.0
"""Within a minute of the model's clock groups are not refreshed: that reads files as only a kernel has them."""


class Model:
    """Groups in a directory of plain files, and agents whose demands take a random walk, or jump.

    Args:
        policy: of the node and of every tenant.
        jumping: one demand in twenty is another in each tick, and the others stay; else all take small steps.
    """

    def __init__(self, root: Path, agents: int, policy: Policy, *, jumping: bool, seed: int = 5) -> None:
        self._jumping = jumping
        self.random = np.random.default_rng(seed)
        self.tree = Tree(CgroupMount(str(root), str(root), "unified", frozenset({"cpu"})), "model")
        self.tree.controllers = frozenset({"cpu"})
        self.now = BEGIN - BEGIN % 60 + 1
        self._make(Path(self.tree.path))
        (Path(self.tree.path) / "cpu.stat").write_text("usage_usec 0\n")  # opened, but see `rows`
        self.ticker = Ticker(self.tree, CPUS, policy=policy, compile_from=0, clock=lambda: self.now)
        self.mean = mean = 1.3 * CPUS / agents  # more is wanted than there is
        self.demand = mean * self.random.lognormal(0.0, 1.0, agents)
        self.profile = {what: part / agents * self.random.lognormal(0.0, 1.0, agents) for what, part in WANTED.items()}
        self.used, self.stalled = np.zeros(agents), np.zeros(agents)
        self._files: list[tuple[int, int]] = []
        for number in range(agents):
            ref = GroupRef(f"t{number % TENANTS}", "normal", f"{number:012x}")
            path = Path(self.tree.get(ref).path)
            for directory in (path.parent.parent, path.parent, path):
                self._make(directory)
            self._files.append((_new(path / "cpu.stat"), _new(path / "cpu.pressure")))
        self._publish()
        for number in range(agents):
            ref = GroupRef(f"t{number % TENANTS}", "normal", f"{number:012x}")
            weight = int(self.random.integers(50, 500))
            request = int(500 * mean * self.random.uniform(0.5, 1.5)) if number % 5 == 0 else 0
            self.ticker.add(ref.agent_id, ref, weight, request, None)
        self._tell()
        self.order = np.array([int(agent_id, 16) for agent_id in self._ids()])

    def _ids(self) -> list[str]:
        slots = self.ticker._slots
        return [slots.at(slot).agent_id for slot in slots.plan().slots.tolist()]

    @staticmethod
    def _make(path: Path) -> None:
        if not path.exists():
            path.mkdir(parents=True)
            (path / "cpu.weight").write_text("100")
            (path / "cpu.idle").write_text("0")
            (path / "pids.current").write_text("64")

    def _publish(self) -> None:
        for (stat, pressure), used, stalled in zip(self._files, self.used, self.stalled, strict=True):
            os.pwrite(stat, b"usage_usec %015d\nthrottled_usec 0\n" % int(used * 1e6), 0)
            os.pwrite(pressure, b"some avg10=0.00 avg60=0.00 avg300=0.00 total=%015d\n" % int(stalled * 1e6), 0)

    def read(self) -> tuple[int, int]:
        """Stands for the machine's counters (`sensors.Machine.read`)."""
        seconds = self.now - (BEGIN - BEGIN % 60)
        return int(self.used.sum() * 1e6), int(max(CPUS * seconds - self.used.sum(), 0.0) * 1e6)

    def tick(self) -> int:
        """One second: everybody runs, wants something else, and a tick; returns the weights written."""
        slots = self.ticker._slots
        self._wander()
        got = np.empty_like(self.demand)
        got[self.order] = solve(slots.problem(CPUS, self.demand[self.order])).share
        self.used += got
        self.stalled += 1.0 - got / self.demand
        self.now += 1.0
        self._publish()
        return self.ticker.tick(self.now).writes

    def _wander(self) -> None:
        """New demands."""
        agents = len(self.demand)
        if self._jumping:
            some = self.random.choice(agents, int(agents * JUMPING), replace=False)
            self.demand[some] = self.mean * self.random.lognormal(0.0, 1.0, len(some))
            return
        self.demand *= np.exp(self.random.normal(0.0, STEP, agents))
        for what in self.profile:
            self.profile[what] = self.profile[what] * np.exp(self.random.normal(0.0, PROFILE_STEP, agents))
        self._tell()

    def _tell(self) -> None:
        """The ticker of what is wanted beside CPU, as the supervisor does for the policies that ask."""
        if self.ticker.profiled:
            names = [f"{number:012x}" for number in range(len(self.demand))]
            told = {what: dict(zip(names, parts.tolist(), strict=True)) for what, parts in self.profile.items()}
            self.ticker.set_profile(told)

    def close(self) -> None:
        self.ticker.close()
        for files in self._files:
            for fd in files:
                os.close(fd)


def _new(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)


class _Counters:
    """The machine's counters of a model."""

    def __init__(self, model: Model) -> None:
        self.read = model.read

    def close(self) -> None:
        """Nothing to close."""


def rows(directory: Path, agents: int, progress: Callable[[str], None]) -> list[Row]:
    """The part of the weights that is rewritten in a tick, in the median and at worst, for every policy."""
    directory.mkdir()
    agents = min(agents, 1000)
    found = []
    for jumping in (False, True):
        for policy in POLICIES:
            progress(f"demands that {'jump' if jumping else 'wander'}, {policy}")
            model = Model(directory / f"{policy}-{int(jumping)}", agents, policy, jumping=jumping)
            what = f"of {agents} demands 5 % jump" if jumping else f"{agents} demands wander"
            written = _written(model, agents)
            found += _rows_of(f"weights rewritten in a tick, {policy}, {what}", written, None if jumping else BUDGET)
    return found


def _written(model: Model, agents: int) -> list[float]:
    """Per cent of the weights, by ticks."""
    model.ticker._meter._machine.close()
    model.ticker._meter._machine = _Counters(model)  # type: ignore[assignment]  # no kernel counts here
    try:
        for _ in range(WARM_UP):
            model.tick()
        return [100 * model.tick() / agents for _ in range(TICKS)]
    finally:
        model.close()


def _rows_of(title: str, written: list[float], budget: float | None) -> list[Row]:
    middle, spread = median(written), (percentile(written, 0.05), percentile(written, 0.95))
    ok = None if budget is None else middle <= budget
    return [
        Row(f"{title}, p50", middle, "%", "", None, budget, ok, "", spread),
        Row(f"{title}, worst", max(written), "%"),
    ]
