"""Fixtures of the tests that need root and this machine's kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.networks import World, require_outer_namespace
from tests.sandboxes import Node
from tests.supervisors import Place, place


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A launcher with the test as its supervisor, shared by the tests of one file."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Node() as ready:
        yield ready


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """What agents of a network could reach, shared by the tests of one file."""
    require_outer_namespace()
    made = World()
    yield made
    made.close()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A supervisor that runs and has the image ``box``, shared by the tests of one file."""
    require_outer_namespace()
    with place(tmp_path_factory.mktemp("ground"), "ground") as made:
        made.start()
        yield made


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """An empty directory to build from."""
    directory = tmp_path / "context"
    directory.mkdir()
    return directory
