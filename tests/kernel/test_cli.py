"""The command line end to end: a real supervisor, real sandboxes, no controllers needed.

One supervisor (own state, own socket, own group of cgroup v2) serves the whole file; the embedded tests use another
state.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentos_native.cli.embedded import command
from agentos_native.client import Client
from tests.sandboxes import busybox_rootfs, cgroup2_mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PROGRAM = [sys.executable, "-c", "import sys; from agentos_native.cli import main; sys.exit(main())"]
PATIENCE = 90.0


@dataclass
class Machine:
    """Runs ``agentos-native`` against one state and socket."""

    directory: Path
    group: Path
    node: str = "cli-test"

    @property
    def environment(self) -> dict[str, str]:
        own = {"AGENTOS_STATE_DIR": str(self.directory / "state"), "AGENTOS_SOCKET": str(self.directory / "s.sock")}
        return {**os.environ, **own}

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment}
        return subprocess.Popen([*PROGRAM, *argv], **{**pipes, **options})

    def __call__(self, *argv: str, data: bytes = b"") -> subprocess.CompletedProcess[str]:
        """One command; its output as text."""
        running = self.start(*argv, stdin=subprocess.PIPE)
        out, err = running.communicate(data, timeout=PATIENCE)
        return subprocess.CompletedProcess(argv, running.returncode, out.decode(), err.decode())

    def json(self, *argv: str) -> Any:
        """The result of a command that must succeed."""
        done = self(*argv, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def supervised(self) -> Iterator[subprocess.Popen[bytes]]:
        """A supervisor in a group of its own, stopped at the end."""
        self.group.mkdir()
        root = "/" + self.group.name
        supervisor = self.start("supervise", "--node", self.node, "--cgroup-root", root, stdout=None, stderr=None)
        try:
            deadline = time.monotonic() + PATIENCE
            while self("version", "-o", "json").stdout.find('"supervisor": {') < 0:
                assert supervisor.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield supervisor
        finally:
            supervisor.terminate()
            status = supervisor.wait(PATIENCE)
            self.group.rmdir()
            assert status == 0


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("cli")
    made = Machine(directory, cgroup2_mount() / f"cli-test-{os.getpid()}")
    rootfs = busybox_rootfs(directory / "rootfs")
    (rootfs / "etc/data").write_text("not a program\n")
    with made.supervised():
        assert made("image", "import", "box", str(rootfs)).returncode == 0
        yield made


def code_of(done: subprocess.CompletedProcess[str]) -> str:
    match = re.match(r"error\[([a-z-]+)\]: ", done.stderr)
    assert match, done.stderr
    assert "Traceback" not in done.stderr
    return match[1]


def test_images_come_from_directories_tars_and_streams(machine: Machine) -> None:
    tar = machine.directory / "box.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(machine.directory / "rootfs", ".")
    from_file = machine.json("image", "import", "box-tar", str(tar))
    streamed = machine("image", "import", "box-stream", "-", data=tar.read_bytes())
    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stdout.strip() == from_file["digest"]
    assert {image["name"] for image in machine.json("image", "ls")} >= {"box"}
    assert machine("run", "--rm", "box-tar", "true").returncode == 0
    assert code_of(machine("image", "import", "x/../y", str(tar))) == "invalid-name"
    assert machine("image", "import", "no", "/nonexistent").returncode == 125
    assert machine("image", "import", "no", "-", data=b"not a tar").returncode == 125
    assert "no" not in {image["name"] for image in machine.json("image", "ls")}


def test_the_exit_status_and_the_streams_are_the_programs(machine: Machine) -> None:
    done = machine("run", "--rm", "box", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert machine("run", "--rm", "box", "sh", "-c", "kill -TERM $$").returncode == 143
    assert machine("run", "--rm", "--timeout", "300ms", "box", "sleep", "60").returncode == 124


@pytest.mark.parametrize(("command", "status"), [("nope", 127), ("/nope/nope", 127), ("/etc/data", 126), ("/etc", 126)])
def test_a_command_that_cannot_run_leaves_nothing(machine: Machine, command: str, status: int) -> None:
    before = machine.json("ps", "-a")
    done = machine("run", "box", command)
    assert done.returncode == status
    assert code_of(done)
    assert "hint: " in done.stderr
    assert machine.json("ps", "-a") == before


def test_an_image_that_is_not_there(machine: Machine) -> None:
    done = machine("run", "nothing", "true")
    assert (done.returncode, code_of(done)) == (125, "image-not-found")
    assert "box" in done.stderr


def test_standard_input_of_any_length(machine: Machine) -> None:
    data = os.urandom(3_000_000)
    running = machine.start("run", "--rm", "-i", "box", "cat", stdin=subprocess.PIPE)
    out, err = running.communicate(data, timeout=PATIENCE)
    assert (running.returncode, err) == (0, b"")
    assert out == data


def test_what_the_options_say_is_so_inside(machine: Machine) -> None:
    shared = machine.directory / "shared"
    shared.mkdir()
    (shared / "file").write_text("from the host\n")
    options = ["-e", "A=b c", "-w", "/home", "-u", "1000", "--hostname", "inside", "--volume", f"{shared}:/mnt:ro"]
    script = "echo $A; pwd; id -u; hostname; cat /mnt/file; touch /mnt/new 2>/dev/null || echo refused"
    done = machine("run", "--rm", *options, "box", "sh", "-c", script)
    assert done.stdout.splitlines() == ["b c", "/home", "1000", "inside", "from the host", "refused"]
    assert machine("run", "--rm", "--read-only", "box", "sh", "-c", "echo x > /f").returncode != 0


def test_signals_reach_the_program(machine: Machine) -> None:
    script = "trap 'echo got; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    running = machine.start("run", "--rm", "box", "sh", "-c", script)
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (9, b"got\n")


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, machine: Machine, *argv: str) -> None:
        self._pid, self.fd = pty.fork()
        if self._pid == 0:
            os.execve(sys.executable, [*PROGRAM, *argv], machine.environment)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        self.seen = b""

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0], self.seen
            self.seen += os.read(self.fd, 4096)
        self.seen = self.seen.partition(text)[2]

    def send(self, text: bytes) -> None:
        os.write(self.fd, text)

    def status(self) -> int:
        with contextlib.suppress(OSError):  # EIO: the other end is gone
            while os.read(self.fd, 4096):
                pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def test_a_terminal(machine: Machine) -> None:
    terminal = Terminal(machine, "run", "--rm", "-it", "box", "sh")
    terminal.expect(b"# ")
    terminal.send(b"stty size; echo $((6 * 7))\n")
    terminal.expect(b"33 99")
    terminal.expect(b"42")
    fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 70, 0, 0))
    terminal.send(b'until [ "$(stty size)" = "20 70" ]; do sleep 0.1; done; echo resized $((6 * 7))\n')
    terminal.expect(b"resized 42")
    terminal.send(b"sleep 100\n")
    time.sleep(0.3)
    terminal.send(b"\x03")
    terminal.expect(b"# ")
    terminal.send(b"exit 3\n")
    assert terminal.status() == 3


def test_attach_and_leave(machine: Machine) -> None:
    assert machine("run", "-d", "-it", "--name", "shell", "box", "sh").returncode == 0
    terminal = Terminal(machine, "attach", "-i", "shell")
    terminal.send(b"echo $((2 + 2))x\n")
    terminal.expect(b"4x")
    terminal.send(b"\x1d")
    assert terminal.status() == 0
    assert machine.json("inspect", "shell")["state"] == "running"
    assert machine("rm", "-f", "shell").returncode == 0


def test_the_life_of_an_agent(machine: Machine) -> None:
    done = machine("run", "-d", "--name", "life", "--label", "a=b", "box", "sh", "-c", "echo begun; exec sleep 1000")
    (agent_id,) = done.stdout.split()
    assert re.fullmatch("[0-9a-f]{12}", agent_id)
    assert machine.json("inspect", agent_id[:6])["id"] == agent_id
    assert machine.json("inspect", "default/life")["spec"]["labels"] == {"a": "b"}
    assert [agent["id"] for agent in machine.json("ps")] == [agent_id]
    assert code_of(machine("run", "-d", "--name", "life", "box", "true"))
    assert machine("exec", "life", "sh", "-c", "exit 5").returncode == 5
    done = machine("exec", "life", "nope")
    assert (done.returncode, code_of(done)) == (127, "command-not-found")
    assert machine("exec", "-i", "life", "cat", data=b"through").stdout == "through"
    assert machine("pause", "life").returncode == 0
    assert machine.json("inspect", "life")["state"] == "paused"
    assert machine("resume", "life").returncode == 0
    assert machine("rm", "life").returncode == 125  # it runs
    assert machine("kill", "-s", "TERM", "life").stdout == "life\n"
    assert machine("wait", "life").stdout == "143\n"
    assert machine("start", "life").returncode == 0
    assert machine("restart", "life").returncode == 0
    assert machine("stop", "--grace", "1s", "life").returncode == 0
    assert machine("logs", "life").stdout == "begun\n" * 3
    assert machine("logs", "-n", "1", "life").stdout == "begun\n"
    assert machine("ps").stdout.count("\n") == 1
    kinds = [json.loads(line)["type"] for line in machine("events", "-o", "json").stdout.splitlines()]
    assert {"created", "started", "exited"} <= set(kinds)
    assert machine("rm", "life").returncode == 0
    assert code_of(machine("inspect", "life")) == "agent-not-found"


DOCUMENTS = """\
apiVersion: agentos/v1
kind: Tenant
metadata: {name: home}
spec: {weight: 200}
---
apiVersion: agentos/v1
kind: Agent
metadata: {name: worker, tenant: home}
spec:
  image: box
  command: [sleep, "1000"]
  replicas: 2
  volumes: [{source: ./rootfs, target: /mnt, readOnly: true}]
