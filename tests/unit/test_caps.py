"""Agents of a tenant that is at its limit: what each may have, when it is written, and when it is lifted."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.alloc import Problem, caps, solve
from agentos_native.cgroup import CgroupMount, GroupRef, Tree
from agentos_native.cgroup.settings import _at_most, cpu_max
from agentos_native.spec.model import POLICIES
from agentos_native.supervisor.loop import meter as tick_meter
from agentos_native.supervisor.loop.caps import LEAST, PATIENCE, Caps
from agentos_native.supervisor.loop.slots import Agent, Slots
from agentos_native.supervisor.loop.ticker import Ticker
from tests.kernelmodel import Group
from tests.unit.test_tick_loop import CPUS, Kernel, Loop, Program

BOX = "box"


def problem(rows: list[tuple[float, float, float]], limit: float, capacity: float = CPUS, policy: int = 0) -> Problem:
    """One tenant; `rows`: weight, reservation, demand."""
    weight, floor, wanted = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    count = len(rows)
    return Problem(
        capacity=capacity,
        tenant_weight=np.array([100.0]),
        tenant_tier=np.array([2]),
        tenant_floor=np.zeros(1),
        tenant_ceiling=np.array([limit]),
        starts=np.array([0, 0, 0, count, count, count]),
        weight=weight,
        floor=floor,
        ceiling=np.full(count, np.inf),
        demand=wanted,
        policy=policy,
    )


def capped(one: Problem) -> list[float]:
    found: list[float] = caps.of_agents(one, solve(one)).tolist()
    return found


def test_who_is_held_has_its_share_and_who_sleeps_what_it_would_have() -> None:
    one = problem([(300, 0, 2), (100, 0, 2), (20, 0.3, 0.1), (100, 0, 0.05)], 1.0)
    level = (1.0 - 0.15) / 400
    assert capped(one) == pytest.approx([300 * level, 100 * level, 0.3, 100 * level])


def test_nobody_is_held_where_the_limit_does_not_bind() -> None:
    rows = [(300.0, 0.0, 2.0), (100.0, 0.0, 2.0)]
    assert capped(problem(rows, np.inf)) == [np.inf] * 2
    assert capped(problem(rows, 1.0, capacity=0.8)) == [np.inf] * 2  # the machine is less
    assert capped(problem([(300, 0, 0.3), (100, 0, 0.2)], 1.0)) == [np.inf] * 2  # they want less
    assert capped(problem([(300, 0, 2)], 1.0)) == [np.inf]  # alone: the tenant's own does it
    assert capped(problem(rows, math.nan)) == [np.inf] * 2


@settings(max_examples=80)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 1000), st.sampled_from([0.0, 0.0, 0.1, 0.4]), st.floats(0.0, 2.0)),
        min_size=2,
        max_size=8,
    ),
    limit=st.floats(0.1, 1.9),
    policy=st.integers(0, len(POLICIES) - 1),
)
def test_caps_give_the_shares(rows: list[tuple[float, float, float]], limit: float, policy: int) -> None:
    """Nobody's cap is below its share, and those that would take more are held to it, so all of them fit the limit."""
    one = problem(rows, limit, policy=policy)
    solution = solve(one)
    found = caps.of_agents(one, solution)
    assert np.all(found >= solution.share - 1e-9)
    if np.isfinite(found).any():
        had = np.minimum(np.minimum(one.demand, found), CPUS)
        floors = np.minimum(one.floor, one.demand).sum()
        assert had.sum() <= limit + 1e-6 or floors > limit
        assert had.sum() == pytest.approx(limit, abs=1e-6) or floors > limit


@pytest.fixture
def files(tmp_path: Path) -> tuple[Caps, Slots, list[Path]]:
    """Two agents and their files; the second has a limit of its own."""
    tree = Tree(CgroupMount(str(tmp_path), str(tmp_path), "unified", frozenset({"cpu"})), "caps")
    made, slots, paths = Caps(tree), Slots(), []
    for number, limit in enumerate((math.inf, 0.5)):
        ref = GroupRef(BOX, "normal", f"{number:012x}")
        agent = slots.add(Agent(ref.agent_id, ref, -1, 100, 0.0, limit))
        path = Path(tree.get(ref).path)
        path.mkdir(parents=True)
        paths.append(path / "cpu.max")
        paths[-1].write_text(cpu_max(None if limit == math.inf else 500))
        made.add(agent.slot)
    return made, slots, paths


