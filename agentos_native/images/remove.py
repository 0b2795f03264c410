"""Removing a tree that an agent or an archive may have shaped: by fds, without following links, without recursion.

Depth is no limit: a directory found too deep is moved up to the top and removed from there, so neither fds nor the
length of a path grow with the tree. Mounts are not entered (RESOLVE_NO_XDEV), and removing a mount point fails with
EBUSY.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.images.unpack.writer import STRICT
from agentos_native.kernel.openat2 import openat2

_DEPTH_MAX: Final = 16
_READ: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
_TRIES: Final = 50


class _Remover:
    def __init__(self, top: int) -> None:
        self._top = top
        self._moved: list[str] = []
        self._count = 0
        self._prefix = secrets.token_hex(8)  # not to be guessed: a name that is taken would stop the removal

    def tree(self, parent: int, name: str, depth: int = 0) -> None:
        """Remove the directory `name` in `parent`."""
        try:
            os.rmdir(name, dir_fd=parent)  # most directories of an unused upper are empty
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if depth >= _DEPTH_MAX:
            moved = f"{self._prefix}-{self._count}"
            self._count += 1
            os.rename(name, moved, src_dir_fd=parent, dst_dir_fd=self._top)
            self._moved.append(moved)
            return
        descriptor = openat2(parent, name, _READ, resolve=STRICT)
        try:
            self.content(descriptor, depth + 1)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=parent)

    def content(self, directory: int, depth: int) -> None:
        """Remove everything in the directory fd `directory`."""
        with os.scandir(directory) as found:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        for name, is_directory in names:
            if is_directory:
                self.tree(directory, name, depth)
            else:
                os.unlink(name, dir_fd=directory)

    def moved(self) -> None:
        """Remove what was moved up, and what is moved up from there."""
        while self._moved:
            self.tree(self._top, self._moved.pop())


def remove_tree(parent: int, name: str) -> None:
    """Remove `name` in the directory fd `parent`, whatever it is; nothing to do when it is not there.

    The tree must be nobody's any more: no process may be able to change it.

    Raises:
        AgentosError: ``not-removed``; a mount in it, or the filesystem fails.
    """
    for attempt in range(_TRIES):
        try:
            _remove(parent, name)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            # a process that was killed a moment ago may still have been inside one last system call
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == _TRIES - 1:
                raise _explain(name, error) from None
            time.sleep(0.01)


def _remove(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
        return
    except IsADirectoryError:
        pass
    descriptor = openat2(parent, name, _READ, resolve=STRICT)
    try:
        remover = _Remover(descriptor)
        remover.content(descriptor, 1)
        remover.moved()
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=parent)


def _explain(name: str, error: OSError) -> AgentosError:
    hint = "something is mounted in it: unmount it, then try again" if error.errno in (errno.EBUSY, errno.EXDEV) else ""
    return AgentosError("not-removed", f"{name!r} cannot be removed: {error.strerror}", f"errno {error.errno}", hint)


def remove_path(path: str | os.PathLike[str]) -> None:
    """`remove_tree` for a path whose parent is trusted."""
    directory, name = os.path.split(os.path.abspath(path))
    with contextlib.suppress(FileNotFoundError):
        parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(parent, name)
        finally:
            os.close(parent)
