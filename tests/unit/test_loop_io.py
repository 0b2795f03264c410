"""The slow loop of I/O over a directory of plain files: rates, parts of the disk's time, weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agentos_native.alloc import use_numpy
from agentos_native.cgroup import CgroupMount, GroupRef, Tree, io_files
from agentos_native.cgroup.io_files import IoWeights, cost, find_weights, parse_io_stat, scheduler_of
from agentos_native.spec.model import AgentSpec, IoLimits, Limits, Priority, Resources, TenantSpec
from agentos_native.supervisor.loop.controllers import Member
from agentos_native.supervisor.loop.io import REFRESH, IoController

MIB = 1 << 20
DISK = "254:0"
IOCOST = IoWeights("iocost", "io.weight", 10_000, DISK)
BFQ = IoWeights("bfq", "io.bfq.weight", 1000, DISK)


class Machine:
    """Groups as directories; a disk that is busy for as long as is said."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        use_numpy()
        self.now = 100.0
        self.busy = 0.0
        self.work = 0
        self.tree = Tree(CgroupMount(str(root), str(root), "unified", frozenset({"io"})), "sim")
        self.tree.controllers = frozenset({"io"})
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.counts: dict[str, int] = {}
        monkeypatch.setattr(io_files, "busy_time", lambda disk: (int(self.busy * 1000), self.work))

    def notify(self, kind: str, agent_id: str, **detail: Any) -> None:
        self.events.append((kind, agent_id, detail))

    def controller(self, weights: IoWeights | None = IOCOST, **options: Any) -> IoController:
        return IoController(self.tree, "/proc", self.notify, weights=weights, **options)

    def member(self, number: int, tenant: str = "home", tier: Priority = "normal", **spec: Any) -> Member:
        ref = GroupRef(tenant, tier, f"{number:012x}")
        path = Path(self.tree.get(ref).path)
        path.mkdir(parents=True, exist_ok=True)
        for directory in (path, path.parent, path.parent.parent):
            for name in ("io.weight", "io.bfq.weight"):
                if not (directory / name).exists():
                    (directory / name).write_text("default 100\n")
        resources = Resources(io_weight=spec.pop("io_weight", None), limits=Limits(io=spec.pop("limits", None)))
        whole = AgentSpec(name="a", image="i", tenant=tenant, priority=tier, resources=resources, **spec)
        self.read(str(path), 0)
        return Member(ref.agent_id, number, ref, str(path), whole)

    def read(self, path: str, amount: int, stalled: float = 0.0) -> None:
        """The group has read `amount` bytes more in megabytes, and waited so many seconds since ever."""
        total = self.counts[path] = self.counts.get(path, 0) + amount
        self.work += cost((amount, 0, amount // MIB, 0))
        line = f"{DISK} rbytes={total} wbytes=0 rios={total // MIB} wios=0 dbytes=0 dios=0\n7:0 \n"
        Path(path, "io.stat").write_text(line)
        Path(path, "io.pressure").write_text(f"some avg10=0.00 total={int(stalled * 1e6)}\n")

    def turn(self, controller: IoController, busy: float = 1.0) -> None:
        self.now += 5.0
        self.busy += 5.0 * busy
        controller.turn(self.now)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def weight(path: str | Path, file: str = "io.weight") -> int:
    return int(Path(path, file).read_text().removeprefix("default "))


def test_weights_are_the_agents_own(machine: Machine) -> None:
    controller = machine.controller()
    plain, heavy, own = machine.member(1), machine.member(2, weight=300), machine.member(3, io_weight=700)
    for member in (plain, heavy, own):
        controller.add(member)
    machine.turn(controller)
    assert [weight(member.path) for member in (plain, heavy, own)] == [100, 300, 700]
    row = controller.rows()[own.agent_id]
    assert (row["weight"], row["kernel_weight"], row["enforced"], row["request"]) == (700, 700, "iocost", 0.0)
    controller.change(machine.member(2, weight=50))
    machine.turn(controller)
    assert weight(heavy.path) == 50


def test_bfq_takes_no_weight_above_1000(machine: Machine) -> None:
    controller = machine.controller(BFQ)
    member = machine.member(1, io_weight=5000)
    controller.add(member)
    machine.turn(controller)
    assert weight(member.path, "io.bfq.weight") == 1000
    assert weight(member.path) == 100
    assert 1 <= weight(Path(member.path).parent, "io.bfq.weight") <= 1000


def test_rates_and_parts_of_the_disks_time(machine: Machine) -> None:
    controller = machine.controller()
    first, second = machine.member(1, weight=300), machine.member(2, limits=IoLimits(read_bps=10 * MIB))
    for member in (first, second):
        controller.add(member)
    waited = 0.0
    for _ in range(8):
        waited += 4.0
        machine.read(first.path, 60 * MIB, waited)
        machine.read(second.path, 20 * MIB, waited)
        machine.turn(controller)
    rows = controller.rows()
    assert rows[first.agent_id]["read_bps"] == pytest.approx(12 * MIB)
    assert rows[first.agent_id]["read_iops"] == pytest.approx(12)
    assert rows[first.agent_id]["measured"] == pytest.approx(0.75, abs=0.01)
    assert rows[first.agent_id]["entitled"] == pytest.approx(0.75, abs=0.01)
    assert rows[second.agent_id]["entitled"] == pytest.approx(0.25, abs=0.01)
    assert rows[second.agent_id]["bound"] == "share"
    assert rows[second.agent_id]["limits"] == {
        "read_bps": 10 * MIB, "write_bps": None, "read_iops": None, "write_iops": None,
    }  # fmt: skip
    assert rows[first.agent_id]["devices"][DISK]["read_bps"] == pytest.approx(12 * MIB)
    spec = machine.member(2, weight=900).spec
    assert controller.entitled({second.agent_id: spec}, {})[second.agent_id] == pytest.approx(0.75, abs=0.01)
    assert controller.fractions()[first.agent_id] == pytest.approx(1.0)


def test_tenants_by_weight_and_tiers_in_order(machine: Machine) -> None:
    controller = machine.controller()
    controller.set_tenant(TenantSpec(name="home", weight=300))
    controller.set_tenant(TenantSpec(name="lab", weight=100))
    members = [machine.member(1, tier="high"), machine.member(2, tier="low"), machine.member(3, tenant="lab")]
    for member in members:
        controller.add(member)
    waited = 0.0
    for _ in range(8):
        waited += 4.9
        for member in members:
            machine.read(member.path, 20 * MIB, waited)
        machine.turn(controller)
    tenants = [weight(machine.tree.tenant_path(name)) for name in ("home", "lab")]
    assert tenants[0] / tenants[1] == pytest.approx(3, rel=0.05)
    high, low = (weight(machine.tree.tier_path("home", tier)) for tier in ("high", "low"))
    assert high >= 20 * low
    writes = controller.writes
    for _ in range(10):
        waited += 4.9
        for member in members:
            machine.read(member.path, 20 * MIB, waited)
        machine.turn(controller)
    assert controller.writes == writes


def test_foreign_writes_are_told_and_replaced(machine: Machine) -> None:
    controller = machine.controller()
    member = machine.member(1, weight=300)
    controller.add(member)
    machine.turn(controller)
    Path(member.path, "io.weight").write_text("default 1\n")
    for _ in range(int(REFRESH / 5) + 1):
        machine.turn(controller)
    assert weight(member.path) == 300
    ((kind, agent, detail),) = machine.events
    assert (kind, agent, detail["expected"], detail["found"]) == ("foreign-change", member.agent_id, "300", "1")


@pytest.mark.parametrize("options", [{"weights": None}, {"enforce": False}])
def test_where_nothing_is_enforced_rows_say_so(machine: Machine, options: dict[str, Any]) -> None:
    controller = machine.controller(**options)
    member = machine.member(1, weight=300)
    controller.add(member)
    for _ in range(2):
        machine.read(member.path, 50 * MIB)
        machine.turn(controller)
    row = controller.rows()[member.agent_id]
    assert weight(member.path) == 100
    assert row["read_bps"] == 10 * MIB
    assert row["enforced"] is None
    assert "not " in row["note"]


def test_groups_that_vanish_and_counters_that_go_back_do_no_harm(machine: Machine) -> None:
    controller = machine.controller()
    gone, back = machine.member(1), machine.member(2)
    for member in (gone, back):
        controller.add(member)
        machine.read(member.path, 50 * MIB, 1.0)
    machine.turn(controller)
    for name in os.listdir(gone.path):
        os.unlink(f"{gone.path}/{name}")
    os.rmdir(gone.path)
    machine.counts[back.path] = 0
    machine.read(back.path, MIB, 0.0)
    machine.turn(controller)
    row = controller.rows()[back.agent_id]
    assert (row["read_bps"], row["stalled"]) == (0, 0)
    assert controller.rows()[gone.agent_id]["measured"] is None
    controller.remove(gone.agent_id)
    assert gone.agent_id not in controller.rows()


def test_a_host_without_the_controller_says_so(machine: Machine) -> None:
    machine.tree.controllers = frozenset()
    controller = machine.controller(None)
    member = machine.member(1)
    os.unlink(f"{member.path}/io.stat")
    controller.add(member)
    machine.turn(controller)
    assert "no io controller" in controller.rows()[member.agent_id]["note"]


class TestWhatHeedsWeights:
    def sysfs(self, root: Path, schedulers: str) -> str:
        (root / f"dev/{DISK}/queue").mkdir(parents=True)
        (root / f"dev/{DISK}/queue/scheduler").write_text(schedulers)
        return str(root / "dev")

    def test_bfq_when_it_is_the_scheduler(self, tmp_path: Path) -> None:
        sysfs = self.sysfs(tmp_path, "none mq-deadline [bfq]\n")
        assert scheduler_of(DISK, sysfs) == "bfq"
        assert find_weights(str(tmp_path), DISK, sysfs) == BFQ

    def test_iocost_when_it_is_enabled_for_the_disk(self, tmp_path: Path) -> None:
        sysfs = self.sysfs(tmp_path, "[none] bfq\n")
        assert find_weights(str(tmp_path), DISK, sysfs) is None
        qos = tmp_path / "io.cost.qos"
        qos.write_text("254:16 enable=1 ctrl=auto\n254:0 enable=0 ctrl=auto\n")
        assert find_weights(str(tmp_path), DISK, sysfs) is None
        qos.write_text("254:0 enable=1 ctrl=auto rpct=0.00\n")
        assert find_weights(str(tmp_path), DISK, sysfs) == IOCOST

    def test_nothing_without_a_disk(self, tmp_path: Path) -> None:
        assert find_weights(str(tmp_path), None) is None
        assert io_files.disk_of("/proc") is None


def test_io_stat() -> None:
    text = b"254:0 rbytes=10 wbytes=2 rios=3 wios=4 dbytes=0 dios=0 cost.usage=5\n7:0 \n8:0 rbytes=x wbytes=1\n"
    assert parse_io_stat(text) == {"254:0": (10, 2, 3, 4)}
    assert parse_io_stat(b"") == {}
