"""Commands that bring their own supervisor, beside one that is to stay: whoever was first, nobody fails."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentos_native.client import Client
from agentos_native.errors import AgentosError
from tests.kernel.test_cli import PATIENCE, Machine, code_of
from tests.networks import require_outer_namespace
from tests.sandboxes import busybox_rootfs, cgroup2_mount
from tests.supervisors import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Machine]:
    """State with an image, and no supervisor."""
    require_outer_namespace()
    made = Machine(tmp_path, cgroup2_mount() / f"embedded-test-{os.getpid()}")
    made.group.mkdir()
    busybox_rootfs(tmp_path / "rootfs")
    imported = made("image", "import", "box", str(tmp_path / "rootfs"))
    assert imported.returncode == 0, imported.stderr
    yield made
    made.group.rmdir()


def supervise(machine: Machine) -> subprocess.Popen[bytes]:
    root = "/" + machine.group.name
    log = (machine.directory / "log").open("ab")
    with log:
        return machine.start("supervise", "--node", "meet", "--cgroup-root", root, stdout=log, stderr=log)


def said(machine: Machine) -> str:
    return (machine.directory / "log").read_text()


def answers(machine: Machine) -> bool:
    try:
        Client(machine.environment["AGENTOS_SOCKET"]).version()
    except AgentosError:
        return False
    return True


def stopped(machine: Machine, supervisor: subprocess.Popen[bytes]) -> int:
    supervisor.terminate()
    return supervisor.wait(PATIENCE)


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.5])
def test_a_command_and_a_supervisor_that_start_together_both_do(alone: Machine, delay: float) -> None:
    supervisor = supervise(alone)
    time.sleep(delay)  # whichever of the two is first with the state
    for listed in [alone.start("image", "ls") for _ in range(2)]:
        out, err = listed.communicate(timeout=PATIENCE)
        assert listed.returncode == 0, err
        assert b"box" in out
    eventually(lambda: answers(alone), "the supervisor answers")
    assert supervisor.poll() is None
    done = alone("run", "--rm", "box", "echo", "there")
    assert done.stdout == "there\n"
    assert stopped(alone, supervisor) == 0, said(alone)


def test_a_supervisor_takes_over_when_the_command_that_was_faster_has_ended(alone: Machine) -> None:
    running = alone.start("run", "-i", "--rm", "box", "sh", "-c", "echo up; read line", stdin=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    supervisor = supervise(alone)
    eventually(lambda: "waits until the command" in said(alone), "it says for what it waits")
    assert alone("ps").returncode == 0  # the command's own supervisor still answers
    _, err = running.communicate(b"go on\n", timeout=PATIENCE)
    assert running.returncode == 0, err
    eventually(lambda: answers(alone), "the supervisor answers")
    assert not Path(alone.environment["AGENTOS_SOCKET"] + ".lifeline").exists()
    detached = alone("run", "-d", "box", "true")
    assert detached.returncode == 0, detached.stderr
    assert stopped(alone, supervisor) == 0, said(alone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_supervisor_that_waits_can_be_stopped(alone: Machine, number: signal.Signals) -> None:
    running = alone.start("run", "-i", "--rm", "box", "sh", "-c", "echo up; read line", stdin=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    supervisor = supervise(alone)
    eventually(lambda: "waits until the command" in said(alone), "it says for what it waits")
    supervisor.send_signal(number)
    supervisor.wait(PATIENCE)
    assert "Traceback" not in said(alone)
    running.communicate(b"go on\n", timeout=PATIENCE)
    assert running.returncode == 0


def test_a_socket_that_is_named_is_meant(alone: Machine) -> None:
    elsewhere = alone.directory / "elsewhere.sock"
    for words in (["image", "ls"], ["run", "--rm", "box", "true"]):
        done = alone("--socket", str(elsewhere), *words)
        assert (done.returncode, code_of(done)) == (125, "no-supervisor")
        assert f"agentos-native --socket {elsewhere} supervise" in done.stderr
    assert not elsewhere.exists()
    running = alone.start("run", "-i", "--rm", "box", "sh", "-c", "echo up; read line", stdin=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    named = alone("--socket", alone.environment["AGENTOS_SOCKET"], "run", "--rm", "box", "echo", "too")
    assert named.stdout == "too\n", named.stderr
    running.communicate(b"go on\n", timeout=PATIENCE)
