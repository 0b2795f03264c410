"""Removing an agent whose own files fill the disk, so that the registry can write nothing before they are gone."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from agentos_native.spec.model import AgentSpec
from tests.fakehost import lifecycle_of


def test_an_agent_that_fills_the_disk_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with lifecycle_of(tmp_path) as (lifecycle, _, _):
            agent = await lifecycle.create(AgentSpec(name="a", image="box"))
            directory = Path(lifecycle.host.options.agent_dir(agent.id))
            assert directory.is_dir()
            forget = lifecycle.host.registry.forget

            def forget_with_room(agent_id: str) -> None:
                if directory.exists():
                    raise sqlite3.OperationalError("database or disk is full")
                forget(agent_id)

            monkeypatch.setattr(lifecycle.host.registry, "forget", forget_with_room)
            await lifecycle.remove(agent)
            assert agent.removed
            assert lifecycle.host.registry.agents() == []
            assert not directory.exists()

    asyncio.run(work())
