"""Shares within a tenant that its own limit holds back, on a real scheduler, where weights alone do not divide; and of
agents that have a single thread.

A comparison that fails is made again, as in test_tick_shares.py and for the same reasons.
"""

from __future__ import annotations

import sys

from agentos_native.cgroup import GroupRef, GroupSettings
from agentos_native.supervisor.loop.rows import AllocationRow
from tests.vm.loads import CPUS, SLEEPY, Load
from tests.vm.test_tick_shares import TOLERANCE, assert_shares, water_fill


def limited(load: Load, tenant: str, millis: int) -> None:
    """Declare `tenant` with a limit, to the kernel and to the allocator."""
    load.tree.set_tenant(tenant, GroupSettings(cpu_weight=100, cpu_max_millis=millis))
    load.ticker.set_tenant(tenant, 100, "normal", 0, millis)


def total(rows: dict[str, AllocationRow], tenant: str) -> float:
    """CPUs that a tenant used."""
    return sum(row.measured for row in rows.values() if row.tenant == tenant)


def cap(load: Load, number: int, tenant: str) -> str:
    """What the file of the agent that came as the `number`-th holds."""
    path = load.tree.get(GroupRef(tenant, "normal", f"{number:012x}")).path
    with open(f"{path}/cpu.max", encoding="ascii") as file:
        return file.read().split()[0]


def test_weights_divide_within_a_limited_tenant() -> None:
    """Alone on the machine: without caps of their own both have half, since they run on different CPUs."""
    with Load("box") as load:
        limited(load, "box", 1000)
        load.agent("heavy", "box", weight=300)
        load.agent("light", "box", weight=100)
        rows = assert_shares(load, lambda c: {"heavy": 0.75, "light": 0.25})
        assert total(rows, "box") <= 1.0 + TOLERANCE
        said = "\n".join(load.ticker.explain(rows["light"].agent_id)["words"])
        assert "by a cpu.max of its own" in said
        load.writes = 0
        load.run(10.0)
        assert load.writes <= 10  # of 20 possible: a steady load is left alone for the most part


def test_reservations_hold_within_a_limited_tenant_beside_another_one() -> None:
    with Load("boxes") as load:
        limited(load, "box", 900)
        load.agent("heavy", "box", weight=400)
        load.agent("light", "box", weight=100)
        load.agent("reserved", "box", weight=20, request=300)
        load.agent("other", "free")
        wants = {"heavy": (400.0, 0.0, CPUS), "light": (100.0, 0.0, CPUS), "reserved": (20.0, 0.3, CPUS)}
        rows = assert_shares(load, lambda c: water_fill(min(0.9, c / 2), wants))
        assert rows["reserved"].measured >= 0.3 * 0.97 - 0.003 * CPUS
        assert total(rows, "box") <= 0.9 + TOLERANCE


def test_who_sleeps_leaves_its_part_and_has_it_when_it_wakes() -> None:
    with Load("nap") as load:
        limited(load, "box", 1000)
        program = SLEEPY.format(busy=0.02, idle=0.08)
        load.agent("sleepy", "box", weight=200, threads=1, command=(sys.executable, "-c", program))
        load.agent("hog", "box", weight=100)
        rows = assert_shares(load, lambda c: {})
        assert rows["sleepy"].bound == "demand"
        assert rows["hog"].measured >= 0.6


def test_caps_are_lifted_when_the_tenant_leaves_its_limit() -> None:
    with Load("lift") as load:
        limited(load, "box", 1000)
        load.agent("heavy", "box", weight=300)
        load.agent("light", "box", weight=100)
        load.run(6.0)
        assert cap(load, 1, "box") != "max"
        load.ticker.set_tenant("box", 100, "normal", 0, None)
        load.tree.set_tenant("box", GroupSettings(cpu_weight=100))
        for _ in range(30):
            load.run(1.0)
            if cap(load, 1, "box") == cap(load, 2, "box") == "max":
                break
        assert cap(load, 1, "box") == cap(load, 2, "box") == "max"
        assert_shares(load, lambda c: {"heavy": 0.75 * c})


def test_a_single_thread_of_a_higher_tier_has_what_one_cpu_gives() -> None:
    """That is what a CPU gives on average beside the machine's own work, or more if it gets more. Floors below it keep
    its weight in proportion to others', with which it would have nine tenths of that."""
    with Load("single") as load:
        load.agent("high", tier="high", threads=1)
        load.agent("normal")
        load.agent("low", tier="low", request=200)
        load.agent("idle", tier="idle")
        check_single(assert_shares(load, lambda c: {"low": 0.2, "idle": 0.0}), "high")


def test_a_single_heavy_thread_has_what_one_cpu_gives() -> None:
    with Load("heavy") as load:
        load.agent("heavy", weight=1500, threads=1)
        load.agent("one")
        load.agent("two")
        check_single(assert_shares(load, lambda c: {}), "heavy")


def check_single(rows: dict[str, AllocationRow], name: str) -> None:
    """`name`, with one thread, is entitled to what it can have, and has it."""
    average = rows[name].capacity / CPUS
    assert average - 1e-6 <= rows[name].entitled <= 1.0 + TOLERANCE
    assert rows[name].measured >= average - TOLERANCE
