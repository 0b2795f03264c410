"""Overlays of an image's layers, lowest first: what an agent gets below its private layer, and views for reading.

All layers of an image are directories of ``<store>/layers``. That one directory is cloned (open_tree) and has its ids
mapped, and the layers are opened inside the clone, so that forty layers cost hardly more than one.

Options of every overlay here:

- ``userxattr``: the marks of overlayfs (opaque directories) are ``user.overlay.*``, which the unprivileged unpacker can
  set. An agent's own attributes of such names are escaped by the kernel (``user.overlay.overlay.*``), so that it can
  forge none.
- ``redirect_dir=nofollow`` (``off`` is EINVAL with userxattr), ``metacopy=off``, ``index=off``: features that need
  marks which nothing here needs.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final, NamedTuple

from agentos_native.kernel import mount as kernel_mount
from agentos_native.kernel import ns
from agentos_native.kernel.libc import AT_EMPTY_PATH, AT_FDCWD, SyscallError
from agentos_native.kernel.mount import (
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
)

_PATH: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPTIONS: Final = (("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"))
_LOWER_ATTRIBUTES: Final = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID
_VIEW_ATTRIBUTES: Final = _LOWER_ATTRIBUTES | MOUNT_ATTR_NOEXEC


class Style(enum.Enum):
    """How the overlay is told its layers; found by trying, the first that works is kept."""

    BY_FD = enum.auto()
    """fsconfig with fds: Linux 6.13 (commit a08557d19ef4), with detached mounts since 6.15 (commit ae63304102ec)."""
    BY_PATH = enum.auto()
    """/proc/self/fd/<n> of detached mounts."""
    ATTACHED = enum.auto()
    """The clone is attached meanwhile: before 6.15 only mounts of the caller's own mount namespace are taken."""


_UNKNOWN_STYLE: Final = (errno.EINVAL, errno.EBADF)
"""What a kernel answers to a style that it does not know: EBADF is for O_PATH fds in fsconfig, as 6.12 gives it."""
_style: Style | None = None


class Private(NamedTuple):
    """A writable layer on top; `work` is on the same filesystem, and empty but for what overlayfs left there."""

    upper: Path
    work: Path


def view(layers: Sequence[Path], userns_fd: int | None) -> int:
    """`layers` merged, for reading only, as a detached mount (no devices, no set-user-ID, nothing can be executed): an
    O_PATH fd, which the caller closes.

    Args:
        layers: lowest first, at least one. A single one is given as it is: its whiteouts and marks are seen.
        userns_fd: the user namespace that ids 0 … are shown through; None shows them as they are on disk.

    Raises:
        OSError: a layer is not there, or the filesystem cannot do it.
    """
    layers = once(layers)
    if len(layers) > 1:
        return assemble(layers, userns_fd, attributes=_VIEW_ATTRIBUTES)
    return _clone(str(layers[0]), userns_fd, _VIEW_ATTRIBUTES)


@contextlib.contextmanager
def reading(layers: Sequence[Path]) -> Iterator[int]:
    """`layers` merged with their ids as on disk, for a look at a few files: an O_PATH fd.

    A single layer is no mount of its own: whoever opens files in it must see first what they are.
    """
    layers = once(layers)
    merged = view(layers, None) if len(layers) > 1 else os.open(layers[0], _PATH)
    try:
        yield merged
    finally:
        os.close(merged)


def once(layers: Sequence[Path]) -> list[Path]:
    """Each layer where it is uppermost: overlayfs refuses the same directory twice (ELOOP), and what is seen of a layer
    that comes again above is only what it shows there. Two steps that write nothing make the same layer."""
    return [*dict.fromkeys(reversed(layers))][::-1]


def assemble(
    layers: Sequence[Path],
    userns_fd: int | None,
    private: Private | None = None,
    *,
    above: Path | None = None,
    attributes: int,
) -> int:
    """An overlay of `layers`, lowest first, as a detached mount; the caller closes it.

    Args:
        userns_fd: the user namespace that the layers' ids 0 … are mapped through; None leaves them.
        private: where writes go; without it the overlay is read-only, and needs two directories at least.
        above: one more read-only directory on top of the layers, whose ids are not mapped.
        attributes: MOUNT_ATTR_* of the mount.

    Raises:
        OSError: a layer is not there, or the filesystem cannot do it.
    """
    global _style  # noqa: PLW0603 - a property of the kernel, found once

    def make(style: Style) -> int:
        work = _Overlay(once(layers), userns_fd, private, above, attributes, style)
        return _in_own_namespace(work.make) if style is Style.ATTACHED else work.make()

    if userns_fd is None:
        return make(Style.BY_PATH)  # the layers are on an attached mount already
    if _style is not None:
        return make(_style)
    for style in Style:
        try:
            mounted = make(style)
        except SyscallError as error:
            if error.errno not in _UNKNOWN_STYLE or style is Style.ATTACHED:
                raise
        else:
            _style = style
            return mounted
    raise AssertionError("the last style either mounts or raises")


