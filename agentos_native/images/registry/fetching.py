"""The store's side of a pull: a download directory, a fetcher for it, and what the fetcher says. Blocks; one thread.

What a fetcher says is believed so far as it costs nothing when it lies: it names layers, the store says which it
knows, the importer verifies the rest. A killed supervisor leaves an unlocked download directory and nothing that runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.registry.confinement import FETCHER_ID
from agentos_native.images.registry.model import (
    MESSAGE_MAX,
    Advance,
    Broken,
    Choice,
    Complete,
    Errand,
    Message,
    Place,
    Plan,
    Remark,
)
from agentos_native.images.remove import remove_tree

_PACKAGE_ROOT: Final = str(Path(__file__).resolve().parents[3])
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARTIAL: Final = "partial"
_POLL: Final = 0.1
_GRACE: Final = 10.0
"""Seconds beyond the limit of a pull, for a fetcher to say so itself."""

Tell = Callable[[Advance | Remark], None]


class Cancelled(Exception):
    """Whoever wanted the pull wants it no more."""


class Fetched(NamedTuple):
    """What a fetcher has left in `directory` (an fd): an OCI layout without the layers that were not wanted.

    `manifest` is the digest of its one manifest, `fetched` the bytes of layers that came over the network.
    """

    directory: int
    manifest: str
    fetched: int


class Fetching:
    """One pull of `errand` into a directory below `downloads`. `cancel` may be called by any thread."""

    def __init__(self, downloads: Path, errand: Errand) -> None:
        self._downloads = downloads
        self._errand = errand
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """End it soon; what has arrived is kept."""
        with self._lock:
            self.cancelled = True
            if self._process is not None:
                self._process.kill()

    def check(self) -> None:
        """Raises `Cancelled` when it is."""
        if self.cancelled:
            raise Cancelled

    @contextlib.contextmanager
    def run(self, known: Callable[[Plan], list[int]], tell: Tell) -> Iterator[Fetched]:
        """Fetch; the directory is gone when the block ends well, or when there is nothing to resume from.

        Args:
            known: the layers, by index, that need not be fetched.
            tell: called in this thread as it goes on.

        Raises:
            AgentosError: what failed.
            Cancelled: see `cancel`.
        """
        keep = True
        with self._directory(tell) as (name, directory):
            try:
                complete, manifest = self._fetch(directory, known, tell)
                _check_layout(directory)
                keep = False
                yield Fetched(directory, manifest, complete.fetched)
            except _Failed as failed:
                keep = failed.resumable
                raise failed.error from None
            except Cancelled:
                keep = True
                raise
            except AgentosError as error:
                keep = error.code == "disk-full"  # the import's: when there is room again it need not be fetched again
                raise
            finally:
                if not keep:
                    self._discard(name)

    # -- the directory

    @contextlib.contextmanager
    def _directory(self, tell: Tell) -> Iterator[tuple[str, int]]:
        """Name and fd of the download directory of this reference; locked, also by a fetcher that outlives us."""
        self._downloads.mkdir(mode=0o700, exist_ok=True)
        name = download_name(self._errand.place)
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._downloads / name, 0o700)
            descriptor = os.open(self._downloads / name, _DIRECTORY)
            try:
                self._lock_directory(descriptor, tell)
                if _is_still(descriptor, self._downloads / name):
                    os.fchown(descriptor, FETCHER_ID, FETCHER_ID)
                    yield name, descriptor
                    return
            finally:
                os.close(descriptor)

    def _lock_directory(self, descriptor: int, tell: Tell) -> None:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                self.check()
                if not told:
                    tell(Remark("another pull of the same image is under way: waiting for it"))
                    told = True
                time.sleep(_POLL)

    def _discard(self, name: str) -> None:
        parent = os.open(self._downloads, _DIRECTORY)
        try:
            remove_tree(parent, name)
        finally:
            os.close(parent)

    # -- the fetcher

    def _fetch(self, directory: int, known: Callable[[Plan], list[int]], tell: Tell) -> tuple[Complete, str]:
        ours, theirs = socket.socketpair()
        complaints = os.memfd_create("fetcher-stderr", os.MFD_CLOEXEC)
        with ours:
            try:
                with theirs:
                    process = self._start(directory, theirs.fileno(), complaints)
                with process:
                    try:
                        return self._converse(ours, known, tell, complaints)
                    finally:
                        process.kill()
            finally:
                with self._lock:
                    self._process = None
                os.close(complaints)

    def _start(self, directory: int, link: int, complaints: int) -> subprocess.Popen[bytes]:
        errand = os.memfd_create("errand", os.MFD_CLOEXEC)
        try:
            with open(os.dup(errand), "wb") as file:
                file.write(msgspec.json.encode(msgspec.structs.replace(self._errand, parent=os.getpid())))
            with self._lock:
                self.check()
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "agentos_native.images.registry.fetcher", f"{errand},{directory},{link}"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    pass_fds=(errand, directory, link),
                    cwd="/",
                    env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PYTHONPATH": _PACKAGE_ROOT, "PYTHONNOUSERSITE": "1"},
                )
                return self._process
        finally:
            os.close(errand)

    def _converse(
        self, link: socket.socket, known: Callable[[Plan], list[int]], tell: Tell, complaints: int
    ) -> tuple[Complete, str]:
        manifest = ""
        for message in self._messages(link):
            if isinstance(message, Plan):
                have = set(known(message))
                manifest = message.manifest.digest
                wanted = tuple(number for number in range(len(message.layers)) if number not in have)
                link.sendall(msgspec.json.encode(Choice(wanted=wanted)) + b"\n")
            elif isinstance(message, Broken):
                raise _Failed(_error(message), message.resumable)
            elif isinstance(message, Complete):
                return message, manifest
            elif isinstance(message, Remark):
                tell(Remark(_printable(message.text)))
            else:
                tell(message)
        self.check()
        last_words = _printable(os.pread(complaints, 65536, 0).decode("utf-8", "replace").strip()[-300:])
        error = AgentosError(
            "pull-failed", "the fetcher ended without a result", last_words, "was it killed, or out of memory?"
        )
        raise _Failed(error, True)

    def _messages(self, link: socket.socket) -> Iterator[Message]:
        deadline = time.monotonic() + self._errand.limits.total + _GRACE
        link.settimeout(_POLL)
        received = b""
        while True:
            self.check()
            if time.monotonic() > deadline:
                hint = "what has arrived is kept: the same command goes on from there"
                raise _Failed(AgentosError("registry-too-slow", "the pull took too long", "", hint), True)
            try:
                piece = link.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                return
            if not piece:
                return
            *lines, received = (received + piece).split(b"\n")
            if len(received) > MESSAGE_MAX:
                return
            for line in lines:
                try:
                    message: Message = msgspec.json.decode(line, type=Message)
                except (msgspec.MsgspecError, RecursionError):
                    return  # nothing that the fetcher would say by itself
                yield message


class _Failed(Exception):
    """The fetcher's failure, and whether its directory is of use to the next."""

    def __init__(self, error: AgentosError, resumable: bool) -> None:
        super().__init__(error)
        self.error, self.resumable = error, resumable


