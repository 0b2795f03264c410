"""The slow loop of memory over a directory of plain files: what it reads, writes, tells, and leaves behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.alloc import use_numpy
from agentos_native.cgroup import CgroupMount, GroupRef, Tree
from agentos_native.cgroup.memory_files import (
    RESTING,
    Descriptors,
    MachineMemory,
    MemoryGroup,
    limit_above,
    machine_memory,
    parse_stat,
    parse_totals,
    value_of,
)
from agentos_native.spec.model import AgentSpec, Limits, Priority, Requests, Resources, TenantSpec
from agentos_native.supervisor import resources
from agentos_native.supervisor.loop.controllers import Member
from agentos_native.supervisor.loop.memory import REFRESH, MemoryController

MIB = 1 << 20


class Machine:
    """Groups as directories, and events as a list."""

    def __init__(self, root: Path, size: int = 1000 * MIB) -> None:
        self.size = size
        self.now = 100.0
        self.tree = Tree(CgroupMount(str(root), str(root), "unified", frozenset({"memory"})), "sim")
        self.tree.controllers = frozenset({"memory"})
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.used: dict[str, int] = {}

    def notify(self, kind: str, agent_id: str, **detail: Any) -> None:
        self.events.append((kind, agent_id, detail))

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.events]

    def memory(self) -> MachineMemory:
        return MachineMemory(self.size, max(self.size - sum(self.used.values()), 0), 0)

    def controller(self, **options: Any) -> MemoryController:
        return MemoryController(self.tree, self.notify, machine=self.memory, margin=0, **options)

    def member(self, number: int, tier: Priority = "normal", **spec: Any) -> Member:
        ref = GroupRef("home", tier, f"{number:012x}")
        path = self.tree.get(ref).path
        os.makedirs(path, exist_ok=True)
        if not os.path.exists(f"{path}/memory.high"):
            Path(path, "memory.high").write_text("max\n")
            Path(path, "memory.events").write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n")
            Path(path, "cpu.stat").write_text("usage_usec 1\n")
        requests = Requests(memory=spec.pop("request", 0))
        limits = Limits(memory=spec.pop("limit", None))
        resources = Resources(requests=requests, limits=limits)
        whole = AgentSpec(name="a", image="i", priority=tier, resources=resources, **spec)
        return Member(ref.agent_id, number, ref, path, whole)

    def set(
        self, member: Member, anon: int = 0, cold: int = 0, stalled: float = 0.0, refaults: int = 0, kills: int = 0
    ) -> None:
        """The group's counters now; memory in MiB, stall in seconds since ever."""
        path = Path(member.path)
        self.used[member.agent_id] = anon * MIB
        path.joinpath("memory.current").write_text(f"{(anon + cold) * MIB}\n")
        path.joinpath("memory.stat").write_text(
            f"anon {anon * MIB}\nfile {cold * MIB}\ninactive_file {cold * MIB}\nactive_file 0\nslab_reclaimable 0\n"
            f"workingset_refault_anon 0\nworkingset_refault_file {refaults}\n"
        )
        total = int(stalled * 1e6)
        path.joinpath("memory.pressure").write_text(f"some avg10=0.00 total={total}\nfull avg10=0.00 total={total}\n")
        path.joinpath("memory.events").write_text(f"low 0\noom 0\noom_kill {kills}\noom_group_kill 0\n")

    def turns(self, controller: MemoryController, count: int = 1) -> None:
        for _ in range(count):
            self.now += 2.0
            controller.turn(self.now)

    @staticmethod
    def high(member: Member) -> str:
        return Path(member.path, "memory.high").read_text().strip()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    use_numpy()
    yield Machine(tmp_path)


