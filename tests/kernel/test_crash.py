"""SIGKILL, and failure, at every named point of a start and of a stop: afterwards everything is as before.

Each test counts cgroups, processes, mounts, devices, rule elements, namespaces, open files and the files on disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from agentos_native.errors import AgentosError
from agentos_native.faults import POINTS
from tests.networks import require_outer_namespace
from tests.supervisors import Place, _alive, eventually, place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ENDING = frozenset({"stop.signalled", "release.network", "release.cgroup", "release.rootfs", "launcher.exit-kept"})
"""Points that a start does not pass; the others, no stop does."""
OF_START = sorted(set(POINTS) - ENDING)
HEARD_OR_NOT = "launcher.executed"
"""Here the start is over but for the news of it, which the supervisor may have read before it died, too."""
OF_SUPERVISOR = {name for name, process in POINTS.items() if process == "supervisor"}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_outer_namespace()
    with place(tmp_path_factory.mktemp("crash"), "crash") as made:
        yield made


@pytest.fixture(scope="module")
def empty(ground: Place) -> dict[str, Any]:
    """The inventory of a supervisor that has never had an agent."""
    launcher = ground.start()
    found = ground.inventory(launcher)
    assert ground.stop(launcher) == 0
    return found


def provoke(ground: Place, point: str) -> None:
    """Start an agent, and end it, until the fault has cut the connection."""
    with pytest.raises(AgentosError):
        agent = ground.run("victim", "sleep", "1000")
        ground.client.stop(agent.id, grace=5)
        ground.client.remove(agent.id)


def assert_all_gone(ground: Place, launcher: int, empty: dict[str, Any], point: str) -> None:
    """What is left of the agent after recovery goes when it is removed, and may be nothing at all after a start."""
    left = ground.client.agents(ended=True)
    if point in OF_START and point != HEARD_OR_NOT:
        assert left == []
    for agent in left:
        ground.client.remove(agent.id, force=True)
    # Network namespaces go a moment after their last process, and empty groups of tenants some ticks later.
    with contextlib.suppress(AssertionError):
        eventually(lambda: ground.inventory(launcher) == empty, "as before", 8.0)
    assert ground.inventory(launcher) == empty


@pytest.mark.parametrize("point", POINTS)
def test_the_next_start_cleans_up_when_all_died(ground: Place, empty: dict[str, Any], point: str) -> None:
    launcher = ground.start(point)
    victim = ground.supervisor(launcher) if point in OF_SUPERVISOR else launcher
    provoke(ground, point)
    eventually(lambda: not _alive(victim), f"{POINTS[point]} dies at {point}")
    ground.kill(launcher)
    launcher = ground.start()
    try:
        assert_all_gone(ground, launcher, empty, point)
    finally:
        assert ground.stop(launcher) == 0


@pytest.mark.parametrize("point", sorted(OF_SUPERVISOR))
def test_the_restarted_supervisor_cleans_up(ground: Place, empty: dict[str, Any], point: str) -> None:
    launcher = ground.start(point, once=True)
    provoke(ground, point)
    ground.wait_ready()
    try:
        assert_all_gone(ground, launcher, empty, point)
    finally:
        assert ground.stop(launcher) == 0


@pytest.mark.parametrize("point", sorted(set(OF_START) & OF_SUPERVISOR - {"admit.recorded"}))
def test_a_failing_stage_undoes_what_was_done(ground: Place, empty: dict[str, Any], point: str) -> None:
    launcher = ground.start(f"{point}:error")
    try:
        with pytest.raises(AgentosError) as caught:
            ground.run("victim", "sleep", "1000")
        assert caught.value.code == "injected-fault"
        assert caught.value.details.get("not-undone") is None
        assert_all_gone(ground, launcher, empty, point)
    finally:
        with contextlib.suppress(AgentosError):
            assert ground.stop(launcher) == 0
