"""A layer of a COPY is what its key says, also when somebody writes to the context meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.build import context
from agentos_native.images.build.model import Copy
from agentos_native.images.store import ImageStore
from agentos_native.supervisor.building.workshop import Hand, Workshop
from tests.images import needs_root

pytestmark = needs_root


def test_a_file_that_changes_after_its_key_was_made(tmp_path: Path) -> None:
    files = tmp_path / "context"
    files.mkdir()
    (files / "file").write_text("before")
    workshop, hand = Workshop(ImageStore(tmp_path / "store")), Hand()
    copy = Copy(sources=("file",), destination="/file")
    key = f"step:sha256:{'0' * 64}"
    root = os.open(files, os.O_RDONLY | os.O_DIRECTORY)
    try:
        selection, _ = workshop.selected(copy, context.Tree(root))
        (files / "new").write_text("behind")
        (files / "new").rename(files / "file")
        with workshop.catalog.lease():
            with pytest.raises(AgentosError) as failure:
                workshop.copy(hand, copy, selection, (), key, lambda _: None)
            assert failure.value.code == "context-changed"
            assert workshop.catalog.known(key) is None
    finally:
        os.close(root)
        hand.drop()
        workshop.threads.shutdown()