def test_a_hog_is_held_and_told_of_and_released(machine: Machine) -> None:
    controller = machine.controller()
    hog, quiet = machine.member(1), machine.member(2, request=300 * MIB)
    controller.add(hog)
    controller.add(quiet)
    machine.set(quiet, anon=100)
    for step in range(40):
        machine.set(hog, anon=min(400 + 20 * step, 700))
        machine.turns(controller)
    assert machine.high(hog) == str(700 * MIB)
    assert machine.high(quiet) == "max"
    squeezed = next(detail for kind, agent, detail in machine.events if kind == "memory-squeezed")
    assert squeezed["entitled"] <= 701 * MIB
    assert squeezed["measured"] <= 700 * MIB
    row = controller.rows()[hog.agent_id]
    assert (row["squeezed"], row["bound"], row["high"]) == (True, "share", 700 * MIB)
    quiet_row = controller.rows()[quiet.agent_id]
    assert (quiet_row["request"], quiet_row["entitled"], quiet_row["bound"]) == (300 * MIB, 300 * MIB, "demand")
    writes = controller.writes
    machine.turns(controller, 50)
    assert controller.writes == writes
    machine.set(hog, anon=300)
    machine.turns(controller, 60)
    assert machine.high(hog) == "max"
    assert machine.kinds() == ["memory-squeezed", "memory-released"]


def squeezed(machine: Machine, controller: MemoryController) -> Member:
    """An agent that is held at about 700 MiB beside one that needs 300."""
    hog, other = machine.member(1), machine.member(2)
    for member, anon in ((hog, 720), (other, 300)):
        controller.add(member)
        machine.set(member, anon=anon)
    machine.turns(controller, 3)
    assert machine.high(hog) != "max"
    return hog


def test_a_stall_is_told_once_more(machine: Machine) -> None:
    controller = machine.controller()
    hog = squeezed(machine, controller)
    for seconds in range(1, 6):
        machine.set(hog, anon=720, stalled=seconds * 1.5)
        machine.turns(controller)
    assert machine.kinds() == ["memory-squeezed", "memory-squeezed"]
    assert machine.events[1][2]["stalled"] == pytest.approx(0.75)


def test_limits_are_lifted_when_the_loop_stops(machine: Machine) -> None:
    controller = machine.controller()
    hog = squeezed(machine, controller)
    controller.close()
    assert machine.high(hog) == "max"


def test_a_limit_left_by_a_crash_is_taken_over_or_lifted(machine: Machine) -> None:
    hog = machine.member(1)
    machine.set(hog, anon=100)
    Path(hog.path, "memory.high").write_text(f"{90 * MIB}\n")
    moving = machine.controller()
    moving.add(hog)
    machine.turns(moving)
    assert moving.rows()[hog.agent_id]["high"] == 90 * MIB or machine.high(hog) != "max"
    machine.turns(moving, 30)
    assert machine.high(hog) == "max"
    Path(hog.path, "memory.high").write_text(f"{90 * MIB}\n")
    measuring = machine.controller(enforce=False)
    measuring.add(hog)
    assert machine.high(hog) == "max"
    assert machine.kinds() == []


def test_without_control_nothing_is_moved_but_all_is_measured(machine: Machine) -> None:
    controller = machine.controller(enforce=False)
    hog, other = machine.member(1), machine.member(2)
    for member in (hog, other):
        controller.add(member)
        machine.set(member, anon=700)
    machine.turns(controller, 5)
    assert machine.high(hog) == "max"
    row = controller.rows()[hog.agent_id]
    assert (row["measured"], row["squeezed"]) == (700 * MIB, True)
    assert "not moved" in row["note"]


def test_foreign_writes_are_told_and_replaced(machine: Machine) -> None:
    controller = machine.controller()
    hog = squeezed(machine, controller)
    ours = machine.high(hog)
    Path(hog.path, "memory.high").write_text(f"{50 * MIB}\n")
    machine.turns(controller, int(REFRESH / 2) + 1)
    assert machine.high(hog) == ours
    kind, agent, detail = machine.events[-1]
    assert (kind, agent) == ("foreign-change", hog.agent_id)
    assert (detail["file"], detail["expected"], detail["found"]) == (f"{hog.path}/memory.high", ours, str(50 * MIB))


def test_an_update_of_the_group_is_not_foreign(machine: Machine) -> None:
    controller = machine.controller()
    hog = squeezed(machine, controller)
    Path(hog.path, "memory.high").write_text("max\n")  # as settings.apply does
    controller.change(machine.member(1, weight=50))
    machine.turns(controller, 2)
    assert machine.high(hog) != "max"
    assert "foreign-change" not in machine.kinds()


