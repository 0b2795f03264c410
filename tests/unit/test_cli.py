"""The command line against a real server: what it prints, where errors go, and how it exits."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from agentos_native.cli import entry as top
from agentos_native.cli import output
from agentos_native.cli.embedded import command as embedded_command
from agentos_native.errors import AgentosError
from tests.unit.apiserver import Socket, StubSupervisor, agent_body, serving

CPU_BUDGET_SECONDS = 0.120
BARE_SECONDS = 0.013
DOCUMENT = "apiVersion: agentos/v1\nkind: Agent\nmetadata: {name: a}\nspec: {image: i}\n"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubSupervisor]:
    with serving(str(tmp_path / "s")) as running:
        monkeypatch.setenv("AGENTOS_SOCKET", str(running.server_address))
        running.answers["GET", "/v1/version"] = (200, {"name": "agentos-native", "version": "9"})
        yield running


def cli(*argv: str) -> int:
    return top.run(list(argv))


def process(*argv: str, **options: Any) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", "import sys; from agentos_native.cli import main; sys.exit(main())"]
    return subprocess.Popen([*program, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")


def test_every_command_has_its_name_a_help_and_json() -> None:
    found = dict(commands(top.cli))
    assert len(found) >= 30
    for path, command in found.items():
        assert command.name == path.split()[-1]
        assert command.help, path
        if not isinstance(command, click.Group) and path not in {"supervise", "image export"}:  # which print nothing
            assert any("-o" in parameter.opts for parameter in command.params), f"{path} has no -o json"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        *((["pss"], "usage"), (["ps", "--nope"], "usage"), (["inspect"], "usage"), (["ps", "-o", "xml"], "usage")),
        *((["run", "../x"], "invalid-name"), (["run", "--cpu-limit", "12Q", "i"], "invalid-quantity")),
        *((["run", "--memory-limit=-1", "i"], "invalid-quantity"), (["run", "--name", "a/b", "i"], "invalid-name")),
        *((["run", "--volume", "x", "i"], "invalid-value"), (["run", "--env", "1A=b", "i"], "invalid-name")),
        *((["run", "--weight", "x", "i"], "invalid-value"), (["run", "--restart", "maybe", "i"], "invalid-value")),
        *((["run", "--cap-add", "SYS_ADMIN", "i"], "invalid-capability"), (["run", "i", "a\0b"], "invalid-value")),
        *((["kill", "-s", "NOPE", "a"], "invalid-signal"), (["stop", "-t", "-1", "a"], "invalid-quantity")),
        *(
            (["apply", "-f", "/nonexistent.yaml"], "cannot-read"),
            (["logs", "--since", "20x6-1", "a"], "invalid-value"),
        ),
        *(
            (["supervise", "--tick-period", "11"], "out-of-range"),
            (["run", "--env", "NOT_SET_HERE", "i"], "invalid-value"),
        ),
        (["run", "--allow-unenforced", "gpu", "i"], "invalid-value"),
    ],
)
def test_bad_input_is_an_error_with_code_and_status_125(
    argv: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*argv) == 125
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error[{code}]: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("group", [[], ["alloc"], ["image"], ["tenant"]])
def test_no_arguments_is_the_help_and_status_125(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*group) == 125
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"Usage: {' '.join(['agentos-native', *group])} ")


def test_an_option_is_the_place_of_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    cli("run", "--cpu-request", "12Q", "i")
    assert "unknown suffix 'Q': --cpu-request" in capsys.readouterr().err


def test_what_others_wrote_gives_a_terminal_no_orders(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil, seen = "\x1b]0;title\x07\x9b2J\u202e", "\ufffd]0;title\ufffd\ufffd2J\ufffd"
    output.sections({"labels": {evil: evil}, "cmd": [evil], "user": evil})
    output.table(["STEP"], [[evil]])

    def fail(*_: object, **__: object) -> None:
        raise AgentosError("build-failed", evil, evil, f"one {evil}\ntwo")

    monkeypatch.setattr(top.cli, "main", fail)
    assert cli("version") == 125
    out, err = capsys.readouterr()
    assert out == f"labels:\n  {seen}: {seen}\ncmd: {seen}\nuser: {seen}\nSTEP\n{seen}\n"
    assert err == f"error[build-failed]: {seen}: {seen}\n  hint: one {seen}\n        two\n"


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AGENTOS_SOCKET", str(tmp_path / "none"))
    for argv in (["ps"], ["run", "-d", "i"], ["apply", "-f", "-"]):
        monkeypatch.setattr("sys.stdin", __import__("io").StringIO(DOCUMENT))
        assert cli(*argv) == 125
        err = capsys.readouterr().err
        assert err.startswith("error[no-supervisor]")
        assert "hint: start one with: agentos-native supervise" in err


def test_ps(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["GET", "/v1/agents"] = (
        200,
        {"agents": [agent_body(), agent_body(name="b", state="exited", exit_status=137, oom_killed=True)]},
    )
    assert cli("ps", "-a") == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["ID", "TENANT", "NAME"]
    assert first.split()[:6] == ["0123456789ab", "home", "a", "task", "python", "running"]
    assert "200m/-" in first
    assert "-/256Mi" in first
    assert "exited (137, oom)" in second
    assert cli("ps", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)[1]["exit_status"] == 137
    assert cli("ps", "-q") == 0
    assert capsys.readouterr().out == "0123456789ab\n0123456789ab\n"


def test_several_names_go_on_after_a_failure(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["POST", "/v1/agents/b/stop"] = (200, agent_body(name="b"))
    assert cli("stop", "--grace", "500ms", "a", "b") == 125
    out, err = capsys.readouterr()
    assert out == "b\n"
    assert err.startswith("error[not-found]")
    assert server.asked[1].json == {"grace": 0.5, "signal": None}
    assert cli("stop", "-o", "json", "a", "b") == 125
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["ok"]) for row in rows] == [("a", False), ("b", True)]


def test_apply_and_dry_run(server: StubSupervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = {"kind": "Agent", "name": "a", "tenant": "default", "action": "created", "id": "x"}
    who = {"tenant": "default", "name": "b", "agent_id": "y"}
    effects = [{**who, "resource": "cpu", "before": 2.0, "after": 1.0}]
    effects.append({**who, "resource": "memory", "before": 2.0**30, "after": 2.0**31})
    server.answers["POST", "/v1/apply"] = (200, {"results": [result], "effects": effects})
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.yaml").write_text(DOCUMENT)
    assert cli("apply", "-f", str(tmp_path / "d"), "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "agent/default/a created (dry run)"
    assert [line.split() for line in lines[2:4]] == [
        ["default", "b", "cpu", "2.000", "1.000", "-1.000"],
        ["default", "b", "memory", "1Gi", "2Gi", "+1Gi"],
    ]
    assert "demand measured lately" in lines[4]
    server.answers["POST", "/v1/apply"] = (
        200,
        {"results": [{"kind": "Tenant", "name": "t", "tenant": "t", "action": "created"}]},
    )
    assert cli("apply", "-f", str(tmp_path / "d")) == 0
    assert capsys.readouterr().out == "tenant/t created\n"
    assert server.asked[0].json["dry_run"] is True
    (tmp_path / "d" / "y.yaml").write_text(DOCUMENT)
    assert cli("apply", "-f", str(tmp_path / "d")) == 125
    assert "duplicate-document" in capsys.readouterr().err


def test_validate_needs_no_supervisor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text(DOCUMENT)
    assert cli("validate", "-f", str(tmp_path / "x.yaml"), "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == [{"kind": "Agent", "spec": {"name": "a", "image": "i"}}]


def test_wait_prints_the_status(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["GET", "/v1/agents/a/wait"] = (200, {"exit_status": 3, "reason": "exited"})
    assert cli("wait", "a") == 0
    assert capsys.readouterr().out == "3\n"

    def never(handler: Any) -> None:
        time.sleep(0.5)

    server.answers["GET", "/v1/agents/a/wait"] = never
    assert cli("wait", "--timeout", "100ms", "a") == 124
    assert capsys.readouterr().err == "error[timeout]: the agent has not ended in this time: a\n"


def test_shares(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "tenant": "home",
        "agent_id": "1",
        "name": "a",
        "tier": "normal",
        "weight": 100,
        "request": 0.2,
        "limit": None,
        "demand": 2.0,
        "entitled": 0.7,
        "measured": 0.69,
        "kernel_weight": 100,
        "bound": "share",
        "memory_current": 2**20,
    }
    server.answers["GET", "/v1/alloc"] = (200, {"rows": [row]})
    server.answers["GET", "/v1/top"] = (
        200,
        {"node": {"cpu": {"capacity": 2000}}, "rows": [{**row, "type": "task", "pids_current": 3}]},
    )
    server.answers["GET", "/v1/alloc/a"] = (200, {"words": ["It has its share."], "demand": 2.0})
    assert cli("alloc", "show") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == (
        ["home", "a", "normal", "100", "0.200", "-", "2.000", "0.700", "0.690", "100", "share"]
    )
    assert cli("top", "--once") == 0
    assert "1Mi" in capsys.readouterr().out
    assert cli("alloc", "explain", "a") == 0
    assert capsys.readouterr().out.startswith("It has its share.\n")


def serve_run(server: StubSupervisor, stream: Any, **agent: Any) -> None:
    server.answers["POST", "/v1/agents"] = (201, agent_body(state="pending", **agent))
    server.answers["POST", "/v1/agents/0123456789ab/start"] = (200, agent_body(**agent))
    server.answers["POST", "/v1/agents/0123456789ab/kill"] = (200, agent_body())
    server.answers["DELETE", "/v1/agents/0123456789ab"] = (204, b"")
    server.streams["/v1/agents/0123456789ab/attach"] = stream


def test_run_in_the_foreground(server: StubSupervisor, capfd: pytest.CaptureFixture[str]) -> None:
    def stream(end: Socket) -> None:
        end.send(1, b"out\n")
        end.send(2, b"err\n")
        end.finish(exit_status=7, reason="exited")

    serve_run(server, stream, warnings=["weights have no effect here"])
    status = cli(
        "run", "--rm", "--name", "x", "--cpu-limit", "2", "--env", "A=b", "--restart", "never", "img", "sh", "-c", "x"
    )
    assert status == 7
    out, err = capfd.readouterr()
    assert out == "out\n"
    assert err == "warning: weights have no effect here\nerr\n"
    methods = [(asked.method, asked.path.rpartition("/")[2]) for asked in server.asked]
    assert methods == [("GET", "version"), ("POST", "agents"), ("GET", "attach"), ("POST", "start")]
    body = server.asked[1].json
    assert body["start"] is False
    assert body["spec"] == {
        "name": "x",
        "image": "img",
        "args": ["sh", "-c", "x"],
        "env": {"A": "b"},
        "autoRemove": True,
        "resources": {"limits": {"cpu": "2"}},
    }


def test_run_as_json(server: StubSupervisor, capfd: pytest.CaptureFixture[str]) -> None:
    def stream(end: Socket) -> None:
        end.send(1, b"caf\xc3\xa9 \xff")
        end.finish(exit_status=137, reason="oom-killed")

    serve_run(server, stream)
    assert cli("run", "-o", "json", "img") == 137
    result = json.loads(capfd.readouterr().out)
    assert (result["stdout"], result["exit_status"], result["oom_killed"]) == ("café �", 137, True)
    agent = result["agent"]
    assert (agent["state"], agent["exit_status"], agent["oom_killed"], agent["pid"]) == ("exited", 137, True, None)


def test_an_oom_kill_says_so(server: StubSupervisor, capfd: pytest.CaptureFixture[str]) -> None:
    serve_run(server, lambda end: end.finish(exit_status=137, reason="oom-killed"))
    assert cli("run", "--memory-limit", "64Mi", "img") == 137
    assert capfd.readouterr().err.startswith(
        "error[oom-killed]: the kernel killed it: out of memory (limit 64Mi): home/a"
    )


def test_a_run_that_cannot_start_leaves_nothing(server: StubSupervisor, capfd: pytest.CaptureFixture[str]) -> None:
    serve_run(server, lambda end: end.receive())
    error = AgentosError("command-not-found", "no such command: nope", exit_status=127)
    server.answers["POST", "/v1/agents/0123456789ab/start"] = (422, {"error": error.to_dict()})
    assert cli("run", "img", "nope") == 127
    assert capfd.readouterr().err.startswith("error[command-not-found]")
    assert ("DELETE", [("force", "1")]) in [(asked.method, asked.query) for asked in server.asked]


def test_a_run_outlives_its_supervisor(server: StubSupervisor, capfd: pytest.CaptureFixture[str]) -> None:
    serve_run(server, lambda end: end.send(1, b"partial"))
    server.answers["GET", "/v1/agents/0123456789ab/wait"] = (200, {"exit_status": 4, "reason": "exited"})
    assert cli("run", "img") == 4
    assert capfd.readouterr().out == "partial"


def test_signals_go_to_the_program(server: StubSupervisor) -> None:
    def stream(end: Socket) -> None:
        end.send(1, b"ready\n")
        while not any(asked.path.endswith("/kill") for asked in server.asked):
            time.sleep(0.01)
        end.finish(exit_status=143, reason="signal")

    serve_run(server, stream)
    running = process("run", "img")
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=20)
    assert (running.returncode, err) == (143, "")
    assert [asked.json for asked in server.asked if asked.path.endswith("/kill")] == [{"signal": "SIGTERM"}]


def test_standard_input_reaches_the_program(server: StubSupervisor) -> None:
    got: list[bytes | None] = []

    def stream(end: Socket) -> None:
        while (message := end.receive()) is not None:
            got.append(message)
            if message == b"\xff\x00":
                break
        end.finish(exit_status=0)

    serve_run(server, stream)
    running = process("run", "-i", "img", stdin=subprocess.PIPE)
    running.communicate("hello", timeout=20)
    assert running.returncode == 0
    assert got == [b"\x00hello", b"\xff\x00"]
    assert server.asked[1].json["spec"]["stdin"] is True


def test_detached_prints_the_id(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    serve_run(server, lambda end: None)
    assert cli("run", "-d", "img") == 0
    assert capsys.readouterr().out == "0123456789ab\n"
    assert server.asked[1].json["start"] is True


def test_exec_is_the_commands_status(server: StubSupervisor, capfd: pytest.CaptureFixture[str]) -> None:
    def stream(end: Socket) -> None:
        end.send(1, b"hi\n")
        end.finish(exit_status=9, reason="exited")

    server.streams["/v1/agents/home%2Fa/exec"] = stream
    assert cli("exec", "home/a", "ls", "-l", "--color") == 9
    assert capfd.readouterr().out == "hi\n"
    assert [value for name, value in server.asked[0].query if name == "command"] == ["ls", "-l", "--color"]


def test_a_reader_that_goes_away_is_no_defect(server: StubSupervisor) -> None:
    server.answers["GET", "/v1/agents"] = (200, {"agents": [agent_body()] * 5000})
    running = process("ps")
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    err = running.stderr.read()
    running.stderr.close()
    assert (running.wait(20), err) == (141, "")


def test_a_defect_is_reported_without_a_traceback(
    server: StubSupervisor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agentos_native.client.client.Client.agents", lambda *_, **__: 1 / 0)
    assert cli("ps") == 125
    err = capsys.readouterr().err
    assert err.startswith("error[internal]: ZeroDivisionError")
    assert "Traceback" not in err
    assert cli("--debug", "ps") == 125
    assert "Traceback" in capsys.readouterr().err


def test_the_embedded_supervisors_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTOS_STATE_DIR", "/elsewhere")
    argv = embedded_command("/run/x.sock", 7, 9)
    assert argv[1:6] == ["-m", "agentos_native.launcher", "--", sys.executable, "-m"]
    assert {"--embedded", "--socket=/run/x.sock", "--state-dir=/elsewhere"} <= set(argv)
    assert argv[argv.index("--ready-fd") + 1] == "7"
    assert argv[argv.index("--lifeline-fd") + 1] == "9"


def test_completion_asks_the_supervisor(server: StubSupervisor) -> None:
    server.answers["GET", "/v1/agents"] = (200, {"agents": [agent_body(name="thermostat")]})
    words = {"_AGENTOS_NATIVE_COMPLETE": "bash_complete", "COMP_WORDS": "agentos-native stop ther", "COMP_CWORD": "2"}
    done = process(env={**os.environ, **words})
    out, _ = done.communicate(timeout=20)
    assert "thermostat" in out


def cpu_seconds(argv: list[str]) -> float:
    """What one run of a Python process costs, user and system."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *argv], env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("argv", [["--help"], ["ps"]])
