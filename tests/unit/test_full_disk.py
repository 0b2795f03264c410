"""A disk that is full during a start: nothing runs that nobody watches, and nothing waits that a crash forgets."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from agentos_native import faults
from agentos_native.spec.model import Restart
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.registry import Record
from tests.fakehost import FakeLink, World
from tests.unit.test_lifecycle import holdings, play, until
from tests.unit.test_queue import events, spec, states

FULL = "database or disk is full"


def fill_when(lifecycle: Lifecycle, full: Callable[[Record], bool], times: int = 1) -> list[str]:
    """The registry refuses the first records that `full` says; gives the states in which they were offered."""
    save = lifecycle.host.registry.save
    refused: list[str] = []

    def save_or_not(record: Record) -> None:
        if len(refused) < times and full(record):
            refused.append(record.state)
            raise sqlite3.OperationalError(FULL)
        save(record)

    lifecycle.host.registry.save = save_or_not  # type: ignore[method-assign]
    return refused


@pytest.mark.parametrize("state", ["starting", "running"])
def test_a_start_that_the_registry_does_not_take_is_undone(tmp_path: Path, state: str) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.create(spec("a"))
        refused = fill_when(lifecycle, lambda record: record.state == state)
        with pytest.raises(sqlite3.OperationalError, match=FULL):
            await lifecycle.start(agent)
        assert refused == [state]
        assert holdings(world, agent) == ({"files"} if state == "running" else set())
        assert link.acknowledged == ([1] if state == "running" else [])
        assert (agent.record.state, agent.run, agent.record.pid) == ("failed", None, None)
        assert FULL in agent.record.reason
        assert [event["name"] for event in events(lifecycle, "failed")] == ["a"]
        assert events(lifecycle, "started") == []
        await lifecycle.start(agent)
        assert agent.record.state == "running"
        assert lifecycle.host.registry.agents() == [agent.record]

    play(tmp_path, story)


def test_nothing_is_left_of_a_run_that_the_registry_does_not_take(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        fill_when(lifecycle, lambda record: record.state == "running")
        with pytest.raises(sqlite3.OperationalError, match=FULL):
            await lifecycle.run(spec("a"))
        assert world.exists == set()
        assert (len(lifecycle.host.agents), lifecycle.host.registry.agents()) == (0, [])

    play(tmp_path, story)


def test_that_it_failed_is_told_on_a_disk_that_stays_full(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.create(spec("a"))
        refused = fill_when(lifecycle, lambda record: record.state in {"running", "failed"}, times=2)
        with pytest.raises(sqlite3.OperationalError, match=FULL):
            await lifecycle.start(agent)
        assert refused == ["running", "failed"]
        assert agent.record.state == "failed"
        assert [event["name"] for event in events(lifecycle, "failed")] == ["a"]

    play(tmp_path, story)


def test_an_injected_failure_after_the_program_runs_undoes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        monkeypatch.setattr(faults, "_armed", "launch.kept:error")
        with pytest.raises(faults.InjectedFault):
            await lifecycle.run(spec("a"))
        monkeypatch.setattr(faults, "_armed", "")
        assert world.exists == set()
        assert lifecycle.host.registry.agents() == []

    play(tmp_path, story)


def test_a_restart_that_the_registry_does_not_take_is_tried_again(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(spec("a", restart=Restart(policy="always", backoff=0.01)))
        refused = fill_when(lifecycle, lambda record: record.state == "running")
        link.exit(agent.id, 1)
        await until(agent, "backoff")
        await until(agent, "running")
        assert refused == ["running"]
        assert len(events(lifecycle, "started")) == 2

    play(tmp_path, story)


def test_what_the_registry_does_not_take_does_not_wait(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        first = await lifecycle.run(spec("first", 1500))
        agent = await lifecycle.create(spec("a", 1000))
        fill_when(lifecycle, lambda record: record.state == "queued")
        with pytest.raises(sqlite3.OperationalError, match=FULL):
            await lifecycle.start(agent)
        assert states(lifecycle) == {"first": "running", "a": "pending"}
        await lifecycle.start(agent)
        assert agent.record.state == "queued"
        await lifecycle.stop(first)
        await until(agent, "running")

    play(tmp_path, story)


def test_a_start_from_the_queue_fails_on_a_full_disk_and_the_next_one_is_served(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        first = await lifecycle.run(spec("first", 1500))
        second, third = await lifecycle.run(spec("second", 1000)), await lifecycle.run(spec("third", 1000))
        fill_when(lifecycle, lambda record: record.id == second.id and record.state == "running")
        await lifecycle.stop(first)
        await until(third, "running")
        await until(second, "failed")
        assert states(lifecycle) == {"first": "exited", "second": "failed", "third": "running"}
        assert holdings(world, second) == {"files"}
        assert second.record.reason == f"registry: {FULL}"

    play(tmp_path, story)
