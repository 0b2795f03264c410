"""Filesystems that are empty at the beginning of every turn, so that no turn pays for what others have left.

The disk is an ext4 in a file on the machine's own disk. It is not that disk itself because syncfs writes out what
everybody has written to a filesystem, and because ext4 passes over inodes that were deleted a moment ago.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

SIZE: Final = 4 << 30
Filesystem = Callable[[], AbstractContextManager[Path]]
"""Called for each turn: an empty directory on a filesystem of its own, gone with all in it afterwards."""


@contextmanager
def disk(directory: Path) -> Iterator[Filesystem]:
    """A `Filesystem` in a file of `directory`; all of its blocks are there already."""
    with tempfile.NamedTemporaryFile(prefix="agentos-bench-", suffix=".img", dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, SIZE)

        @contextmanager
        def fresh() -> Iterator[Path]:
            subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", file.name], check=True)
            os.fsync(file.fileno())
            with _mounted(["-o", "loop", file.name]) as point:
                yield point

        yield fresh


def tmpfs() -> Filesystem:
    """A `Filesystem` in memory."""
    return lambda: _mounted(["-t", "tmpfs", "bench"])


@contextmanager
def _mounted(what: list[str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agentos-bench-") as point:
        subprocess.run(["mount", *what, point], check=True)
        try:
            yield Path(point)
        finally:
            subprocess.run(["umount", point], check=True)


def sync(path: Path) -> None:
    """Write out the filesystem that `path` is on (syncfs)."""
    subprocess.run(["sync", "-f", str(path)], check=True)