class _Overlay(NamedTuple):
    """One overlay to be made; `make` opens everything it needs in the calling thread's mount namespace."""

    layers: Sequence[Path]
    userns_fd: int | None
    private: Private | None
    above: Path | None
    attributes: int
    style: Style

    def make(self) -> int:
        with contextlib.ExitStack() as opened:
            context = _open(opened, kernel_mount.fsopen("overlay"))
            if self.above is not None:
                self._set(context, "lowerdir+", _open(opened, os.open(self.above, _PATH)))
            for layer in self._layers(opened):
                self._set(context, "lowerdir+", layer)
            if self.private is not None:
                _forget_earlier_mount(self.private.work)
                self._set(context, "upperdir", _open(opened, os.open(self.private.upper, _PATH)))
                self._set(context, "workdir", _open(opened, os.open(self.private.work, _PATH)))
                kernel_mount.fsconfig_set_flag(context, "volatile")
            kernel_mount.fsconfig_set_flag(context, "userxattr")
            for key, value in _OPTIONS:
                kernel_mount.fsconfig_set_string(context, key, value)
            kernel_mount.fsconfig_create(context)
            return kernel_mount.fsmount(context, kernel_mount.FSMOUNT_CLOEXEC, self.attributes)

    def _layers(self, opened: contextlib.ExitStack) -> list[int]:
        """The layers, topmost first."""
        homes: dict[str, int] = {}
        found = []
        for layer in reversed(self.layers):
            home, name = os.path.split(layer)
            if home not in homes:
                homes[home] = _open(opened, self._home(home))
            found.append(_open(opened, os.open(name, _PATH, dir_fd=homes[home])))
        return found

    def _home(self, directory: str) -> int:
        if self.userns_fd is None:
            return os.open(directory, _PATH)
        clone = _clone(directory, self.userns_fd, _LOWER_ATTRIBUTES)
        if self.style is Style.ATTACHED:
            flags = kernel_mount.MOVE_MOUNT_F_EMPTY_PATH
            kernel_mount.move_mount(clone, "", AT_FDCWD, directory, flags)
        return clone

    def _set(self, context: int, key: str, directory: int) -> None:
        if self.style is Style.BY_FD:
            kernel_mount.fsconfig_set_fd(context, key, directory)
        else:
            kernel_mount.fsconfig_set_string(context, key, f"/proc/thread-self/fd/{directory}")


def _forget_earlier_mount(work: Path) -> None:
    """Remove the mark of an earlier volatile mount, also of one that failed halfway: the kernel wants that done by
    somebody who knows what was lost; see `rootfs`."""
    mark = work / "work/incompat/volatile"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(mark / "dirty")
        os.rmdir(mark)


def _clone(directory: str, userns_fd: int | None, attributes: int) -> int:
    flags = kernel_mount.OPEN_TREE_CLONE | kernel_mount.OPEN_TREE_CLOEXEC
    tree = kernel_mount.open_tree(AT_FDCWD, directory, flags)
    try:
        if userns_fd is None:
            kernel_mount.mount_setattr(tree, "", AT_EMPTY_PATH, attributes)
        else:
            kernel_mount.mount_setattr(tree, "", AT_EMPTY_PATH, attributes | MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _in_own_namespace(make: Callable[[], int]) -> int:
    """Run `make` in a thread with a mount namespace of its own, which ends with the thread: whatever is attached there
    is seen by nobody else, and goes with this process however it ends."""
    answer: Future[int] = Future()

    def run() -> None:
        try:
            ns.unshare(ns.CLONE_NEWNS)
            kernel_mount.make_private("/")
            answer.set_result(make())
        except BaseException as error:  # handed over: it is the caller's
            answer.set_exception(error)

    thread = threading.Thread(target=run, name="overlay")
    thread.start()
    thread.join()
    return answer.result()


def _open(opened: contextlib.ExitStack, descriptor: int) -> int:
    opened.callback(os.close, descriptor)
    return descriptor
