"""What one supervisor is told when it starts: the settings that users know, and its ties to whoever started it."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from agentos_native.spec.settings import Settings

RUN_DIR: Final = "/run/agentos-native"
"""Shared by every supervisor of the machine: the claims of blocks."""
INITS: Final = ("/usr/bin/tini-static", "/usr/bin/catatonit", "/usr/libexec/podman/catatonit", "/sbin/tini-static")
"""Static inits by where distributions put them; executed by fd inside, so they must need no loader."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Settings and the file descriptors of an embedding program.

    Args:
        ready_fd: written to ("ready\\n") and closed when the API answers; -1: none.
        lifeline_fd: the supervisor stops when this pipe's other end is closed; -1: none.
    """

    settings: Settings = Settings()
    run_dir: str = RUN_DIR
    embedded: bool = False
    ready_fd: int = -1
    lifeline_fd: int = -1

    @property
    def state_dir(self) -> str:
        return self.settings.state_dir

    def agent_dir(self, agent_id: str) -> str:
        """Where an agent's files are."""
        return os.path.join(self.settings.state_dir, "agents", agent_id)
