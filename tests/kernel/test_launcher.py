"""The launcher as a process: its supervisor, its deadlines, what it keeps, and what remains when it is killed."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentos_native.wire import launch
from tests.sandboxes import Node, StartFailed

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def own() -> Iterator[Node]:
    """A launcher that the test may kill."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Node() as ready:
        yield ready


def eventually(condition: Callable[[], bool], patience: float = 10.0) -> None:
    """Fail unless `condition` becomes true in time."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def replay(node: Node) -> tuple[list[launch.ToSupervisor], launch.Ready]:
    """What a new supervisor is told, up to Ready."""
    messages: list[launch.ToSupervisor] = []
    while True:
        message, fds = node.receive()
        for fd in fds:
            os.close(fd)
        if isinstance(message, launch.Ready):
            return messages, message
        messages.append(message)


def state_of(pid: int) -> str:
    """The state letter of a process, "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


def test_many_starts_in_flight(node: Node) -> None:
    names = [f"many-{n}" for n in range(24)]
    units = [node.start("/bin/sh", "-c", f"exit {n}", agent=name) for n, name in enumerate(names)]
    assert [node.wait(unit).status for unit in units] == list(range(24))


def test_a_unit_runs_once(node: Node) -> None:
    unit = node.start("sleep", "60")
    with pytest.raises(StartFailed) as caught:
        node.start("sleep", "60")
    assert caught.value.failure.errno == errno.EEXIST
    node.kill(unit)


def test_resources_of_an_exit(node: Node) -> None:
    before = time.time()
    exited = node.shell("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").exited
    assert 0.01 < exited.user_seconds < 30
    assert 100_000 < exited.max_rss_bytes < 100_000_000
    assert before <= exited.ended_at <= time.time() + 1


def test_deadline_kills_a_child_that_does_not_execute(node: Node) -> None:
    """Frozen before its first instruction: as stuck as a child can be."""
    os.close(node.leaf("stuck"))
    freezer = node.cgroup / "stuck/cgroup.freeze"
    freezer.write_text("1")
    with node.start_fds("stuck") as fds:
        plan = node.plan_of(node.config("true"), fds)
        message = launch.Clone(node.next_seq(), "stuck", plan.encode(), plan.namespaces, plan.cgroup, -1, 0.3)
        began = time.monotonic()
        node.send(message, plan.fds)
        answer, _ = node.expect(launch.Failed, unit="stuck")
    assert isinstance(answer, launch.Failed)
    assert answer.failure.errno == errno.ETIMEDOUT
    assert 0.25 < time.monotonic() - began < 30
    assert (node.cgroup / "stuck/main/cgroup.procs").read_text() == ""


def test_supervisor_killed_is_started_again_and_told_what_lives(own: Node) -> None:
    living = own.start("sleep", "600", agent="living")
    ended = own.start("true", agent="ended")
    message, _ = own.expect(launch.Exited, unit="ended")
    assert isinstance(message, launch.Exited)
    os.kill(own.relay_pid, signal.SIGKILL)
    own.connect()
    told, ready = replay(own)
    assert ready.restarts == 1
    assert launch.Live("living", living.pid, True) in told
    assert message in told  # it was not acknowledged
    assert len(told) == 2
    assert state_of(living.pid) == "S"
    own.send(launch.Acknowledge(message.exit_id))
    os.kill(own.relay_pid, signal.SIGKILL)
    own.connect()
    told, ready = replay(own)
    assert (told, ready.restarts) == ([launch.Live("living", living.pid, True)], 2)
    os.close(ended.pidfd)
    own.kill(living)


def test_holders_of_user_namespaces_are_nobodys_units(own: Node) -> None:
    """Not told to a supervisor that starts at that moment, and in nobody's way when numbers begin again."""
    for seq in (1, 1, 2):
        own.send(launch.MakeUserns(seq, 0x30000000, 65536))
    os.kill(own.relay_pid, signal.SIGKILL)
    own.connect()
    assert replay(own)[0] == []
    os.close(own.make_userns())
    assert own.run("true").status == 0


def test_user_namespaces_asked_for_faster_than_their_holders_die(own: Node) -> None:
    """More at once than there are places for holders, while these hardly get a CPU to end on."""
    burners = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        for seq in range(100, 164):
            own.send(launch.MakeUserns(seq, 0x30000000, 65536))
        failures = []
        for _ in range(64):
            message, fds = own.receive()
            assert isinstance(message, launch.Userns)
            failures += [message.failure] if message.failure is not None else []
            assert len(fds) == (message.failure is None)
            for fd in fds:
                os.close(fd)
        assert failures == []
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def test_exit_while_there_is_no_supervisor_is_kept(own: Node) -> None:
    unit = own.start("sh", "-c", "echo ready; exec sleep 600", agent="orphan")
    eventually(lambda: unit.output[0] == b"ready\n")  # before, init does not take signals yet
    os.kill(own.relay_pid, signal.SIGSTOP)  # a supervisor that hangs does not keep the launcher from reaping
    os.kill(own.relay_pid, signal.SIGKILL)
    signal.pidfd_send_signal(unit.pidfd, signal.SIGTERM)
    own.connect()
    told, _ = replay(own)
    exits = [message for message in told if isinstance(message, launch.Exited)]
    if not exits:  # it was still ending when the supervisor came
        message, _ = own.expect(launch.Exited)
        assert isinstance(message, launch.Exited)
        exits = [message]
    assert [(message.unit, message.code, message.status) for message in exits] == [("orphan", os.CLD_EXITED, 143)]


@pytest.mark.parametrize("status", [0, 3, 125])
def test_exit_status_of_the_supervisor_is_the_launchers(own: Node, status: int) -> None:
    assert own.launcher is not None
    own.relay.send(bytes([status]))
    assert own.launcher.wait(10) == status