def test_sleepers_give_back_their_cache(machine: Machine) -> None:
    controller = machine.controller()
    sleeper, busy = machine.member(1), machine.member(2)
    for number, member in enumerate((sleeper, busy)):
        controller.add(member)
        machine.set(member, anon=10, cold=100)
        Path(member.path, "memory.reclaim").write_text("")
        assert number < 2
    for turn in range(40):
        Path(busy.path, "cpu.stat").write_text(f"usage_usec {turn * 1_000_000}\n")
        machine.turns(controller)
    assert int(Path(sleeper.path, "memory.reclaim").read_text()) > MIB
    assert Path(busy.path, "memory.reclaim").read_text() == ""
    rows = controller.rows()
    assert (rows[sleeper.agent_id]["idle"], rows[busy.agent_id]["idle"]) == (True, False)
    assert rows[sleeper.agent_id]["reclaimed"] > 0


def test_kills_are_reported_with_figures(machine: Machine) -> None:
    controller = machine.controller()
    victim = machine.member(1)
    machine.set(victim, anon=20)
    Path(victim.path, "memory.peak").write_text(f"{24 * MIB}\n")
    Path(victim.path, "memory.max").write_text(f"{24 * MIB}\n")
    controller.add(victim)
    machine.set(victim, anon=20, kills=2)
    controller.remove(victim.agent_id)
    ((kind, agent, detail),) = machine.events
    assert (kind, agent) == ("oom-killed", victim.agent_id)
    assert detail == {
        "oom_kills": 2, "processes": 2, "current": 20 * MIB, "peak": 24 * MIB, "limit": 24 * MIB,
        "anon": 20 * MIB, "file": 0,
    }  # fmt: skip


def test_groups_that_vanish_and_files_that_say_nonsense_do_no_harm(machine: Machine) -> None:
    controller = machine.controller()
    gone, odd, well = machine.member(1), machine.member(2), machine.member(3)
    for member in (gone, odd, well):
        controller.add(member)
        machine.set(member, anon=100)
    machine.turns(controller)
    for name in os.listdir(gone.path):
        os.unlink(f"{gone.path}/{name}")
    os.rmdir(gone.path)
    Path(odd.path, "memory.stat").write_text("anon -5\ninactive_file nan\n\x00\n")
    Path(odd.path, "memory.current").write_text("lots\n")
    Path(odd.path, "memory.pressure").write_text("some total=\n")
    machine.turns(controller, 3)
    rows = controller.rows()
    assert rows[well.agent_id]["measured"] == 100 * MIB
    assert rows[odd.agent_id]["measured"] is None
    assert machine.high(odd) == machine.high(well) == "max"
    controller.remove(gone.agent_id)
    controller.close()


def test_a_host_without_the_controller_says_so(machine: Machine) -> None:
    machine.tree.controllers = frozenset()
    controller = machine.controller()
    member = machine.member(1, request=MIB)
    for name in ("memory.high", "memory.events"):
        os.unlink(f"{member.path}/{name}")
    Path(member.path, "memory.pressure").write_text("some avg10=0 total=0\n")
    controller.add(member)
    machine.turns(controller, 2)
    row = controller.rows()[member.agent_id]
    assert (row["measured"], row["high"], row["stalled"], row["request"]) == (None, None, 0.0, MIB)
    assert "no memory controller" in row["note"]


def test_what_a_change_would_bring(machine: Machine) -> None:
    controller = machine.controller()
    first, second = machine.member(1), machine.member(2)
    for member in (first, second):
        controller.add(member)
        machine.set(member, anon=490)
    machine.turns(controller, 2)
    now = controller.entitled({}, {})
    assert now[first.agent_id] == pytest.approx(500 * MIB)
    then = controller.entitled({first.agent_id: machine.member(1, request=700 * MIB).spec}, {})
    assert then[first.agent_id] == pytest.approx(700 * MIB)
    assert then[second.agent_id] == pytest.approx(300 * MIB)
    tenant = controller.entitled({}, {"home": TenantSpec(name="home")})
    assert tenant == now
    assert controller.fractions()[first.agent_id] == pytest.approx(0.51, abs=0.01)


