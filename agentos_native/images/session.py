"""The importer's side of an import: start the worker, pass progress on, turn its last words into a result."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.model import Failed, Job, Limits, Measured, Message, Progress, Unpacked

ProgressCallback = Callable[[Progress], None]
_CHUNK: Final = 1 << 20
_PACKAGE_ROOT: Final = str(Path(__file__).resolve().parents[2])


@contextlib.contextmanager
def open_source(source: Path | BinaryIO) -> Iterator[tuple[int, bool]]:
    """An fd of what shall be imported, and whether it is a directory.

    Raises:
        AgentosError: ``source-not-found``, ``unsupported-source``.
    """
    if not isinstance(source, Path):
        with _stream_fd(source) as descriptor:
            yield descriptor, False
        return
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = "a path on the machine where the supervisor runs" if error.errno == 2 else ""
        raise AgentosError("source-not-found", f"cannot open {str(source)!r}: {error.strerror}", hint=hint) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISFIFO(mode)):
            raise AgentosError(
                "unsupported-source",
                f"{str(source)!r} is neither a directory nor a file nor a pipe",
                hint="import a directory or a tar",
            )
        yield descriptor, stat.S_ISDIR(mode)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _stream_fd(stream: BinaryIO) -> Iterator[int]:
    """An fd that gives what `stream` gives: its own when it has no buffer, else a pipe fed by a thread."""
    if isinstance(stream, io.FileIO):
        # another number, because the worker's own standard input takes the place of 0
        descriptor = fcntl.fcntl(stream.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        return
    read_end, write_end = os.pipe()

    def pump() -> None:
        # the reader may stop early (an error); it then closes the pipe, and nobody wants the rest
        with contextlib.suppress(BrokenPipeError), open(write_end, "wb", buffering=0) as out:
            while chunk := stream.read(_CHUNK):
                data = memoryview(chunk)
                while data:
                    data = data[out.write(data) :]

    thread = threading.Thread(target=pump, name="import-stream", daemon=True)
    thread.start()
    try:
        yield read_end
    finally:
        os.close(read_end)
        thread.join(1)  # it may be inside read(); what it writes later is refused


def run_worker(job: Job, progress: ProgressCallback | None) -> tuple[Measured, tuple[str, ...]]:
    """Do `job` in a worker; the fds in it must stay open meanwhile (`Job.status` is filled in here).

    Returns:
        What the warden measured, and the import's notes.

    Raises:
        AgentosError: what failed.
    """
    status_r, status_w = os.pipe()
    complaints = os.memfd_create("import-stderr", os.MFD_CLOEXEC)
    job = msgspec.structs.replace(job, status=status_w)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentos_native.images.worker", msgspec.json.encode(job).decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            pass_fds=(job.source, job.tree, job.status),
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PYTHONPATH": _PACKAGE_ROOT, "PYTHONNOUSERSITE": "1"},
        )
        os.close(status_w)
        status_w = -1
        with process:
            try:
                return _listen(status_r, progress, complaints)
            finally:
                process.kill()  # it is through, or nobody waits for it any more
    finally:
        os.close(status_r)
        os.close(complaints)
        if status_w >= 0:
            os.close(status_w)


def _listen(descriptor: int, progress: ProgressCallback | None, complaints: int) -> tuple[Measured, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    with open(descriptor, "rb", closefd=False) as lines:
        for line in lines:
            message = msgspec.json.decode(line, type=Message)
            if isinstance(message, Progress):
                if progress is not None:
                    progress(message)
            elif isinstance(message, Unpacked):
                notes = tuple(map(printable, message.notes))
            elif isinstance(message, Failed):
                raise _error(message)
            else:
                return message, notes
    last_words = os.pread(complaints, 65536, 0).decode("utf-8", "replace").strip()
    raise AgentosError(
        "import-failed",
        "the import's worker ended without a result",
        printable(last_words[-300:]),
        "out of memory? see the kernel's log",
    )


def _error(message: Failed) -> AgentosError:
    error = AgentosError.from_dict(message.error)
    return AgentosError(
        printable(error.code),
        printable(error.what),
        printable(error.where),
        "\n".join(map(printable, error.hint.splitlines())),
    )


def printable(text: str) -> str:
    """`text` from the unpacker without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:1000])


def new_job(source: int, directory: bool, tree: int, limits: Limits) -> Job:
    """A job whose status pipe `run_worker` will make."""
    return Job(directory=directory, source=source, tree=tree, status=-1, parent=os.getpid(), limits=limits)
