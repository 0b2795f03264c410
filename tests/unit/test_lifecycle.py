"""The life of an agent on fakes: the order of stages, the way back from each, ends, restarts, and applied documents."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.spec.model import (
    AgentSpec,
    Limits,
    Requests,
    Resources,
    Restart,
    RestartMode,
    Stop,
    TenantLimits,
    TenantSpec,
)
from agentos_native.supervisor import restart
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.applying import Applier
from agentos_native.supervisor.lifecycle import Lifecycle
from tests.fakehost import FakeLink, World, lifecycle_of

Story = Callable[[Lifecycle, World, FakeLink], Awaitable[None]]


def play(directory: Path, story: Story, **capacity: int) -> None:
    """Run a story, and see that no fd and no process is left."""

    async def work() -> None:
        async with lifecycle_of(directory, **capacity) as (lifecycle, world, link):
            await asyncio.wait_for(story(lifecycle, world, link), 20)
        assert not [thing for thing in world.exists if thing.startswith("process")]

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(work())
    assert len(os.listdir("/proc/self/fd")) == before


def spec(name: str = "a", **fields: Any) -> AgentSpec:
    return AgentSpec(name=name, image="box", **fields)


def holdings(world: World, agent: Agent) -> set[str]:
    words = (agent.id, f"network {agent.record.slot}")
    return {thing.split()[0] for thing in world.exists if any(word in thing for word in words)}


async def until(agent: Agent, state: str) -> None:
    while agent.record.state != state:
        await asyncio.wait_for(agent.changed.wait(), 10)


def test_a_start_and_a_stop(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec())
        assert (agent.record.state, agent.record.pid is not None) == ("running", True)
        assert holdings(world, agent) == {"cgroup", "network", "files", "process", "share"}
        assert world.done.index("userns") < world.done.index("prepare") < world.done.index("mount")
        assert max(map(world.done.index, ("mount", "cgroup", "network"))) < world.done.index("clone")
        assert list(agent.timings)[-1] == "running"
        await lifecycle.stop(agent)
        assert (agent.record.state, agent.record.reason, agent.record.exit_status) == ("exited", "stopped", 143)
        assert holdings(world, agent) == {"files"}
        assert link.acknowledged == [1]
        assert lifecycle.host.registry.agents() == [agent.record]
        await lifecycle.start(agent)
        await lifecycle.remove(agent, force=True)
        assert holdings(world, agent) == set()
        assert lifecycle.host.registry.agents() == []
        assert os.listdir(tmp_path / "agents") == []

    play(tmp_path, story)


@pytest.mark.parametrize("stage", ["userns", "prepare", "mount", "cgroup", "network", "leaf main", "clone"])
def test_a_failing_stage_leaves_nothing(tmp_path: Path, stage: str) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        world.fail = {stage}
        with pytest.raises(AgentosError) as caught:
            await lifecycle.run(spec())
        assert caught.value.code == ("command-not-found" if stage == "clone" else f"{stage}-failed")
        assert world.exists == set()
        assert len(lifecycle.host.agents) == 0
        assert lifecycle.host.registry.agents() == []
        world.fail = set()
        await lifecycle.run(spec())

    play(tmp_path, story)


def test_an_undo_that_fails_is_told_and_hides_nothing(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        world.fail = {"clone", "network gone"}
        with pytest.raises(AgentosError) as caught:
            await lifecycle.run(spec())
        assert caught.value.code == "command-not-found"
        assert "network" in caught.value.details["not-undone"][0]
        assert not any(thing.startswith("cgroup") for thing in world.exists)

    play(tmp_path, story)


def test_a_failed_later_start_keeps_the_agent(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.create(spec())
        assert (agent.record.state, world.done) == ("pending", [])
        world.fail = {"clone"}
        with pytest.raises(AgentosError):
            await lifecycle.start(agent)
        assert (agent.record.state, agent.record.exit_status) == ("failed", 127)
        assert holdings(world, agent) == {"files"}
        world.fail = set()
        await lifecycle.start(agent)
        assert agent.record.state == "running"

    play(tmp_path, story)


@pytest.mark.parametrize(("status", "state", "reason"), [(0, "exited", "exited"), (7, "exited", "exited")])
def test_an_end_of_its_own(tmp_path: Path, status: int, state: str, reason: str) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec())
        link.exit(agent.id, status)
        record = await lifecycle.wait(agent)
        assert (record.state, record.reason, record.exit_status) == (state, reason, status)
        assert holdings(world, agent) == {"files"}
        with pytest.raises(AgentosError, match="agent-not-running"):
            await lifecycle.kill(agent, "TERM")

    play(tmp_path, story)


def test_what_ended_before_its_start_was_written_down_did_not_start_later(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec())
        agent.record.started_at = time.time() + 60
        link.exit(agent.id, 0)
        record = await lifecycle.wait(agent)
        assert record.started_at is not None
        assert record.started_at == record.ended_at

    play(tmp_path, story)


def test_an_oom_kill_is_named(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec())
        world.oom_kills = 1
        await lifecycle.kill(agent, "KILL")
        record = await lifecycle.wait(agent)
        assert (record.reason, record.exit_status, record.oom_killed) == ("oom-killed", 137, True)

    play(tmp_path, story)


def test_restarts_back_off_and_end(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec(restart=Restart(policy="on-failure", backoff=0.01, max=2)))
        for number in (1, 2):
            link.exit(agent.id, 3)
            await until(agent, "backoff")
            assert holdings(world, agent) == {"files"}
            await until(agent, "running")
            assert agent.record.restarts == number
        link.exit(agent.id, 3)
        await until(agent, "exited")
        await lifecycle.start(agent)
        link.exit(agent.id, 0)
        await until(agent, "exited")

    play(tmp_path, story)


def test_a_stop_ends_the_restarting(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec(restart=Restart(policy="always", backoff=0.05)))
        link.exit(agent.id, 0)
        await until(agent, "backoff")
        await lifecycle.stop(agent)
        assert agent.record.state == "exited"
        await asyncio.sleep(0.15)
        assert agent.record.state == "exited"
        await lifecycle.start(agent)
        await lifecycle.stop(agent)
        assert (agent.record.state, agent.record.reason) == ("exited", "stopped")

    play(tmp_path, story)


def test_a_restart_that_fails_is_tried_again(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec(restart=Restart(policy="always", backoff=0.01)))
        world.fail = {"network"}
        link.exit(agent.id, 0)
        while agent.record.restarts < 3:
            await asyncio.sleep(0.01)
        world.fail = set()
        await until(agent, "running")

    play(tmp_path, story)


def test_an_agent_may_take_only_so_long(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec(timeout=0.05))
        record = await lifecycle.wait(agent)
        assert (record.exit_status, record.reason) == (124, "timeout")

    play(tmp_path, story)


def test_removed_when_it_ends_and_still_answered_for(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec(auto_remove=True))
        link.exit(agent.id, 5)
        assert (await lifecycle.wait(agent)).exit_status == 5
        while not agent.removed:
            await asyncio.sleep(0.01)
        assert lifecycle.host.agents.find(agent.id, buried=True) is agent
        with pytest.raises(AgentosError, match="agent-not-found"):
            lifecycle.host.agents.find(agent.id)

    play(tmp_path, story)


def test_the_grace_is_given_and_then_the_tree_is_killed(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec(stop=Stop(signal="SIGCONT", grace=0.1)))  # a signal that ends nothing
        began = asyncio.get_running_loop().time()
        await lifecycle.stop(agent)
        assert asyncio.get_running_loop().time() - began >= 0.1
        assert (agent.record.exit_status, world.done.count("kill") > 0) == (137, True)

    play(tmp_path, story)


def test_pausing(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec())
        await lifecycle.pause(agent)
        assert agent.record.state == "paused"
        await lifecycle.stop(agent)  # a frozen program could not take the signal
        assert "thaw" in world.done
        assert agent.record.exit_status == 143

    play(tmp_path, story)


def test_what_is_refused_makes_nothing(tmp_path: Path) -> None:
    big = Resources(requests=Requests(cpu=3000))
    unenforceable = Resources(limits=Limits(io=None), io_weight=50)

    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.run(spec())
        for bad, code in (
            (spec(), "name-taken"),
            (AgentSpec(name="b", image="nope"), "image-not-found"),
            (spec("b", resources=big), "reservation-too-large"),
            (spec("b", resources=unenforceable), "unenforceable"),
            (spec("b", replicas=2), "invalid-value"),
        ):
            done = list(world.done)
            with pytest.raises(AgentosError) as caught:
                await lifecycle.run(bad)
            assert caught.value.code == code
            assert world.done == done
        allowed = await lifecycle.run(spec("b", resources=unenforceable, allow_unenforced=("io",)))
        assert allowed.record.unenforced == ["io"]
        assert len(lifecycle.host.agents) == 2

    play(tmp_path, story)


def test_many_at_once(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agents = await asyncio.gather(*(lifecycle.run(spec(f"a{n}")) for n in range(12)))
        assert len({agent.record.slot for agent in agents}) == 12
        twice = await asyncio.gather(*(lifecycle.run(spec("same")) for _ in range(3)), return_exceptions=True)
        assert sorted(type(result).__name__ for result in twice) == ["Agent", "AgentosError", "AgentosError"]
        await asyncio.gather(*(lifecycle.stop(agent) for agent in agents for _ in range(2)))
        assert all(agent.record.state == "exited" for agent in agents)

    play(tmp_path, story)


def test_documents_that_do_not_fit_together_change_nothing(tmp_path: Path) -> None:
    never = Resources(requests=Requests(cpu=2001))

    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        applier = Applier(lifecycle)
        tenant = TenantSpec(name="home", weight=200)
        for documents, code in (
            ((tenant, spec("a", tenant="home"), AgentSpec(name="b", tenant="home", image="nope")), "image-not-found"),
            ((tenant, spec("a"), spec("b", resources=never)), "reservation-too-large"),
            ((tenant, spec("a"), spec("b", resources=Resources(io_weight=50))), "unenforceable"),
        ):
            with pytest.raises(AgentosError) as caught:
                await applier.apply(documents, dry_run=False)
            assert caught.value.code == code
            assert not lifecycle.host.tenants
            assert len(lifecycle.host.agents) == 0
            assert not world.done

    play(tmp_path, story)


def test_documents(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        applier = Applier(lifecycle)

        async def apply(*documents: AgentSpec | TenantSpec, dry_run: bool = False) -> list[tuple[str, str]]:
            return [(result.name, result.action) for result in await applier.apply(documents, dry_run=dry_run)]

        tenant = TenantSpec(name="home", weight=200, limits=TenantLimits(agents=3))
        three = spec("w", tenant="home", replicas=3)
        wanted = [("home", "created"), ("w-0", "created"), ("w-1", "created"), ("w-2", "created")]
        assert await apply(three, tenant, dry_run=True) == wanted
        assert world.done == []
        assert await apply(three, tenant) == wanted
        assert {action for _, action in await apply(three, tenant)} == {"unchanged"}
        pid = lifecycle.host.agents.find("home/w-0").record.pid
        heavier = spec("w", tenant="home", replicas=2, weight=300)
        assert await apply(heavier) == [("w-0", "updated"), ("w-1", "updated"), ("w-2", "deleted")]
        assert lifecycle.host.agents.find("home/w-0").record.pid == pid  # changed in place
        assert {"update weight 300", "share weight 300"} <= set(world.done)
        other = spec("w", tenant="home", replicas=2, env={"A": "1"})
        assert {action for _, action in await apply(other)} == {"updated"}
        assert lifecycle.host.agents.find("home/w-0").record.pid != pid  # made anew
        with pytest.raises(AgentosError, match="tenant-full"):
            await applier.apply([spec("w", tenant="home", replicas=4, env={"A": "1"})], dry_run=False, wait=False)
        assert len(lifecycle.host.agents) == 2  # the one that would have fitted was not made either
        with pytest.raises(AgentosError, match="tenant-in-use"):
            await applier.delete([tenant], dry_run=False)
        with pytest.raises(AgentosError, match="tenant-in-use"):  # w-1 would stay: then w-0 does, too
            await applier.delete([tenant, spec("w-0", tenant="home")], dry_run=True)
        with pytest.raises(AgentosError, match="tenant-in-use"):
            await applier.delete([tenant, spec("w-0", tenant="home")], dry_run=False)
        assert len(lifecycle.host.agents) == 2
        gone = await applier.delete([tenant, spec("w", tenant="home", replicas=4)], dry_run=False)
        assert [result.action for result in gone] == ["deleted", "deleted", "absent", "absent", "deleted"]
        assert len(lifecycle.host.agents) == 0

    play(tmp_path, story)


def test_names_and_ids_find_agents(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        one = await lifecycle.create(spec("web", tenant="home"))
        two = await lifecycle.create(spec("web", tenant="work"))
        find = lifecycle.host.agents.find
        assert find("home/web") is one
        assert find(two.id) is two
        assert find(two.id[:11]) is two
        with pytest.raises(AgentosError, match="agent-ambiguous"):
            find("web")
        for ref in ("nope", "home/nope", "", "g" * 300, "/", one.id + "0"):
            with pytest.raises(AgentosError, match="agent-not-found"):
                find(ref)

    play(tmp_path, story)


@given(
    st.sampled_from(["never", "on-failure", "always"]),
    st.integers(0, 10**6),
    st.one_of(st.none(), st.integers(0, 255)),
    st.one_of(st.none(), st.integers(0, 5)),
)
def test_the_back_off_is_bounded_and_grows(
    policy: RestartMode, restarts: int, status: int | None, most: int | None
) -> None:
    rule = Restart(policy=policy, backoff=0.5, max_backoff=60.0, max=most)
    wait = restart.delay(rule, restarts, status)
    stays = policy == "never" or (policy == "on-failure" and status == 0) or (most is not None and restarts >= most)
    assert (wait is None) == stays
    if wait is not None:
        assert 0.5 <= wait <= 60.0
        assert wait == 60.0 or restart.delay(rule, max(restarts - 1, 0), status) in (wait, wait / 2)


def test_the_back_off_begins_anew_after_a_long_run() -> None:
    assert restart.failures_after(7, 599.9) == 7
    assert restart.failures_after(7, 600.0) == 0
