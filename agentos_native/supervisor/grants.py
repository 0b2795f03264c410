"""Volumes that the supervisor itself gives to an agent, out of its own state, which no spec may name."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

from agentos_native.images.volume import volume_mount


class Grants:
    """One per supervisor: what a path that leads nowhere stands for, for as long as it is granted."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}

    @contextlib.contextmanager
    def granted(self, path: str) -> Iterator[str]:
        """What a spec says as a volume's source to be given `path`; it cannot be guessed."""
        source = f"/granted-{secrets.token_hex(16)}"
        self._paths[source] = path
        try:
            yield source
        finally:
            del self._paths[source]

    def mount(self, source: str, userns_fd: int, read_only: bool, *, private: str) -> int:
        """See `volume_mount`, which is asked without `private` for what is granted."""
        path = self._paths.get(source)
        if path is None:
            return volume_mount(source, userns_fd, read_only, private)
        return volume_mount(path, userns_fd, read_only)
