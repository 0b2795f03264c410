"""The processes of an import, a build and a check; `session` starts them.

Theory of operation
-------------------
::

    session   (in the supervisor; sends jobs with fds over a socket, believes only the warden)
     └ starter    makes the namespaces, then only waits
        └ warden     host root with file capabilities only, pid 1; no network, empty read-only root. Reads no archive.
           ├ feeder     unprivileged; hashes what it reads of an archive, passes it on, and waits for its child
           │  └ unpacker   pid 1 of a pid namespace of its own, root of a throw-away id range, seccomp, limits on
           │               memory, time and file size: parses archives, and whatever else strangers wrote (`ask`)
           ├ reader     as the warden, because it must read the host's files: copies directories. seccomp, limits.
           └ measurer   as the warden: reads the finished tree

1. The starter makes a user namespace (0 … 65535 → ids that own nothing), imports what the children will need, leaves
   the host (`confine.leave_host`) and forks the warden, which keeps file capabilities only. `Ready` carries the user
   namespace to the session.
2. For an archive the session passes an idmapped mount of the staging directory: what the unpacker makes as its uid 0
   lands on disk as uid 0, and by that mount alone. So the tree has the image's real owners although the process that
   parses the archive could not touch one host file if it were taken over.
3. A child holds the fds of its job and one pipe to the warden, over which it sends `Progress`, and at the end
   `Written`, `Answered`, `Found` or `Failed`. The feeder has a pipe of its own (`Fed`): what was expected of the
   archive's bytes is compared with what the feeder read, not with what the unpacker says. The digest of the plain tar
   (diff_id) is the unpacker's word: whoever decompresses has to be believed about that. `Found` is its word, too:
   where in an archive the files of an image are, which whoever asked looks at (`oci.members`).
4. When the unpacker has ended well, the measurer reads the tree that is on disk now and sends `Measured`: a lying
   unpacker can make a strange image, but cannot give it another image's digest. Meanwhile a thread writes the tree to
   the disk (syncfs), so that the rename that follows never names files that a power cut can lose. The measurer is
   there from the beginning: it reads files that the unpacker has finished (what it read counts if the kernel says that
   the file was not changed since, `unpack.early`), and has the disk begin with them (`unpack.writing`).

The warden only waits: for the session's socket and for its child's pipes. When the session's end of the socket is
closed, and a killed supervisor closes it, the warden exits, and with pid 1 the kernel ends everything below. Nothing
survives a job either: the unpacker is pid 1, and no child can fork (`confine.filter_system_calls`).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from select import POLLIN, poll
from typing import Any, Final, NoReturn

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images import children, confine
from agentos_native.images.model import Limits
from agentos_native.images.unpack.feed import check, mismatch
from agentos_native.images.unpack.jobs import failure
from agentos_native.images.unpack.messages import (
    Answered,
    Failed,
    Fed,
    Found,
    Job,
    Measured,
    Message,
    Progress,
    Ready,
    Setup,
    Written,
)
from agentos_native.kernel.process import pidfd_open

TASKS: Final[dict[str, str]] = {
    "archive-head": "agentos_native.images.build.heads:task",
    "dockerfile": "agentos_native.images.build.dockerfile:task",
    "oci-survey": "agentos_native.images.oci.survey:survey",
}
"""What `Session.ask` may run: name → "module:function", a function of bytes to bytes that opens nothing. Imported
before the worker leaves the host; a function that imports something itself finds nothing."""

_FUNCTIONS: Final = {children.COPY: "agentos_native.images.unpack.copying:copy"}
_LINE_MAX: Final = 60 << 10
_READ: Final = 64 << 10
_JOB_MAX: Final = 64 << 20
_FDS_MAX: Final = 8
_SETUP_MAX: Final = 64 << 10


class _Lines:
    """The messages of one pipe; progress goes on at once, of the others the last is kept."""

    def __init__(self, descriptor: int, tell: Callable[[Message], None]) -> None:
        self.descriptor = descriptor
        self.last: Message | None = None
        self._tell = tell
        self._rest = b""

    def take(self) -> bool:
        """Read what is there; false at the end."""
        data = os.read(self.descriptor, _READ)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if any(len(line) > _LINE_MAX for line in (*lines, self._rest)):
            raise AgentosError("import-failed", "the unpacker sent a message that is too long")
        for line in lines:
            try:
                message = msgspec.json.decode(line, type=Message)
            except (msgspec.MsgspecError, UnicodeError):
                raise AgentosError("import-failed", "the unpacker sent what is no message") from None
            if isinstance(message, Progress):
                self._tell(message)
            else:
                self.last = message
        return bool(data)


class _Child:
    """A process that the warden started; `said` and `fed` are its pipes, `code` is how it ended (-n: by signal n)."""

    def __init__(self, pid: int, cpu_seconds: int, said: _Lines, fed: _Lines) -> None:
        self.pid = pid
        self._cpu_seconds = cpu_seconds
        self.said = said
        self.fed = fed
        self.code = 0
        self._running = True

    def end(self) -> None:
        """Make sure that it has ended: nothing is left but a zombie as a rule."""
        if not self._running:
            return
        os.kill(self.pid, signal.SIGKILL)
        code = children.wait(self.pid, self._cpu_seconds)
        self.code = children.SIGNALLED - code if code > children.SIGNALLED else code
        self._running = False


class Warden:
    """Takes jobs from `control` until its other end is closed."""

    def __init__(self, control: socket.socket, means: children.Means) -> None:
        self._control = control
        self._means = means

    def serve(self) -> None:
        """The warden's life."""
        socket.send_fds(self._control, [msgspec.json.encode(Ready())], [self._means.userns])
        decoder = msgspec.json.Decoder(Job)  # takes a while, in which the session prepares the first job
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._control, 16, _FDS_MAX, socket.MSG_CMSG_CLOEXEC)
            if not data:
                return
            try:
                job = decoder.decode(os.pread(descriptors[0], _JOB_MAX, 0))
                last = self._run(job, dict(zip(job.descriptors, descriptors[1:], strict=True)))
            except Exception as error:
                last = failure(error, "")
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            self._tell(last)

    def _tell(self, message: Message) -> None:
        self._control.send(msgspec.json.encode(message))

    def _run(self, job: Job, given: dict[str, int]) -> Message:
        """Do one job; the message that ends it."""
        if job.kind == "measure":
            with self._measurer(given["tree"], job.limits, (-1, -1), sync=False) as measurer:
                return self._measured(measurer, job.limits)
        if job.kind == "ask":
            return self._work(job, given)
        hints_r, hints_w = os.pipe()
        go_r, go_w = os.pipe()
        with contextlib.ExitStack() as stack:
            for descriptor in (hints_r, go_r):
                stack.callback(os.close, descriptor)
            rest = stack.enter_context(contextlib.ExitStack())
            for descriptor in (hints_w, go_w):
                rest.callback(os.close, descriptor)
            child = stack.enter_context(self._worker(job, given | {"hints": hints_w}))
            measurer = stack.enter_context(self._measurer(given["tree"], job.limits, (hints_r, go_r), sync=True))
            word = self._word(job, child)
            if not isinstance(word, Written):
                return word
            self._tell(word)
            rest.close()
            return self._measured(measurer, job.limits)

    def _work(self, job: Job, given: Mapping[str, int]) -> Message:
        """Let a child do it; its last word."""
        with self._worker(job, given) as child:
            return self._word(job, child)

    def _worker(self, job: Job, given: Mapping[str, int]) -> contextlib.AbstractContextManager[_Child]:
        """The child that does it."""
        if job.kind == "ask" and job.task not in self._means.functions:
            raise AgentosError("import-failed", f"no task {job.task!r}")

        def life(said: int, fed: int) -> None:
            if job.kind in ("directory", "upper", "copy"):
                children.reader(job, given, self._means, said)
            else:
                children.feeder(job, given, self._means, (said, fed))

        return self._child(life, job.limits)

    def _word(self, job: Job, child: _Child) -> Message:
        """Its last word when it has ended, which is believed as far as `worker` says."""
        self._listen(child, job.limits)
        if isinstance(child.fed.last, Fed):
            check(job.expect, child.fed.last)
        for word in (child.fed.last, child.said.last):
            if isinstance(word, Failed):
                return word
        word = child.said.last
        if child.code != 0 or not isinstance(word, _last_words(job)):
            raise _ended(child.code, job.limits)
        if isinstance(word, Written) and job.expect.diff_id not in ("", word.diff_id):
            raise mismatch("the layer's content", job.expect.diff_id, word.diff_id)
        return word

    def _measurer(
        self, tree: int, limits: Limits, pipes: tuple[int, int], *, sync: bool
    ) -> contextlib.AbstractContextManager[_Child]:
        return self._child(lambda said, _: children.measurer(tree, limits, self._means, said, pipes, sync=sync), limits)

    def _measured(self, measurer: _Child, limits: Limits) -> Message:
        self._listen(measurer, limits)
        word = measurer.said.last
        if isinstance(word, Failed) or (measurer.code == 0 and isinstance(word, Measured)):
            return word
        raise _ended(measurer.code, limits)

    @contextlib.contextmanager
    def _child(self, life: Callable[[int, int], None], limits: Limits) -> Iterator[_Child]:
        """A child that lives `life` with two pipes for its messages, until the block is left."""
        said_r, said_w = os.pipe()
        fed_r, fed_w = os.pipe()
        try:
            pid = children.fork(lambda: life(said_w, fed_w))
        finally:
            os.close(said_w)
            os.close(fed_w)
        child = _Child(pid, limits.cpu_seconds, _Lines(said_r, self._tell), _Lines(fed_r, self._tell))
        try:
            yield child
        finally:
            os.close(said_r)
            os.close(fed_r)
            child.end()

    def _listen(self, child: _Child, limits: Limits) -> None:
        """Take messages until the child has ended, or everybody must because the session has."""
        ended = pidfd_open(child.pid)
        pipes = {lines.descriptor: lines for lines in (child.said, child.fed)}
        waiting = poll()
        for descriptor in (ended, self._control.fileno(), *pipes):
            waiting.register(descriptor, POLLIN)
        deadline = time.monotonic() + limits.wall_seconds
        try:
            while True:
                found = [descriptor for descriptor, _ in waiting.poll(max(0, deadline - time.monotonic()) * 1000)]
                if not found:
                    raise AgentosError("import-timeout", f"the import took more than {limits.wall_seconds:g} s")
                if self._control.fileno() in found:
                    os._exit(0)
                for descriptor in found:
                    if descriptor in pipes and not pipes[descriptor].take():
                        waiting.unregister(descriptor)
                if found == [ended]:
                    child.end()
                    return
        finally:
            os.close(ended)