def download_name(place: Place) -> str:
    """The name of the download directory of a reference."""
    return hashlib.sha256(place.name.encode()).hexdigest()[:32]


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether `path` is what `descriptor` was opened at: it may have been removed before it was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


_SHAPE: Final = {"": {"blobs", _PARTIAL}, "blobs": {"sha256"}, "blobs/sha256": set[str](), _PARTIAL: set[str]()}
"""The directories that a fetcher makes, and the directories in them."""


def _check_layout(directory: int) -> None:
    """Nothing but these directories, and files with one name: the importer opens them as root.

    Raises:
        _Failed: ``pull-failed``.
    """
    for path, directories in _SHAPE.items():
        opened = os.open(path or ".", _DIRECTORY, dir_fd=directory)
        try:
            for name in os.listdir(opened):
                status = os.stat(name, dir_fd=opened, follow_symlinks=False)
                file = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
                if not (stat.S_ISDIR(status.st_mode) if name in directories else file):
                    raise _Failed(
                        AgentosError("pull-failed", "the fetcher left what is no file", repr(name[:80])), False
                    )
        finally:
            os.close(opened)


def _error(message: Broken) -> AgentosError:
    error = AgentosError.from_dict(message.error)
    hint = "\n".join(map(_printable, error.hint.splitlines()[:8]))
    return AgentosError(_printable(error.code), _printable(error.what), _printable(error.where), hint)


def _printable(text: str) -> str:
    """`text` from the fetcher without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:1000])
