"""An agent's root filesystem: the image, read-only and idmapped, below a private layer; as a detached mount.

``<agent_dir>/upper`` and ``work`` are the private layer. The agent has ids ``id_base`` … on the host, the image has 0
… on disk: the lower layer is a clone of the image's tree whose ids are mapped by the agent's user namespace, the
upper holds host ids. The overlay is mounted from the initial user namespace, so the agent has no power over it.

The overlay is ``volatile``. Without it, every unmount and every sync(2) inside writes out the *whole* filesystem that
the state is on: 30 to 130 ms for a stop beside a busy writer, against 0.2 ms, and a way for one agent to slow down
all. The price: what an agent writes into its root survives its own end and that of every process here, but a power
cut may lose the last writes. Volumes are ordinary mounts, and fsync in them is real. See
Documentation/filesystems/overlayfs.rst, "Volatile mount".
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.images import overlay
from agentos_native.images.confine import ID_RANGE
from agentos_native.images.model import Image
from agentos_native.images.overlay import view
from agentos_native.images.remove import remove_tree
from agentos_native.images.unpack.writer import STRICT
from agentos_native.kernel.mount import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from agentos_native.kernel.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

__all__ = ["Workdir", "mount", "prepare", "release", "view"]

_PATH: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UPPER, _WORK, _NEW = "upper", "work", "upper.new"


# -- prepare


def prepare(image: Image, agent_dir: Path, id_base: int, files: Mapping[str, bytes]) -> None:
    """Make the private layer in `agent_dir` (made if need be), with `files` in it; one that exists keeps what the
    agent wrote.

    Args:
        id_base: host id of the agent's uid and gid 0.
        files: absolute paths such as "/etc/hosts" → content; mode 0644, the agent's root owns them. In a layer that
            exists they are written anew, unless the agent has made something else of their directories.

    Raises:
        AgentosError: ``rootfs-foreign``; there is a layer of another id range. ``rootfs-not-prepared``.
    """
    with contextlib.suppress(FileExistsError):
        os.makedirs(agent_dir, mode=0o700)
    directory = os.open(agent_dir, _PATH)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(_WORK, 0o700, dir_fd=directory)
        try:
            existing = os.stat(_UPPER, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            _make_upper(image, directory, id_base, files)
            return
        if not (id_base <= existing.st_uid < id_base + ID_RANGE):
            raise AgentosError(
                "rootfs-foreign",
                f"the agent's files belong to host ids from {existing.st_uid}, not {id_base}",
                str(agent_dir),
                "remove the agent and make it again",
            )
        _rewrite_files(directory, id_base, files)
    except OSError as error:
        if (damaged := _damaged(error, image)) is not None:
            raise damaged from error
        raise AgentosError(
            "rootfs-not-prepared", f"the agent's private layer cannot be made: {error}", str(agent_dir)
        ) from error
    finally:
        os.close(directory)


def _make_upper(image: Image, directory: int, id_base: int, files: Mapping[str, bytes]) -> None:
    """A new upper, complete before it has its name."""
    try:
        os.mkdir(_NEW, dir_fd=directory)
    except FileExistsError:
        remove_tree(directory, _NEW)
        os.mkdir(_NEW, dir_fd=directory)
    upper = os.open(_NEW, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    opened = {PurePosixPath("/"): upper}
    try:
        _adopt(upper, _attributes(image.layers, ""), id_base)
        for path, content in files.items():
            where = PurePosixPath(path)
            parent = _directory_like(image, where.parent, opened, id_base)
            _write(parent, where.name, content, id_base)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    os.rename(_NEW, _UPPER, src_dir_fd=directory, dst_dir_fd=directory)


def _directory_like(image: Image, path: PurePosixPath, opened: dict[PurePosixPath, int], id_base: int) -> int:
    """The directory `path` in the upper, with the image's owner and mode: overlayfs shows the upper's."""
    if path in opened:
        return opened[path]
    parent = _directory_like(image, path.parent, opened, id_base)
    os.mkdir(path.name, dir_fd=parent)
    opened[path] = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    _adopt(opened[path], _attributes(image.layers, str(path).lstrip("/")), id_base)
    return opened[path]


def _adopt(descriptor: int, attributes: tuple[int, int, int], id_base: int) -> None:
    mode, uid, gid = attributes
    os.fchown(descriptor, id_base + uid, id_base + gid)
    os.fchmod(descriptor, mode)


@functools.lru_cache(maxsize=256)  # layers never change; a start asks for the same two or three directories each time
def _attributes(layers: tuple[Path, ...], path: str) -> tuple[int, int, int]:
    """Mode, uid and gid (as in the image) of the directory `path`; a plain one where the image has none, or a link."""
    with overlay.reading(layers) as root:
        try:
            descriptor = openat2(root, path or ".", _PATH, resolve=STRICT)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            return 0o755, 0, 0
        status = os.fstat(descriptor)
        os.close(descriptor)
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def _write(parent: int, name: str, content: bytes, id_base: int) -> None:
    descriptor = os.open(name, _CREATE, 0o644, dir_fd=parent)
    try:
        os.write(descriptor, content)
        os.fchown(descriptor, id_base, id_base)
        os.fchmod(descriptor, 0o644)
    finally:
        os.close(descriptor)


def _rewrite_files(directory: int, id_base: int, files: Mapping[str, bytes]) -> None:
    """Replace `files` in an upper that an agent has written to; follow none of its links, replace no directory."""
    for path, content in files.items():
        where = PurePosixPath(path)
        try:
            parent = openat2(directory, f"{_UPPER}{where.parent}", _PATH, resolve=STRICT)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            continue
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(where.name, dir_fd=parent)
            _write(parent, where.name, content, id_base)
        except IsADirectoryError:
            continue
        finally:
            os.close(parent)


# -- mount


class Workdir(NamedTuple):
    """A directory that has to be there when the program starts; `owner` is the host id of the agent's uid and gid 0."""

    path: str
    owner: int


