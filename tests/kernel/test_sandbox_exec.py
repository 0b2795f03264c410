"""Further processes in a running agent, and terminals."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Iterator

import pytest

from agentos_native.kernel import ns
from agentos_native.sandbox.hints import failure_to_error
from tests.sandboxes import ID_BASE, Node, StartFailed, Unit

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def agent(node: Node) -> Iterator[Unit]:
    """A running agent."""
    unit = node.start("/bin/sleep", "600")
    yield unit
    node.kill(unit)


def test_exec_is_in_every_namespace_of_the_agent(node: Node, agent: Unit) -> None:
    unit = node.exec(agent, "sleep", "600")
    try:
        same = {name for name in ns.NAMES if ns.inode(unit.pid, name) == ns.inode(agent.pid, name)}
        assert same == set(ns.NAMES)
    finally:
        node.kill(unit)


def test_exec_has_a_leaf_of_its_own(node: Node, agent: Unit) -> None:
    unit = node.exec(agent, "sleep", "600", unit="exec-7")
    try:
        assert (node.cgroup / "a/exec-7/cgroup.procs").read_text().split() == [str(unit.pid)]
        assert str(unit.pid) not in (node.cgroup / "a/main/cgroup.procs").read_text().split()
    finally:
        node.kill(unit)


def test_exec_is_confined_like_the_agent(node: Node, agent: Unit) -> None:
    result = node.wait(node.exec(agent, "cat", "/proc/self/status"))
    fields = dict(line.split(":\t", 1) for line in result.out.splitlines())
    assert [int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_exec_has_only_three_files(node: Node, agent: Unit) -> None:
    assert node.wait(node.exec(agent, "sh", "-c", "ls /proc/$$/fd; true")).out.split() == ["0", "1", "2"]


def test_exec_status_user_directory_and_environment(node: Node, agent: Unit) -> None:
    environment = (("WORD", "there"), ("PATH", "/bin"))
    script = "id -u; pwd; echo $WORD; exit 9"
    result = node.wait(node.exec(agent, "sh", "-c", script, uid=1000, gid=1000, workdir="/tmp", env=environment))
    assert (result.status, result.out.split()) == (9, ["1000", "/tmp", "there"])
    assert os.stat("/proc/self").st_uid != ID_BASE + 1000


def test_exec_sees_the_files_of_the_agent(node: Node, agent: Unit) -> None:
    node.wait(node.exec(agent, "sh", "-c", "echo kept > /dev/shm/note"))
    assert node.wait(node.exec(agent, "cat", "/dev/shm/note")).out == "kept\n"


def test_several_execs_at_once(node: Node, agent: Unit) -> None:
    running = [node.exec(agent, "sh", "-c", f"sleep 0.2; exit {n}", unit=f"exec-{n}") for n in range(8)]
    assert [node.wait(unit).status for unit in running] == list(range(8))


def test_exec_of_a_command_that_is_not_there(node: Node, agent: Unit) -> None:
    with pytest.raises(StartFailed) as caught:
        node.exec(agent, "no-such-tool")
    assert failure_to_error(caught.value.failure).exit_status == 127
    with pytest.raises(StartFailed) as caught:
        node.exec(agent, "/etc/passwd")
    assert failure_to_error(caught.value.failure).exit_status == 126


def test_exec_of_something_that_is_no_program(node: Node, agent: Unit) -> None:
    node.wait(node.exec(agent, "sh", "-c", "echo nonsense > /bin/garbage; chmod +x /bin/garbage"))
    with pytest.raises(StartFailed) as caught:
        node.exec(agent, "garbage")
    failure = caught.value.failure
    assert (failure.stage, failure.call, failure.path, failure.errno) == (
        "execute",
        "execveat",
        "/bin/garbage",
        errno.ENOEXEC,
    )
    assert failure_to_error(failure).exit_status == 126


def test_exec_ends_with_the_agent(node: Node) -> None:
    agent = node.start("/bin/sleep", "600", agent="short")
    unit = node.exec(agent, "sleep", "600")
    os.kill(agent.pid, 9)
    assert node.wait(unit).status == 137
    node.wait(agent)


def test_exec_into_an_agent_that_has_ended(node: Node) -> None:
    agent = node.start("/bin/sleep", "600", agent="ended")
    pidns = os.open(f"/proc/{agent.pid}/ns/pid", os.O_RDONLY)
    keep = os.dup(agent.pidfd)
    node.kill(agent)
    opened = node.leaf("ended", "exec-1")
    try:
        from agentos_native.sandbox.config import Fds
        from agentos_native.sandbox.plan import exec_plan

        with pytest.raises(StartFailed) as caught:
            node.launch("late", exec_plan, node.config("true"), Fds(cgroup=opened, agent=keep, pidns=pidns))
    finally:
        for fd in (pidns, keep, opened):
            os.close(fd)
    assert caught.value.failure.call in {"clone3", "setns", "setns(pid)"}
    assert caught.value.failure.errno in {errno.ENOMEM, errno.ESRCH}


def read_until(fd: int, end: bytes) -> bytes:
    """What the terminal shows up to `end`."""
    data = b""
    deadline = time.monotonic() + 10
    while end not in data:
        assert select.select([fd], [], [], deadline - time.monotonic())[0], data
        try:
            data += os.read(fd, 4096)
        except OSError as error:  # EIO: the last slave end was closed
            assert error.errno == errno.EIO
            break
    return data


def test_terminal_of_an_agent(node: Node) -> None:
    unit = node.start("/bin/sh", tty=True, env=(("PS1", "> "), ("PATH", "/bin")))
    assert unit.terminal >= 0
    fcntl.ioctl(unit.terminal, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
    os.write(unit.terminal, b"tty; stty size; cat /proc/self/stat | cut -d' ' -f7; ls -l $(tty); exit 4\n")
    shown = read_until(unit.terminal, b"no such end")
    assert b"/dev/pts/0" in shown
    assert b"33 77" in shown
    assert b"\n34816" in shown  # tty_nr of pts/0: it controls the session
    assert b"root" in shown
    assert node.wait(unit).status == 4


def test_control_c_reaches_the_program(node: Node) -> None:
    unit = node.start(
        "/bin/sh", "-c", "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.1; done", tty=True
    )
    read_until(unit.terminal, b"ready")
    os.write(unit.terminal, b"\x03")
    assert b"interrupted" in read_until(unit.terminal, b"interrupted")
    assert node.wait(unit).status == 5


def test_terminal_of_an_exec_is_one_of_the_agents_own(node: Node, agent: Unit) -> None:
    unit = node.exec(
        agent, "sh", "-c", "tty; test -t 0 && test -t 1 && test -t 2 && echo all", tty=True, uid=1000, gid=1000
    )
    shown = read_until(unit.terminal, b"no such end")
    assert b"/dev/pts/0" in shown
    assert b"all" in shown
    assert node.wait(unit).status == 0


def test_the_hosts_terminal_is_not_inside(node: Node) -> None:
    """The master belongs to the agent's own instance of devpts, not to the host's."""
    unit = node.start("/bin/sleep", "60", tty=True)
    try:
        assert os.fstat(unit.terminal).st_dev != os.stat("/dev/pts").st_dev
    finally:
        node.kill(unit)


def test_a_ptmx_that_is_not_a_terminal_is_refused(node: Node, agent: Unit) -> None:
    """The agent's root may replace /dev/ptmx, but /dev/pts is the kernel's; nothing else is opened."""
    node.wait(node.exec(agent, "sh", "-c", "rm /dev/ptmx; ln -s /dev/zero /dev/ptmx"))
    unit = node.exec(agent, "tty", tty=True)
    assert b"/dev/pts/0" in read_until(unit.terminal, b"no such end")
    node.wait(unit)