def held(paths: list[Path]) -> list[str]:
    """What the files hold (a plain file keeps the tail of a longer earlier write)."""
    return [path.read_text().split()[0] for path in paths]


def test_caps_are_written_with_a_band_and_lifted_after_a_while(files: tuple[Caps, Slots, list[Path]]) -> None:
    made, slots, paths = files

    def write(first: float, second: float, now: float) -> tuple[int, int]:
        return made.write(slots, np.array([first, second]), now)

    assert write(np.inf, np.inf, 0.0) == (0, 0)
    assert write(0.75, 0.25, 1.0) == (2, 0)
    assert held(paths) == ["75000", "25000"]
    assert made.of(slots.plan().slots[0]) == 0.75
    assert write(0.757, 0.247, 2.0) == (0, 0)  # within the band
    assert write(0.70, 0.30, 3.0) == (2, 0)
    assert write(0.70, 0.60, 4.0) == (0, 0)  # more than its own limit: lifted in time
    assert write(np.inf, np.inf, 3.0 + PATIENCE) == (1, 0)
    assert held(paths) == ["70000", "50000"]
    assert write(np.inf, np.inf, 4.0 + PATIENCE) == (1, 0)
    assert held(paths) == ["max", "50000"]
    assert write(np.inf, np.inf, 99.0) == (0, 0)
    assert made.of(slots.plan().slots[0]) is None


def test_no_cap_is_less_than_an_agent_can_live_with(files: tuple[Caps, Slots, list[Path]]) -> None:
    made, slots, paths = files
    made.write(slots, np.array([0.0, 1e-9]), 1.0)
    assert held(paths) == [str(LEAST * 100)] * 2


def test_what_an_earlier_supervisor_left_is_found_and_lifted(files: tuple[Caps, Slots, list[Path]]) -> None:
    made, slots, paths = files
    made.write(slots, np.array([0.75, 0.25]), 1.0)
    later = Caps(made.__dict__["_tree"])
    for slot in slots.plan().slots.tolist():
        later.add(slot)
    none = np.array([np.inf, np.inf])
    assert later.write(slots, none, 50.0) == (0, 0)
    assert later.of(slots.plan().slots[0]) == 0.75
    assert later.write(slots, none, 50.0 + PATIENCE) == (2, 0)
    assert held(paths) == ["max", "50000"]


def test_closing_gives_everybody_its_own_limit_back(files: tuple[Caps, Slots, list[Path]]) -> None:
    made, slots, paths = files
    made.write(slots, np.array([0.75, 0.25]), 1.0)
    made.close()
    assert held(paths) == ["max", "50000"]


def test_new_settings_are_not_mistaken_for_a_cap(files: tuple[Caps, Slots, list[Path]]) -> None:
    made, slots, paths = files
    made.write(slots, np.array([0.75, 0.25]), 1.0)
    agent = slots.at(int(slots.plan().slots[1]))
    slots.change(replace(agent, limit=0.4))
    paths[1].write_text(cpu_max(400))
    made.add(agent.slot)
    assert made.write(slots, np.array([0.75, 0.25]), 2.0) == (1, 0)
    assert made.write(slots, np.array([0.75, 0.39]), 3.0) == (1, 0)


def test_a_group_that_is_gone_is_a_failure_and_nothing_more(files: tuple[Caps, Slots, list[Path]]) -> None:
    made, slots, paths = files
    paths[0].unlink()
    assert made.write(slots, np.array([0.75, 0.25]), 1.0) == (1, 1)
    assert made.of(slots.plan().slots[0]) is None


def test_a_cap_that_could_not_be_lifted_is_lifted_later(files: tuple[Caps, Slots, list[Path]]) -> None:
    made, slots, paths = files
    none = np.array([np.inf, np.inf])
    made.write(slots, np.array([0.75, np.inf]), 1.0)
    away = paths[0].rename(paths[0].with_name("away"))
    assert made.write(slots, none, 1.0 + PATIENCE) == (0, 1)
    away.rename(paths[0])
    assert made.write(slots, none, 2.0 + PATIENCE) == (0, 0)
    assert made.of(slots.plan().slots[0]) == 0.75
    assert made.write(slots, none, 2.0 + 2 * PATIENCE) == (1, 0)
    assert held(paths) == ["max", "50000"]


