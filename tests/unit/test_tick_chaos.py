"""The tick in a hostile world: garbage in what it reads, failing writes, clocks and counters that go back, threads.

Groups are directories of plain files with the kernel's names, so every byte that the tick writes can be looked at. Both
engines are put through the same.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos_native import alloc
from agentos_native.cgroup import CgroupMount, GroupRef, Tree, sensors
from agentos_native.cgroup.actuators import UNKNOWN, WeightFiles
from agentos_native.errors import AgentosError
from agentos_native.spec.model import Priority
from agentos_native.supervisor.loop.ticker import Ticker

CPUS = 4.0
TIERS = ("system", "high", "normal", "low", "idle")
FILES = {
    "cpu.weight": b"",
    "cpu.idle": b"",
    "cpu.stat": b"usage_usec 0\nthrottled_usec 0\n",
    "cpu.pressure": b"some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "pids.current": b"3\n",
}


class World:
    """A node of plain files with a ticker; every weight file is looked at and emptied after each tick."""

    def __init__(self, root: Path) -> None:
        self.tree = Tree(CgroupMount(str(root), str(root), "unified", frozenset({"cpu"})), "chaos")
        self.tree.controllers = frozenset({"cpu"})
        self.now = 1021.0
        self.seen = 0
        self._made: set[Path] = set()
        self.make(Path(self.tree.path))
        self.ticker = Ticker(self.tree, CPUS, clock=lambda: self.now, compile_from=0)

    def make(self, path: Path) -> None:
        """A group and those above it, as new."""
        for directory in (path, *path.parents):
            if directory != path and not directory.is_relative_to(self.tree.path):
                break
            if directory == path or directory not in self._made:
                directory.mkdir(parents=True, exist_ok=True)
                self._made.add(directory)
                for name, text in FILES.items():
                    (directory / name).write_bytes(text)

    def ref(self, number: int) -> GroupRef:
        return GroupRef(f"t{number % 3}", TIERS[number % 5], f"{number:012x}")

    def path(self, number: int) -> Path:
        return Path(self.tree.get(self.ref(number)).path)

    def add(self, number: int, weight: int = 100, request: int = 0, limit: int | None = None) -> None:
        self.make(self.path(number))
        ref = self.ref(number)
        self.ticker.add(ref.agent_id, ref, weight, request, limit)

    def remove(self, number: int) -> None:
        """The agent and its group."""
        self.ticker.remove(self.ref(number).agent_id)
        path = self.path(number)
        for name in FILES:
            (path / name).unlink(missing_ok=True)
        path.rmdir()
        self._made.discard(path)

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.ticker.tick(self.now)
        self.look()

    def forget(self) -> None:
        """Empty every file that is written, as several numbers may lie over each other; the tick does not know them."""
        for directory in self._made:
            for name in ("cpu.weight", "cpu.idle"):
                os.truncate(directory / name, 0)
        self.ticker._weights.written[:] = UNKNOWN
        self.seen = 0

    def look(self) -> None:
        """Assert that nothing but whole numbers in the kernel's range has been written."""
        for directory in self._made:
            for name, low, high in (("cpu.weight", 1, 10_000), ("cpu.idle", 0, 1)):
                text = (directory / name).read_bytes()
                if text:
                    assert text.isdigit(), (directory, text)
                    assert low <= int(text) <= high, (directory, text)
                    os.truncate(directory / name, 0)  # a shorter number would leave the tail of a longer one
                    self.seen += 1