---
apiVersion: v1
kind: Pod
metadata: {name: helper, namespace: home}
spec:
  containers: [{name: main, image: box, command: [sleep], args: ["1000"]}]
"""


def test_documents(machine: Machine) -> None:
    path = machine.directory / "policy.yaml"
    path.write_text(DOCUMENTS)
    assert machine("validate", "-f", str(path)).returncode == 0
    assert "created (dry run)" in machine("apply", "--dry-run", "-f", str(path)).stdout
    assert machine.json("ps", "--tenant", "home") == []
    first = machine.json("apply", "-f", str(path))["results"]
    assert {row["action"] for row in first} == {"created"}
    names = {agent["name"] for agent in machine.json("ps", "--tenant", "home")}
    assert names == {"worker-0", "worker-1", "helper"}
    assert machine("exec", "home/worker-1", "test", "-e", "/mnt/bin/busybox").returncode == 0
    again = machine.json("apply", "-f", str(path))["results"]
    assert {row["action"] for row in again} == {"unchanged"}
    assert "home" in machine("tenant", "ls").stdout
    assert machine.json("tenant", "inspect", "home")["weight"] == 200
    path.write_text(DOCUMENTS.replace("weight: 200", "wieght: 200"))
    done = machine("apply", "-f", str(path))
    assert done.stderr.startswith(f'error[unknown-field]: unknown field "wieght": {path}:4: spec.wieght\n')
    path.write_text(DOCUMENTS)
    assert machine("delete", "-f", str(path)).returncode == 0
    assert machine.json("ps", "-a", "--tenant", "home") == []


def test_what_the_host_cannot_enforce_is_refused_with_the_way_round(machine: Machine) -> None:
    missing = {"cpu", "memory"} - set(machine.json("check")["cgroup"]["controllers"])
    arguments = ("--cpu-limit", "1", "--memory-limit", "64Mi", "box", "true")
    done = machine("run", "--rm", *arguments)
    if not missing:
        assert done.returncode == 0
        return
    assert (done.returncode, code_of(done)) == (125, "unenforceable")
    assert f"--allow-unenforced {','.join(sorted(missing))}" in done.stderr
    assert machine("run", "--rm", "--allow-unenforced", ",".join(missing), *arguments).returncode == 0


def test_a_reservation_that_is_more_than_the_machine(machine: Machine) -> None:
    done = machine("run", "--allow-unenforced", "cpu,memory", "--cpu-request", "100000", "box", "true")
    assert done.returncode == 125
    assert "100000" in done.stderr
    assert machine.json("ps", "-a") == []


def test_shares(machine: Machine) -> None:
    assert machine("run", "-d", "--name", "busy", "box", "sh", "-c", "while :; do :; done").returncode == 0
    deadline = time.monotonic() + PATIENCE
    while not (rows := machine.json("alloc", "show")["rows"]) or rows[0]["measured"] < 0.05:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert rows[0]["name"] == "busy"
    assert "busy" in machine("top", "--once").stdout
    assert "weight" in machine("alloc", "explain", "busy").stdout
    assert machine("rm", "-f", "busy").returncode == 0


def test_a_second_supervisor_on_the_same_state(machine: Machine) -> None:
    done = machine("supervise", "--node", "second", "--socket", str(machine.directory / "second.sock"))
    assert (done.returncode, code_of(done)) == (125, "state-in-use")


def supervisor_pid(machine: Machine) -> int:
    return Client(machine.environment["AGENTOS_SOCKET"]).node().supervisor_pid


def test_a_run_survives_its_supervisor(machine: Machine) -> None:
    supervisor = supervisor_pid(machine)
    running = machine.start("run", "--rm", "box", "sh", "-c", "echo ready; sleep 3; exit 6")
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    os.kill(supervisor, signal.SIGKILL)
    running.communicate(timeout=PATIENCE)
    assert running.returncode == 6
    assert supervisor_pid(machine) != supervisor


def test_embedded(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a supervisor, `run` brings one along and leaves nothing behind."""
    alone = Machine(tmp_path, machine.group)
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    imported = alone("image", "import", "box", str(machine.directory / "rootfs"))
    assert imported.returncode == 0, imported.stderr
    done = alone("run", "--rm", "box", "sh", "-c", "echo hello; exit 4")
    assert (done.returncode, done.stdout) == (4, "hello\n"), done.stderr
    assert not (tmp_path / "s.sock").exists()
    node = next(word for word in command("/x", 0, 0) if word.startswith("--node=")).removeprefix("--node=")
    assert not (cgroup2_mount() / f"agentos-{node}").exists()
    assert os.listdir(tmp_path / "state" / "agents") == []
    detached = alone("run", "-d", "box", "true")
    assert (detached.returncode, code_of(detached)) == (125, "no-supervisor")


