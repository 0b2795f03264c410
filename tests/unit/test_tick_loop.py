"""The whole loop against a simulated kernel: counters in, weights out, until the shares are what was promised.

The simulated kernel keeps its groups in a directory of plain files with the real names, fills demand by the weights it
finds there (tests/kernelmodel.py), and counts usage and stall as the real one does. Time is simulated, too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentos_native.alloc import use_numpy
from agentos_native.cgroup import CgroupMount, GroupRef, Tree, sensors
from agentos_native.supervisor.loop import meter as tick_meter
from agentos_native.supervisor.loop.rows import AllocationRow
from agentos_native.supervisor.loop.ticker import Ticker
from tests.kernelmodel import Group

CPUS = 2.0


@dataclass
class Program:
    """An agent's program: `threads` of them, each of which would run for the fraction `duty` of the time."""

    path: Path
    threads: int = 1
    duty: float = 1.0
    limit: float = float("inf")
    used: float = 0.0
    stalled: float = 0.0
    throttled: float = 0.0
    group: Group = field(default_factory=Group)

    @property
    def want(self) -> float:
        return self.threads * self.duty

    def advance(self, seconds: float) -> None:
        """Count what a kernel would: with a share below the want, some thread waits."""
        share = self.group.share
        self.used += share * seconds
        if self.limit < self.want and share >= self.limit - 1e-9:
            self.throttled += (1.0 - share / self.want) * seconds * min(self.threads, 1 + int(self.limit))
        elif share < self.want - 1e-9:
            alone = min(share / self.threads, 1.0)  # of one thread
            sleeping = (1.0 - self.duty) * (alone / self.duty) if self.duty else 1.0
            self.stalled += max(1.0 - alone - sleeping, 0.0) * seconds


class Kernel:
    """The simulated kernel."""

    def __init__(self, root: Path) -> None:
        self.now = 1021.0  # just after a minute: see REFRESH in tick.py, which would find the files of below empty
        self.idle = 0.0
        self.used = 0.0
        self.outside = 0.0  # CPUs that others take
        self.programs: dict[str, Program] = {}
        self.weights: dict[Path, float] = {}
        self.tree = Tree(CgroupMount(str(root), str(root), "unified", frozenset({"cpu"})), "sim")
        self.tree.controllers = frozenset({"cpu"})
        self._make(Path(self.tree.path))

    def _make(self, path: Path) -> None:
        if not path.exists():
            path.mkdir(parents=True)
            (path / "cpu.weight").write_text("")
            (path / "cpu.idle").write_text("")
            self.weights[path] = 100.0

    def add(self, ref: GroupRef, threads: int = 1, duty: float = 1.0, limit: float = float("inf")) -> Program:
        path = Path(self.tree.get(ref).path)
        for directory in (path.parent.parent, path.parent, path):
            self._make(directory)
        (path / "pids.current").write_text(str(threads + 1))
        program = self.programs[ref.agent_id] = Program(path, threads, duty, limit)
        self._publish()
        return program

    def take_writes(self) -> None:
        """See what has been written since the last time (a plain file keeps the tail of a longer earlier write)."""
        for path in self.weights:
            for name, factor in (("cpu.weight", 1.0), ("cpu.idle", 0.0)):
                text = (path / name).read_text()
                if text:
                    os.truncate(path / name, 0)
                    if name == "cpu.weight":
                        self.weights[path] = float(text) * factor

    def step(self, seconds: float) -> None:
        """Run everything for some time."""
        self.take_writes()
        root = Group()
        for program in self.programs.values():
            tier, tenant = program.path.parent, program.path.parent.parent
            above = root.children.setdefault(tenant.name, Group(weight=self.weights[tenant]))
            between = above.children.setdefault(tier.name, Group(weight=self.weights[tier]))
            program.group = Group(weight=self.weights[program.path], want=min(program.want, CPUS), limit=program.limit)
            between.children[program.path.name] = program.group
        available = CPUS - self.outside
        root.fill(available)
        self.idle += max(available - root.share, 0.0) * seconds
        self.used += root.share * seconds  # that of programs that have gone included
        for program in self.programs.values():
            program.advance(seconds)
        self.now += seconds
        self._publish()

    def _publish(self) -> None:
        for program in self.programs.values():
            stat = f"usage_usec {int(program.used * 1e6)}\nuser_usec 0\nthrottled_usec {int(program.throttled * 1e6)}\n"
            (program.path / "cpu.stat").write_text(stat)
            pressure = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={int(program.stalled * 1e6)}\n"
            (program.path / "cpu.pressure").write_text(pressure)

    def read(self) -> tuple[int, int]:
        """Stands for `Machine.read`."""
        return int(self.used * 1e6), int(self.idle * 1e6)

    def close(self) -> None:
        """Nothing to close."""


