"""How a command finds the supervisor that answers it, on fakes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from agentos_native.cli import embedded
from agentos_native.client import Client
from agentos_native.errors import AgentosError


def test_run_d_looks_a_moment_longer_for_a_supervisor_that_was_just_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = AgentosError("no-supervisor", "there is no socket")
    looks: list[AgentosError | None] = [missing, missing, None]
    monkeypatch.setattr(embedded, "_UNSEEN_SECONDS", 60.0)
    monkeypatch.setattr(embedded, "_missing", lambda client: looks.pop(0))
    monkeypatch.setattr(embedded, "_is_coming", lambda socket: False)  # it has not even the state directory yet
    client, fifo = Client(str(tmp_path / "s")), str(tmp_path / "fifo")
    with contextlib.ExitStack() as stack:
        assert not embedded._enter(client, fifo, stack, lasting=True, named=False)
        assert not looks
        monkeypatch.setattr(embedded, "_UNSEEN_SECONDS", 0.0)
        looks.append(missing)
        with pytest.raises(AgentosError, match="no-supervisor"):
            embedded._enter(client, fifo, stack, lasting=True, named=False)