def mount(
    image: Image, agent_dir: Path, userns_fd: int, read_only: bool = False, *, workdir: Workdir | None = None
) -> int:
    """The root filesystem as a detached mount (nosuid, nodev): image below, private layer on top; the caller closes it.

    Args:
        userns_fd: the agent's user namespace; maps 0 … 65535.
        read_only: nothing can be written; the files of `prepare` are there all the same.
        workdir: made, with its parents, where the image and the private layer have none.

    Raises:
        AgentosError: ``rootfs-not-mounted``, ``image-damaged``, ``workdir-not-made``.
    """
    mounted = _mount(image, agent_dir, userns_fd, read_only)
    if workdir is None or _has_directory(mounted, workdir.path):
        return mounted
    try:
        if not read_only:
            _make_directory(mounted, workdir)
            return mounted
    except BaseException:
        os.close(mounted)
        raise
    os.close(mounted)
    writable = _mount(image, agent_dir, userns_fd, False)
    try:
        _make_directory(writable, workdir)
    finally:
        os.close(writable)
    return _mount(image, agent_dir, userns_fd, True)


def _mount(image: Image, agent_dir: Path, userns_fd: int, read_only: bool) -> int:
    upper = agent_dir / _UPPER
    attributes = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID
    try:
        if read_only:
            return overlay.assemble(image.layers, userns_fd, above=upper, attributes=attributes | MOUNT_ATTR_RDONLY)
        private = overlay.Private(upper, agent_dir / _WORK)
        return overlay.assemble(image.layers, userns_fd, private, attributes=attributes)
    except OSError as error:
        raise _explain(error, image, agent_dir) from error


def _has_directory(root: int, path: str) -> bool:
    try:
        os.close(_inside(root, path))
    except OSError:
        return False
    return True


def _inside(root: int, path: str) -> int:
    """The directory `path` where the agent will find it: links are followed, and lead nowhere but into `root`."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    return openat2(root, path, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def _make_directory(root: int, workdir: Workdir) -> None:
    """Make `workdir` and what is missing of its parents; nobody else is in the tree yet."""
    with contextlib.ExitStack() as opened:
        at = PurePosixPath("/")
        parent = root
        try:
            for name in PurePosixPath("/", workdir.path).parts[1:]:
                at /= name
                if not _has_directory(root, str(at)):
                    os.mkdir(name, dir_fd=parent)
                    os.chmod(name, 0o755, dir_fd=parent)
                    os.chown(name, workdir.owner, workdir.owner, dir_fd=parent, follow_symlinks=False)
                parent = _inside(root, str(at))
                opened.callback(os.close, parent)
        except OSError as error:
            raise AgentosError(
                "workdir-not-made",
                f"the working directory {workdir.path} is not there and cannot be made: {error.strerror}",
                str(at),
                "choose another one with --workdir" if error.errno in (errno.EEXIST, errno.ENOTDIR) else "",
            ) from error


def _explain(error: OSError, image: Image, agent_dir: Path) -> AgentosError:
    if (damaged := _damaged(error, image)) is not None:
        return damaged
    hint = ""
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
        hint = (
            "the state directory must be on a filesystem that supports idmapped mounts and overlay uppers\n"
            "(ext4, xfs, btrfs, tmpfs with xattrs): set AGENTOS_STATE_DIR, and see `agentos-native check`"
        )
    return AgentosError("rootfs-not-mounted", str(error), str(agent_dir), hint)


def _damaged(error: OSError, image: Image) -> AgentosError | None:
    """An image that was whole when it was looked up."""
    if error.errno != errno.ENOENT or all(layer.is_dir() for layer in image.layers):
        return None
    shown = image.name or image.digest[:19]
    return AgentosError(
        "image-damaged",
        f"a layer of image {shown} is gone",
        hint=f"`agentos-native image verify {shown}` says what is wrong; remove the image and import it again",
    )


# -- release


def release(agent_dir: Path) -> None:
    """Remove the private layer (not the logs beside it), and `agent_dir` itself when nothing else is in it. Idempotent.

    The agent's processes and mounts must be gone.

    Raises:
        AgentosError: ``not-removed``.
    """
    try:
        directory = os.open(agent_dir, _PATH)
    except FileNotFoundError:
        return
    try:
        for name in (_UPPER, _NEW, _WORK):
            remove_tree(directory, name)
    finally:
        os.close(directory)
    with contextlib.suppress(OSError):
        os.rmdir(agent_dir)
