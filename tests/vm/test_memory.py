"""Memory on a real kernel: who grows beyond its share is held, who sleeps gives back, who is killed is told of."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agentos_native.cgroup import GroupRef, GroupSettings
from tests.vm.memory_loads import GROW, HOLD, MIB, READ, Memory, filled, make_file, value

pytestmark = pytest.mark.timeout(600)


def test_a_hog_is_held_and_its_reserved_neighbour_keeps_its_memory() -> None:
    """The neighbour has grown before it is first looked at: else its growth would be counted on for a while."""
    with Memory("hog", size=130) as load:
        reserved = load.agent("reserved", HOLD.format(size=40), request=50)
        filled(reserved, 40)
        hog = load.agent("hog", GROW.format(step=2, rest=0.05))
        load.turns_until(lambda rows: rows["hog"]["squeezed"] and rows["hog"]["stalled"] > 0.3)
        rows = load.rows()
        first = value(hog, "memory.current")
        load.turns(6)
        assert rows["hog"]["entitled"] == pytest.approx(80 * MIB, rel=0.05)  # what is left beside the reservation
        assert rows["reserved"]["entitled"] == 50 * MIB
        assert value(hog, "memory.high") <= 84 * MIB
        assert value(hog, "memory.current") <= 1.15 * value(hog, "memory.high")
        assert value(hog, "memory.current") - first <= 8 * MIB  # it would have taken 100 more
        assert value(reserved, "memory.current") >= 40 * MIB
        assert not rows["reserved"]["squeezed"]
        assert Path(reserved, "memory.high").read_text().strip() == "max"
        assert [(kind, name) for kind, name, _ in load.events][:1] == [("memory-squeezed", "hog")]
        load.loop.close()
        assert Path(hog, "memory.high").read_text().strip() == "max"


def test_a_sleepers_cache_is_taken_back(tmp_path: Path) -> None:
    disk = Path("/var/tmp/agentos-sleeper")
    make_file(disk, 64)
    try:
        with Memory("sleeper", size=1000) as load:
            load.loop._meter.idle_after, load.loop._meter.idle_check = 2.0, 0.5
            path = load.agent("sleeper", READ.format(path=str(disk)))
            filled(path, 60)
            load.turns_until(lambda rows: rows["sleeper"]["reclaimed"] >= 12 * MIB)
            assert load.rows()["sleeper"]["idle"]
            assert value(path, "memory.current") <= 56 * MIB
            assert Path(path, "memory.high").read_text().strip() == "max"
    finally:
        disk.unlink()


def test_an_oom_kill_is_told_with_figures_at_once() -> None:
    """Also when it hit a child only, and the agent lives on."""
    with Memory("oom", size=1000) as load:
        path = load.agent("parent", HOLD.format(size=4), limit=32)
        child = load.run("parent", GROW.format(step=1, rest=0), leaf="exec-1")
        assert child.wait(60) == -9
        deadline = time.monotonic() + 30  # at once on a quiet machine; no turn of the loop is needed
        while not load.events:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ((kind, name, detail),) = load.events
        assert (kind, name) == ("oom-killed", "parent")
        assert detail["oom_kills"] == detail["processes"] == 1
        assert detail["limit"] == 32 * MIB
        assert 31 * MIB <= detail["peak"] <= 32 * MIB
        assert detail["anon"] is not None
        assert value(path, "pids.current") == 1
        load.turns(1)
        assert load.rows()["parent"]["oom_kills"] == 1


def test_what_must_not_be_taken_is_carried_by_the_groups_above() -> None:
    with Memory("least", size=1000) as load:
        ref = GroupRef("home", "system", "0123456789ab")
        group = load.tree.create(ref, GroupSettings(memory_low=8 * MIB, memory_min=8 * MIB))
        above = [load.tree.tier_path("home", "system"), load.tree.tenant_path("home"), load.tree.path]
        for path in (group.path, *above):
            assert value(path, "memory.min") == value(path, "memory.low") == 8 * MIB
        group.update(GroupSettings(memory_low=4 * MIB))
        assert [value(path, "memory.min") for path in (group.path, *above)] == [0, 0, 0, 0]
        assert [value(path, "memory.low") for path in above] == [4 * MIB] * 3
        group.remove()
        assert value(load.tree.path, "memory.low") == 0