@pytest.fixture(params=["python", "compiled"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "compiled":
        assert sensors.use_compiled()
        assert alloc.load_compiled()
    yield request.param
    sensors.use_python()
    alloc.use_numpy()


@pytest.fixture
def world(engine: str, tmp_path: Path) -> Iterator[World]:
    one = World(tmp_path)
    yield one
    one.ticker.close()


def counters(used: int, stalled: int, throttled: int = 0) -> dict[str, bytes]:
    return {
        "cpu.stat": b"usage_usec %d\nuser_usec 0\nthrottled_usec %d\n" % (used, throttled),
        "cpu.pressure": b"some avg10=0.00 avg60=0.00 avg300=0.00 total=%d\n" % stalled,
    }


def publish(directory: Path, texts: dict[str, bytes]) -> None:
    for name, text in texts.items():
        (directory / name).write_bytes(text)


# -- what is read -------------------------------------------------------------------------------------------------

EXTREMES = [0, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30]
GARBAGE = st.one_of(
    st.binary(max_size=80),
    st.sampled_from(EXTREMES).map(lambda n: b"usage_usec %d\nthrottled_usec %d\n" % (n, n)),
    st.sampled_from(EXTREMES).map(lambda n: b"some avg10=nan avg60=inf avg300=0.00 total=%d\n" % n),
    st.sampled_from([b"usage_usec -5\n", b"usage_usec nan\n", b"usage_usec 1_0\n", b"some total=-1\n"]),
    st.builds(lambda a, b: counters(a, b)["cpu.stat"], st.integers(0, 10**9), st.integers(0, 10**9)),
)
AGENT = st.tuples(st.integers(1, 10_000), st.integers(0, 4000), st.none() | st.integers(1, 64_000))
SECONDS = st.sampled_from([-3600.0, -1.0, 0.0, 1e-9, 0.1, 1.0, 1.0, 1.0, 61.0, 1e6])
STEP = st.tuples(SECONDS, st.lists(GARBAGE, max_size=8))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(agents=st.lists(AGENT, min_size=1, max_size=8), steps=st.lists(STEP, min_size=1, max_size=6))
def test_garbage_clock_steps_and_extremes_write_only_weights(
    engine: str,
    tmp_path_factory: pytest.TempPathFactory,
    agents: list[tuple[int, int, int | None]],
    steps: list[tuple[float, list[bytes]]],
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    try:
        for number, (weight, request, limit) in enumerate(agents):
            world.add(number, weight, request, limit)
        for seconds, texts in steps:
            for index, text in enumerate(texts):
                name = ("cpu.stat", "cpu.pressure")[index % 2]
                (world.path(index // 2 % len(agents)) / name).write_bytes(text)
            world.tick(seconds)
            for row in world.ticker.rows():
                figures = (row.demand, row.entitled, row.measured, row.capacity, row.window, row.stalled or 0.0)
                assert np.isfinite(figures).all(), row
                assert min(figures) >= 0.0, row
    finally:
        world.ticker.close()


POISON = st.sampled_from([float("nan"), float("inf"), -float("inf"), -1.0, 1e300, 0.0])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(poison=st.lists(st.tuples(st.integers(0, 6), POISON), min_size=1, max_size=8))
def test_no_nan_of_its_own_state_reaches_a_file(
    engine: str, tmp_path_factory: pytest.TempPathFactory, poison: list[tuple[int, float]]
) -> None:
    """Whatever went wrong inside: a NaN in any of its arrays is not written, and the turn still ends."""
    world = World(tmp_path_factory.mktemp("world"))
    ticker = world.ticker
    try:
        for number in range(7):
            world.add(number, weight=100 + number, request=100 * (number % 2))
        world.tick()
        for place, value in poison:
            wants, warm = ticker._wants, ticker._warm
            state = (ticker._demand, ticker._entitled, wants._tasks, wants.lately, warm.tenants, warm.groups)
            if place < len(state):
                state[place][:] = value
            else:
                ticker._capacity = value
            publish(world.path(1), counters(10**6, 10**6))
            world.tick()
    finally:
        ticker.close()


def test_numbers_that_no_weight_can_be_are_not_written(engine: str, tmp_path: Path) -> None:
    for file, wrong in (("cpu.weight", [0, -1, 10_001, np.iinfo(np.int64).min]), ("cpu.idle", [2, -1])):
        count = 20  # enough for the compiled writer
        files = WeightFiles(count, file)
        for slot in range(count):
            directory = tmp_path / file / str(slot)
            directory.mkdir(parents=True)
            (directory / file).write_text("")
            files.open(slot, str(directory))
        values = np.ones(count, dtype=np.int64)
        values[: len(wrong)] = wrong
        done = files.write(np.arange(count), values)
        assert not done[: len(wrong)].any()
        assert done[len(wrong) :].all()
        assert (files.written[: len(wrong)] == UNKNOWN).all()
        assert [(tmp_path / file / str(slot) / file).read_text() for slot in range(count)] == [
            "" if slot < len(wrong) else "1" for slot in range(count)
        ]
        files.close_all()


def test_counters_that_go_back_count_as_nothing(world: World) -> None:
    world.add(0)
    publish(world.path(0), counters(50_000_000, 9_000_000, 3_000_000))
    world.tick()
    publish(world.path(0), counters(1_000_000, 0, 0))
    world.tick()
    (row,) = world.ticker.rows()
    assert row.measured == 0.0
    publish(world.path(0), counters(2_000_000, 0, 0))
    world.tick()
    assert world.ticker.rows()[0].measured <= 1.0


def test_a_clock_that_stands_still_or_goes_back(world: World) -> None:
    world.add(0)
    for number, seconds in enumerate((1.0, 0.0, 0.0, -100.0, 1.0, 1.0, -1.0, 1.0)):
        publish(world.path(0), counters(500_000 * number, 0))
        world.tick(seconds)
    for window in (None, 1.0, 120.0):
        (row,) = world.ticker.rows(window)
        assert 0.0 <= row.measured <= CPUS
    world.tick()
    publish(world.path(0), counters(10**7, 0))
    world.tick()
    assert world.ticker.rows(1.0)[0].measured > 0.0  # it measures again


def test_psi_that_vanishes_and_comes_back(world: World) -> None:
    for number in range(2):
        world.add(number)
    for second, pressure in enumerate((True, False, False, True, True)):
        for number in range(2):
            texts = counters(500_000 * second, 400_000 * second)
            publish(world.path(number), {**texts, "cpu.pressure": texts["cpu.pressure"] if pressure else b""})
        world.tick()
        stalled = {row.stalled for row in world.ticker.rows()}
        assert (None in stalled) is not pressure


# -- what is written ----------------------------------------------------------------------------------------------


def test_writes_that_fail_are_tried_again_and_disturb_nobody(world: World) -> None:
    """Every file is replaced by one that takes nothing (/dev/full: ENOSPC); later the files are as before."""
    for number in range(20):
        world.add(number, weight=100 + number)
    world.tick()
    weights, full = world.ticker._weights, os.open("/dev/full", os.O_RDWR)
    slots = [slot for slot in range(20) if weights._fds[slot] >= 0]
    assert slots
    saved = {slot: os.dup(int(weights._fds[slot])) for slot in slots}
    for slot in slots:
        os.dup2(full, int(weights._fds[slot]))
        weights.written[slot] = UNKNOWN
    world.now += 1
    result = world.ticker.tick(world.now)
    assert result.failures >= len(slots)
    assert (weights.written[slots] == UNKNOWN).all()
    for slot, fd in saved.items():
        os.dup2(fd, int(weights._fds[slot]))
        os.close(fd)
    os.close(full)
    before = world.seen
    world.tick()
    assert world.seen >= before + len(slots)
    assert (weights.written[slots] != UNKNOWN).all()


def test_a_group_that_is_removed_and_made_again_at_the_same_path(world: World) -> None:
    world.add(0, weight=100)
    world.add(3, weight=300)
    world.tick()
    world.remove(0)
    world.tick()
    assert [row.agent_id for row in world.ticker.rows()] == [world.ref(3).agent_id]
    world.add(0, weight=200)
    publish(world.path(0), counters(700_000, 0))
    world.tick()
    rows = {row.agent_id: row for row in world.ticker.rows()}
    assert rows[world.ref(0).agent_id].weight == 200
    assert rows[world.ref(0).agent_id].measured <= 1.0
    assert world.ticker._weights.written[world.ticker._slots.agents[world.ref(0).agent_id].slot] == 200


# -- who comes and goes -------------------------------------------------------------------------------------------


def test_files_are_not_leaked_over_ten_thousand_agents(world: World) -> None:
    for number in range(50):
        world.add(number)
    world.tick()
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(10_000):
        number = turn % 50
        ref = world.ref(number)
        world.ticker.remove(ref.agent_id)
        world.ticker.add(ref.agent_id, ref, 100 + turn % 7, 0, None)
        if turn % 1000 == 0:
            world.tick()
    assert len(os.listdir("/proc/self/fd")) <= before + 50  # weights that had to be written since
    for number in range(50):
        world.ticker.remove(world.ref(number).agent_id)
    assert not (world.ticker._meter.sensors.stat_fd >= 0).any()
    assert not (world.ticker._weights._fds >= 0).any()
    assert world.ticker._slots.capacity == 64


def test_agents_come_go_and_change_while_it_ticks(world: World) -> None:
    """Threads do everything at once; only "no such agent" may be the answer, and in the end everything adds up."""
    stop, failures = threading.Event(), []
    calls = itertools.count()

    def guarded(seed: int) -> None:
        chance = random.Random(seed)
        mine = range(seed * 10, seed * 10 + 10)
        present: set[int] = set()
        try:
            while not stop.is_set():
                hammer(world, chance, list(mine), present)
                next(calls)
        except BaseException as error:
            failures.append(error)

    def ticks() -> None:
        try:
            while not stop.is_set():
                world.now += 0.25
                world.ticker.tick(world.now)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(4)]
    threads += [threading.Thread(target=ticks) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert next(calls) > 50
    rows = world.ticker.rows()
    assert len(rows) == len(world.ticker._slots.agents)
    assert sum(row.entitled for row in rows) <= CPUS + 1e-6
    world.forget()
    world.tick()
    assert world.seen >= len(rows)


def hammer(world: World, chance: random.Random, numbers: list[int], present: set[int]) -> None:
    """One thing that another thread may want of a ticker."""
    number = chance.choice(numbers)
    agent_id = world.ref(number).agent_id
    try:
        match chance.randrange(7):
            case 0 | 1 if number not in present:
                world.add(number, chance.randint(1, 10_000), chance.randint(0, 200), chance.choice([None, 500]))
                present.add(number)
            case 2 if number in present:
                present.discard(number)
                world.remove(number)
            case 3:
                world.ticker.change(agent_id, chance.randint(1, 10_000), chance.randint(0, 200), None)
            case 4:
                world.ticker.rows(chance.choice([None, 5.0]))
            case 5:
                world.ticker.explain(agent_id)
            case _ if number in present:
                publish(world.path(number), counters(chance.randint(0, 10**9), chance.randint(0, 10**9)))
            case _:
                priority: Priority = chance.choice(("high", "normal"))
                world.ticker.set_tenant(f"t{number % 3}", chance.randint(1, 500), priority, 0, None)
    except AgentosError as error:
        if error.code != "no-such-agent":
            raise
