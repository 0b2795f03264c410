"""Records that nobody of ours has written: pipes and devices for segments, and frames whole but for their sense."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agentos_native.recording.__main__ import main
from agentos_native.recording.options import Report
from tests.unit.test_recording import Source, record, run_replay


def run_report(directory: Path) -> int:
    request = Report(directory=str(directory), output=str(directory / "page.html"))
    return main([msgspec.json.encode(request).decode()])


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_only_files_are_read(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    segment = tmp_path / "0000000001.ticks"
    if kind == "pipe":
        os.mkfifo(segment)
    else:
        segment.symlink_to("/dev/zero")
    for run in (run_replay, run_report):
        assert run(tmp_path) == 125
        assert "error[cannot-read]: not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("fields", [{"wall": 1e300}, {"share": np.ones(3)}])
def test_figures_that_make_no_sense_are_told(
    tmp_path: Path, fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, [replace(Source(3).tick(), **fields)])
    assert run_report(tmp_path) == 125
    assert "error[record-damaged]: figures in it make no sense" in capsys.readouterr().err
