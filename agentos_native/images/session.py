"""The store's side of the confined worker: start it, hand it fds, turn its words into results or errors.

The worker (`images.worker`) is one process with its children; a session is one worker, and takes any number of jobs
one after another. Whatever goes wrong with the worker itself ends the session; what goes wrong with an archive does
not.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from select import POLLIN, poll
from types import TracebackType
from typing import Final, Literal, Self

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images import confine
from agentos_native.images.model import Limits
from agentos_native.images.unpack.messages import (
    Answered,
    CopyItem,
    Expect,
    Failed,
    Found,
    Job,
    Measured,
    Message,
    Progress,
    Ready,
    Setup,
    Unpacked,
    Written,
)
from agentos_native.kernel.process import pidfd_open

__all__ = ["CopyItem", "Expect", "ProgressCallback", "Session", "Unpacked"]

ProgressCallback = Callable[[Progress], None]
UnpackKind = Literal["tar", "layer", "directory", "upper"]

ANSWER_MAX: Final = 64 << 20
_PACKET_MAX: Final = 64 << 10
_WORKER: Final = (
    "import gc, sys; gc.disable(); sys.modules['typing_extensions'] = None; "
    "import agentos_native.images.worker as worker; worker.main()"
)
"""Starts `worker` without three things that take a third of its start: the machinery of -m, the collector of garbage,
and a module that msgspec uses when it is there and does without when not."""
_PACKAGE_ROOT: Final = str(Path(__file__).resolve().parents[2])
_GOODBYE: Final = 5.0


class Session:
    """One confined worker. Thread-safe: jobs of several threads wait for each other.

    Use it as a context manager; the worker and all that it started are gone when the block is left.

    Raises:
        AgentosError: ``import-not-confined``; this host lacks what confines the worker.
    """

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 - immutable
        self._limits = limits
        self._lock = threading.Lock()
        self._complaints = os.memfd_create("worker-stderr", os.MFD_CLOEXEC)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._userns = self._pidfd = -1
        try:
            self._process = self._start(theirs)
        except BaseException:
            self._socket.close()
            os.close(self._complaints)
            raise
        finally:
            theirs.close()
        try:
            self._pidfd = pidfd_open(self._process.pid)
            with contextlib.suppress(OSError):  # it is dead already: the next line finds out
                self._socket.send(msgspec.json.encode(Setup(confine.compile_filter())))
            message, self._userns = self._receive()
            if isinstance(message, Failed):
                raise _error(message)
            if not isinstance(message, Ready):
                raise self._died()
        except BaseException:
            self.close()
            raise

    @property
    def userns_fd(self) -> int:
        """The user namespace of the unprivileged children: a `base_fd` for them is made with it (`overlay.view`)."""
        return self._userns

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def dismiss(self) -> None:
        """Have the worker end while the caller does something else: `close` waits for less then. No job after this."""
        self._hang_up()

    def close(self) -> None:
        """End the worker and wait until nothing of it runs. Idempotent; a job of another thread fails at once."""
        self._hang_up()
        try:
            self._process.wait(_GOODBYE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._lock:  # a job that is about to use an fd must not find another file there
            self._socket.close()
            for name in ("_userns", "_complaints", "_pidfd"):
                if getattr(self, name) >= 0:
                    os.close(getattr(self, name))
                    setattr(self, name, -1)

    def _hang_up(self) -> None:
        """The worker ends, and whoever waits for its words; closing alone does not wake who waits."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # -- jobs

    def unpack(
        self,
        source_fd: int,
        tree_fd: int,
        *,
        kind: UnpackKind,
        base_fd: int = -1,
        expect: Expect | None = None,
        prefix: str | bytes = "",
        exclude: Sequence[str | bytes] = (),
        progress: ProgressCallback | None = None,
    ) -> Unpacked:
        """Turn an archive or a directory into files below the directory fd `tree_fd`, and write them to the disk.

        Args:
            source_fd: an archive in a file or pipe, read from where it stands; a directory for the two last kinds.
            tree_fd: as `Catalog.staging` gives it; what is in it stays unless the source brings the same name.
            kind: ``tar`` and ``directory`` as they are; ``layer`` with OCI's whiteouts; ``upper`` an overlay's upper
                directory, whose whiteouts and opaque directories are kept.
            base_fd: what is below, merged; made with `userns_fd` for archives, with ids as on disk for directories.
            expect: what must be true of the archive.
            prefix: unpack below this directory, which is made when neither the tree nor the base has it.
            exclude: paths of a directory that are left out with all below them, relative, without patterns.

        Raises:
            AgentosError: ``hostile-archive``, ``invalid-archive``, ``unsupported-archive``, ``image-too-large``,
            ``digest-mismatch``, ``size-mismatch``, ``source-stalled``, ``source-not-read``, ``disk-full``,
            ``disk-failed``, ``image-not-written``, ``import-timeout``, ``import-failed``.
        """
        job = Job(
            kind=kind,
            limits=self._limits,
            descriptors=(),
            expect=expect or Expect(),
            prefix=os.fsencode(prefix),
            exclude=tuple(map(os.fsencode, exclude)),
        )
        descriptors = {"source": source_fd, "tree": tree_fd, "base": base_fd}
        if kind in ("directory", "upper"):
            return self._fill(job, descriptors, progress)
        with self._target(tree_fd) as target:
            return self._fill(job, descriptors | {"target": target}, progress)

    def find_or_unpack(
        self, source_fd: int, tree_fd: int, progress: ProgressCallback | None = None
    ) -> Unpacked | Found:
        """As `unpack` of a ``tar``, unless it is a plain one of an image whose blobs can be read where they lie: then
        it is left as it is, and so is the tree.

        What is found is a child's word, to be looked at (`oci.members`); and where `source_fd` stands is, too.

        Raises:
            AgentosError: as `unpack`.
        """
        job = Job(kind="tar", limits=self._limits, descriptors=(), find=True)
        with self._target(tree_fd) as target:
            return self._find_or_fill(job, {"source": source_fd, "tree": tree_fd, "target": target}, progress)

    def copy(
        self,
        source_fd: int,
        tree_fd: int,
        items: Sequence[CopyItem],
        *,
        base_fd: int = -1,
        prefix: bytes = b"",
        chown: tuple[int, int] | None = None,
        chmod: str = "",
        progress: ProgressCallback | None = None,
    ) -> Unpacked:
        """Copy `items` from the directory fd `source_fd` into the tree; see `unpack.copying`.

        Args:
            base_fd: what is below the tree, merged, with ids as on disk.
            prefix: the destination that all of `items` are relative to; ends with b"/" when it has to be a directory.
            chown: the owner of everything copied; None keeps those of the source.
            chmod: the mode of everything copied, as chmod(1) has it; "" keeps it.

        Raises:
            AgentosError: as `unpack`.
        """
        job = Job(
            kind="copy",
            limits=self._limits,
            descriptors=(),
            items=tuple(items),
            prefix=prefix,
            chown=chown,
            chmod=chmod,
        )
        return self._fill(job, {"source": source_fd, "tree": tree_fd, "base": base_fd}, progress)

    def measure(self, tree_fd: int, progress: ProgressCallback | None = None) -> Measured:
        """Read a whole tree, every byte of it.

        Raises:
            AgentosError: ``tree-not-read``, ``import-failed``.
        """
        job = Job(kind="measure", limits=self._limits, descriptors=())
        for message in self._do(job, {"tree": tree_fd}, progress):
            if isinstance(message, Measured):
                return message
        raise self._died()

    def ask(self, task: str, request: bytes) -> bytes:
        """Run the pure function that `worker.TASKS` knows as `task` in an unprivileged child; its answer.

        Raises:
            AgentosError: what the function raised; ``import-failed`` when it broke or took too long.
        """
        answer = os.memfd_create("answer", os.MFD_CLOEXEC)
        try:
            job = Job(kind="ask", limits=self._limits, descriptors=(), task=task, request=request)
            for message in self._do(job, {"answer": answer}, None):
                if isinstance(message, Answered):
                    return self._read_answer(answer, task)
            raise self._died()
        finally:
            os.close(answer)

    # -- inside

    def _start(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            # -S, -P: the path is given, and looking for what else might be on it takes a third of Python's start
            [sys.executable, "-S", "-P", "-c", _WORKER, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._complaints,
            pass_fds=(theirs.fileno(),),
            cwd="/",
            env={
                "PATH": os.defpath,
                "LC_ALL": "C.UTF-8",
                "PYTHONPATH": ":".join([_PACKAGE_ROOT, *filter(None, sys.path)]),
            },
        )

    @contextlib.contextmanager
    def _target(self, tree: int) -> Iterator[int]:
        """`tree` as the unprivileged child may write to it: a mount that shows its ids as those of the child."""
        try:
            target = confine.idmapped(tree, self._userns)
        except OSError as error:
            raise AgentosError(
                "import-not-confined", str(error), hint="`agentos-native check` says what this host lacks"
            ) from None
        try:
            yield target
        finally:
            os.close(target)

    def _fill(self, job: Job, descriptors: Mapping[str, int], progress: ProgressCallback | None) -> Unpacked:
        done = self._find_or_fill(job, descriptors, progress)
        if isinstance(done, Found):
            raise self._died()  # it was not asked to look
        return done

    def _find_or_fill(
        self, job: Job, descriptors: Mapping[str, int], progress: ProgressCallback | None
    ) -> Unpacked | Found:
        written = Written()
        for message in self._do(job, descriptors, progress):
            if isinstance(message, Found):
                return message
            if isinstance(message, Written):
                written = message
            elif isinstance(message, Measured):
                return Unpacked(
                    measured=message,
                    notes=tuple(map(printable, written.notes)),
                    diff_id=written.diff_id,
                    rooted=written.rooted,
                )
        raise self._died()

    def _do(self, job: Job, descriptors: Mapping[str, int], progress: ProgressCallback | None) -> Iterator[Message]:
        """The messages of one job but for progress; ends with the message that ends the job, or with the worker."""
        given = {role: descriptor for role, descriptor in descriptors.items() if descriptor >= 0}
        body = os.memfd_create("job", os.MFD_CLOEXEC)
        with self._lock:
            done = False
            try:
                encoded = msgspec.json.encode(msgspec.structs.replace(job, descriptors=tuple(given)))
                _write_all(body, encoded)
                if not self._send([body, *given.values()]):
                    return
                while (message := self._receive()[0]) is not None:
                    done = isinstance(message, Failed | Measured | Answered | Found)
                    if isinstance(message, Failed):
                        raise _error(message)
                    if not isinstance(message, Progress):
                        yield message
                    elif progress is not None:
                        progress(message)
                    if done:
                        return
            finally:
                os.close(body)
                if not done:  # interrupted: what the worker says next would be taken for the next job's answer
                    self._hang_up()

    def _send(self, descriptors: list[int]) -> bool:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        try:
            self._socket.sendmsg([b"job"], [rights])
        except OSError:
            return False  # the worker is gone, or the session was ended
        return True

    def _receive(self) -> tuple[Message | None, int]:
        """The next message and the fd that came with it (-1: none); None when the worker is gone.

        The end of the socket alone does not say so: a child that outlives the worker's first process may hold it.
        """
        waiting = poll()
        try:
            for descriptor in (self._socket.fileno(), self._pidfd):
                waiting.register(descriptor, POLLIN)
            if self._socket.fileno() not in [descriptor for descriptor, _ in waiting.poll()]:
                return None, -1
            data, descriptors, _, _ = socket.recv_fds(self._socket, _PACKET_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return None, -1
        if not data:
            return None, -1
        message: Message = msgspec.json.decode(data, type=Message)
        if descriptors and not isinstance(message, Ready):
            os.close(descriptors[0])
            return message, -1
        return message, descriptors[0] if descriptors else -1

    def _read_answer(self, answer: int, task: str) -> bytes:
        size = os.fstat(answer).st_size
        if size > ANSWER_MAX:
            raise AgentosError("import-failed", f"the answer of {task!r} has {size} bytes")
        return os.pread(answer, size, 0)

    def _died(self) -> AgentosError:
        with self._lock:
            said = os.pread(self._complaints, 65536, 0) if self._complaints >= 0 else b""
        last_words = said.decode("utf-8", "replace").strip()
        return AgentosError(
            "import-failed",
            "the import's worker ended without a result",
            printable(last_words[-300:]),
            "was it killed, or out of memory? see the kernel's log, then try again",
        )


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _error(message: Failed) -> AgentosError:
    """What a child said, which may be anything."""
    code, what, where, hint = (str(message.error.get(field, "")) for field in ("code", "what", "where", "hint"))
    details = message.error.get("details")
    return AgentosError(
        printable(code),
        printable(what),
        printable(where),
        "\n".join(map(printable, hint.splitlines()[:20])),
        details=details if isinstance(details, dict) else None,
    )


def printable(text: str) -> str:
    """`text` from the unpacker without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:1000])
