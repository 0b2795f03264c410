"""A directory that blobs are fetched into: an OCI layout, and beside each blob under way what has arrived of it.

::

    <store>/downloads/<key>/       flock while a pull uses it; belongs to `confinement.FETCHER_ID`
      blobs/sha256/<hex>           whole and verified
      partial/<hex>                the beginning of one, resumed by the next attempt, or by the next pull
      oci-layout, index.json       written last

Whole blobs that an earlier pull left are read again before they are believed: a power cut may have come between.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.registry.model import Advance, Blob, PullLimits, Remark
from agentos_native.images.registry.repository import Repository, check_digest, wrong_size
from agentos_native.images.registry.transport import Transient

_PIECE: Final = 1 << 20
_BLOBS: Final = "blobs/sha256"
_PARTIAL: Final = "partial"
_INTERVAL: Final = 0.1
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'


class Account:
    """How far all blobs of a pull are, told ten times a second at most. Thread-safe."""

    def __init__(self, tell: Callable[[Advance | Remark], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._total = self._done = self._resumed = 0
        self._due = 0.0
        self.fetched = 0

    def expect(self, total: int) -> None:
        """So many bytes are wanted in all."""
        self._total = total

    def add(self, count: int) -> None:
        """`count` bytes have arrived."""
        with self._lock:
            self._done += count
            self.fetched += count
            self._report(time.monotonic())

    def found(self, count: int) -> None:
        """`count` bytes were here already; a negative number when they turned out to be of no use."""
        with self._lock:
            self._done += count
            self._resumed += max(count, 0)
            self._report(time.monotonic())

    def finish(self) -> None:
        """The last word."""
        with self._lock:
            self._report(float("inf"))

    def remark(self, text: str) -> None:
        """Something that a user wants to know."""
        with self._lock:
            self._tell(Remark(text))

    def _report(self, now: float) -> None:
        if now >= self._due:
            self._due = now + _INTERVAL
            self._tell(Advance(self._done, self._total, self._resumed))


class Directory:
    """The directory fd `root`, which must stay open."""

    def __init__(self, root: int) -> None:
        self._root = root
        for name in ("blobs", _BLOBS, _PARTIAL):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=root)

    def put(self, digest: str, content: bytes) -> None:
        """Keep a document that has been verified."""
        self._write(f"{_BLOBS}/{digest.removeprefix('sha256:')}", content)

    def finish(self, name: str, manifest: Mapping[str, object]) -> None:
        """Make a layout of it, with the descriptor of the one manifest."""
        annotated = {**manifest, "annotations": {"org.opencontainers.image.ref.name": name}}
        self._write("oci-layout", _LAYOUT)
        self._write("index.json", msgspec.json.encode({"schemaVersion": 2, "manifests": [annotated]}))

    def _write(self, path: str, content: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=self._root)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600, dir_fd=self._root), "wb") as file:
            file.write(content)

    def has(self, blob: Blob) -> bool:
        """Whether the blob is here, whole and right; one that is not is removed."""
        path = f"{_BLOBS}/{blob.digest.removeprefix('sha256:')}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        except FileNotFoundError:
            return False
        with open(descriptor, "rb", buffering=0) as file:
            right = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == blob.digest
        if not right:
            os.unlink(path, dir_fd=self._root)
        return right

    def check_room(self, size: int) -> None:
        """Whether `size` bytes more could be kept; what is here of them counts twice, which is no matter.

        Raises:
            AgentosError: ``disk-full``.
        """
        status = os.fstatvfs(self._root)
        free = status.f_bavail * status.f_frsize
        if size > free:
            raise AgentosError(
                "disk-full",
                f"{size} bytes are to be fetched and {free} are free",
                "",
                "`agentos-native image gc` may help",
            )

    def partial(self, digest: str) -> int:
        """An fd of what there is of a blob under way, or of an empty file."""
        path = f"{_PARTIAL}/{digest.removeprefix('sha256:')}"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._root)

    def complete(self, digest: str) -> None:
        """The blob under way is whole and verified."""
        digits = digest.removeprefix("sha256:")
        os.rename(f"{_PARTIAL}/{digits}", f"{_BLOBS}/{digits}", src_dir_fd=self._root, dst_dir_fd=self._root)


class BlobFetch:
    """Fetching one blob, with as many attempts as the limits allow."""

    def __init__(
        self, blob: Blob, directory: Directory, account: Account, limits: PullLimits, stop: threading.Event
    ) -> None:
        self._blob, self._directory, self._account, self._limits = blob, directory, account, limits
        self._stop = stop
        self._file = -1
        self._have = 0
        self._inherited = 0
        self._hash = hashlib.sha256()

    def run(self, repository: Repository) -> None:
        """Until it is here.

        Raises:
            Transient: the last attempt's failure; what has arrived is kept.
            AgentosError: a blob that is wrong, which is not kept; ``disk-full``.
        """
        if self._directory.has(self._blob):
            self._account.found(self._blob.size)
            return
        with self._opened():
            self._inherit()
            for had in self._attempts():
                try:
                    self._attempt(repository)
                    break
                except Transient as error:
                    self._retry(had, error)
            self._directory.complete(self._blob.digest)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        self._file = self._directory.partial(self._blob.digest)
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            hint = "`agentos-native image gc` may help; what has arrived is kept"
            raise AgentosError("disk-full", "there is no room for what is fetched", self._blob.digest, hint) from None
        finally:
            os.close(self._file)

    def _attempts(self) -> Iterator[int]:
        """How much there was before each of them; their number is bounded by `_retry`."""
        self._failed = 0
        while True:
            yield self._have

    def _retry(self, had: int, error: Transient) -> None:
        """Wait before another attempt, or give up."""
        self._failed = 1 if self._have - had >= self._limits.progress else self._failed + 1
        if self._failed >= self._limits.attempts or self._stop.is_set():
            raise error
        self._account.remark(f"{error.what}; attempt {self._failed + 1} goes on at {self._have} bytes")
        pause = min(self._limits.backoff * 2 ** (self._failed - 1), self._limits.backoff_max)
        self._stop.wait(pause)

    def _inherit(self) -> None:
        """Take over what an earlier pull has left."""
        size = os.fstat(self._file).st_size
        if size > self._blob.size:
            os.ftruncate(self._file, 0)
            return
        while piece := os.pread(self._file, _PIECE, self._have):
            self._hash.update(piece)
            self._have += len(piece)
        self._inherited = self._have
        self._account.found(self._have)

    def _start_over(self) -> None:
        os.ftruncate(self._file, 0)
        self._account.found(-self._have)
        self._have = self._inherited = 0
        self._hash = hashlib.sha256()

    def _attempt(self, repository: Repository) -> None:
        if self._have < self._blob.size or not self._inherited:
            with repository.blob(self._blob.digest, self._have, self._blob.size) as (begins, answer):
                if begins != self._have:
                    self._start_over()
                for piece in answer.body.pieces():
                    self._keep(piece)
        if self._have < self._blob.size:
            raise Transient(
                "registry-connection",
                f"the registry stopped after {self._have} of {self._blob.size} bytes",
                self._blob.digest,
                "what has arrived is kept: the same command goes on from there",
            )
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._blob.digest:
            inherited = self._inherited
            self._start_over()
            if inherited:  # perhaps only what lay here was damaged
                raise Transient("digest-mismatch", "what was left of an earlier pull is damaged", self._blob.digest)
        check_digest(self._blob.digest, found, "a blob")

    def _keep(self, piece: bytes) -> None:
        if self._stop.is_set():
            raise Transient("cancelled", "the pull ends")
        if self._have + len(piece) > self._blob.size:
            self._start_over()
            raise wrong_size(self._blob.digest, f"the blob has more than the {self._blob.size} bytes of the manifest")
        view = memoryview(piece)
        while view:
            count = os.pwrite(self._file, view, self._have)
            self._hash.update(view[:count])
            self._have += count
            self._account.add(count)
            view = view[count:]
