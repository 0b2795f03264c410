"""``image build`` against a server with canned events: the request, what is shown where, and how failures look."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.cli import entry
from agentos_native.cli.images import progress
from agentos_native.wire.images import ImageEvent
from tests.unit.apiserver import StubSupervisor, serving

DIGEST = "sha256:" + "1" * 64
IMAGE = {"digest": DIGEST, "name": "app", "names": ["app"], "created": 1.0, "size": 1, "entries": 1}
STEPS: list[dict[str, Any]] = [
    {"kind": "step", "step": 1, "steps": 2, "line": 1, "text": "FROM box"},
    {"kind": "step", "step": 2, "steps": 2, "line": 2, "text": "RUN make"},
    {"kind": "log", "step": 2, "text": "evil \x1b[2J\x07 line"},
]
ERROR = {
    "code": "build-failed", "what": "step 2/2 (Dockerfile:2) RUN make", "where": "exit status 2", "hint": "look",
    "details": {"output": ["evil \x1b[2J\x07 line", "last"]},
}  # fmt: skip


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubSupervisor]:
    path = str(tmp_path / "s.sock")
    monkeypatch.setenv("AGENTOS_SOCKET", path)
    with serving(path) as made:
        made.answers["GET", "/v1/version"] = (200, {"name": "agentos-native", "version": "0"})
        yield made


def tells(server: StubSupervisor, *events: dict[str, Any]) -> None:
    server.answers["POST", "/v1/builds"] = (200, b"".join(json.dumps(event).encode() + b"\n" for event in events))


def asked(server: StubSupervisor) -> Any:
    return next(asked.json for asked in server.asked if asked.path == "/v1/builds")


def test_the_request_says_what_the_options_say(
    server: StubSupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tells(server, *STEPS, {"kind": "done", "image": IMAGE})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FROM_HERE", "x=y")
    words = ["-t", "app", "-t", "app:2", "-f", "other/File", "--build-arg", "A=b", "--build-arg", "FROM_HERE"]
    words += ["--target", "t", "--no-cache", "--network", "egress", "--label", "l=m", "--debug-shell", "."]
    assert entry.run(["image", "build", *words]) == 0
    assert asked(server) == {
        "context": str(tmp_path), "file": str(tmp_path / "other/File"), "names": ["app", "app:2"],
        "args": {"A": "b", "FROM_HERE": "x=y"}, "labels": {"l": "m"}, "target": "t", "network": "egress",
        "no_cache": True, "keep_failed": True, "tenant": "default", "cpu_limit": "", "memory_limit": "",
    }  # fmt: skip
    shown = capsys.readouterr()
    assert shown.out == f"{DIGEST}\n"
    assert "#2 [2/2] RUN make\n" in shown.err
    assert "\x1b" not in shown.err
    assert "evil" in shown.err


def test_quiet_and_json_give_nothing_else(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    tells(server, *STEPS, {"kind": "done", "image": IMAGE})
    assert entry.run(["image", "build", "-q", "/"]) == 0
    assert capsys.readouterr() == (f"{DIGEST}\n", "")
    assert entry.run(["image", "build", "-o", "json", "/"]) == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out)["digest"], shown.err) == (DIGEST, "")


def test_a_failure_repeats_the_output_where_it_was_not_shown(
    server: StubSupervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    tells(server, *STEPS, {"kind": "failed", "error": ERROR})
    assert entry.run(["image", "build", "-q", "/"]) == 125
    quiet = capsys.readouterr().err
    assert quiet.endswith("last\nerror[build-failed]: step 2/2 (Dockerfile:2) RUN make: exit status 2\n  hint: look\n")
    assert "\x1b" not in quiet
    assert entry.run(["image", "build", "/"]) == 125
    plain = capsys.readouterr().err
    assert (plain.count("evil"), "#2 ERROR" in plain) == (1, True)


def test_a_file_that_is_relative_to_the_context_only_is_hinted_at(
    server: StubSupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app" / "sub").mkdir(parents=True)
    (tmp_path / "app" / "sub" / "Dockerfile").touch()
    assert entry.run(["image", "build", "-f", "sub/Dockerfile", "app"]) == 125
    assert "relative to the current directory: -f app/sub/Dockerfile" in capsys.readouterr().err


def test_a_supervisor_that_goes_away_is_told(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    tells(server, *STEPS)
    assert entry.run(["image", "build", "-q", "/"]) == 125
    assert "error[connection-lost]" in capsys.readouterr().err


@pytest.mark.parametrize("height", [8, 60])
def test_the_live_list_shows_the_step_under_way_and_at_the_end_all(
    monkeypatch: pytest.MonkeyPatch, height: int
) -> None:
    from rich.console import Console

    live = progress._Live("app", lambda: height)
    for number in range(1, 41):
        live.show(ImageEvent(kind="step", step=number, steps=40, text=f"RUN {number}"))
        if number % 2:
            live.show(ImageEvent(kind="cached", step=number))
    for line in range(20):
        live.show(ImageEvent(kind="log", step=40, text=f"line {line}\r\nmore\x1b[2J"))
    live.show(ImageEvent(kind="progress", step=40, what="3 files", done=2048))

    def screen() -> str:
        console = Console(file=io.StringIO(), width=80)
        console.print(live.render())
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    under_way = screen()
    assert "[40/40] RUN 40" in under_way
    assert "3 files, 2Ki" in under_way
    assert "CACHED" in under_way
    assert "\x1b[2J" not in under_way
    assert under_way.count("\n") <= max(height, 16)
    live.show(ImageEvent(kind="failed"))
    assert "ERROR" in screen()
    assert screen().count("RUN") == 40


class _Input:
    """Standard input that is a pipe with `data`."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


