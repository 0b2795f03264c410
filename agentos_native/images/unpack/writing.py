"""Writing a filesystem out in threads while the rest goes on: now and then while files are made, and at last.

What the disk has already when the last file is made need not be waited for then, which is a quarter of an import.
"""

from __future__ import annotations

import threading
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.kernel.libc import libc_call

_STEP: Final = 16 << 20
"""Often enough to keep the disk busy; each time the makers of files wait for the journal for a moment."""


class Writing:
    """Of the filesystem of the fd `tree`; one thread at a time, and one for the last time."""

    def __init__(self, tree: int) -> None:
        self._tree = tree
        self._size = 0
        self._threads: list[threading.Thread] = []
        self._failures: list[OSError] = []

    def more(self, size: int) -> None:
        """There is a further file of `size` bytes."""
        self._size += size
        if self._size < _STEP:
            return
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if not self._threads:
            self._size = 0
            self.all()

    def all(self) -> None:
        """Write out what there is now."""
        thread = threading.Thread(target=self._write, name="syncfs")
        self._threads.append(thread)
        thread.start()

    def wait(self) -> None:
        """Until all that was begun is on the disk.

        Raises:
            AgentosError: ``disk-failed``; each failure is told once, to whichever call comes next (see syncfs(2)).
        """
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise AgentosError(
                "disk-failed",
                f"the image cannot be written to the disk: {self._failures[0].strerror}",
                hint="nothing of it was kept; the kernel's log (dmesg) says more about the disk",
            )

    def _write(self) -> None:
        try:
            libc_call("syncfs", self._tree)
        except OSError as error:
            self._failures.append(error)
