"""A real supervisor records; it is killed as it stands; what it left is whole, replays bit for bit, and is drawn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.recording import reader
from agentos_native.recording.model import Entry, Happening, Rows, Tick
from tests.networks import require_outer_namespace
from tests.supervisors import Place, eventually, place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PROGRAM = [sys.executable, "-c", "import sys; from agentos_native.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_outer_namespace()
    with place(tmp_path_factory.mktemp("recording"), "rec") as made:
        yield made


def entries(here: Place) -> list[Entry]:
    return list(reader.read(str(here.directory / "state" / "recording")))


def ticks(here: Place) -> list[Tick]:
    return [entry for entry in entries(here) if isinstance(entry, Tick)]


def program(here: Place, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AGENTOS_STATE_DIR": str(here.directory / "state")}
    return subprocess.run([*PROGRAM, *argv], env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_a_killed_supervisors_record_is_replayed_and_drawn(here: Place) -> None:
    launcher = here.start()
    reserved: dict[str, Any] = {"resources": {"requests": {"cpu": "100m"}}, "allowUnenforced": ["cpu"]}
    here.run("worker", "sh", "-c", "while :; do :; done", **reserved)
    here.run("sleeper", "sleep", "1000", tenant="other", network="egress")
    # the ring is written every 10 seconds
    eventually(lambda: any(len(tick.share) == 2 for tick in ticks(here)), "both agents are in the record")
    during = program(here, "report", "-o", "-", "--agent", "worker")  # while it runs
    assert during.returncode == 0, during.stderr
    assert "default/worker" in during.stdout
    here.kill(launcher)

    before = len(ticks(here))
    replayed = program(here, "alloc", "replay")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert f"{before} ticks of" in replayed.stdout
    assert replayed.stdout.rstrip().endswith("0 differ")

    launcher = here.start()
    assert here.stop(launcher) == 0  # which writes what was still to be written
    after = ticks(here)
    assert len(after) > before
    assert len({tick.session for tick in after}) >= 2
    used = max(float(tick.used[[m.name for m in tick.roster.agents].index("worker")]) for tick in after if _has(tick))
    assert used > 0.02  # of a machine that may be busy with other things
    network = [entry for entry in entries(here) if isinstance(entry, Rows) and entry.resource == "network"]
    assert network
    assert all(row["measured"] >= 0 for entry in network for row in entry.agents.values())
    kinds = {entry.kind for entry in entries(here) if isinstance(entry, Happening)}
    assert "started" in kinds

    page = here.directory / "page.html"
    reported = program(here, "report", "-o", str(page))
    assert reported.returncode == 0, reported.stderr
    assert f"{len(after)} ticks, 2 agents" in reported.stdout
    text = page.read_text()
    assert "default/worker" in text
    assert "other/sleeper" in text

    path = Path(_segments(here)[0])
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    damaged = program(here, "alloc", "replay", str(here.directory / "state"))
    assert damaged.returncode == 1
    assert "damaged" in damaged.stdout


def _has(tick: Tick) -> bool:
    return any(member.name == "worker" for member in tick.roster.agents)


def _segments(here: Place) -> list[str]:
    directory = here.directory / "state" / "recording"
    return sorted(str(path) for path in directory.iterdir())
