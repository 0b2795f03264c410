"""These tests need cgroup v2 with all controllers, and change their machine: they run in the virtual machine only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("AGENTOS_VM") == "1":
        return
    elsewhere = pytest.mark.skip(reason="runs in the virtual machine: tools/vm run -- pytest tests/vm")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(elsewhere)
