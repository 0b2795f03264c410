"""A supervisor inside one command, when none answers and none is on its way.

The command starts launcher and supervisor as its children, in a session of their own so that Ctrl-C reaches only
the program. The supervisor writes to a pipe when its API answers (``--ready-fd``), and stops, with its agents, at the
end of its lifeline (``--lifeline-fd``): a FIFO beside its socket that this process, and every other command that uses
the same supervisor meanwhile, holds open for writing. So it lasts until the last of them has ended, however it ended.

A supervisor that starts (``supervise``) has the state directory before it answers; a command that finds it so waits
for it. If the command was faster, ``supervise`` waits for the command's end. Where ``--socket`` names a supervisor,
that one is meant and no other: when it does not answer, nothing is started in its place. A command that may start none
(that, or ``run -d``) first looks a moment longer, for ``supervise & run -d …`` in a script.

The lock on the FIFO tells the state: exclusive while a supervisor starts or goes, shared by all who use it in between.
Who can turn the shared lock into an exclusive one is the last, waits for the end, and removes the FIFO.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Final

import click

from agentos_native.cli.context import client_of
from agentos_native.errors import AgentosError
from agentos_native.wire.holder import holder_of

if TYPE_CHECKING:
    from agentos_native.client import Client

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
_POLL: Final = 0.05
_UNSEEN_SECONDS: Final = 1.0
"""How long a supervisor that was just called may take until anything of it can be seen."""


@contextlib.contextmanager
def supervised(ctx: click.Context, *, lasting: bool = False) -> Iterator[Client]:
    """A client with a supervisor behind it: the one that answers, or one that lasts as long as the context.

    With `lasting` only one that was started for itself will do. Raises ``no-supervisor`` then, or when ``--socket``
    names one that does not answer, and whatever kept an own one from starting.
    """
    client = client_of(ctx)
    named = bool((ctx.find_object(dict) or {}).get("socket"))
    fifo = os.path.abspath(client.socket) + ".lifeline"
    with contextlib.ExitStack() as stack:
        lifeline = _enter(client, fifo, stack, lasting=lasting, named=named)
        if lasting and lifeline:
            hint = "start one with: agentos-native supervise"
            raise AgentosError("no-supervisor", "the one that answers ends with another command", client.socket, hint)
        yield client


def _enter(client: Client, fifo: str, stack: contextlib.ExitStack, *, lasting: bool, named: bool) -> bool:
    """Find a supervisor or start one; `stack` lets go of it. True for one that needs a lifeline."""
    begun = time.monotonic()
    deadline = begun + _START_SECONDS
    while True:
        if (lifeline := _settled(fifo)) is not None:
            stack.callback(_leave, lifeline, fifo, functools.partial(_await_gone, client.socket, _inode(client.socket)))
            return True
        missing = _missing(client)
        if missing is None:
            return False
        if _is_coming(client.socket) and time.monotonic() < deadline:
            time.sleep(_POLL)
            continue
        if lasting or named:
            if time.monotonic() < begun + _UNSEEN_SECONDS:
                time.sleep(_POLL)
                continue
            raise _unanswered(missing, client.socket, lasting) if named else missing
        if (ends := _make_fifo(fifo)) is None:  # another command was faster
            continue
        try:
            stack.enter_context(_supervisor(client.socket, fifo, *ends))
        except AgentosError as error:
            if error.code != "state-in-use" or not _is_coming(client.socket) or time.monotonic() > deadline:
                raise
        else:
            return True


def _is_coming(socket: str) -> bool:
    """Whether a supervisor that is to stay, and will answer on this socket, has the state directory already."""
    from agentos_native.spec import settings

    path = os.path.abspath(socket)
    holder = holder_of(settings.load({"socket": path}).state_dir)
    return holder is not None and not holder.embedded and holder.socket in ("", path)


def _unanswered(error: AgentosError, socket: str, lasting: bool) -> AgentosError:
    hint = f"start one there with: agentos-native --socket {socket} supervise"
    if not lasting:
        hint += "\nor leave --socket out: without any supervisor this command brings one along"
    return AgentosError(error.code, error.what, error.where, hint)


def _settled(fifo: str) -> int | None:
    """The lifeline of an embedded supervisor that is there to stay for us, held; None when there is none."""
    deadline = time.monotonic() + _START_SECONDS
    while (lifeline := _join(fifo)) is None and os.path.exists(fifo):  # one starts or goes
        if time.monotonic() > deadline:
            raise AgentosError("timeout", "another command's supervisor neither starts nor ends", fifo)
        time.sleep(_POLL)
    return lifeline


def _missing(client: Client) -> AgentosError | None:
    """What says that no supervisor answers; None: one does."""
    try:
        client.version()
    except AgentosError as error:
        if error.code != "no-supervisor":
            raise
        return error
    return None


def _join(fifo: str) -> int | None:
    """Hold the lifeline of an embedded supervisor; None when there is none, or one that starts or goes."""
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nobody reads: what a killed command has left
            with contextlib.suppress(OSError):
                os.unlink(fifo)
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _leave(fd: int, fifo: str, await_end: Callable[[], None]) -> None:
    """Let go of the lifeline; the last one waits for the end and removes the FIFO."""
    guard = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return
        os.close(fd)
        await_end()
        with contextlib.suppress(OSError):
            os.unlink(fifo)
    finally:
        os.close(guard)


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _await_gone(socket: str, inode: int) -> None:
    """Until the supervisor has removed its socket; the next one may have put its own there."""
    deadline = time.monotonic() + _STOP_SECONDS
    while _inode(socket) == inode != 0 and time.monotonic() < deadline:
        time.sleep(_POLL)


def command(socket: str, ready_fd: int, lifeline_fd: int) -> list[str]:
    """The command line of an embedded supervisor."""
    from agentos_native.spec import settings

    chosen = {"socket": os.path.abspath(socket)}
    state_dir = settings.load(chosen).state_dir
    if state_dir != settings.DEFAULT_STATE_DIR:
        # a name that belongs to this state, beside the one of the machine's own supervisor
        chosen["node"] = f"at-{zlib.crc32(state_dir.encode()):08x}"
    python = [sys.executable, "-m"]
    options = [*settings.to_argv(settings.load(chosen)), "--embedded"]
    descriptors = ["--ready-fd", str(ready_fd), "--lifeline-fd", str(lifeline_fd)]
    return [*python, "agentos_native.launcher", "--", *python, "agentos_native.supervisor", *options, *descriptors]


@contextlib.contextmanager
def _supervisor(socket: str, fifo: str, lifeline_end: int, lifeline: int) -> Iterator[None]:
    """Start one; at the end let go of it, and see it off unless others use it."""
    ready, ready_end = os.pipe()
    with tempfile.TemporaryFile() as said:
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
            fcntl.flock(lifeline, fcntl.LOCK_SH)
            yield
        finally:
            os.close(ready)
            child = process
            _leave(lifeline, fifo, lambda: _reap(child) if child else None)


def _make_fifo(fifo: str) -> tuple[int, int] | None:
    """A new lifeline, its two ends, exclusively locked; None when there is one. It appears only once it has both."""
    if os.geteuid() != 0:
        raise AgentosError("permission-denied", "agents can only be run by root", hint="run this as root")
    reader = writer = -1
    own = f"{fifo}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(fifo), mode=0o755, exist_ok=True)
        os.mkfifo(own, 0o600)
        try:
            reader = os.open(own, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            writer = os.open(own, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            fcntl.flock(writer, fcntl.LOCK_EX)
            os.link(own, fifo)
        finally:
            os.unlink(own)
    except OSError as error:
        for fd in (reader, writer):
            if fd >= 0:
                os.close(fd)
        if isinstance(error, FileExistsError):
            return None
        raise AgentosError("cannot-write", error.strerror or str(error), fifo, "choose another --socket")
    return reader, writer


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