class Loop:
    """Kernel and ticker together."""

    def __init__(self, kernel: Kernel, period: float = 1.0) -> None:
        self.kernel = kernel
        self.period = period
        self.ticker = Ticker(kernel.tree, CPUS, clock=lambda: kernel.now)
        self.names: dict[str, str] = {}

    def agent(
        self,
        name: str,
        tenant: str = "home",
        tier: str = "normal",
        weight: int = 100,
        request: int = 0,
        limit: int | None = None,
        threads: int = 1,
        duty: float = 1.0,
    ) -> Program:
        ref = GroupRef(tenant, tier, f"{len(self.names):012x}")
        self.names[ref.agent_id] = name
        program = self.kernel.add(ref, threads, duty, float("inf") if limit is None else limit / 1000)
        self.ticker.add(ref.agent_id, ref, weight, request, limit)
        return program

    def run(self, ticks: int) -> int:
        """Some ticks; returns the weights written."""
        writes = 0
        for _ in range(ticks):
            self.kernel.step(self.period)
            writes += self.ticker.tick(self.kernel.now).writes
        return writes

    def rows(self, window: float | None = None) -> dict[str, AllocationRow]:
        return {self.names[row.agent_id]: row for row in self.ticker.rows(window)}

    def settled(self, ticks: int = 8) -> dict[str, AllocationRow]:
        """Rows over the last half of some ticks."""
        self.run(2 * ticks)
        return self.rows(ticks * self.period)


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    kernel = Kernel(tmp_path)
    monkeypatch.setattr(tick_meter, "Machine", lambda path: kernel)
    one = Loop(kernel)
    yield one
    one.ticker.close()


def assert_promises_kept(rows: dict[str, AllocationRow], tolerance: float = 0.01) -> None:
    for name, row in rows.items():
        assert row.measured == pytest.approx(row.entitled, abs=tolerance * CPUS), name


def test_equal_agents_share_equally_without_a_write(loop: Loop) -> None:
    for index in range(5):
        loop.agent(f"a{index}", threads=2)
    loop.run(1)  # the first tick may state what is
    assert loop.run(8) == 0
    assert_promises_kept(loop.rows(5))


def test_a_reservation_against_heavy_hogs(loop: Loop) -> None:
    """allocator.md's measured case: 0.5 reserved against five hogs of weight 500."""
    loop.agent("reserved", weight=50, request=500, threads=2)
    for index in range(5):
        loop.agent(f"hog{index}", weight=500)
    rows = loop.settled()
    assert_promises_kept(rows)
    assert rows["reserved"].measured == pytest.approx(0.5, abs=0.02)
    assert rows["reserved"].bound == "request"


def test_use_does_not_become_the_cap(loop: Loop) -> None:
    """Held down by weight at first, it is not taken to want as little as it got."""
    small = loop.agent("small", weight=1, threads=2)
    loop.agent("large", weight=10_000, threads=2)
    loop.run(10)
    assert small.group.share < 0.01
    ref = loop.ticker._slots.agents[next(iter(loop.names))].ref
    loop.ticker.change(ref.agent_id, 10_000, 0, None)
    rows = loop.settled()
    assert rows["small"].demand == pytest.approx(CPUS, abs=0.05)
    assert_promises_kept(rows)
    assert small.group.share == pytest.approx(1.0, abs=0.02)


def test_demand_of_a_sleepy_agent_is_seen_through_its_waiting(loop: Loop) -> None:
    loop.agent("sleepy", duty=0.3, weight=20)
    loop.agent("hog", weight=1000, threads=4)
    rows = loop.settled()
    assert rows["sleepy"].demand == pytest.approx(0.3, abs=0.02)
    assert_promises_kept(rows)


def test_tiers_and_floors_and_tenants(loop: Loop) -> None:
    """The smart home of the policies, all busy."""
    loop.ticker.set_tenant("home", 200, "normal", 500, None)
    loop.ticker.set_tenant("security", 100, "normal", 300, None)
    loop.agent("thermostat", tier="high", limit=300, threads=2)
    loop.agent("assistant", weight=200, threads=2)
    loop.agent("cleaner", threads=2)
    loop.agent("habits", tier="low", request=150, threads=2)
    loop.agent("narrator", "media", threads=2)
    loop.agent("recommender", "media", weight=300, threads=2)
    loop.agent("cameras", "security", weight=50, request=300, threads=2)
    loop.agent("listener", "security", weight=250, threads=2)
    rows = loop.settled()
    assert_promises_kept(rows)
    measured = {name: row.measured for name, row in rows.items()}
    expected = {
        "thermostat": 0.3,
        "habits": 0.15,
        "assistant": 0.55 * 2 / 3,
        "cleaner": 0.55 / 3,
        "narrator": 0.125,
        "recommender": 0.375,
        "cameras": 0.3,
        "listener": 0.2,
    }
    assert measured == pytest.approx(expected, abs=0.02)


def test_a_load_that_changes_is_followed(loop: Loop) -> None:
    first = loop.agent("first", tier="high", threads=2)
    loop.agent("second", request=200, threads=2)
    assert_promises_kept(loop.settled())
    first.duty = 0.1
    rows = loop.settled(12)
    assert rows["second"].measured == pytest.approx(1.8, abs=0.04)
    loop.agent("guest", "guests", threads=2)
    rows = loop.settled()
    assert_promises_kept(rows)
    assert rows["guest"].measured == pytest.approx(1.0, abs=0.03)


