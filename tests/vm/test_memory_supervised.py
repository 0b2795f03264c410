"""Memory through a whole supervisor: kills in events and records, and limits that a crash leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.supervisors import place

pytestmark = pytest.mark.timeout(900)
MIB = 1 << 20
LIMITED: dict[str, Any] = {"resources": {"limits": {"memory": "24Mi"}}}
EATER = "tail -c 900000000 /dev/zero"


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_kills_and_what_a_crash_leaves(tmp_path: Path) -> None:
    with place(tmp_path / "place", "memory") as here:
        launcher = here.start()

        def kills(name: str) -> list[dict[str, Any]]:
            return [event.detail for event in here.client.events() if event.type == "oom-killed" and event.name == name]

        # a child is killed, the agent lives on
        parent = here.run("parent", "sh", "-c", f"{EATER} >/dev/null; exec sleep 1000", **LIMITED)
        until(lambda: kills("parent"))
        (detail,) = kills("parent")
        assert (detail["limit"], detail["processes"]) == (24 * MIB, 1)
        assert 23 * MIB <= detail["peak"] <= 24 * MIB
        assert here.client.agent("parent").state == "running"
        # the agent itself is killed: its record has the figures
        here.run("victim", "sh", "-c", f"exec {EATER} >/dev/null", **LIMITED)
        assert here.client.wait("victim").reason == "oom-killed"
        oom = here.client.agent("victim").oom
        assert (oom["oom_kills"], oom["limit"]) == (1, 24 * MIB)
        assert 23 * MIB <= (oom["peak"] or 0) <= 24 * MIB
        assert len(kills("victim")) == 1
        # rows reach the API
        until(lambda: here.client.alloc("memory"))
        row = next(row for row in here.client.alloc("memory") if row["agent_id"] == parent.id)
        assert row["limit"] == 24 * MIB
        # a limit left by a crash is lifted by the next supervisor: nothing is short here
        here.kill(launcher)
        high = next(here.group.rglob(f"{parent.id}/memory.high"))
        high.write_text(str(20 * MIB))
        launcher = here.start()
        until(lambda: high.read_text() == "max\n")
        assert here.client.agent("parent").state == "running"
        assert not [event for event in here.client.events() if event.type == "foreign-change"]
        assert here.stop(launcher) == 0
