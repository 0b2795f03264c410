"""What survives what: agents live on without supervisor and launcher, and the next start knows them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.kernel.process import has_pidfd_exit_info
from agentos_native.wire import api
from tests.networks import require_outer_namespace
from tests.supervisors import Place, _alive, eventually, place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

COUNT = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_outer_namespace()
    with place(tmp_path_factory.mktemp("recovery"), "recov") as made:
        yield made


@pytest.fixture
def launcher(ground: Place) -> Iterator[int]:
    """A launcher; whatever runs at the end is stopped, and all agents are removed."""
    ground.start()
    yield ground.running[-1].pid
    for agent in ground.client.agents(ended=True):
        ground.client.remove(agent.id, force=True)
    for process in list(ground.running):
        assert ground.stop(process.pid) == 0


def crash_supervisor(ground: Place, launcher: int) -> None:
    supervisor = ground.supervisor(launcher)
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not _alive(supervisor), "it is dead")
    ground.wait_ready(ground.running[-1])


def crash_all(ground: Place, launcher: int) -> int:
    ground.kill(launcher)
    return ground.start()


def answer(ground: Place, agent: api.Agent, *command: str) -> tuple[bytes, int | None]:
    """What a further process in the agent says, and its status."""
    said = b""
    with contextlib.closing(ground.client.exec(agent.id, command)) as stream:
        for frame in stream:
            said += frame.data if frame.channel == api.CHANNEL_STDOUT else b""
    assert stream.status is not None
    return said, stream.status.exit_status


def assert_counts_without_a_gap(ground: Place, agent: api.Agent) -> None:
    """The agent's own numbers in its log: none is missing, so it was neither killed nor was its output lost."""
    seen = len(list(ground.client.logs(agent.id)))
    eventually(lambda: len(list(ground.client.logs(agent.id))) >= seen + 5, "it goes on counting")
    numbers = [int(line.log) for line in ground.client.logs(agent.id)]
    assert numbers == list(range(len(numbers)))


def test_the_machine_is_divided_before_anything_is_recovered(ground: Place, launcher: int) -> None:
    agent = ground.run("early", "sleep", "1000")
    crash_supervisor(ground, launcher)
    first_tick = ground.client.node().first_tick
    assert first_tick is not None
    adopted = [event.ts for event in ground.client.events() if event.type == "recovered"]
    since_boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert since_boot + first_tick < min(adopted)
    assert [row["agent_id"] for row in ground.client.alloc()] == [agent.id]


@pytest.mark.parametrize("crash", [crash_supervisor, crash_all])
def test_agents_live_on_and_are_adopted(ground: Place, launcher: int, crash: object) -> None:
    agent = ground.run("counter", "sh", "-c", COUNT, network="isolated")
    paused = ground.run("paused", "sleep", "1000")
    ground.client.pause(paused.id)
    pid = agent.pid
    assert pid is not None
    (crash_supervisor if crash is crash_supervisor else crash_all)(ground, launcher)
    assert _alive(pid)
    after = ground.client.agent(agent.id)
    assert (after.state, after.pid, after.cgroup) == ("running", pid, agent.cgroup)
    assert ground.client.agent(paused.id).state == "paused"
    assert_counts_without_a_gap(ground, agent)
    assert answer(ground, agent, "sh", "-c", "echo in $$; exit 3")[1] == 3
    assert {event.type for event in ground.client.events()} >= {"recovered"}
    ground.client.stop(agent.id, grace=2)
    assert not _alive(pid)
    assert ground.client.agent(agent.id).reason == "stopped"


def test_a_terminal_is_not_hung_up_by_the_death_of_a_supervisor(ground: Place, launcher: int) -> None:
    agent = ground.run("talker", "sh", "-c", "while read -r word; do echo said $word; done", tty=True)
    crash_supervisor(ground, launcher)
    assert ground.client.agent(agent.id).pid == agent.pid
    with contextlib.closing(ground.client.attach(agent.id, stdin=True)) as stream:
        stream.send(api.CHANNEL_STDIN, b"hello\n")
        said = b""
        for frame in stream:
            said += frame.data
            if b"said hello" in said:
                break


def test_an_end_that_nobody_saw_is_kept_by_the_launcher(ground: Place, launcher: int) -> None:
    agent = ground.run("short", "sh", "-c", "sleep 0.2; exit 42")
    supervisor = ground.supervisor(launcher)
    os.kill(supervisor, signal.SIGSTOP)  # it cannot take note of the end …
    assert agent.pid is not None
    eventually(lambda: not _alive(agent.pid or 0), "the agent ends")
    os.kill(supervisor, signal.SIGKILL)  # … and never will
    eventually(lambda: not _alive(supervisor), "it is dead")
    ground.wait_ready(ground.running[-1])
    assert ground.client.agent(agent.id).exit_status == 42


