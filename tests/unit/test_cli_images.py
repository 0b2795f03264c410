"""``image ls|history|tag|diff|verify|gc`` against a real server: tables, JSON, exit status, what a terminal gets."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.cli import entry
from agentos_native.cli.output import size
from tests.unit.apiserver import StubSupervisor, serving
from tests.unit.test_cli import on_terminal

DIGEST = "sha256:" + "ab" * 32
LAYER = "sha256:" + "cd" * 32


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubSupervisor]:
    with serving(str(tmp_path / "s")) as running:
        monkeypatch.setenv("AGENTOS_SOCKET", str(running.server_address))
        running.answers["GET", "/v1/version"] = (200, {"name": "agentos-native", "version": "9"})
        yield running


def image(**changed: Any) -> dict[str, Any]:
    layers = [{"digest": LAYER, "size": 2048, "entries": 3, "shared": 1}]
    return {
        "digest": DIGEST, "name": "a", "names": ["a"], "created": 1.0, "size": 3072, "entries": 5,
        "own_size": 1024, "shared_size": 2048, "layers": layers, **changed,
    }  # fmt: skip


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def finding(problem: str = "", layer: str = LAYER) -> dict[str, Any]:
    return {"kind": "finding", "finding": {"image": "a", "layer": layer, "problem": problem}, "done": 1, "total": 1}


def run(*argv: str) -> int:
    return entry.run(["image", *argv])


def test_ls_tells_own_from_shared_and_what_is_damaged(
    server: StubSupervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [image(), image(name="", layers=[], size=0, own_size=0, shared_size=0)]
    server.answers["GET", "/v1/images"] = (200, {"images": images})
    assert run("ls") == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "DIGEST", "SIZE", "OWN", "SHARED", "FILES", "AGE"]
    assert first.split()[:6] == ["a", "abababababab", "3Ki", "1Ki", "2Ki", "5"]
    assert (second.split()[0], second.split()[-1]) == ("-", "damaged")
    assert run("ls", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["shared_size"] == 2048


def test_a_long_name_leaves_the_other_columns_their_room() -> None:
    from rich.console import Console

    from agentos_native.cli.output import rich_table

    console = Console(width=40, file=io.StringIO())
    console.print(rich_table(("NAME", "DIGEST"), [("x" * 60, "abababababab")], fold=("NAME",)))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "abababababab" in shown
    assert shown.count("x") == 60


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (1536, "1.5Ki"), (1023 * 1024, "1023Ki"), (70.2 * (1 << 20), "70.2Mi")]
)
def test_sizes_are_written_without_an_exponent(value: float, shown: str) -> None:
    assert size(value) == shown


def test_ls_quiet_has_each_digest_once(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["GET", "/v1/images"] = (200, {"images": [image(), image(name="b")]})
    assert run("ls", "-q") == 0
    assert capsys.readouterr().out == f"{DIGEST}\n"


def test_inspect_is_for_people_unless_it_is_json(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    layers = [
        {"digest": LAYER, "size": 1536, "entries": 300, "shared": 2},
        {"digest": DIGEST, "size": 70 << 20, "entries": 7, "shared": 0},
    ]
    steps = [
        {"created_by": "COPY evil \x1b[2J /", "created": "2026-01-02T03:04:05Z", "layer": DIGEST, "size": 70 << 20},
        {"created_by": 'CMD ["x"]'},
    ]
    config = {"cmd": ["/bin/x"], "env": {"A": "b"}}
    given = image(
        type="learning", entries=307, size=73401856, own_size=70 << 20, shared_size=1536, layers=layers, history=steps
    )
    server.answers["GET", "/v1/images/a"] = (200, given | {"config": config})
    assert run("inspect", "a") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "type: learning" in lines
    assert "size: 70Mi in 307 files, 70Mi of it in no other image" in lines
    assert lines[lines.index("config:") : lines.index("layers, lowest first:")] == [
        "config:", "  cmd: /bin/x", "  env:", "    A: b",
    ]  # fmt: skip
    at = lines.index("layers, lowest first:")
    assert lines[at + 1 :] == [
        "LAYER          SIZE  FILES  OTHER IMAGES",
        "cdcdcdcdcdcd  1.5Ki    300             2",
        "abababababab   70Mi      7             0",
        "steps, newest first:",
        "LAYER         CREATED              SIZE  CREATED BY",
        '-             -                       -  CMD ["x"]',
        "abababababab  2026-01-02T03:04:05  70Mi  COPY evil \N{REPLACEMENT CHARACTER}[2J /",
    ]
    assert run("inspect", "a", "-o", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["size"], found["layers"], found["history"][1]["size"]) == (73401856, layers, 0)


def test_inspect_takes_several(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["GET", "/v1/images/a"] = (200, image(notes=["it is long: " + "x" * 100, "and another"]))
    server.answers["GET", "/v1/images/b"] = (200, image(name="b"))
    assert run("inspect", "a", "b", "-o", "json") == 0
    assert [found["name"] for found in json.loads(capsys.readouterr().out)] == ["a", "b"]
    assert run("inspect", "a", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "a"
    assert run("inspect", "a") == 0
    assert "notes:\n  - it is long: " in capsys.readouterr().out


def test_rm_force_overlooks_only_what_is_not_there(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["DELETE", "/v1/images/gone"] = (404, {"error": {"code": "image-not-found", "what": "no image"}})
    server.answers["DELETE", "/v1/images/used"] = (409, {"error": {"code": "image-in-use", "what": "used"}})
    assert run("rm", "gone") == 125
    assert run("rm", "-f", "gone") == 0
    capsys.readouterr()
    assert run("rm", "-f", "gone", "used") == 125
    assert "error[image-in-use]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["images"], "hint: image ls"),
        (["rmi", "x"], "hint: image rm"),
        (["image", "prune"], "hint: image gc"),
        (["image", "push", "x"], "skopeo copy"),
        (["image", "inspct"], "did you mean 'inspect'?"),
        (["image", "build", "--pull", "."], "image pull"),
        (["image", "build", "-t", "x"], "hint: agentos-native image build [OPTIONS] CONTEXT"),
        (["image", "build", "https://example.org/x.git"], "fetch it yourself"),
        (["image", "build", "-f", "-", "-"], "image build -f NAME -"),
        (["image", "export", "x", "/nonexistent/x.tar.gz"], "name it .tar"),
        (["image", "import", "/nonexistent", "x"], "is not allowed"),
        (["run", "-p", "80:80", "x"], "ports are not published"),
        (["run", "--cpus", "2", "x"], "hint: --cpu-limit is never exceeded"),
        (["run", "--privileged", "x"], "hint: nothing of the host's"),
        (["set", "x", "--memory", "1Gi"], "hint: --memory-limit"),
        (["ps", "--filter", "tenant=x"], "hint: --tenant"),
        (["ls"], "hint: ps, or image ls"),
        (["rename", "x", "y"], "hint: names stay"),
        (["describe", "pod", "x"], "hint: inspect"),
    ],
)
def test_habits_of_other_programs_get_a_hint(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(argv) == 125
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error[")
    assert said in err


def test_import_in_dockers_order_gets_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: StubSupervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root.tar").write_bytes(b"")
    assert run("import", "root.tar", "name") == 125
    assert "the name comes first: image import name root.tar" in capsys.readouterr().err


def test_history_is_newest_first_and_in_one_line_each(
    server: StubSupervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        {"created_by": "COPY . /\n  and more", "created": "2026-11-22T15:14:43Z", "layer": LAYER, "size": 7},
        {"created_by": "CMD " + "x" * 90, "created": "1970-01-01T00:00:00Z"},
    ]
    server.answers["GET", "/v1/images/a"] = (200, image(history=steps))
    assert run("history", "a") == 0
    _, newest, oldest = capsys.readouterr().out.splitlines()
    assert newest.split()[:2] == ["-", "-"] and newest.endswith("x…")
    assert oldest.split() == ["cdcdcdcdcdcd", "2026-11-22T15:14:43", "7", "COPY", ".", "/", "and", "more"]
    assert run("history", "a", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["layer"] == LAYER


def test_tag_sends_the_name_and_prints_the_digest(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["POST", "/v1/images/h%3A1%2Fa/tag"] = (200, image())
    assert run("tag", "h:1/a", "b") == 0
    assert capsys.readouterr().out.strip() == DIGEST
    assert server.asked[-1].json == {"name": "b"}
    assert run("tag", "a", "B") == 125
    assert "error[invalid-name]" in capsys.readouterr().err


def test_diff(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [{"kind": "A", "path": "/new\x1b[2J"}, {"kind": "D", "path": "/old"}]
    server.answers["GET", "/v1/images/a/diff"] = (200, {"changes": changes, "truncated": True})
    assert run("diff", "a", "b") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["A /new\N{REPLACEMENT CHARACTER}[2J", "D /old"]
    assert "more changes" in err
    assert server.asked[-1].query == [("against", "b")]


def test_verify_is_status_1_when_something_is_wrong(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    where = "POST", "/v1/images/verify"
    server.answers[where] = (200, lines(finding(layer=""), finding(), {"kind": "done"}))
    assert run("verify") == 0
    assert capsys.readouterr().out == "1 layer of 1 image: unchanged\n"
    server.answers[where] = (200, lines(finding(layer=""), finding("the layer was changed"), {"kind": "done"}))
    assert run("verify", "a") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == ["a", "cdcdcdcdcdcd", "the", "layer", "was", "changed"]
    assert err.startswith("hint: ")
    assert run("verify", "-o", "json") == 1
    assert [row["problem"] for row in json.loads(capsys.readouterr().out)] == ["", "the layer was changed"]


def test_a_verification_that_fails_or_breaks_off_is_no_success(
    server: StubSupervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    where = "POST", "/v1/images/verify"
    failed = {"kind": "failed", "error": {"code": "image-not-found", "what": "no image 'a'"}}
    server.answers[where] = (200, lines(failed))
    assert run("verify", "a") == 125
    assert "error[image-not-found]" in capsys.readouterr().err
    server.answers[where] = (200, lines(finding()))
    assert run("verify") == 125
    assert "error[connection-lost]" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_while_images_are_read(server: StubSupervisor) -> None:
    server.answers["POST", "/v1/images/verify"] = (200, lines(finding(), {"kind": "done"}))
    status, shown = on_terminal("image", "verify")
    assert status == 0
    assert "verifying a" in shown
    assert shown.rstrip().endswith(": unchanged"), "the bar is gone before the result is printed"


def test_gc(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    result = {"images": [DIGEST], "layers": [LAYER], "steps": 2, "bytes": 4096, "notes": ["something stays"]}
    server.answers["POST", "/v1/images/gc"] = (200, result)
    assert run("gc", "--dry-run", "--older-than", "7d") == 0
    assert server.asked[-1].json == {"dry_run": True, "older_than": 7 * 86400}
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "image  abababababab",
        "layer  cdcdcdcdcdcd",
        "would free 4Ki: 1 image, 1 layer, 2 steps of the build cache",
    ]
    assert err == "note: something stays\n"
    server.answers["POST", "/v1/images/gc"] = (200, result | {"notes": [], "kept_steps": 1, "kept_bytes": 2048})
    assert run("gc", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert server.asked[-1].json == {"dry_run": False, "older_than": 7 * 86400}
    assert run("gc", "--all") == 0
    assert server.asked[-1].json == {"dry_run": False, "older_than": None}
    assert capsys.readouterr().err == "the build cache keeps 1 step with 2Ki: --all frees that\n"
    assert run("gc", "--all", "--older-than", "7d") == 125
    assert "one of them" in capsys.readouterr().err
    assert run("gc", "--older-than", "soon") == 125
    assert "--older-than" in capsys.readouterr().err
