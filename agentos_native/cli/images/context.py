"""What a build is given: a directory and a Dockerfile, or one of both or all of it on standard input."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from types import FrameType
from typing import BinaryIO, Final, NamedTuple

from agentos_native.errors import AgentosError

_BLOCK: Final = 512
_CHECKSUM: Final = slice(148, 156)
_COMPRESSED: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""How gzip, bzip2, xz and zstd begin; no Dockerfile does."""


class Given(NamedTuple):
    """Absolute path of the context, a directory or a tar; the Dockerfile: "" for the context's own, a path below it, or
    an absolute one of any other."""

    context: str
    file: str


@contextlib.contextmanager
def given(context: str, file: str | None) -> Iterator[Given]:
    """What CONTEXT and -f mean; what comes over standard input is in files for as long as the block lasts.

    Raises:
        AgentosError: ``usage``, ``unsupported``, ``dockerfile-not-found``, ``cannot-read``.
    """
    if "://" in context or context.startswith("git@"):
        hint = "fetch it yourself, then image build DIR"
        raise AgentosError("unsupported", "a context is not fetched", context, hint)
    if context == "-":
        with _standard_input(file) as found:
            yield found
    elif file == "-":
        with _copied(_stdin("-f"), "Dockerfile") as path:
            yield Given(os.path.abspath(context), path)
    else:
        inside = os.path.join(context, file or "")
        if file and not os.path.exists(file) and os.path.exists(inside):
            hint = f"-f is relative to the current directory: -f {inside}"
            raise AgentosError("dockerfile-not-found", "there is no such file", file, hint)
        yield Given(os.path.abspath(context), os.path.abspath(file) if file else "")


@contextlib.contextmanager
def _standard_input(file: str | None) -> Iterator[Given]:
    """A tar is the context; anything else is a Dockerfile, with a context in which nothing is."""
    if file == "-":
        hint = "a Dockerfile alone: image build -\na tar with its Dockerfile: image build -f NAME -"
        raise AgentosError("usage", "standard input is the context or the Dockerfile, not both", "-f", hint)
    with _copied(_stdin("CONTEXT"), "context") as path:
        with open(path, "rb") as copy:
            head = copy.read(_BLOCK)
        if _is_archive(head):
            if file and os.path.isabs(file):
                raise AgentosError("usage", "-f is a path in the tar", file, f"-f {file.lstrip('/')}")
            yield Given(path, os.path.normpath(file) if file else "")
            return
        if file:
            hint = "a Dockerfile alone: image build -\na Dockerfile with a directory: image build -f - DIR"
            raise AgentosError("usage", "standard input is no tar that the Dockerfile could be in", "-f", hint)
        home = os.path.dirname(path)
        empty, dockerfile = os.path.join(home, "empty"), os.path.join(home, "Dockerfile")  # as errors name it
        os.mkdir(empty)
        os.rename(path, dockerfile)
        yield Given(empty, dockerfile)


def _stdin(where: str) -> BinaryIO:
    if sys.stdin.isatty():
        hint = "image build -t NAME - < Dockerfile, or tar c . | image build -t NAME -"
        raise AgentosError("cannot-read", "standard input is a terminal", where, hint)
    return sys.stdin.buffer


@contextlib.contextmanager
def _copied(stream: BinaryIO, name: str) -> Iterator[str]:
    """The path of a file with all that comes, which the supervisor can read."""
    with _ended_orderly(), contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentos-build-"))
            path = os.path.join(directory, name)
            with open(path, "wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
        except OSError as error:
            what = f"standard input cannot be kept: {error.strerror or error}"
            hint = "TMPDIR=DIRECTORY chooses where it is kept during the build"
            raise AgentosError("cannot-write", what, tempfile.gettempdir(), hint) from None
        yield path


@contextlib.contextmanager
def _ended_orderly() -> Iterator[None]:
    """A command that is told to end takes its copy away, too; its status is what a shell says of one that was
    killed."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # where signals are nobody's but the main thread's
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_archive(head: bytes) -> bool:
    """Whether a file that begins like this is a tar, compressed perhaps; the checksum of its first header says so."""
    if head.startswith(_COMPRESSED):
        return True
    if len(head) < _BLOCK:
        return False
    try:
        said = int(head[_CHECKSUM].rstrip(b" \0"), 8)
    except ValueError:
        return False
    return said == sum(head) - sum(head[_CHECKSUM]) + 8 * ord(" ")