def test_what_others_take_is_not_promised(loop: Loop) -> None:
    loop.kernel.outside = 0.8
    loop.agent("reserved", weight=10, request=500, threads=2)
    loop.agent("hog", weight=1000, threads=2)
    rows = loop.settled(10)
    assert rows["reserved"].capacity == pytest.approx(1.2, abs=0.02)
    assert rows["reserved"].measured == pytest.approx(0.5, abs=0.03)


def test_a_limit_is_not_mistaken_for_contentment(loop: Loop) -> None:
    loop.agent("limited", limit=400)
    row = loop.settled()["limited"]
    assert row.bound == "limit"
    assert row.entitled == pytest.approx(0.4, abs=0.01)


def test_without_psi_a_hungry_agent_is_still_seen(loop: Loop) -> None:
    small = loop.agent("small", threads=2)
    loop.agent("large", threads=2)
    loop.ticker._meter.sensors.pressure_fd[:] = -1  # as where the kernel has no PSI
    loop.run(12)
    assert small.group.share == pytest.approx(1.0, abs=0.05)


def test_a_group_that_vanishes_disturbs_nobody(loop: Loop) -> None:
    loop.agent("stays", threads=2)
    gone = loop.agent("goes", threads=2)
    loop.run(3)
    loop.kernel.programs = {
        agent_id: program for agent_id, program in loop.kernel.programs.items() if program is not gone
    }
    os.truncate(gone.path / "cpu.stat", 0)  # a removed group's file yields nothing more
    events: list[tuple[str, str]] = []
    loop.ticker.on_event = lambda kind, agent_id: events.append((kind, agent_id))
    loop.kernel.step(1.0)
    assert loop.ticker.tick(loop.kernel.now).gone == ("000000000001",)
    loop.run(3)
    assert events == [("cgroup-gone", "000000000001")]
    assert loop.rows()["stays"].usage_usec > 0
    loop.ticker.remove("000000000001")
    loop.run(2)
    assert set(loop.rows()) == {"stays"}
    assert_promises_kept(loop.rows())


def test_a_slot_that_is_used_again_starts_afresh(loop: Loop) -> None:
    """Another agent in the same slot inherits neither counters nor demand."""
    loop.agent("old", threads=2)
    loop.run(5)
    loop.ticker.remove("000000000000")
    loop.kernel.programs.clear()
    loop.kernel.step(1.0)
    loop.agent("new", threads=1)
    loop.kernel.step(1.0)
    loop.ticker.tick(loop.kernel.now)
    row = loop.rows(30)["new"]
    assert row.measured == pytest.approx(1.0, abs=0.01)


def test_many_more_agents_than_the_first_slots(loop: Loop) -> None:
    for index in range(150):
        loop.agent(f"a{index}", tenant=f"t{index % 7}", tier=("high", "normal", "idle")[index % 3], threads=2)
    loop.run(6)
    rows = loop.rows(3)
    assert len(rows) == 150
    assert sum(row.measured for row in rows.values()) == pytest.approx(CPUS, rel=0.01)


def test_explanations_say_what_binds(loop: Loop) -> None:
    loop.agent("reserved", weight=50, request=500, threads=2)
    loop.agent("hog", weight=500, threads=2)
    loop.run(5)
    said = loop.ticker.explain("000000000000")
    assert said["bound"] == "request"
    assert "reservation lifts it" in said["words"][0]
    assert said["at_level"] == ["000000000001"]


def test_both_engines_read_and_write_alike(loop: Loop) -> None:
    for index in range(20):
        loop.agent(f"a{index}", tenant=f"t{index % 3}", weight=10 + index, request=50 * (index % 2), threads=2)
    plain = loop.settled()
    try:
        assert sensors.use_compiled()
        compiled = loop.settled()
    finally:
        sensors.use_python()
    for name, row in plain.items():
        assert compiled[name].measured == pytest.approx(row.measured, abs=0.01 * CPUS)


def test_the_compiled_engine_is_loaded_in_the_background(loop: Loop) -> None:
    """From a number of agents on; ticks go on meanwhile, and say who computes."""
    loop.ticker.compile_from = 3
    try:
        loop.agent("first")
        loop.agent("second")
        loop.run(1)
        assert loop.ticker.__dict__["_loader"] is None
        loop.agent("third")
        loop.run(1)
        loader: threading.Thread | None = loop.ticker.__dict__["_loader"]
        assert loader is not None
        loader.join(120)
        loop.kernel.step(1.0)
        assert loop.ticker.tick(loop.kernel.now).engine == "numba"
        loop.run(5)
        assert_promises_kept(loop.rows(4))
    finally:
        sensors.use_python()
        use_numpy()


def test_a_limit_of_one_cpu_is_not_taken_for_a_single_thread(loop: Loop) -> None:
    """A tenth of each CPU is not there: one thread cannot have a whole one then, two can have as much together."""
    loop.kernel.outside = 0.2
    loop.agent("two", tier="high", limit=1000, threads=2)
    loop.agent("hog", threads=2)
    assert loop.settled()["two"].entitled == pytest.approx(1.0, abs=0.001)
