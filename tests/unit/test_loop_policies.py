"""Policies through the loop: the simulated kernel arrives at what each policy gives; drf is told what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from agentos_native.cgroup import GroupRef
from agentos_native.spec.model import AgentSpec, Policy, Resource, TenantLimits, TenantSpec
from agentos_native.supervisor.loop.controllers import Controller, Member
from agentos_native.supervisor.loop.shares import Shares
from agentos_native.supervisor.loop.ticker import Ticker
from agentos_native.supervisor.loop.whatif import Change
from tests.unit.test_tick_loop import CPUS, Loop, assert_promises_kept, loop

__all__ = ["loop"]


def set_policy(one: Loop, policy: str | None, tenant: str = "home") -> None:
    one.ticker.set_tenant(tenant, 100, "normal", 0, None, cast("Policy | None", policy))


def test_utility_serves_the_heaviest_first(loop: Loop) -> None:
    set_policy(loop, "utility")
    for name, weight, request in (("worth", 300, 0), ("next", 200, 0), ("rest", 100, 100), ("nothing", 50, 0)):
        loop.agent(name, weight=weight, request=request)
    rows = loop.settled()
    assert rows["worth"].entitled == pytest.approx(1.0)
    assert rows["next"].entitled == pytest.approx(0.9)
    assert rows["rest"].entitled == pytest.approx(0.1)
    assert rows["nothing"].entitled == 0.0
    assert {row.policy for row in rows.values()} == {"utility"}
    assert_promises_kept(rows, 0.02)


def test_priority_puts_reservations_below_behind(loop: Loop) -> None:
    set_policy(loop, "priority")
    loop.agent("high", tier="high", threads=2)
    loop.agent("low", tier="low", request=500)
    rows = loop.settled()
    assert rows["high"].entitled == pytest.approx(CPUS)
    assert rows["low"].measured < 0.02
    assert_promises_kept(rows, 0.02)


def test_drf_gives_less_cpu_to_who_needs_more_of_something_else(loop: Loop) -> None:
    set_policy(loop, "drf")
    loop.agent("lean", threads=2)
    loop.agent("fat")  # one thread: half the machine's CPUs, and all of its memory
    ids = {name: agent_id for agent_id, name in loop.names.items()}
    loop.run(8)
    loop.ticker.set_profile({"memory": {ids["fat"]: 1.0}})
    rows = loop.settled()
    assert rows["lean"].entitled == pytest.approx(4 / 3, abs=0.02)
    assert rows["fat"].entitled == pytest.approx(2 / 3, abs=0.02)
    assert_promises_kept(rows, 0.02)


def test_a_policy_takes_effect_by_the_next_tick(loop: Loop) -> None:
    for name, weight in (("heavy", 200), ("light", 100)):
        loop.agent(name, weight=weight, threads=2)
    loop.run(4)
    for policy, heavy in (("utility", CPUS), (None, CPUS * 2 / 3), ("priority", CPUS * 2 / 3), ("utility", CPUS)):
        set_policy(loop, policy)
        loop.run(1)
        rows = loop.rows()
        assert rows["heavy"].entitled == pytest.approx(heavy)
        assert rows["heavy"].policy == (policy or "maxmin")


def test_the_nodes_policy_divides_among_tenants_and_is_the_default_inside(loop: Loop) -> None:
    loop.ticker.close()
    loop.ticker = Ticker(loop.kernel.tree, CPUS, clock=lambda: loop.kernel.now, policy="utility")
    loop.ticker.set_tenant("rich", 300, "normal", 0, 1500)
    loop.ticker.set_tenant("fair", 100, "normal", 0, None, "maxmin")
    for name, tenant, weight in (("a", "rich", 200), ("b", "rich", 100), ("c", "fair", 900), ("d", "fair", 100)):
        loop.agent(name, tenant=tenant, weight=weight, threads=2)
    rows = loop.settled()
    wanted = {"a": 1.5, "b": 0.0, "c": 0.45, "d": 0.05}
    assert {name: row.entitled for name, row in rows.items()} == pytest.approx(wanted, abs=1e-6)
    assert (rows["a"].policy, rows["c"].policy) == ("utility", "maxmin")


class Told:
    """A controller that only says what is wanted, and counts how often it was asked."""

    resource: Resource = "memory"
    period = 1.0

    def __init__(self) -> None:
        self.asked = 0
        self.parts: Mapping[str, float] = {}

    def fractions(self) -> Mapping[str, float]:
        self.asked += 1
        return self.parts

    def add(self, member: Member) -> None: ...
    def set_tenant(self, spec: TenantSpec) -> None: ...
    def remove_tenant(self, name: str) -> None: ...
    def turn(self, now: float) -> None: ...
    def close(self) -> None: ...


def member(one: Loop, name: str, threads: int) -> Member:
    ref = GroupRef("home", "normal", f"{len(one.names):012x}")
    one.names[ref.agent_id] = name
    one.kernel.add(ref, threads)
    spec = AgentSpec(name=name, tenant="home", image="box")
    return Member(ref.agent_id, len(one.names), ref, one.kernel.tree.get(ref).path, spec)


def test_controllers_are_asked_only_for_drf(loop: Loop) -> None:
    told = Told()
    shares = Shares(loop.ticker, 1.0)
    shares.join([cast(Controller, told)], lambda: None)
    lean, fat = member(loop, "lean", 2), member(loop, "fat", 2)
    for one in (lean, fat):
        shares.add(one)
    told.parts = {fat.agent_id: 1.0}

    def after(spec: TenantSpec) -> dict[str, float]:
        shares.set_tenant(spec)
        for _ in range(3):
            loop.kernel.step(1.0)
            shares._profile()
            loop.ticker.tick(loop.kernel.now)
        return {name: row.entitled for name, row in loop.rows().items()}

    for policy in ("maxmin", "utility", "priority", None):
        after(TenantSpec(name="home", policy=policy))
    assert told.asked == 0
    divided = after(TenantSpec(name="home", policy="drf", limits=TenantLimits(cpu=1800)))
    assert told.asked == 3
    assert divided["lean"] + divided["fat"] == pytest.approx(1.8)
    before = told.asked
    shares.remove_tenant("home")
    shares._profile()
    assert told.asked == before


def test_what_if_knows_the_policy(loop: Loop) -> None:
    for name, weight in (("heavy", 200), ("light", 100)):
        loop.agent(name, weight=weight, threads=2)
    loop.run(4)
    change = Change(tenants={"home": TenantSpec(name="home", policy="utility")})
    after = {loop.names[agent_id]: share for agent_id, share in loop.ticker.entitled(change).items()}
    assert after == pytest.approx({"heavy": CPUS, "light": 0.0})
    assert loop.rows()["light"].entitled == pytest.approx(CPUS / 3)
