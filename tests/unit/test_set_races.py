"""Changes that meet other changes, starts and removals: none undoes another, and nothing is promised twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agentos_native.spec.model import Requests, Resources
from agentos_native.supervisor.applying import Applier
from agentos_native.supervisor.changing import Changer
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.routes import as_error
from tests.fakehost import FakeLink, World
from tests.unit.test_set import made, play, refused

NAMES = ("gone", "kept")


def test_changes_of_tenants_at_once_do_not_undo_each_other(tmp_path: Path) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        tenants = lifecycle.host.tenants
        for name in ("a", "b"):
            await lifecycle.create(made("one", tenant=name))
        patches: list[dict[str, Any]] = [{"weight": 5}, {"limits": {"agents": 3}}]
        await asyncio.gather(*(changer.change_tenant("a", patch, dry_run=False) for patch in patches))
        assert (tenants["a"].weight, tenants["a"].limits.agents) == (5, 3)
        await asyncio.gather(
            changer.change_tenant("a", {"requests": {"cpu": "1500m"}}, dry_run=False),
            refused("reservation-too-large", changer.change_tenant("b", {"requests": {"cpu": "1"}}, dry_run=False)),
        )

    play(tmp_path, story)


def test_a_start_let_in_while_effects_are_computed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.create(made(tenant="home"))
        big = made("big", resources=Resources(requests=Requests(cpu=1500)))

        async def effects(change: Any) -> list[Any]:
            await lifecycle.run(big)
            return []

        monkeypatch.setattr(changer, "effects", effects)
        patch = {"requests": {"cpu": "1"}}
        await refused("reservation-too-large", changer.change_tenant("home", patch, dry_run=False))
        assert lifecycle.host.tenants == {}

    play(tmp_path, story)


def test_limits_that_are_taken_away_are_taken_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        written: list[Any] = []
        groups: Any = lifecycle.host.groups
        groups.set_tenant = lambda tenant, wanted, allow: written.append(wanted.cpu_max_millis)
        await lifecycle.create(made(tenant="home"))
        await changer.change_tenant("home", {"weight": 5}, dry_run=False)
        assert written == []  # nobody has made its group
        groups.tenant_path = lambda tenant: str(tmp_path)
        for limit in ("1", None):
            await changer.change_tenant("home", {"limits": {"cpu": limit}}, dry_run=False)
        assert written == [1000, None]

    play(tmp_path, story)


def test_apply_does_not_bring_back_what_is_removed_meanwhile(tmp_path: Path) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        applier = Applier(lifecycle)
        old = await lifecycle.run(made())
        await lifecycle.stop(old, grace=0.0)
        async with old.lock:
            removal = asyncio.create_task(lifecycle.remove(old, force=True))
            await asyncio.sleep(0.05)
            applied = asyncio.create_task(applier.apply([made(weight=5)], dry_run=False))
            await asyncio.sleep(0.05)
        await removal
        (result,) = await applied
        assert [record.id for record in lifecycle.host.registry.agents()] == [result.id]
        assert result.id != old.id

    play(tmp_path, story)


def full(record: Any) -> None:
    raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize("how", ["stopped", "by itself"])
def test_an_end_on_a_full_disk_is_recorded_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("agentos_native.supervisor.running.SAVE_AGAIN", 0.01)

    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(made())
        registry = lifecycle.host.registry
        with monkeypatch.context() as patched:
            patched.setattr(registry, "save", full)
            if how == "stopped":
                await lifecycle.stop(agent, grace=0.0)
            else:
                assert agent.record.pid is not None
                os.kill(agent.record.pid, signal.SIGKILL)
                while agent.live:
                    await asyncio.sleep(0.01)
            assert not {thing for thing in world.exists if thing.startswith(("process", "cgroup", "network"))}
            assert "exited" in [event.type for event in lifecycle.host.events.since(0)]
            await asyncio.sleep(0.1)
            assert link.acknowledged == []  # else a crash now would lose the end
            assert [record.state for record in registry.agents()] == ["running"]
        while not link.acknowledged:
            await asyncio.sleep(0.01)
        assert [(record.state, record.exit_status) for record in registry.agents()] == [("exited", 137)]

    play(tmp_path, story)


def test_what_a_full_disk_refuses_is_told_as_that() -> None:
    assert as_error(sqlite3.OperationalError("database or disk is full")).code == "registry"


def test_what_can_never_fit_any_more_is_removed_if_it_was_to_be(tmp_path: Path) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        big = Resources(requests=Requests(cpu=1500))
        await lifecycle.run(made("big", resources=big))
        waits = [made(name, tenant="t", resources=big, auto_remove=name == "gone") for name in NAMES]
        agents = [await lifecycle.run(spec) for spec in waits]
        await changer.change_tenant("t", {"limits": {"cpu": "1"}}, dry_run=False)
        while any(agent.record.state == "queued" for agent in agents) or not agents[0].removed:
            await asyncio.sleep(0.01)
        assert [agent.record.state for agent in agents] == ["failed", "failed"]
        assert (agents[0].removed, agents[1].removed) == (True, False)

    play(tmp_path, story)
