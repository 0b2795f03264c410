"""I/O on a real kernel: limits hold, weights are heeded by BFQ and kept by iocost, rates are what was moved."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentos_native.cgroup import AgentGroup, GroupRef, GroupSettings, IoMax, Tree, discover, io_files
from agentos_native.spec.model import AgentSpec, Priority, Resources
from agentos_native.supervisor import probes
from agentos_native.supervisor.loop.controllers import Member
from agentos_native.supervisor.loop.io import IoController
from tests.vm.loads import start

pytestmark = pytest.mark.timeout(600)
MIB = 1 << 20
PLACE = "/var/tmp"
WINDOWS = 3
READER = """import mmap,os,sys
fd=os.open(sys.argv[1],os.O_RDONLY|os.O_DIRECT)
size=os.fstat(fd).st_size
block=int(sys.argv[2])
buffer=mmap.mmap(-1,block)
while True:
    for at in range(0,size-block+1,block): os.preadv(fd,[buffer],at)"""


class Disk:
    """A node with the slow loop of I/O, and agents that read a file without end, past the cache."""

    def __init__(self, node: str) -> None:
        self.tree = Tree(discover(), node)
        self.tree.open()
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.loop = IoController(self.tree, PLACE, self._notify)
        device = io_files.disk_of(PLACE)
        assert device is not None
        self.device = device
        self.file = Path(PLACE, f"agentos-{node}")
        self.file.write_bytes(bytes(16 * MIB))
        os.sync()
        self._groups: list[AgentGroup] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def _notify(self, kind: str, agent_id: str, **detail: Any) -> None:
        self.events.append((kind, agent_id, detail))

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.close()
        for group in self._groups:
            group.kill()
        for process in self._processes:
            process.wait()
        for group in self._groups:
            group.remove()
        self.tree.teardown()
        self.file.unlink()

    def agent(
        self,
        weight: int | None = None,
        limit: int | None = None,
        tier: Priority = "normal",
        block: int = 128 << 10,
        readers: int = 1,
    ) -> Member:
        """An agent that reads; `limit` in bytes per second."""
        number = len(self._groups) + 1
        ref = GroupRef("home", tier, f"{number:012x}")
        limits = () if limit is None else (IoMax(self.device, rbps=limit),)
        group = self.tree.create(ref, GroupSettings(io_max=limits))
        self._groups.append(group)
        command = (sys.executable, "-S", "-c", READER, str(self.file), str(block))
        self._processes += [start(group, command) for _ in range(readers)]
        spec = AgentSpec(name="a", image="none", priority=tier, resources=Resources(io_weight=weight))
        member = Member(ref.agent_id, number, ref, group.path, spec)
        self.loop.add(member)
        return member

    def rows(self, seconds: float, members: list[Member]) -> list[dict[str, Any]]:
        """What each did in this time."""
        self.loop.turn(time.monotonic())
        time.sleep(seconds)
        self.loop.turn(time.monotonic())
        found = [self.loop.rows()[member.agent_id] for member in members]
        for row in found:
            shown = ("read_bps", "read_iops", "stalled", "measured", "demand", "entitled", "kernel_weight", "enforced")
            print({key: row[key] for key in shown})
        return found


def read(path: str | Path) -> str:
    return Path(path).read_text().strip()


@contextmanager
def scheduler(device: str, name: str) -> Iterator[None]:
    """The disk's I/O scheduler for a while; the test is skipped where the kernel has not got it.

    BFQ raises the weights of queues that are new (block/bfq-iosched.rst, low_latency): that is switched off.
    """
    queue = Path(f"/sys/dev/block/{device}/queue")
    file = queue / "scheduler"
    before = io_files.scheduler_of(device)
    subprocess.run(["modprobe", "bfq"], check=False)
    try:
        file.write_text(name)
        (queue / "iosched/low_latency").write_text("0")
    except OSError:
        pytest.skip(f"this kernel has no {name}")
    try:
        yield
    finally:
        file.write_text(before)


def test_a_limit_holds_and_rates_are_what_was_moved() -> None:
    with Disk("limit") as disk:
        limited = disk.agent(limit=2 * MIB, block=64 << 10)
        bytes_each, reads_each = pytest.approx(2 * MIB, rel=0.2), pytest.approx(32, rel=0.25)
        for _ in range(WINDOWS):  # a machine that stands still for a while has its disk stand still, too
            (row,) = disk.rows(6.0, [limited])
            if (row["read_bps"], row["read_iops"]) == (bytes_each, reads_each):
                break
        assert row["read_bps"] == bytes_each
        assert row["read_iops"] == reads_each
        assert row["stalled"] > 0.5
        assert list(row["devices"]) == [disk.device]
        if io_files.find_weights(disk.tree.mount.mount_point, disk.device) is None:
            assert "not enforced" in row["note"]
            with pytest.raises(probes.Missing, match="neither iocost nor BFQ"):
                probes.io_weights(disk.tree.mount.mount_point, PLACE)


def test_bfq_gives_by_weight() -> None:
    """Three to one; an emulated disk is mostly processor time, so the tolerance is wide."""
    with Disk("bfq") as disk, scheduler(disk.device, "bfq"):
        heavy, light = disk.agent(weight=300, readers=2), disk.agent(weight=100, readers=2)
        assert "bfq" in probes.io_weights(disk.tree.mount.mount_point, PLACE)
        disk.rows(1.0, [heavy, light])
        assert [read(f"{member.path}/io.bfq.weight").split()[-1] for member in (heavy, light)] == ["300", "100"]
        for _ in range(WINDOWS):
            first, second = disk.rows(6.0, [heavy, light])
            ratio = first["read_bps"] / second["read_bps"]
            if 2.0 <= ratio <= 4.5:
                break
        assert first["enforced"] == "bfq"
        assert 2.0 <= ratio <= 4.5
        assert disk.events == []


def test_iocost_is_told_of_weights_of_agents_and_tiers() -> None:
    with Disk("iocost") as disk:
        qos = f"{disk.tree.mount.mount_point}/io.cost.qos"
        if not os.path.exists(qos):
            pytest.skip("this kernel has no iocost")
        Path(qos).write_text(f"{disk.device} enable=1")
        try:
            high, low = disk.agent(weight=700, tier="high"), disk.agent(weight=50, tier="low")
            disk.rows(2.0, [high, low])
            (row, _) = disk.rows(2.0, [high, low])
            assert row["enforced"] == "iocost"
            assert [read(f"{member.path}/io.weight") for member in (high, low)] == ["default 700", "default 50"]
            tiers = [int(read(f"{os.path.dirname(m.path)}/io.weight").split()[1]) for m in (high, low)]
            assert tiers[0] > tiers[1]
            assert disk.events == []
        finally:
            Path(qos).write_text(f"{disk.device} enable=0")
