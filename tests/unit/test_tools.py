"""The tools' own logic: what tools/test counts and selects, and what tools/vm brings in and out of the machine."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "lib"))

import suite  # type: ignore  # noqa: E402
from vm import qemu, session, stage  # type: ignore  # noqa: E402

STAGES = {item.name: item for item in suite.stages()}


def selected(*patterns: str) -> dict[str, Any]:
    selection = suite.Selection.of(patterns, list(STAGES))
    found = {name: selection.arguments(item) for name, item in STAGES.items()}
    return {name: arguments for name, arguments in found.items() if arguments is not None}


def test_no_pattern_selects_everything() -> None:
    assert selected() == {
        "lint": [],
        **{name: [f"tests/{name}"] for name in ("unit", "kernel", "escape", "vm")},
    }


def test_patterns_are_stages_paths_or_expressions() -> None:
    assert selected("lint", "vm") == {"lint": [], "vm": ["tests/vm"]}
    assert selected("tests/unit/test_tools.py::x") == {"unit": ["tests/unit/test_tools.py::x"]}
    assert selected("unit", "veth") == {"unit": ["tests/unit", "-k", "veth"]}
    assert set(selected("veth")) == {"unit", "kernel", "escape", "vm"}


@pytest.mark.parametrize(
    ("line", "totals"),
    [
        ("==== 1 failed, 347 passed, 6 errors in 465.63s (0:07:45) ====", {"passed": 347, "failed": 7}),
        ("==== 18 passed in 180.79s (0:03:00) ====", {"passed": 18}),
        ("3 passed, 2 skipped, 1 xfailed in 0.10s", {"passed": 3, "skipped": 2, "xfailed": 1}),
        ("Killed", {}),
    ],
)
def test_totals_of_pytests_last_line(line: str, totals: dict[str, int]) -> None:
    assert suite.count(f"7 passed the gate\n{line}\n") == Counter(totals)


def test_a_limit_ends_the_command() -> None:
    status, output = suite.run_limited(["sh", "-c", "echo begun; sleep 60"], 0.5)
    assert (status, output) == (124, "begun\n")


@pytest.mark.parametrize(("required", "status"), [("1", 1), ("0", 0)])
def test_required_mode_fails_skips(tmp_path: Path, required: str, status: int) -> None:
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests/conftest.py").read_bytes())
    source = "import pytest\ndef test_one():\n pytest.skip('no such kernel')\n"
    (tmp_path / "test_it.py").write_text(source, encoding="utf-8")
    pytest_here = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    env = {**os.environ, "AGENTOS_TESTS_REQUIRED": required}
    done = subprocess.run(pytest_here, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "no such kernel" in done.stdout) == (status, required == "1"), done.stdout


def test_staged_files_are_as_old_as_their_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one", encoding="utf-8")
    stage._copy(tmp_path / "a", tmp_path / "tree/a")
    first = (tmp_path / "tree/a").stat()
    os.utime(tmp_path / "a")
    stage._copy(tmp_path / "a", tmp_path / "tree/a")
    same = (tmp_path / "tree/a").stat()
    (tmp_path / "a").write_text("two", encoding="utf-8")
    stage._copy(tmp_path / "a", tmp_path / "tree/a")
    other = (tmp_path / "tree/a").stat()
    assert (first.st_mtime_ns, first.st_ino) == (same.st_mtime_ns, same.st_ino)
    assert other.st_mtime_ns != first.st_mtime_ns
    assert other.st_mtime_ns % 1_000_000_000 == 0


def test_an_archive_cannot_leave_its_directory(tmp_path: Path) -> None:
    run = session.Session(machine=None, kvm=False, console=tmp_path / "console")
    with tarfile.open(fileobj=run.archive, mode="w") as archive:
        for name in ("./d/in", "../../out", "/abs"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    run.unpack(tmp_path / "to" / "here")
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert files == {"to/here/d/in", "to/here/out", "to/here/abs"}


def test_steady_time_is_emulated_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "version", lambda: (9, 0))
    assert "thread=multi" in qemu.tcg_arguments(steady=False)[1]
    assert "thread=single" in qemu.tcg_arguments(steady=True)[1]
    monkeypatch.setattr(qemu, "version", lambda: (7, 2))
    assert "thread=single" in qemu.tcg_arguments(steady=False)[1]
