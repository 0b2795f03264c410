"""What an import reads from: a path or a stream, as an fd that a confined child can be given."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from agentos_native.errors import AgentosError

_CHUNK: Final = 1 << 20


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
        # O_NONBLOCK: a pipe that nobody writes to yet does not hold up the caller; the child waits, with a limit
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
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
        os.set_blocking(descriptor, True)
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