TAR = bytes(148) + b"0000400\0" + bytes(356)
"""A header of zeros whose checksum is right: eight spaces."""


@pytest.mark.parametrize(
    ("data", "words", "directory", "file"),
    [
        (b"FROM box\n", ("-",), True, "Dockerfile"),
        (b"FROM box\n" + b"# long\n" * 1000, ("-",), True, "Dockerfile"),
        (TAR, ("-",), False, ""),
        (TAR, ("-f", "./a//b", "-"), False, "a/b"),
        (b"\x1f\x8bmore", ("-",), False, ""),
        (b"FROM box\n", ("-f", "-", "/"), True, "Dockerfile"),
    ],
)
def test_what_comes_over_standard_input(
    server: StubSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    words: tuple[str, ...],
    directory: bool,
    file: str,
) -> None:
    monkeypatch.setattr("sys.stdin", _Input(data))
    seen: list[tuple[bool, bytes]] = []

    def look(handler: Any) -> None:
        wanted = asked(server)
        path = Path(wanted["file"]) if directory else Path(wanted["context"])
        seen.append((os.path.isdir(wanted["context"]), path.read_bytes()))
        body = json.dumps({"kind": "done", "image": IMAGE}).encode() + b"\n"
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    server.answers["POST", "/v1/builds"] = look
    assert entry.run(["image", "build", "-q", *words]) == 0
    assert seen == [(directory, data)]
    wanted = asked(server)
    assert os.path.basename(wanted["file"]) == file if directory else wanted["file"] == file
    assert not os.path.exists(wanted["file"] or wanted["context"]), "what was copied for the build is gone"


@pytest.mark.parametrize(
    ("data", "words", "said"),
    [
        (b"FROM box\n", ("-f", "File", "-"), "no tar that the Dockerfile could be in"),
        (TAR, ("-f", "/File", "-"), "-f File"),
        (TAR, ("-f", "-", "-"), "not both"),
    ],
)
def test_what_cannot_be_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: bytes, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr("sys.stdin", _Input(data))
    assert entry.run(["image", "build", *words]) == 125
    assert said in capsys.readouterr().err


def test_a_copy_of_standard_input_that_does_not_fit_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sys.stdin", _Input(b"FROM box\n"))
    monkeypatch.setattr("shutil.copyfileobj", full)
    assert entry.run(["image", "build", "-"]) == 125
    said = capsys.readouterr().err
    assert "error[cannot-write]" in said and "No space left" in said and "TMPDIR" in said


def test_a_command_that_is_told_to_end_takes_its_copy_away(tmp_path: Path) -> None:
    program = "from agentos_native.cli.images.context import given\nwith given('-', None): pass"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, env=environment) as process:
        while not list(tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
