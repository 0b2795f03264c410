"""A supervisor inside one command, when none answers.

The command starts launcher and supervisor as its children, in a session of their own so that Ctrl-C reaches only
the program. Two pipes tie them together: the supervisor writes to one when its API answers (``--ready-fd``), and
stops, with its agents, when the other's end in this process is closed, however this process ended (``--lifeline-fd``).
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Final

import click

from agentos_native.cli.context import client_of
from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from agentos_native.client import Client

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0


@contextlib.contextmanager
def supervised(ctx: click.Context, *, lasting: bool = False) -> Iterator[Client]:
    """A client with a supervisor behind it: the one that answers, or one that lasts as long as the context.

    With `lasting` only the former will do. Raises ``no-supervisor`` then, and whatever kept an own one from starting.
    """
    client = client_of(ctx)
    try:
        client.version()
    except AgentosError as error:
        if error.code != "no-supervisor" or lasting:
            raise
    else:
        yield client
        return
    with _supervisor(client.socket):
        yield client


def command(socket: str, ready_fd: int, lifeline_fd: int) -> list[str]:
    """The command line of an embedded supervisor."""
    from agentos_native.spec.settings import load, to_argv

    python = [sys.executable, "-m"]
    options = [*to_argv(load({"socket": os.path.abspath(socket)})), "--embedded"]
    descriptors = ["--ready-fd", str(ready_fd), "--lifeline-fd", str(lifeline_fd)]
    return [*python, "agentos_native.launcher", "--", *python, "agentos_native.supervisor", *options, *descriptors]


@contextlib.contextmanager
def _supervisor(socket: str) -> Iterator[None]:
    if os.geteuid() != 0:
        raise AgentosError("permission-denied", "agents can only be run by root", hint="run this as root")
    ready, ready_end = os.pipe()
    lifeline_end, lifeline = os.pipe()
    said = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the supervisor
    process: subprocess.Popen[bytes] | None = None
    try:
        try:
            process = subprocess.Popen(
                command(socket, ready_end, lifeline_end),
                pass_fds=(ready_end, lifeline_end),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        finally:
            os.close(ready_end)
            os.close(lifeline_end)
        _await_ready(ready, said)
        yield
    finally:
        os.close(ready)
        os.close(lifeline)
        if process is not None:
            _reap(process)
        said.close()


def _await_ready(ready: int, said: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if select.select([ready], [], [], left)[0]:
            if os.read(ready, 64).startswith(b"ready"):
                return
            raise _start_error(said)
    raise AgentosError("timeout", f"the embedded supervisor was not ready in {_START_SECONDS:.0f} s", _tail(said))


def _start_error(said: IO[bytes]) -> AgentosError:
    """What the supervisor said when it could not start, as the error that it is."""
    text = _tail(said)
    for line in text.splitlines():
        code, bracket, what = line.removeprefix("error[").partition("]: ")
        if line.startswith("error[") and bracket:
            hint = "\n".join(
                part.strip().removeprefix("hint: ") for part in text.partition(line)[2].splitlines() if part
            )
            return AgentosError(code, what, "embedded supervisor", hint)
    hint = text or "run agentos-native supervise to see why"
    return AgentosError("supervisor-failed", "the embedded supervisor did not start", hint=hint)


def _tail(said: IO[bytes]) -> str:
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - 2000))
    return said.read().decode(errors="replace").strip()


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for it; it stops by itself now that the lifeline is cut."""
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
