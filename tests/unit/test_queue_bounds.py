"""How many starts may wait, and for how long."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentos_native.errors import EXIT_TIMEOUT, AgentosError
from agentos_native.spec import agent_from_builtins, to_builtins
from agentos_native.spec.model import TenantLimits, TenantSpec
from agentos_native.supervisor.applying import Applier
from agentos_native.supervisor.lifecycle import Lifecycle
from tests.fakehost import FakeLink, World
from tests.unit.test_lifecycle import play, until
from tests.unit.test_queue import crashed, events, recovered, refused, spec, states


def bound(lifecycle: Lifecycle, **settings: int) -> None:
    """Other settings of the supervisor."""
    options = lifecycle.host.options
    others = msgspec.structs.replace(options.settings, **settings)
    lifecycle.host.options = msgspec.structs.replace(options, settings=others)


async def fill(lifecycle: Lifecycle) -> None:
    await lifecycle.run(spec("first", 2000, tenant="old"))


async def flood(lifecycle: Lifecycle, tenant: str) -> int:
    """Queue as much as may wait; how much that is."""
    for number in range(1000):
        try:
            await lifecycle.run(spec(f"w{number}", 100, tenant=tenant))
        except AgentosError as error:
            assert error.code == "queue-full"
            return number
    raise AssertionError("no bound")


def test_one_that_floods_gets_half_of_the_nodes_places_and_leaves_room_for_others(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        bound(lifecycle, node_queue_limit=24)
        await fill(lifecycle)
        assert [await flood(lifecycle, tenant) for tenant in ("a", "b", "c")] == [12, 6, 3]
        error = await refused(lifecycle.run(spec("more", 100, tenant="a")), "queue-full")
        assert "of the node's 24 places in the queue 3 are left" in error.what
        assert "--node-queue-limit" in error.hint
        assert error.details["left"] == 3
        assert [event["code"] for event in events(lifecycle, "refused")][-1] == "queue-full"
        late = await lifecycle.run(spec("late", 100, tenant="d"))
        assert late.record.state == "queued"

    play(tmp_path, story)


def test_every_tenant_has_a_place_until_more_wait_than_there_are_places(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        bound(lifecycle, node_queue_limit=4)
        await fill(lifecycle)
        assert [await flood(lifecycle, tenant) for tenant in "abcde"] == [2, 1, 1, 0, 0]
        gone = lifecycle.host.agents.find("a/w1")
        await lifecycle.stop(gone)
        assert await flood(lifecycle, "d") == 1

    play(tmp_path, story)


def test_a_tenants_own_limit_holds_beside_the_nodes(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        bound(lifecycle, node_queue_limit=100)
        lifecycle.host.tenants["a"] = TenantSpec(name="a", limits=TenantLimits(queued=2))
        await fill(lifecycle)
        assert await flood(lifecycle, "a") == 2

    play(tmp_path, story)


def test_documents_keep_to_the_nodes_bound_together(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        bound(lifecycle, node_queue_limit=4)
        await fill(lifecycle)
        applier = Applier(lifecycle)
        three = [spec(f"d{number}", 100, tenant="a") for number in range(3)]
        await refused(applier.apply(three, dry_run=False), "queue-full")
        assert states(lifecycle) == {"first": "running"}
        results = await applier.apply(three[:2], dry_run=False)
        assert [result.action for result in results] == ["queued", "queued"]
        results = await applier.apply(three[:2], dry_run=True)
        assert [result.action for result in results] == ["unchanged", "unchanged"]

    play(tmp_path, story)


def test_a_start_that_has_waited_long_enough_is_taken_out_and_told(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await fill(lifecycle)
        hasty = await lifecycle.run(spec("hasty", 1000, wait_timeout=0.05))
        patient = await lifecycle.run(spec("patient", 1000, wait_timeout=3600.0))
        record = await lifecycle.wait(hasty)
        assert (record.state, record.exit_status) == ("failed", EXIT_TIMEOUT)
        assert record.reason.startswith("wait-timeout: it has waited 0.05 s for its start")
        assert isinstance(hasty.error, AgentosError)
        assert hasty.error.details["resource"] == "cpu"
        told = events(lifecycle, "refused")[-1]
        assert (told["name"], told["code"], told["resource"]) == ("hasty", "wait-timeout", "cpu")
        place = lifecycle.queue.place(patient)
        assert place is not None
        assert place.place == 1
        await lifecycle.stop(lifecycle.host.agents.find("first"))
        await until(patient, "running")

    play(tmp_path, story)


def test_one_that_was_served_or_called_off_is_not_taken_out_later(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await fill(lifecycle)
        served, off = [await lifecycle.run(spec(name, 1000, wait_timeout=0.3)) for name in ("served", "off")]
        await lifecycle.stop(off)
        await lifecycle.stop(lifecycle.host.agents.find("first"))
        await until(served, "running")
        await asyncio.sleep(0.4)
        assert (served.record.state, off.record.reason) == ("running", "cancelled")

    play(tmp_path, story)


def test_how_long_it_waits_can_be_changed_while_it_does(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await fill(lifecycle)
        waits = await lifecycle.run(spec("waits", 1000))
        result = await Applier(lifecycle).changer.change_agent(waits, {"waitTimeout": "50ms"}, dry_run=False)
        assert result.action == "updated"
        assert (await lifecycle.wait(waits)).reason.startswith("wait-timeout")

    play(tmp_path, story)


def test_a_crash_does_not_let_it_wait_longer(tmp_path: Path) -> None:
    async def before(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await fill(lifecycle)
        waits = await lifecycle.run(spec("waits", 1000, wait_timeout=1000.0))
        waits.record.queued_at = time.time() - 1001
        lifecycle.host.registry.save(waits.record)

    async def after(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        assert (await lifecycle.wait(lifecycle.host.agents.find("waits"))).reason.startswith("wait-timeout")

    crashed(tmp_path, before)
    recovered(tmp_path, after)


def test_patience_survives_a_crash(tmp_path: Path) -> None:
    passed: list[dict[str, float]] = []

    async def before(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.run(spec("first", 1500, tenant="old"))
        big = await lifecycle.run(spec("big", 1000, tenant="a"))
        small = await lifecycle.run(spec("small", 300, tenant="b"))
        assert (big.record.state, small.record.state) == ("queued", "running")
        passed.append(lifecycle.queue._fair.passed)
        assert passed[0] == {big.id: 0.15}

    async def after(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        assert lifecycle.queue._fair.passed == passed[0]

    crashed(tmp_path, before)
    recovered(tmp_path, after)


@pytest.mark.parametrize(("written", "seconds"), [("30s", 30.0), ("2m", 120.0)])
def test_it_is_written_in_documents(written: str, seconds: float) -> None:
    fields: dict[str, Any] = {"name": "a", "image": "box", "waitTimeout": written}
    made = agent_from_builtins(fields)
    assert made.wait_timeout == seconds
    assert agent_from_builtins(to_builtins(made)) == made
    with pytest.raises(AgentosError, match="time-out of nothing"):
        agent_from_builtins({**fields, "waitTimeout": "0s"})


def test_a_dry_run_of_documents_says_what_would_wait_where_and_why(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.run(spec("first", 1500, tenant="old"))
        await lifecycle.run(spec("ahead", 1000, tenant="a", memory=1 << 20))
        documents = [
            spec("now", memory=1 << 20),
            spec("small", 100),
            spec("big", 1000),
            spec("ahead", 1200, tenant="a"),
        ]
        applier = Applier(lifecycle)
        planned = await applier.apply(documents, dry_run=True)
        places = {result.name: result.queue for result in planned if result.queue}
        assert [result.action for result in planned] == ["created", "created", "queued", "queued"]
        assert list(places) == ["big", "ahead"]
        assert (places["big"].tenant_place, places["big"].resource) == (1, "cpu")
        assert places["big"].waiting_for == "cpu 1000m: 400m of the node's 2000m free"
        assert sorted(states(lifecycle)) == ["ahead", "first"]
        done = await applier.apply(documents, dry_run=False)
        assert [result.action for result in done] == ["created", "created", "queued", "queued"]
        told = {result.name: result.queue for result in done if result.queue}
        assert told["big"].waiting_for == places["big"].waiting_for
        assert told["big"].place == places["big"].place

    play(tmp_path, story)


def test_a_dry_run_counts_what_is_made_anew_and_what_goes(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        applier = Applier(lifecycle)
        three = spec("w", 600, replicas=3)
        await applier.apply([three], dry_run=False)
        assert set(states(lifecycle).values()) == {"running"}

        async def planned(*documents: Any) -> list[tuple[str, str]]:
            results = await applier.apply(documents, dry_run=True)
            return [(result.name, result.action) for result in results]

        fewer = msgspec.structs.replace(three, replicas=2)
        assert await planned(fewer, spec("other", 800)) == [
            ("w-0", "unchanged"), ("w-1", "unchanged"), ("other", "created"), ("w-2", "deleted")
        ]  # fmt: skip
        other = msgspec.structs.replace(three, env={"A": "1"})  # each in the room that it has
        assert [action for _, action in await planned(other, spec("more", 600))] == ["updated"] * 3 + ["queued"]

    play(tmp_path, story)
