"""The controllers on a unified hierarchy: limits bind, values are read back, protection reaches the groups above."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

import pytest

from agentos_native.cgroup import GroupRef, GroupSettings, Tree, discover
from agentos_native.cgroup.inventory import Inventory
from agentos_native.errors import AgentosError
from tests.vm.loads import start

REF = GroupRef("home", "high", "0123456789ab")
MIB = 1 << 20
EATER = "data = []\nwhile True: data.append(b'x' * (1 << 20))"
FORKER = "import os, time\ntry:\n  while True:\n    if os.fork() == 0: time.sleep(60)\nexcept OSError: time.sleep(60)"


@pytest.fixture
def tree() -> Iterator[Tree]:
    one = Tree(discover(), "controllers")
    one.open()
    yield one
    for ref in one.find():
        one.get(ref).kill()
        one.get(ref).remove()
    one.teardown()


def read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def test_every_controller_is_here(tree: Tree) -> None:
    mount = discover()
    assert mount.layout == "unified"
    assert mount.v1_controllers == frozenset()
    assert tree.controllers == {"cpu", "memory", "pids", "io"}
    assert tree.refused == {}


def test_settings_are_in_the_files(tree: Tree) -> None:
    settings = GroupSettings(
        cpu_weight=250,
        cpu_max_millis=1500,
        memory_max=64 * MIB + 1,
        memory_high=48 * MIB,
        memory_low=16 * MIB,
        pids_max=40,
    )
    group = tree.create(REF, settings)
    found = Inventory.of(group.path)
    assert found["cpu"]["cpu.weight"] == 250
    assert found["cpu"]["cpu.max"] == 1500
    assert found["memory"]["memory.max"] == 64 * MIB  # whole pages
    assert found["memory"]["memory.high"] == 48 * MIB
    assert found["pids"]["pids.max"] == 40
    group.update(GroupSettings(memory_max=32 * MIB))
    found = Inventory.of(group.path)
    assert found["memory"] | {"memory.max": 32 * MIB, "memory.high": None, "memory.low": 0} == found["memory"]
    assert found["cpu"]["cpu.max"] is None
    assert found["pids"]["pids.max"] is None


def test_protection_reaches_the_groups_above(tree: Tree) -> None:
    """memory.low counts only as far as the groups above are protected."""
    other = GroupRef("home", "low", "fedcba987654")
    tree.create(REF, GroupSettings(memory_low=16 * MIB))
    tree.create(other, GroupSettings(memory_low=8 * MIB))
    tree.set_tenant("lab", GroupSettings(memory_low=4 * MIB))
    assert read(f"{tree.tier_path('home', 'high')}/memory.low") == str(16 * MIB)
    assert read(f"{tree.tenant_path('home')}/memory.low") == str(24 * MIB)
    assert read(f"{tree.tenant_path('lab')}/memory.low") == str(4 * MIB)
    assert read(f"{tree.path}/memory.low") == str(28 * MIB)
    again = Tree(discover(), tree.node)  # after a restart
    again.open()
    again.get(other).remove()
    assert read(f"{tree.tenant_path('home')}/memory.low") == str(16 * MIB)


def test_no_controller_below_an_agent(tree: Tree) -> None:
    group = tree.create(REF, GroupSettings())
    os.close(group.leaf("main"))
    assert read(f"{group.path}/cgroup.subtree_control") == ""
    assert not os.path.exists(f"{group.path}/main/memory.max")


def test_an_out_of_memory_kill_is_reported(tree: Tree) -> None:
    group = tree.create(REF, GroupSettings(memory_max=24 * MIB))
    assert group.oom_kills() == 0
    process = start(group, (sys.executable, "-c", EATER))
    assert process.wait(60) == -9
    assert group.oom_kills() == 1
    assert group.stat()["memory.peak"] <= 25 * MIB


def test_processes_stop_at_pids_max(tree: Tree) -> None:
    group = tree.create(REF, GroupSettings(pids_max=6))
    process = start(group, (sys.executable, "-c", FORKER))
    deadline = time.monotonic() + 60
    while group.stat()["pids.events"]["max"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(group.procs()) == 6
    group.kill()
    process.wait()


def test_an_impossible_value_leaves_nothing(tree: Tree) -> None:
    with pytest.raises(AgentosError) as failure:
        tree.create(REF, GroupSettings(pids_max=1 << 40))
    assert failure.value.code == "cgroup-write"
    assert failure.value.where.endswith("pids.max")
    assert failure.value.details["value"] == str(1 << 40)
    assert tree.find() == []


def test_io_limits_are_read_back(tree: Tree) -> None:
    from agentos_native.cgroup import IoMax

    disk = next(name for name in sorted(os.listdir("/sys/block")) if name.startswith(("vd", "sd", "nvme")))
    device = read(f"/sys/block/{disk}/dev")
    group = tree.create(REF, GroupSettings(io_max=(IoMax(device, rbps=MIB, wiops=50),)))
    limit = Inventory.of(group.path)["io"]["io.max"][device]
    assert (limit["rbps"], limit["wbps"], limit["wiops"]) == (MIB, None, 50)
    group.update(GroupSettings())
    assert Inventory.of(group.path)["io"]["io.max"] == {}


def test_a_root_with_processes_in_it_is_explained(tree: Tree) -> None:
    """Controllers cannot be handed down from a group that holds processes: EBUSY, with what to do."""
    base = f"{tree.mount.path}/occupied"
    os.mkdir(base)
    process = None
    try:
        import subprocess

        process = subprocess.Popen(["sh", "-c", f"echo $$ > {base}/cgroup.procs && exec sleep 1000"])
        while not read(f"{base}/cgroup.procs"):
            time.sleep(0.05)
        inner = Tree(discover(base), "inner")
        inner.open()
        assert "memory" not in inner.controllers
        assert "EBUSY" in inner.refused["memory"]
        assert "leaf" in inner.refused["memory"]
        inner.teardown()
    finally:
        if process is not None:
            process.kill()
            process.wait()
        os.rmdir(base)