def test_an_embedded_supervisor_dies_with_its_command(machine: Machine, tmp_path: Path) -> None:
    alone = Machine(tmp_path, machine.group)
    assert alone("image", "import", "box", str(machine.directory / "rootfs")).returncode == 0
    running = alone.start("run", "box", "sh", "-c", "echo ready; sleep 1000")
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    assert (tmp_path / "s.sock").exists()
    running.kill()
    running.communicate()
    deadline = time.monotonic() + PATIENCE
    while (tmp_path / "s.sock").exists():
        assert time.monotonic() < deadline, "the supervisor is still there"
        time.sleep(0.1)


def test_commands_share_one_embedded_supervisor(machine: Machine, tmp_path: Path) -> None:
    """Started at once, each ends as its own program does: none takes the supervisor from under another."""
    alone = Machine(tmp_path, machine.group)
    assert alone("image", "import", "box", str(machine.directory / "rootfs")).returncode == 0
    script = "echo $0; sleep $0; exit $0"
    running = {seconds: alone.start("run", "--rm", "box", "sh", "-c", script, str(seconds)) for seconds in (1, 2, 4)}
    for seconds, process in running.items():
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (seconds, f"{seconds}\n".encode()), err
    assert sorted(os.listdir(tmp_path)) == ["state"]