def test_a_cap_that_could_not_be_read_is_read_later(
    files: tuple[Caps, Slots, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor has left it, and its successor has no file free for a moment."""
    made, slots, paths = files
    none = np.array([np.inf, np.inf])
    paths[0].write_text(cpu_max(200))
    made.add(int(slots.plan().slots[0]))
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", _no_files)
        made.write(slots, none, 1.0)
    made.write(slots, none, 2.0)
    assert made.of(int(slots.plan().slots[0])) == 0.2
    assert made.write(slots, none, 2.0 + PATIENCE) == (1, 0)
    assert held(paths) == ["max", "50000"]


def _no_files(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, "no files")


@pytest.mark.parametrize("foreign", ["max 100000", "90000 100000"])
def test_what_another_has_written_over_a_cap_is_replaced(files: tuple[Caps, Slots, list[Path]], foreign: str) -> None:
    made, slots, paths = files
    wanted = np.array([0.75, 0.25])
    made.write(slots, wanted, 1.0)
    paths[0].write_text(foreign)
    assert made.write(slots, wanted, 2.0) == (0, 0)
    for slot in slots.plan().slots.tolist():
        made.refresh(slot)
    assert made.write(slots, wanted, 3.0) == (1, 0)
    assert held(paths) == ["75000", "25000"]


def test_reading_a_cap_again_does_not_make_it_last(files: tuple[Caps, Slots, list[Path]]) -> None:
    made, slots, paths = files
    none = np.array([np.inf, np.inf])
    made.write(slots, np.array([0.75, np.inf]), 1.0)
    for second in range(2, 1 + int(PATIENCE)):
        made.refresh(int(slots.plan().slots[0]))
        assert made.write(slots, none, float(second)) == (0, 0)
    assert made.write(slots, none, 1.0 + PATIENCE) == (1, 0)
    assert held(paths) == ["max", "50000"]


def test_a_cap_above_a_lowered_limit_goes_at_once(files: tuple[Caps, Slots, list[Path]]) -> None:
    """A turn that began before new settings were written has written its cap after them."""
    made, slots, paths = files
    agent = slots.at(int(slots.plan().slots[1]))
    slots.change(replace(agent, limit=0.2))
    paths[1].write_text(cpu_max(400))
    made.add(agent.slot)
    made.write(slots, np.array([np.inf, 0.39]), 2.0)
    assert held(paths) == ["max", "20000"]


def test_an_update_that_meets_a_cap_is_no_mismatch() -> None:
    assert _at_most("max 100000", "75000 100000")
    assert _at_most("50000 100000", "25000 100000")
    assert _at_most("5000 1000000", "5000 1000000")
    assert not _at_most("50000 100000", "75000 100000")
    assert not _at_most("50000 100000", "max 100000")


class Draining(Kernel):
    """A kernel in which agents of a limited tenant draw on its quota alike, whatever they weigh: each on its CPU."""

    limits: dict[str, float]

    def add(self, ref: GroupRef, threads: int = 1, duty: float = 1.0, limit: float = float("inf")) -> Program:
        program = super().add(ref, threads, duty, limit)
        (program.path / "cpu.max").write_text(cpu_max(None))
        return program

    def step(self, seconds: float) -> None:
        root = Group()
        for program in self.programs.values():
            quota, period = (program.path / "cpu.max").read_text().split()[:2]
            program.limit = int(quota) / int(period) if quota.isdigit() else math.inf
            name = program.path.parent.parent.name
            box = root.children.setdefault(name, Group(limit=self.limits.get(name, math.inf)))
            program.group = box.children[program.path.name] = Group(want=min(program.want, CPUS), limit=program.limit)
        self.take_writes()
        root.fill(CPUS)
        self.idle += max(CPUS - root.share, 0.0) * seconds
        self.used += root.share * seconds
        for program in self.programs.values():
            program.advance(seconds)
        self.now += seconds
        self._publish()


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    kernel = Draining(tmp_path)
    kernel.limits = {Path(kernel.tree.tenant_path(BOX)).name: 1.0}
    monkeypatch.setattr(tick_meter, "Machine", lambda path: kernel)
    one = Loop(kernel)
    one.ticker.set_tenant(BOX, 100, "normal", 0, 1000)
    yield one
    one.ticker.close()


def test_a_limited_tenants_agents_have_what_they_are_due(loop: Loop) -> None:
    loop.agent("heavy", BOX, weight=300, threads=2)
    loop.agent("light", BOX, weight=100, threads=2)
    rows = loop.settled()
    assert rows["heavy"].measured == pytest.approx(0.75, abs=0.02)
    assert rows["light"].measured == pytest.approx(0.25, abs=0.02)
    assert loop.run(10) == 0
    words = loop.ticker.explain("000000000001")
    assert words["cap"] == pytest.approx(0.25, abs=0.01)
    assert any("by a cpu.max of its own" in line for line in words["words"])
    assert any(line.startswith("kernel: cpu.max holds it at") for line in words["equations"])


def test_an_agent_that_wakes_has_its_part_at_once_and_leaves_it_when_it_sleeps(loop: Loop) -> None:
    sleeper = loop.agent("sleeper", BOX, weight=100, threads=2)
    loop.agent("hog", BOX, weight=100, threads=2)
    sleeper.duty = 0.05
    rows = loop.settled()
    assert rows["hog"].measured == pytest.approx(0.9, abs=0.03)
    sleeper.duty = 1.0
    loop.kernel.step(1.0)
    assert sleeper.group.share >= 0.45
    loop.run(3)
    assert sleeper.group.share == pytest.approx(0.5, abs=0.02)


class History:
    """Three agents of one tenant, and what may happen to their limits while supervisors come and go."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.kernel = Draining(root)
        patch.setattr(tick_meter, "Machine", lambda path: self.kernel)
        self.kernel.limits = {}
        self.own: list[int | None] = [None, 500, None]
        self.refs = [GroupRef(BOX, "normal", f"{n:012x}") for n in range(3)]
        self.files = [self.kernel.add(ref, threads=2).path / "cpu.max" for ref in self.refs]
        self.files[1].write_text(cpu_max(500))
        self.successor(0, 10)

    def successor(self, _: int, amount: int) -> None:
        self.ticker = Ticker(self.kernel.tree, CPUS, clock=lambda: self.kernel.now)
        self.tenant(0, amount)
        for ref, limit in zip(self.refs, self.own, strict=True):
            self.ticker.add(ref.agent_id, ref, 100, 0, limit)

    def tenant(self, _: int, amount: int) -> None:
        self.ticker.set_tenant(BOX, 100, "normal", 0, amount * 100)

    def agent(self, which: int, amount: int) -> None:
        self.own[which] = amount * 100
        self.files[which].write_text(cpu_max(amount * 100))
        self.ticker.change(self.refs[which].agent_id, 100, 0, amount * 100)

    def foreign(self, which: int, amount: int) -> None:
        """Over a cap only: what else is in the file is not the tick's."""
        if self.ticker.explain(self.refs[which].agent_id)["cap"] is not None:
            self.files[which].write_text(cpu_max(amount * 100))

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.kernel.step(1.0)
            self.ticker.tick(self.kernel.now)
            for file in self.files:  # a plain file keeps the tail of a longer earlier write
                file.write_text(f"{file.read_text().split()[0]} 100000")

    def is_held(self) -> list[bool]:
        return [_at_most(cpu_max(own), file.read_text()) for own, file in zip(self.own, self.files, strict=True)]


@settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([History.tenant, History.agent, History.foreign, History.successor]),
            st.integers(0, 2),
            st.integers(1, 20),
        ),
        max_size=8,
    )
)
def test_whatever_has_happened_without_a_limit_everybody_has_its_own(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Callable[[History, int, int], None], int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        history, touched = History(tmp_path_factory.mktemp("caps"), patch), False
        for step, which, amount in steps:
            before = history.ticker
            step(history, which, amount)
            if before is not history.ticker:
                before._meter.close()  # as of a process that was killed: its caps stay
            history.run(amount)
            touched |= step is History.foreign
            assert touched or all(history.is_held())
        history.ticker.set_tenant(BOX, 100, "normal", 0, None)
        history.run(70)
        assert [file.read_text() for file in history.files] == [cpu_max(own) for own in history.own]
        history.ticker.close()
