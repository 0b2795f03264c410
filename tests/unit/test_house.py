"""The house rules that a machine can hold: floors of imports, sizes of files and functions, strict types."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "agentos_native"
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_imports_go_down_only() -> None:
    program = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_are_checked_strictly() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"] is True
    assert "agentos_native" in settings["files"]
    assert not any(override.get("ignore_errors") for override in settings["overrides"])


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_have_one_subject_and_say_which(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file opens by saying what it is about"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


FORBIDDEN_AT_START = (
    *("numba", "numpy", "pyroute2", "rich", "yaml", "asyncio", "starlette", "wsproto", "ssl", "http.client"),
)


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["ps", "--help"]])
def test_the_command_line_imports_only_what_it_needs(command: list[str]) -> None:
    program = (
        "import sys; from agentos_native.cli.entry import run; status = run(sys.argv[1:]);"
        f"loaded = [name for name in {FORBIDDEN_AT_START!r} if name in sys.modules];"
        "print('LOADED', loaded, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "LOADED []"