def test_an_adopted_agents_end_is_known_where_the_kernel_tells_it(ground: Place, launcher: int) -> None:
    agent = ground.run("orphan", "sh", "-c", "sleep 8; exit 9", restart={"policy": "on-failure", "max": 1})
    crash_all(ground, launcher)
    assert ground.client.agent(agent.id).state == "running"
    eventually(lambda: ground.client.agent(agent.id).restarts == 1, "it ends and, as a failure, is started again")
    first = next(event for event in ground.client.events() if event.type == "exited" and event.agent_id == agent.id)
    if has_pidfd_exit_info():
        assert first.detail["exit_status"] in (9, None)  # None: this machine's init had not reaped it in time
    else:
        assert first.detail["exit_status"] is None


def test_further_processes_of_a_dead_supervisor_are_ended(ground: Place, launcher: int) -> None:
    agent = ground.run("host", "sleep", "1000")
    leaves = Path(agent.cgroup)
    with contextlib.closing(ground.client.exec(agent.id, ["sleep", "999"])):
        eventually(lambda: list(leaves.glob("exec-*/cgroup.procs")), "the process runs")
        crash_supervisor(ground, launcher)
    assert not list(leaves.glob("exec-*"))
    assert answer(ground, agent, "true") == (b"", 0)


def test_a_corrupt_registry_is_moved_aside_and_made_anew(ground: Place, launcher: int) -> None:
    running = ground.run("running", "sh", "-c", COUNT)
    ended = ground.run("ended", "true")
    eventually(lambda: ground.client.agent(ended.id).state == "exited", "it ends")
    ground.kill(launcher)
    registry = ground.directory / "state" / "registry.db"
    registry.write_bytes(b"this is no database" * 1000)
    ground.start()
    assert list(registry.parent.glob("registry.db.corrupt-*"))
    assert any("corrupt" in warning for warning in ground.client.node().warnings)
    after = {agent.id: agent for agent in ground.client.agents(ended=True)}
    assert (after[running.id].state, after[running.id].pid) == ("running", running.pid)
    assert after[ended.id].state == "exited"
    assert_counts_without_a_gap(ground, running)
    assert answer(ground, running, "echo", "here") == (b"here\n", 0)


def test_a_second_supervisor_on_the_same_state_is_refused(ground: Place, launcher: int) -> None:
    said = Place(ground.directory, ground.node).refused()
    assert said.startswith("error[state-in-use]: another supervisor (process ")
    assert "hint:" in said
    assert ground.client.version().name == "agentos-native"


def test_a_node_name_with_anothers_agents_is_refused(ground: Place, launcher: int, tmp_path: Path) -> None:
    other = Place(tmp_path / "other", ground.node)
    assert other.refused().startswith("error[node-in-use]")  # by a supervisor that runs …
    agent = ground.run("mine", "sleep", "1000")
    ground.kill(launcher)
    assert other.refused().startswith("error[node-in-use]")  # … and by the agents of one that is dead
    ground.start()
    assert ground.client.agent(agent.id).state == "running"


def test_agents_that_are_to_run_always_come_back_after_a_stop(ground: Place, launcher: int) -> None:
    always = ground.run("always", "sleep", "1000", restart={"policy": "always"})
    once = ground.run("once", "sleep", "1000")
    assert ground.stop(launcher) == 0
    ground.start()
    eventually(lambda: ground.client.agent(always.id).state == "running", "it is started again")
    assert ground.client.agent(once.id).state == "exited"
    assert ground.client.agent(once.id).reason == "supervisor-stopped"


def test_a_dead_machine_restarts_what_failed(ground: Place, launcher: int) -> None:
    """As after a power failure: the registry says running, and nothing is there."""
    agent = ground.run("failed", "sleep", "1000", restart={"policy": "on-failure", "backoff": 0.1})
    ground.kill(launcher)
    Path(agent.cgroup, "cgroup.kill").write_text("1")
    eventually(lambda: not _alive(agent.pid or 0), "it is dead")
    ground.start()
    eventually(lambda: ground.client.agent(agent.id).state == "running", "it is started again")
    assert ground.client.agent(agent.id).restarts == 1


def test_without_a_launcher_the_supervisor_refuses(ground: Place) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "agentos_native.supervisor", *ground.options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 125
    assert "error[no-launcher]" in done.stderr


def test_stopping_waits_for_the_grace_and_kills_the_tree(ground: Place, launcher: int) -> None:
    stubborn = ground.run("stubborn", "sh", "-c", "trap '' TERM; (trap '' TERM; sleep 1000) & sleep 1000; sleep 1000")
    began = time.monotonic()
    ended = ground.client.stop(stubborn.id, grace=0.5)
    assert 0.5 <= time.monotonic() - began < 10
    assert (ended.state, ended.exit_status) == ("exited", 137)
    with pytest.raises(AgentosError) as caught:
        ground.client.kill(stubborn.id)
    assert caught.value.code == "agent-not-running"
