"""What the supervisor gives an agent out of its own state is given under a name, for a while, and to nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentos_native.errors import AgentosError
from agentos_native.supervisor import grants
from agentos_native.supervisor.grants import Grants


def test_a_grant_leads_to_its_path_while_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def mounted(*words: Any) -> int:
        asked.append(words)
        return 7

    monkeypatch.setattr(grants, "volume_mount", mounted)
    made = Grants()
    with made.granted("/state/images/caches/x/tree") as source, made.granted("/state/other") as other:
        assert source != other
        assert made.mount(source, 3, True, private="/state") == 7
        assert made.mount("/state/other", 3, False, private="/state") == 7
    made.mount(source, 3, True, private="/state")
    assert asked == [
        ("/state/images/caches/x/tree", 3, True),
        ("/state/other", 3, False, "/state"),
        (source, 3, True, "/state"),
    ]


def test_the_path_itself_is_refused_also_while_it_is_granted(tmp_path: Path) -> None:
    made = Grants()
    tree = tmp_path / "tree"
    tree.mkdir()
    with made.granted(str(tree)) as source, pytest.raises(AgentosError, match="the supervisor's own state"):
        made.mount(str(tree), -1, False, private=str(tmp_path))
    with pytest.raises(AgentosError, match="volume-not-found"):
        made.mount(source, -1, False, private=str(tmp_path))