def test_start_up_is_cheap(server: StubSupervisor, argv: list[str]) -> None:
    """CPU time, the least of several, alternating with a bare interpreter.

    The budget is for a machine on which that takes `BARE_SECONDS`; neighbours on the same cores stretch both alike.
    """
    server.answers["GET", "/v1/agents"] = (200, {"agents": [agent_body()] * 10})
    command = ["-c", "import sys; from agentos_native.cli import main; sys.exit(main())", *argv]
    pairs = [(cpu_seconds(command), cpu_seconds(["-c", "pass"])) for _ in range(8)]
    least, bare = (min(column) for column in zip(*pairs, strict=True))
    assert least <= CPU_BUDGET_SECONDS * max(1.0, bare / BARE_SECONDS)


def on_terminal(*argv: str) -> tuple[int, str]:
    """A command whose standard streams are a terminal of 200 columns; its status and all that it wrote there."""
    program = [sys.executable, "-c", "import sys; from agentos_native.cli import main; sys.exit(main())"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    running = subprocess.Popen([*program, *argv], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other end is gone
        while piece := os.read(ours, 65536):
            written += piece
    os.close(ours)
    return running.wait(20), written.decode()


def test_a_terminal_gets_tables_and_bars(server: StubSupervisor, tmp_path: Path) -> None:
    server.answers["GET", "/v1/agents"] = (200, {"agents": [agent_body()]})
    status, shown = on_terminal("ps")
    assert status == 0
    assert "\x1b[32mrunning\x1b[0m" in shown
    image = {"digest": "sha256:1", "name": "i", "created": 1.0, "size": 2, "entries": 3}
    server.answers["POST", "/v1/images"] = (200, json.dumps({"kind": "done", "image": image}).encode() + b"\n")
    (tmp_path / "i.tar").write_bytes(b"x" * 1_000_000)
    status, shown = on_terminal("image", "import", "i", str(tmp_path / "i.tar"))
    assert status == 0
    assert "importing i" in shown
    assert shown.rstrip().endswith("sha256:1"), "the bar is gone before the result is printed"
