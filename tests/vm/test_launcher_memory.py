"""The launcher shares memory with children that an agent's cgroup is charged for: an OOM kill there must pass it by."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.sandboxes import Node, StartFailed

pytestmark = pytest.mark.timeout(600)
MIB = 1 << 20


@pytest.fixture
def node() -> Iterator[Node]:
    """A launcher whose agents' groups have the memory controller."""
    with Node() as ready:
        (ready.cgroup.parent / "cgroup.subtree_control").write_text("+memory")
        (ready.cgroup / "cgroup.subtree_control").write_text("+memory")
        yield ready


def limit(node: Node, agent: str, size: int) -> None:
    """Limit what `agent` may use before it is started."""
    os.close(node.leaf(agent))
    (node.cgroup / agent / "memory.max").write_text(str(size))
    if (swap := node.cgroup / agent / "memory.swap.max").exists():
        swap.write_text("0")


def oom_events(node: Node, agent: str) -> int:
    text = (node.cgroup / agent / "memory.events").read_text()
    return int(dict(line.split() for line in text.splitlines())["oom"])


@pytest.mark.parametrize("size", [4096, 256 * 1024])
def test_starts_in_a_group_too_small_for_them_do_not_hurt_the_launcher(node: Node, size: int) -> None:
    for attempt in range(2):
        limit(node, f"tiny{attempt}", size)
        try:
            node.run("true", agent=f"tiny{attempt}")
        except StartFailed as failed:
            assert failed.failure.errno in {0, 12, 28}, failed.failure
    assert node.launcher is not None
    assert node.launcher.poll() is None
    assert node.run("echo", "alive", agent="other").out == "alive\n"


def test_execs_into_an_agent_at_its_limit_do_not_hurt_the_launcher(node: Node) -> None:
    """Many processes, each smaller than the launcher: a naive choice would fall on the exec's child."""
    limit(node, "full", 24 * MIB)
    hog = "head -c 1500000 /dev/zero | tail -c 1500000 | sleep 300 &"
    agent = node.start("/bin/sh", "-c", f"for i in $(seq 12); do {hog} done; sleep 300", agent="full")
    more = "head -c 30000000 /dev/zero | tail -c 30000000 > /dev/null"
    for number in range(12):
        try:
            node.wait(node.exec(agent, "sh", "-c", more, unit=f"exec-{number}"))
        except StartFailed as failed:
            assert failed.failure.errno in {0, 12, 28, 3}, failed.failure
        except FileNotFoundError:
            break  # the agent itself was the one that the kernel chose
    assert oom_events(node, "full") > 0
    assert node.launcher is not None
    assert node.launcher.poll() is None
    assert node.run("echo", "alive", agent="other").out == "alive\n"
