"""The work of a build that blocks: reading Dockerfile and context, and making layers. For worker threads.

What others wrote (the Dockerfile, the context, what a sandbox left) is parsed and copied by confined workers; here are
only fds, mounts and the store.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.images import confine, rootfs
from agentos_native.images.build import apply, context, dockerfile
from agentos_native.images.build.model import Copy, Instruction
from agentos_native.images.caches import Caches
from agentos_native.images.model import Layer
from agentos_native.images.session import ProgressCallback, Session
from agentos_native.images.store import ImageStore
from agentos_native.images.unpack.reading import Root
from agentos_native.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from agentos_native.supervisor import guestfiles
from agentos_native.wire.images import BuildRequest

DOCKERFILE_MAX: Final = 1 << 20
_THREADS: Final = 8
"""Builds that work at once; RUNs are no matter of threads."""
_PLANS: Final = 64
"""Parsed Dockerfiles that are kept."""
_PATH: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OVERLAY: Final = "user.overlay."
"""What overlayfs notes about files begins with this (Documentation/filesystems/overlayfs.rst, "userxattr")."""
_MOUNT_POINTS: Final = ("dev", "proc", "sys")
"""What the sandbox mounts there is not in the private layer; that there is a directory is of no interest."""


class Hand:
    """The confined worker of one build, started when it is first needed. One thread at a time, but for `drop`."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._dropped = False
        self._lock = threading.Lock()

    def session(self) -> Session:
        """Raises ``cancelled`` once it was dropped."""
        with self._lock:
            if self._dropped:
                raise AgentosError("cancelled", "the build was cancelled")
            if self._session is None:
                self._session = Session()
            return self._session

    def drop(self) -> None:
        """End it, in the middle of its work, too (which then fails)."""
        with self._lock:
            self._dropped = True
            session, self._session = self._session, None
        if session is not None:
            session.close()


class Left(NamedTuple):
    """What an ended agent left: its directory, the host id of its root, and a user namespace that maps its host ids
    back to 0 …"""

    directory: Path
    id_base: int
    userns: int


class Workshop:
    """One per supervisor. Thread-safe. `threads` are for builds only: they may take long, and others wait elsewhere."""

    def __init__(self, store: ImageStore) -> None:
        self.catalog = store.catalog
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="build")
        self.caches = Caches(store.path)
        self._hashes = context.Hashes()
        self._parsed: OrderedDict[str, tuple[Instruction, ...]] = OrderedDict()

    # -- what is to be done

    def instructions(self, hand: Hand, text: bytes, name: str) -> tuple[Instruction, ...]:
        """The parsed Dockerfile. One that was seen before is not parsed again."""
        key = hashlib.sha256(text).hexdigest()
        known = self._parsed.get(key)
        if known is None:
            known = self._parsed[key] = dockerfile.read(hand.session(), text, name)
            while len(self._parsed) > _PLANS:
                self._parsed.popitem(last=False)
        return known

    def open_context(self, hand: Hand, path: str, keep: contextlib.ExitStack) -> int:
        """The directory of a context, which `keep` closes; a tar is unpacked for as long.

        Raises:
            AgentosError: ``context-not-found``; as `Session.unpack`.
        """
        found, is_directory = _open_context(path)
        keep.callback(os.close, found)
        if is_directory:
            return found
        staged = keep.enter_context(self.catalog.staging())
        try:
            hand.session().unpack(found, staged.fd, kind="tar")
        except AgentosError as error:
            where = f"{path}, {error.where}" if error.where else path
            hint = error.hint or "the context is a directory, or a tar of one"
            raise AgentosError(error.code, f"the context: {error.what}", where, hint) from None
        return staged.fd

    def selected(self, copy: Copy, tree: context.Tree) -> tuple[context.Selection, str]:
        """What a COPY takes of the context, and the key of that; `copy` takes nothing else."""
        selection = tree.select(copy)
        return selection, context.content_key(copy, selection, self._hashes)

    # -- layers

    def copy(
        self, hand: Hand, copy: Copy, source: context.Selection | Sequence[Layer], below: Sequence[Layer], key: str,
        report: ProgressCallback,
    ) -> tuple[Layer, tuple[str, ...]]:  # fmt: skip
        """COPY and ADD of what is `selected` in the context, or of another stage's layers. Gives notes, too.

        Raises:
            AgentosError: ``context-changed``: what was selected is no more what it was, and the key would be wrong.
        """
        with contextlib.ExitStack() as stack:
            if isinstance(source, context.Selection):
                selection = source
            else:
                merged = stack.enter_context(self._merged(source))
                selection = context.Tree(merged, where=f"--from={copy.origin}").select(copy)
            base_fd = stack.enter_context(self._merged(below))
            staged = stack.enter_context(self.catalog.staging())
            session = hand.session()
            unpacked = apply.copy_files(
                session,
                copy,
                selection,
                source_fd=selection.root,
                tree_fd=staged.fd,
                base_fd=base_fd,
                layers=self._paths(below),
                progress=report,
            )
            return self.catalog.add_layer(staged, unpacked.measured.layer(), [key]), unpacked.notes

    def directory(self, hand: Hand, path: str, below: Sequence[Layer], key: str) -> Layer | None:
        """WORKDIR: None when the stage has the directory."""
        with self._merged(below) as base_fd:
            if base_fd >= 0 and _is_directory(base_fd, path):
                return None
            with self.catalog.staging() as staged:
                unpacked = apply.make_workdir(hand.session(), path, tree_fd=staged.fd, base_fd=base_fd)
                if unpacked is None:
                    return None
                return self.catalog.add_layer(staged, unpacked.measured.layer(), [key])

    def private_layer(
        self,
        hand: Hand,
        left: Left,
        below: Sequence[Layer],
        keys: Sequence[str],
        report: ProgressCallback,
        forgotten: Sequence[str] = (),
    ) -> tuple[Layer, tuple[str, ...]]:
        """What an ended agent wrote, as a layer with the ids of an image, without what is at the paths `forgotten`.
        Gives notes, too.
        """
        with contextlib.ExitStack() as stack:
            upper = os.open(left.directory / "upper", _PATH)
            stack.callback(os.close, upper)
            base_fd = stack.enter_context(self._merged(below))
            looked = Root(base_fd)
            exclude = [os.fsencode(path) for path in _excluded(upper, base_fd, left.id_base)]
            exclude += [looked.resolve(os.fsencode(path)) for path in forgotten]
            source = confine.idmapped(upper, left.userns)
            stack.callback(os.close, source)
            staged = stack.enter_context(self.catalog.staging())
            session = hand.session()
            unpacked = session.unpack(source, staged.fd, kind="upper", exclude=exclude, progress=report)
            return self.catalog.add_layer(staged, unpacked.measured.layer(), keys), unpacked.notes

    @contextlib.contextmanager
    def _merged(self, layers: Sequence[Layer]) -> Iterator[int]:
        """A look at what the layers make together; -1 when there is none."""
        if not layers:
            yield -1
            return
        merged = rootfs.view(self._paths(layers), None)
        try:
            yield merged
        finally:
            os.close(merged)

    def _paths(self, layers: Sequence[Layer]) -> list[Path]:
        return [self.catalog.layer_path(layer.digest) for layer in layers]


