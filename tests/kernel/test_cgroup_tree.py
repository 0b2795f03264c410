"""The tree on this host's own v2 hierarchy: made, used, found again, killed, frozen, removed.

What needs no controller works on every layout, the hybrid one included; tests/vm has the controllers.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from agentos_native.cgroup import AgentGroup, GroupRef, GroupSettings, Tree, discover
from agentos_native.errors import AgentosError
from agentos_native.supervisor.loop.rows import AllocationRow
from agentos_native.supervisor.loop.ticker import Ticker
from tests.supervisors import eventually

REF = GroupRef("home", "high", "0123456789ab")
FORKS = "import os, time\nfor _ in range(3):\n os.fork()\ntime.sleep(1000)"


@pytest.fixture
def tree() -> Iterator[Tree]:
    one = Tree(discover(), f"t{os.getpid() % 10**6}")
    one.open()
    yield one
    for ref in one.find():
        with contextlib.suppress(AgentosError):
            one.get(ref).thaw()
        one.get(ref).kill()
        one.get(ref).remove()
    one.teardown()
    assert not os.path.exists(one.path)


def run_in(group: AgentGroup, leaf: str, *command: str) -> subprocess.Popen[bytes]:
    """Start `command` in the leaf."""
    os.close(group.leaf(leaf))
    enter = f'echo $$ > {group.path}/{leaf}/cgroup.procs && exec "$@"'
    process = subprocess.Popen(["sh", "-c", enter, "sh", *command])
    deadline = time.monotonic() + 10
    while process.pid not in group.procs():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_tree_is_found_again(tree: Tree) -> None:
    other = GroupRef("lab", "idle", "fedcba987654")
    for ref in (REF, other):
        tree.create(ref, GroupSettings())
    os.mkdir(f"{tree.path}/home/high/not-an-agent")
    again = Tree(discover(), tree.node)
    again.open()
    assert again.find() == [REF, other]
    os.rmdir(f"{tree.path}/home/high/not-an-agent")


def test_a_second_group_of_the_same_agent_is_refused(tree: Tree) -> None:
    tree.create(REF, GroupSettings())
    with pytest.raises(AgentosError, match="cgroup-exists"):
        tree.create(REF, GroupSettings())
    assert tree.find() == [REF]


def test_what_cannot_be_enforced_makes_nothing(tree: Tree) -> None:
    tree.controllers -= {"memory"}  # on this host it may be missing anyway
    settings = GroupSettings(memory_max=1 << 20)
    with pytest.raises(AgentosError, match="unenforceable") as failure:
        tree.create(REF, settings)
    assert failure.value.details["controllers"] == ["memory"]
    assert tree.find() == []
    assert not os.path.exists(f"{tree.path}/home")
    tree.create(REF, settings, allow=["memory"])
    assert tree.find() == [REF]


def test_kill_ends_the_whole_tree_and_remove_waits_for_it(tree: Tree) -> None:
    group = tree.create(REF, GroupSettings())
    main = run_in(group, "main", sys.executable, "-c", FORKS)
    tool = run_in(group, "exec-1", sys.executable, "-c", FORKS)
    deadline = time.monotonic() + 10
    while len(group.procs()) < 16 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(group.procs()) == 16
    group.kill("exec-1")
    assert tool.wait(5) == -9
    assert main.poll() is None
    group.remove_leaf("exec-1")
    assert group.leaves() == ["main"]
    group.kill()
    assert main.wait(5) == -9
    group.remove()
    assert not group.exists()
    group.remove()  # a second time is no error
    assert tree.remove_empty_tenants() == ["home"]


def test_remove_does_not_end_processes(tree: Tree) -> None:
    group = tree.create(REF, GroupSettings())
    process = run_in(group, "main", "sleep", "1000")
    with pytest.raises(AgentosError, match="cgroup-busy") as failure:
        group.remove(timeout=0.1)
    assert str(process.pid) in failure.value.where
    assert group.exists()
    group.kill()
    process.wait(5)


def test_a_group_goes_at_once_only_without_processes_and_further_leaves(tree: Tree) -> None:
    group = tree.create(REF, GroupSettings())
    process = run_in(group, "main", "sleep", "1000")
    assert group.remove_if_empty() is False
    assert process.poll() is None
    assert group.leaves() == ["main"]
    group.kill()
    process.wait(5)
    os.close(group.leaf("exec-1"))
    assert group.remove_if_empty() is False
    assert group.exists()
    group.remove_leaf("exec-1")
    assert group.remove_if_empty() is True
    assert not group.exists()
    assert group.remove_if_empty() is True
    assert tree.remove_empty_tenants() == ["home"]


def test_levels_that_were_removed_are_made_again(tree: Tree) -> None:
    for _ in range(2):
        group = tree.create(REF, GroupSettings())
        assert group.exists()
        assert group.remove_if_empty() is True
        assert tree.remove_empty_tenants() == ["home"]


def test_wait_empty_wakes_at_the_end_not_at_the_timeout(tree: Tree) -> None:
    group = tree.create(REF, GroupSettings())
    process = run_in(group, "main", "sleep", "1000")
    assert group.wait_empty(0.05) is False
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    threading.Timer(0.2, group.kill).start()
    began = time.monotonic()
    assert group.wait_empty(20.0) is True
    assert time.monotonic() - began < 10
    reaper.join()


def test_freeze_and_thaw(tree: Tree) -> None:
    group = tree.create(REF, GroupSettings())
    process = run_in(group, "main", "sh", "-c", "while :; do :; done")
    group.freeze()
    frozen = group.stat()["cpu.stat"]["usage_usec"]
    time.sleep(0.2)
    assert group.stat()["cpu.stat"]["usage_usec"] == frozen
    assert group.stat()["cgroup.events"]["frozen"] == 1
    group.thaw()
    deadline = time.monotonic() + 10
    while group.stat()["cpu.stat"]["usage_usec"] == frozen:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    group.kill()
    process.wait(5)


def test_a_group_that_is_gone_says_so(tree: Tree) -> None:
    group = tree.get(REF)
    assert not group.exists()
    with pytest.raises(AgentosError, match="cgroup-gone"):
        group.kill()
    assert group.wait_empty(0.1) is True
    assert tree.find() == []


def test_groups_made_from_many_threads(tree: Tree) -> None:
    refs = [GroupRef(f"t{i % 3}", "normal", f"{i:012x}") for i in range(24)]
    failures: list[BaseException] = []

    def make(ref: GroupRef) -> None:
        try:
            os.close(tree.create(ref, GroupSettings()).leaf("main"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=(ref,)) for ref in refs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert tree.find() == sorted(refs)


def test_the_tick_measures_where_it_cannot_steer(tree: Tree) -> None:
    """Real counters; a busy group and a sleeping one; one that is removed under the reader."""
    busy, calm = REF, GroupRef("lab", "normal", "fedcba987654")
    processes = [
        run_in(tree.create(busy, GroupSettings()), "main", "sh", "-c", "while :; do :; done"),
        run_in(tree.create(calm, GroupSettings()), "main", "sleep", "1000"),
    ]
    gone: list[str] = []
    ticker = Ticker(tree, float(os.cpu_count() or 1), on_event=lambda kind, agent_id: gone.append(agent_id))
    try:
        for ref in (busy, calm):
            ticker.add(ref.agent_id, ref, 100, 0, None)

        def rows() -> dict[str, AllocationRow]:
            time.sleep(0.1)
            ticker.tick(time.monotonic())
            return {row.agent_id: row for row in ticker.rows(0.5)}

        assert rows().keys() == {busy.agent_id, calm.agent_id}
        eventually(lambda: rows()[busy.agent_id].measured > 0.02, "who computes is seen to")
        eventually(lambda: rows()[calm.agent_id].measured < 0.02, "and who sleeps, once it has started")
        tree.get(calm).kill()
        processes[1].wait(5)
        tree.get(calm).remove()
        assert ticker.tick(time.monotonic()).gone == (calm.agent_id,)
        used = rows()[busy.agent_id].usage_usec
        eventually(lambda: rows()[busy.agent_id].usage_usec > used, "the other is still read")
        assert gone == [calm.agent_id]
    finally:
        ticker.close()
        tree.get(busy).kill()
        processes[0].wait(5)