def _last_words(job: Job) -> type[Message] | tuple[type[Message], ...]:
    """What a child says that has done it."""
    if job.kind == "ask":
        return Answered
    return (Written, Found) if job.find else Written


def _ended(code: int, limits: Limits) -> AgentosError:
    """Why a child is gone without a word."""
    if code == -signal.SIGXCPU:
        return AgentosError("image-too-large", f"the import took more than {limits.cpu_seconds} s of processor time")
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    return AgentosError(
        "import-failed", f"the unpacker ended by {how}", hint="out of memory, or an archive made to break it?"
    )


def _functions() -> dict[str, Callable[..., Any]]:
    """What the children may be asked to run, imported."""
    found: dict[str, Callable[..., Any]] = {}
    for name, place in (TASKS | _FUNCTIONS).items():
        module, _, function = place.partition(":")
        found[name] = getattr(importlib.import_module(module), function)
    return found


def _wait_for(warden: int) -> NoReturn:
    """The starter's life after the fork: it holds nothing, and ends with the warden."""
    children.keep_only()
    confine.keep_capabilities(())
    os.waitpid(warden, 0)
    os._exit(0)


def _live(control: socket.socket, means: children.Means) -> NoReturn:
    """The warden's life from fork to end."""
    confine.die_with_parent()
    os.umask(0)
    confine.keep_capabilities(confine.FILE_CAPABILITIES)
    Warden(control, means).serve()
    os._exit(0)


def main() -> None:
    """Entry point, with the number of the socket as its argument; the exit status says nothing, the messages do."""
    # the decompressor's thread waits for the interpreter's lock at each chunk; 5 ms each would be the longest part
    sys.setswitchinterval(0.0005)
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        setup = msgspec.json.decode(control.recv(_SETUP_MAX), type=Setup)
        means = children.Means(_functions(), confine.make_userns(confine.UNPACKER_BASE), setup.program)
        confine.leave_host()
        gc.freeze()  # what is never looked at again is never copied by a fork
        gc.enable()  # the session has it disabled at the start
        warden = os.fork()
    except Exception as error:
        control.send(msgspec.json.encode(failure(error, "starting the worker")))
        raise SystemExit(1) from None
    if warden:
        _wait_for(warden)
    _live(control, means)