def _is_directory(root: int, path: str) -> bool:
    try:
        os.close(openat2(root, path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, resolve=RESOLVE_IN_ROOT))
    except OSError:
        return False
    return True


def _excluded(upper: int, base: int, id_base: int) -> list[str]:
    """What the supervisor put into an agent's private layer: no part of what its program did."""
    found = [name for name in _MOUNT_POINTS if _status(upper, name) is not None]
    guest = [path.lstrip("/") for path in guestfiles.PATHS]
    etc = _status(upper, "etc")
    if etc is None or not stat.S_ISDIR(etc.st_mode):
        return found
    descriptor = os.open("etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=upper)
    try:
        others = {f"etc/{name}" for name in os.listdir(descriptor)} - set(guest)
        if not others and not _marked(descriptor) and _as_it_was(etc, base, id_base):
            return [*found, "etc"]
    finally:
        os.close(descriptor)
    return found + guest


def _marked(directory: int) -> bool:
    """Whether it hides what is below it, or has an attribute of its own."""
    names = os.listxattr(directory)
    return any(name == f"{_OVERLAY}opaque" or not name.startswith(_OVERLAY) for name in names)


def _as_it_was(etc: os.stat_result, base: int, id_base: int) -> bool:
    """Whether the directory of the private layer has the owner and mode that it has below, or would be made with."""
    below = _status(base, "etc") if base >= 0 else None
    mine = (stat.S_IMODE(etc.st_mode), etc.st_uid - id_base, etc.st_gid - id_base)
    if below is None or not stat.S_ISDIR(below.st_mode):
        return mine == (0o755, 0, 0)
    return mine == (stat.S_IMODE(below.st_mode), below.st_uid, below.st_gid)


def _status(root: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return None


def read_dockerfile(request: BuildRequest, directory: int) -> tuple[bytes, str]:
    """The Dockerfile's text, and how errors name it. That of the context, the fd `directory`, is a file below it,
    also where it is a link; one that is named by an absolute path may be anywhere.

    Raises:
        AgentosError: ``dockerfile-not-found``, ``too-large``.
    """
    named = request.file or "Dockerfile"
    path = os.path.join(request.context, named)
    try:
        if os.path.isabs(named):
            found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        else:
            inside = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
            found = openat2(directory, named, os.O_PATH | os.O_CLOEXEC, resolve=inside)
        try:
            text = _content(found, path)
        finally:
            os.close(found)
    except OSError as error:
        what = "it leads out of the context" if error.errno == errno.EXDEV else f"cannot be read: {error.strerror}"
        hint = "say where it is: -f FILE" if not request.file else ""
        raise AgentosError("dockerfile-not-found", what, path, hint) from None
    return text, os.path.basename(path)


def _content(found: int, path: str) -> bytes:
    """Of the file `found`, opened by path only: to open a device may do something. No more than its size is read: what
    the kernel makes up as it is read has none."""
    status = os.fstat(found)
    if not stat.S_ISREG(status.st_mode):
        raise AgentosError("dockerfile-not-found", "it is no plain file", path)
    if status.st_size > DOCKERFILE_MAX:
        raise AgentosError("too-large", f"a Dockerfile has at most {DOCKERFILE_MAX} bytes", path)
    if not status.st_size:
        return b""
    with open(f"/proc/self/fd/{found}", "rb") as file:
        return file.read(status.st_size)


def _open_context(path: str) -> tuple[int, bool]:
    """An fd of the context, and whether it is a directory. Raises ``context-not-found``."""
    hint = "the context is a directory, or a tar of one, on the machine where the supervisor runs"
    try:
        # O_NONBLOCK: nobody waits for the other end of a pipe
        found = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise AgentosError("context-not-found", f"the context cannot be opened: {error.strerror}", path, hint) from None
    kind = stat.S_IFMT(os.fstat(found).st_mode)
    if kind not in (stat.S_IFDIR, stat.S_IFREG):
        os.close(found)
        raise AgentosError("context-not-found", "the context is neither a directory nor a file", path, hint)
    return found, kind == stat.S_IFDIR
