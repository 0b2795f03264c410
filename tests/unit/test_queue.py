"""Starts that wait, on fakes: who waits and who is refused, the way out of the queue, and what survives a crash."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, Requests, Resources, Restart, TenantLimits, TenantSpec
from agentos_native.supervisor import admission
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.applying import Applier
from agentos_native.supervisor.launcher_link import Replay
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.recovery import Recovery
from agentos_native.supervisor.registry import Registry
from agentos_native.supervisor.views import agent_view, tenant_view
from tests.fakehost import FakeLink, World, lifecycle_of
from tests.unit.test_lifecycle import holdings, play, until

Story = Callable[[Lifecycle, World, FakeLink], Awaitable[None]]


def spec(name: str, cpu: int = 0, tenant: str = "home", **fields: Any) -> AgentSpec:
    requests = Requests(cpu=cpu, memory=fields.pop("memory", 0))
    return AgentSpec(name=name, tenant=tenant, image="box", resources=Resources(requests=requests), **fields)


def declare(lifecycle: Lifecycle, **limits: int) -> None:
    lifecycle.host.tenants["home"] = TenantSpec(name="home", limits=TenantLimits(**limits))


def events(lifecycle: Lifecycle, kind: str) -> list[dict[str, Any]]:
    return [event.detail | {"name": event.name} for event in lifecycle.host.events.since() if event.type == kind]


def states(lifecycle: Lifecycle) -> dict[str, str]:
    return {agent.record.spec.name: agent.record.state for agent in lifecycle.host.agents}


async def refused(work: Awaitable[object], code: str) -> AgentosError:
    with pytest.raises(AgentosError) as caught:
        await work
    assert caught.value.code == code
    return caught.value


def test_a_start_that_does_not_fit_waits_and_is_served(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        first = await lifecycle.run(spec("first", 1500))
        second = await lifecycle.run(spec("second", 1000))
        assert (second.record.state, holdings(world, second), second.record.wanted) == ("queued", set(), True)
        place = agent_view(lifecycle.host, second).queue
        assert place is not None
        assert (place.place, place.tenant_place, place.resource) == (1, 1, "cpu")
        assert place.waiting_for == "cpu 1000m: 500m of the node's 2000m free"
        assert tenant_view(lifecycle.host, "home").queued == 1
        told = {"place": 1, "resource": "cpu", "asked": 1000, "free": 500, "name": "second"}
        assert events(lifecycle, "queued") == [told]
        await lifecycle.stop(first)
        await until(second, "running")
        assert agent_view(lifecycle.host, second).queue is None
        assert second.record.ticket == 0
        assert events(lifecycle, "dequeued")[0]["name"] == "second"
        assert lifecycle.host.registry.get("queue") in (None, '{"virtual":0.0,"finish":{}}')

    play(tmp_path, story)


@pytest.mark.parametrize("wait", [True, False])
def test_what_can_never_fit_is_refused_at_once(tmp_path: Path, wait: bool) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        declare(lifecycle, memory=1 << 20)
        error = await refused(lifecycle.run(spec("a", 2001), wait=wait), "reservation-too-large")
        assert (error.details["asked"], error.details["capacity"]) == (2001, 2000)
        await refused(lifecycle.run(spec("b", memory=2 << 20), wait=wait), "reservation-too-large")
        assert len(lifecycle.host.agents) == 0
        assert [(event["asked"], event["free"]) for event in events(lifecycle, "refused")] == [
            (2001, 2000), (2 << 20, 1 << 20)
        ]  # fmt: skip

    play(tmp_path, story)


def test_without_waiting_it_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.run(spec("a", 1500))
        await refused(lifecycle.run(spec("b", 1000), wait=False), "reservation-too-large")
        made = await lifecycle.create(spec("c", 1000))
        await refused(lifecycle.start(made, wait=False), "reservation-too-large")
        assert states(lifecycle) == {"a": "running", "c": "pending"}
        assert [event["name"] for event in events(lifecycle, "refused")] == ["b", "c"]

    play(tmp_path, story)


def test_who_does_not_want_to_wait_cannot_pass_those_who_do(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.run(spec("a", 1500))
        await lifecycle.run(spec("b", 1000))
        made = await lifecycle.create(spec("c", 100))
        error = await refused(lifecycle.start(made, wait=False), "reservation-too-large")
        assert "set aside for starts that wait ahead of it" in error.what

    play(tmp_path, story)


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        declare(lifecycle, agents=1, queued=2)
        await lifecycle.run(spec("a"))
        for name in "bc":
            await lifecycle.run(spec(name))
        error = await refused(lifecycle.run(spec("d")), "queue-full")
        assert (error.details["capacity"], error.hint[:9]) == (2, "Try again")
        assert "already runs 1 of at most 1 agents" in error.what
        await lifecycle.run(spec("other", tenant="work"))
        assert states(lifecycle) == {"a": "running", "b": "queued", "c": "queued", "other": "running"}

    play(tmp_path, story)


@pytest.mark.parametrize("way", ["stop", "kill", "remove"])
def test_a_waiting_start_can_be_called_off(tmp_path: Path, way: str) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        first = await lifecycle.run(spec("first", 1500))
        second, third = await lifecycle.run(spec("second", 1000)), await lifecycle.run(spec("third", 1000))
        waiter = asyncio.create_task(lifecycle.wait(second))
        await asyncio.sleep(0.01)
        assert not waiter.done()
        await {
            "stop": lambda: lifecycle.stop(second),
            "kill": lambda: lifecycle.kill(second, "TERM"),
            "remove": lambda: lifecycle.remove(second),
        }[way]()
        record = await waiter
        assert (record.state, record.reason, record.exit_status) == ("exited", "cancelled", None)
        assert second.removed == (way == "remove")
        await lifecycle.stop(first)
        await until(third, "running")
        assert record.state == "exited"
        if way != "remove":
            await lifecycle.stop(third)
            await lifecycle.start(second)
            assert second.record.state == "running"

    play(tmp_path, story)


def test_a_queued_agent_says_so(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.run(spec("a", 1500))
        waits = await lifecycle.run(spec("b", 1000))
        for work in (lifecycle.start(waits), lifecycle.restart(waits), lifecycle.pause(waits)):
            error = await refused(work, "agent-queued")
            assert "number 1 of 1: cpu 1000m" in error.what
        await refused(lifecycle.kill(waits, "USR1"), "agent-queued")
        assert waits.record.state == "queued"

    play(tmp_path, story)


def test_priority_first_then_arrival_and_one_failing_start_blocks_nobody(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        first = await lifecycle.run(spec("first", 2000))
        tiers = {"low": "low", "high": "high"}
        low, early, late, high = [
            await lifecycle.run(spec(name, 2000, priority=tiers.get(name, "normal")))
            for name in ("low", "early", "late", "high")
        ]
        create = lifecycle.host.network.create

        def all_but_late(slot: int, *how: Any) -> Any:
            if slot == late.record.slot:
                raise AgentosError("no-network", "not for this one")
            return create(slot, *how)

        lifecycle.host.network.create = all_but_late  # type: ignore[method-assign, assignment]
        for running, following in ((first, high), (high, early), (early, low)):
            await lifecycle.stop(running)
            await until(following, "running")
        assert (late.record.state, late.record.reason) == ("failed", "no-network: not for this one")
        assert holdings(world, late) == {"files"}
        assert events(lifecycle, "failed")[0]["name"] == "late"

    play(tmp_path, story)


def test_races_do_not_promise_twice(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agents = await asyncio.gather(*(lifecycle.run(spec(f"a{n}", 600, tenant=f"t{n % 3}")) for n in range(9)))
        while any(agent.record.state == "queued" for agent in agents):
            live = [agent for agent in agents if agent.live]
            assert len(live) == 3
            assert admission.promised(lifecycle.promised_specs(), {}).cpu == 1800
            await asyncio.gather(*(lifecycle.stop(agent) for agent in live))
            for agent in agents:
                if agent.record.state == "queued":
                    assert admission.promised(lifecycle.promised_specs(), {}).cpu <= 2000
                    break
            await asyncio.sleep(0.2)
        assert sum(event.type == "started" for event in lifecycle.host.events.since()) == 9

    play(tmp_path, story)


def test_a_restart_keeps_its_room(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        first = await lifecycle.run(spec("first", 1500))
        second = await lifecycle.run(spec("second", 1500))
        await lifecycle.restart(first)
        assert (first.record.state, second.record.state) == ("running", "queued")
        applier = Applier(lifecycle)
        results = await applier.apply([spec("first", 1500, env={"A": "1"})], dry_run=False)
        assert [result.action for result in results] == ["updated"]
        assert states(lifecycle) == {"first": "running", "second": "queued"}
        first = lifecycle.host.agents.find("first")
        await lifecycle.stop(first)
        await until(second, "running")

    play(tmp_path, story)


def test_waiting_for_the_next_restart_keeps_the_room(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        again = Restart(policy="always", backoff=30.0)
        first = await lifecycle.run(spec("first", 1500, restart=again))
        second = await lifecycle.run(spec("second", 1500))
        link.exit(first.id, 1)
        await until(first, "backoff")
        await asyncio.sleep(0.05)
        assert second.record.state == "queued"
        await lifecycle.start(first)  # now, in its own room
        assert (first.record.state, second.record.state) == ("running", "queued")
        link.exit(first.id, 1)
        await until(first, "backoff")
        await lifecycle.stop(first)
        await until(second, "running")

    play(tmp_path, story)


def test_changed_limits_and_reservations_serve_the_queue(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        applier = Applier(lifecycle)
        tenant = TenantSpec(name="home", limits=TenantLimits(agents=1))
        await applier.apply([tenant], dry_run=False)
        await lifecycle.run(spec("a", 1500))
        waits = await lifecycle.run(spec("b", 1000))
        assert waits.record.state == "queued"
        await applier.apply([TenantSpec(name="home", limits=TenantLimits(agents=2))], dry_run=False)
        await asyncio.sleep(0.05)
        place = lifecycle.queue.place(waits)
        assert place is not None
        assert place.resource == "cpu"
        await applier.apply([spec("a", 1000)], dry_run=False)
        await until(waits, "running")
        third = await lifecycle.run(spec("c"))
        await applier.changer.change_tenant("home", {"limits": {"agents": 3}}, dry_run=False)
        await until(third, "running")

    play(tmp_path, story)


def test_what_can_never_fit_by_now_is_refused_in_the_queue(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.run(spec("a", 1500))
        waits = await lifecycle.run(spec("b", 1000))
        await Applier(lifecycle).apply([TenantSpec(name="home", limits=TenantLimits(cpu=1700))], dry_run=False)
        await asyncio.sleep(0.05)
        assert waits.record.state == "queued"
        await lifecycle.run(spec("c", 100, tenant="work"))
        lifecycle.host.tenants["home"] = TenantSpec(name="home", limits=TenantLimits(cpu=999))
        lifecycle.wake_queue()
        await until(waits, "failed")
        assert waits.record.reason.startswith("reservation-too-large")

    play(tmp_path, story)


def test_slots_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "SLOTS", 2)

    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        first = await lifecycle.run(spec("first"))
        await lifecycle.run(spec("second"))
        await refused(lifecycle.run(spec("third"), wait=False), "node-full")
        waits, more = await lifecycle.run(spec("third")), await lifecycle.run(spec("fourth"))
        view = agent_view(lifecycle.host, waits)
        assert view.queue is not None
        assert (view.queue.resource, view.addresses.ipv4) == ("slots", None)
        await lifecycle.stop(first)
        await asyncio.sleep(0.05)
        assert waits.record.state == "queued"  # an ended agent still has its slot
        await lifecycle.remove(first)
        await until(waits, "running")
        assert waits.record.slot == first.record.slot
        assert more.record.slot < 0
        await lifecycle.remove(more)
        assert states(lifecycle) == {"second": "running", "third": "running"}

    play(tmp_path, story)


def test_documents_are_queued(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        applier = Applier(lifecycle)

        async def apply(*documents: AgentSpec | TenantSpec, **how: bool) -> list[str]:
            results = await applier.apply(documents, **{"dry_run": False, **how})
            return [result.action for result in results]

        three = AgentSpec(
            name="w", tenant="home", image="box", replicas=3, resources=Resources(requests=Requests(cpu=900))
        )
        assert await apply(three, dry_run=True) == ["created", "created", "queued"]
        await refused(apply(three, wait=False), "reservation-too-large")
        assert len(lifecycle.host.agents) == 0
        assert await apply(three) == ["created", "created", "queued"]
        assert await apply(three) == ["unchanged"] * 3
        never = spec("never", 2001)
        await refused(apply(spec("fits"), never), "reservation-too-large")
        short = TenantSpec(name="home", limits=TenantLimits(queued=1))
        await refused(apply(short, spec("more", 900)), "queue-full")
        assert sorted(states(lifecycle).values()) == ["queued", "running", "running"]
        assert not lifecycle.host.tenants
        running = lifecycle.host.agents.find("w-0")
        await refused(apply(spec("w-0", 1500)), "reservation-too-large")  # what runs is not ended
        assert running.record.state == "running"
        await lifecycle.stop(running)
        await until(lifecycle.host.agents.find("w-2"), "running")

    play(tmp_path, story)


def test_removed_after_a_start_that_failed(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        first = await lifecycle.run(spec("first", 1500))
        second = await lifecycle.run(spec("second", 1000, auto_remove=True))
        world.fail = {"network"}
        await lifecycle.stop(first)
        assert (await lifecycle.wait(second)).reason.startswith("network-failed")
        while not second.removed:
            await asyncio.sleep(0.01)

    play(tmp_path, story)


class Chaos:
    """Starts, stops, removals, restarts, failures and changed limits, by chance."""

    def __init__(self, lifecycle: Lifecycle, world: World, seed: int) -> None:
        self._lifecycle, self._world = lifecycle, world
        self._chance = random.Random(seed)
        self._number = 0

    async def act(self) -> None:
        agents = list(self._lifecycle.host.agents)
        number = self._chance.randrange(8)
        with contextlib.suppress(AgentosError):
            if number < 4 or not agents:
                await self._run()
            elif number == 7:
                await self._change()
            else:
                agent = self._chance.choice(agents)
                acts = (self._lifecycle.stop, self._lifecycle.restart, partial(self._lifecycle.remove, force=True))
                await acts[number - 4](agent)

    async def _run(self) -> None:
        self._number += 1
        chance = self._chance.choice
        fields: dict[str, Any] = {"tenant": chance(["home", "work", "lab"]), "priority": chance(["high", "low"])}
        asked = spec(f"a{self._number}", chance([0, 300, 900, 1900]), memory=chance([0, 1 << 28]), **fields)
        await self._lifecycle.run(asked, wait=chance([True] * 9 + [False]))

    async def _change(self) -> None:
        chance = self._chance.choice
        self._world.fail = chance([set(), set(), {"network"}])
        limits = TenantLimits(agents=chance([1, 3, None]), cpu=chance([1000, None]))
        await Applier(self._lifecycle).apply([TenantSpec(name=chance(["home", "lab"]), limits=limits)], dry_run=False)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_nothing_is_promised_twice_and_nobody_is_forgotten(tmp_path: Path, seed: int) -> None:
    async def watch(lifecycle: Lifecycle) -> None:
        while True:
            total = admission.promised(lifecycle.promised_specs(), lifecycle.host.tenants)
            assert total.cpu <= 2000
            assert total.memory <= 1 << 30
            await asyncio.sleep(0)

    async def moved(waiting: list[Agent]) -> None:
        while all(agent.record.state == "queued" for agent in waiting):
            await asyncio.sleep(0.01)

    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        chaos = Chaos(lifecycle, world, seed)
        watcher = asyncio.create_task(watch(lifecycle))
        for _ in range(7):
            await asyncio.gather(*(chaos.act() for _ in range(6)))
        assert not watcher.done(), watcher.result()
        watcher.cancel()
        world.fail = set()
        known = {record.id for record in lifecycle.host.registry.agents()}
        assert known == {agent.id for agent in lifecycle.host.agents}
        while waiting := [agent for agent in lifecycle.host.agents if agent.record.state == "queued"]:
            live = [agent for agent in lifecycle.host.agents if agent.live]
            await asyncio.gather(*(lifecycle.stop(agent) for agent in live))
            await asyncio.wait_for(moved(waiting), 5)
        assert places(lifecycle) == []

    play(tmp_path, story)


def crashed(directory: Path, story: Story) -> None:
    """Play on a host whose registry stays as it is then, as if the supervisor had been killed."""

    async def work() -> None:
        async with lifecycle_of(directory) as (lifecycle, world, link):
            await asyncio.wait_for(story(lifecycle, world, link), 20)
            (directory / "registry.copy").write_bytes(b"")
            copy = Registry(str(directory / "registry.copy"))
            for agent in lifecycle.host.agents:
                copy.save(agent.record)
            copy.put("queue", lifecycle.host.registry.get("queue") or "{}")
            copy.close()
        (directory / "registry.copy").replace(directory / "registry.db")
        for name in ("registry.db-wal", "registry.db-shm"):
            with contextlib.suppress(FileNotFoundError):
                (directory / name).unlink()

    asyncio.run(work())


def recovered(directory: Path, story: Story) -> None:
    async def work() -> None:
        async with lifecycle_of(directory) as (lifecycle, world, link):
            await Recovery(lifecycle, Replay()).run(registry_lost=False)
            await asyncio.wait_for(story(lifecycle, world, link), 20)

    asyncio.run(work())


def places(lifecycle: Lifecycle) -> list[str]:
    found = [(lifecycle.queue.place(agent), agent.record.spec.name) for agent in lifecycle.host.agents]
    return [name for _, name in sorted((place.place, name) for place, name in found if place)]


def test_the_queue_survives_a_crash_in_its_order(tmp_path: Path) -> None:
    orders: list[list[str]] = []

    async def before(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        first = await lifecycle.run(spec("first", 2000, tenant="a"))
        for number in range(4):
            await lifecycle.run(spec(f"a{number}", 1900, tenant="a"))
        await lifecycle.run(spec("b0", 1900, tenant="b"))
        await lifecycle.stop(first)  # a0 is served: from now on b0 comes before a1
        await until(lifecycle.host.agents.find("a0"), "running")
        await lifecycle.run(spec("b1", 1900, tenant="b", priority="high"))
        orders.append(places(lifecycle))
        lifecycle.host.agents.find("a0").record.state = "stopping"

    async def after(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        assert places(lifecycle) == orders[0]
        lifecycle.wake_queue()
        await until(lifecycle.host.agents.find("b1"), "running")
        late = await lifecycle.run(spec("a9", 1900, tenant="a"))
        assert places(lifecycle)[-1] == "a9"
        assert late.record.ticket > 6

    crashed(tmp_path, before)
    recovered(tmp_path, after)
    assert orders[0] == ["b1", "a1", "b0", "a2", "a3"]


def test_a_start_from_the_queue_that_a_crash_interrupts_is_first_again(tmp_path: Path) -> None:
    async def before(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.run(spec("first", 1500))
        waits = await lifecycle.run(spec("second", 1000))
        await lifecycle.run(spec("third", 1000))
        waits.record.state = "starting"
        lifecycle.host.agents.find("first").record.state = "stopping"

    async def after(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        assert places(lifecycle) == ["second", "third"]
        second = lifecycle.host.agents.find("second")
        assert second.record.backoff_count == 1
        lifecycle.wake_queue()
        await until(second, "running")

    crashed(tmp_path, before)
    recovered(tmp_path, after)