class TestFiles:
    def test_values(self) -> None:
        text = b"anon 5\nfile 7\ninactive_anon 1\nanon_thp 9\n"
        assert [value_of(text, key) for key in (b"anon", b"file", b"anon_thp", b"none", b"thp")] == [5, 7, 9, -1, -1]

    def test_older_kernels_have_one_counter_of_refaults(self) -> None:
        assert parse_stat(b"anon 1\ninactive_file 2\nactive_file 3\nworkingset_refault 4\n") == (1, 5, 2, 4)
        assert parse_stat(b"") == (-1, 0, -1, -1)

    def test_pressure(self) -> None:
        assert parse_totals(b"some avg10=0.00 total=12\nfull avg10=0.00 total=3\n") == (12, 3)
        assert parse_totals(b"") == (-1, -1)

    def test_a_budget_of_descriptors_is_kept(self, machine: Machine) -> None:
        member = machine.member(1)
        machine.set(member, anon=1)
        budget = Descriptors(2)
        group = MemoryGroup(member.path, budget)
        assert group.read() == group.read()
        assert budget.left == 0
        group.close()
        assert budget.left == 2

    def test_a_quiet_groups_statistics_are_read_seldom(self, machine: Machine) -> None:
        member = machine.member(1)
        machine.set(member, anon=100)
        group = MemoryGroup(member.path, Descriptors())
        machine.set(member, anon=100, cold=0)
        assert group.read() is not None
        Path(member.path, "memory.stat").write_text("anon 7\ninactive_file 0\nactive_file 0\n")
        seen = [sample.anon for _ in range(RESTING + 1) if (sample := group.read()) is not None]
        assert seen == [100 * MIB] * RESTING + [7]
        machine.set(member, anon=102)  # something has happened
        sample = group.read()
        assert sample is not None
        assert sample.anon == 102 * MIB
        machine.set(member, anon=102, stalled=0.1, refaults=3)
        sample = group.read()
        assert sample is not None
        assert sample.refaults == 3

    def test_the_lowest_limit_above(self, tmp_path: Path) -> None:
        (tmp_path / "a/b").mkdir(parents=True)
        (tmp_path / "a/memory.max").write_text("4096\n")
        (tmp_path / "a/b/memory.max").write_text("max\n")
        assert limit_above(str(tmp_path / "a/b"), str(tmp_path)) == 4096
        assert limit_above(str(tmp_path), str(tmp_path)) is None

    def test_this_machine(self) -> None:
        found = machine_memory()
        assert 0 < found.available <= found.total


def test_only_a_system_agent_of_a_system_tenant_gets_what_cannot_be_taken() -> None:
    """An agent's priority is its owner's choice; a tenant's is the administrator's."""

    def least(priority: Priority, tenant: Priority | None) -> int | None:
        spec = AgentSpec(name="a", image="i", priority=priority, resources=Resources(requests=Requests(memory=MIB)))
        owner = TenantSpec(name="default", priority=tenant) if tenant is not None else None
        settings = resources.group_settings(spec, "/", owner)
        assert settings.memory_low == MIB
        return settings.memory_min

    assert least("system", "system") == MIB
    assert [least("system", "high"), least("high", "system"), least("system", None)] == [None] * 3


def test_an_ended_agents_record_has_the_figures_of_its_kill() -> None:
    spec = AgentSpec(name="a", image="i", resources=Resources(limits=Limits(memory=24 * MIB)))
    assert resources.oom_figures({"memory.events": {"oom_kill": 0}}, spec) == {}
    figures = {"memory.events": {"oom_kill": 1}, "memory.peak": 24 * MIB, "memory.current": 5}
    expected = {"oom_kills": 1, "peak": 24 * MIB, "current": 5, "limit": 24 * MIB}
    assert resources.oom_figures(figures, spec) == expected
