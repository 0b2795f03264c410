"""Fixtures of the tests that need root and this machine's kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.networks import World, require_outer_namespace
from tests.sandboxes import Node


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