def test_software_failure_of_the_supervisor_is_a_restart(own: Node) -> None:
    own.relay.send(bytes([70]))
    own.connect()
    assert replay(own)[1].restarts == 1


def test_restarts_back_off(own: Node) -> None:
    began = time.monotonic()
    for _ in range(3):
        os.kill(own.relay_pid, signal.SIGKILL)
        own.connect()
    assert time.monotonic() - began > 0.1 + 0.2 + 0.4


def test_sigterm_is_forwarded_to_the_supervisor(own: Node) -> None:
    assert own.launcher is not None
    own.launcher.terminate()
    assert own.launcher.wait(10) == 128 + signal.SIGTERM  # which killed it, and it is not started again


def test_shutdown_leaves_units_alone_and_takes_its_status(own: Node) -> None:
    assert own.launcher is not None
    unit = own.start("sleep", "600")
    own.send(launch.Shutdown(5))
    own.relay.send(bytes([0]))
    assert own.launcher.wait(10) == 5
    assert state_of(unit.pid) == "S"


def test_nonsense_from_the_supervisor_ends_the_connection_only(own: Node) -> None:
    unit = own.start("sleep", "600")
    own.link.send(b"nonsense")
    eventually(lambda: own.link.recv(4096) == b"")
    os.kill(own.relay_pid, signal.SIGKILL)
    own.connect()
    assert replay(own)[0] == [launch.Live("a", unit.pid, True)]


def test_strays_are_reaped(own: Node) -> None:
    """A grandchild of the supervisor that loses its parent comes to the launcher."""
    assert own.launcher is not None
    own.relay.send(bytes([254]))
    stray = int(own.relay.recv(32))
    os.kill(own.relay_pid, signal.SIGKILL)
    own.connect()
    replay(own)
    status = Path(f"/proc/{stray}/status").read_text()
    assert f"PPid:\t{own.launcher.pid}\n" in status
    os.kill(stray, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{stray}").exists())


def test_agents_live_on_when_the_launcher_is_killed(own: Node) -> None:
    assert own.launcher is not None
    agent = own.start("sleep", "600")
    execed = own.exec(agent, "sleep", "600")
    own.launcher.kill()
    own.launcher.wait()
    time.sleep(0.2)
    eventually(lambda: (state_of(agent.pid), state_of(execed.pid)) == ("S", "S"))


def test_child_that_was_cloned_but_never_ran_dies_with_the_launcher(own: Node) -> None:
    """Frozen at birth, it could not even ask to be killed: it finds out by itself."""
    assert own.launcher is not None
    os.close(own.leaf("half"))
    freezer = own.cgroup / "half/cgroup.freeze"
    procs = own.cgroup / "half/main/cgroup.procs"
    freezer.write_text("1")
    with own.start_fds("half") as fds:
        plan = own.plan_of(own.config("sleep", "600"), fds)
        own.send(launch.Clone(own.next_seq(), "half", plan.encode(), plan.namespaces, plan.cgroup), plan.fds)
        eventually(lambda: procs.read_text() != "")
        own.launcher.kill()
        own.launcher.wait()
        freezer.write_text("0")
    eventually(lambda: procs.read_text() == "")


def program_of(pid: str) -> str:
    """What process `pid` executes, "" when it is none any more."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return ""


def test_child_on_its_way_dies_with_the_launcher_or_has_executed(own: Node) -> None:
    """Kill at a random moment of a start, again and again; whoever survives is init, never our own code."""
    chance = random.Random(1)
    outcomes = set()
    for attempt in range(25):
        name = f"r{attempt}"
        with own.start_fds(name) as fds:
            plan = own.plan_of(own.config("sleep", "600"), fds)
            own.send(launch.Clone(own.next_seq(), name, plan.encode(), plan.namespaces, plan.cgroup), plan.fds)
            time.sleep(chance.uniform(0, 0.004))
            assert own.launcher is not None
            own.launcher.kill()
            own.launcher.wait()
        procs = own.cgroup / name / "main/cgroup.procs"
        deadline = time.monotonic() + 5
        while True:
            programs = set(filter(None, (program_of(pid) for pid in procs.read_text().split())))
            if not any("python" in program for program in programs):
                break
            assert time.monotonic() < deadline, programs
        outcomes.add(bool(programs))
        own.start_launcher()
    assert outcomes <= {True, False}


@pytest.mark.parametrize("point", ["launcher.received", "launcher.cloned", "launcher.executed", "launcher.exit-kept"])
def test_fault_points_of_the_launcher_are_real(point: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Node({"AGENTOS_FAULT": point}) as node:
        with pytest.raises((ConnectionError, StartFailed)):
            node.run("true")
        assert node.launcher is not None
        assert node.launcher.wait(10) == -signal.SIGKILL


def test_launcher_is_not_dumpable_and_small(node: Node) -> None:
    assert node.launcher is not None
    status = Path(f"/proc/{node.launcher.pid}/status").read_text()
    assert "Threads:\t1\n" in status
    assert int(status.split("VmRSS:")[1].split()[0]) < 32 * 1024
    assert Path(f"/proc/{node.launcher.pid}/comm").read_text() == "agentos-launch\n"
    assert dumpable(node.launcher.pid) == 0


def dumpable(pid: int) -> int:
    """0 when the process may not be traced by its own user: then its /proc files belong to global root (proc(5))."""
    code = (
        "import os,sys; os.setgid(12345); os.setuid(12345);"
        "\ntry: os.readlink(f'/proc/{sys.argv[1]}/exe'); print(1)"
        "\nexcept PermissionError: print(0)"
    )
    return int(
        subprocess.run([sys.executable, "-c", code, str(pid)], capture_output=True, text=True, check=True).stdout
    )
