"""The processes of an import: ``python -m agentos_native.images.worker JOB``.

Theory of operation
-------------------
::

    importer  (a thread of the supervisor; reads messages from a pipe, believes only the warden)
     └ warden    host root with file capabilities only; no network, empty read-only root directory. Reads no archive.
        └ unpacker  pid 1 of its pid namespace. Tar: root of a throw-away id range in its own user namespace, seccomp,
                    limits on memory, time and file size. Directory: as the warden, because it must read the files.

1. The warden makes a user namespace (0 … 65535 → ids that own nothing) and an idmapped mount of the staging
   directory: what the unpacker makes as its uid 0 lands on disk as uid 0, and by that mount alone. So the tree has
   the image's real owners although the process that parses the archive could not touch one host file if it were taken
   over.
2. It leaves the host (`confine.leave_host`), keeps file capabilities only, and forks the unpacker.
3. The unpacker gives up the rest, and turns the archive into files through the mount's fd. It holds three fds: the
   archive, the mount, and a pipe to the warden, over which it sends `Progress`, at the end `Unpacked`, or `Failed`.
4. The warden passes progress and failures on. When the unpacker has ended well, the warden reads the tree that is on
   disk now and sends `Measured`: a lying unpacker can make a strange image, but cannot give it another image's
   digest. Meanwhile a thread writes the tree to the disk (syncfs), so that the rename that follows never names files
   that a power cut can lose.

Every process dies with the one above it, so a killed supervisor leaves an unlocked staging directory and nothing that
runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images import confine
from agentos_native.images.model import Failed, Job, Measured, Message, Progress, Unpacked
from agentos_native.images.unpack.archive import entries
from agentos_native.images.unpack.digest import measure
from agentos_native.images.unpack.directory import DirectoryReader
from agentos_native.images.unpack.stream import Forward, corrupt
from agentos_native.images.unpack.writer import TreeWriter
from agentos_native.kernel import ns
from agentos_native.kernel.libc import SyscallError, libc_call
from agentos_native.kernel.process import close_range

MESSAGE_MAX: Final = 16 << 10
_INTERVAL: Final = 0.1
_MAX_FD: Final = 0xFFFFFFFF


def send(descriptor: int, message: Message) -> None:
    """Write one message as a line; whole messages only, for a pipe holds far more than one."""
    data = memoryview(msgspec.json.encode(message) + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


def _reporter(descriptor: int) -> Callable[[int, int], None]:
    """A progress callback that sends at most ten messages a second."""
    due = time.monotonic() + _INTERVAL

    def report(count: int, size: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + _INTERVAL
            send(descriptor, Progress(count, size))

    return report


def _failure(error: BaseException, doing: str) -> Failed:
    """Any exception as what the user reads."""
    if isinstance(error, AgentosError):
        known = error
    elif isinstance(error, MemoryError):
        known = AgentosError("image-too-large", "the archive's headers need more memory than an import may use", doing)
    elif isinstance(error, SyscallError):
        known = AgentosError(
            "import-not-confined", str(error), doing, "`agentos-native check` says what this host lacks"
        )
    else:
        known = AgentosError("import-failed", f"{type(error).__name__}: {error}", doing)
    return Failed(known.to_dict())


def _keep_only(*descriptors: int) -> None:
    """Close every other fd but stdio."""
    first = 3
    for descriptor in sorted(descriptors):
        if descriptor > first:
            close_range(first, descriptor - 1)
        first = descriptor + 1
    close_range(first, _MAX_FD)


def _unpack(job: Job, tree: int, userns: int, status: int) -> None:
    """The unpacker's life, from fork to the last message."""
    if not job.directory:
        confine.become_root_of(userns)
    confine.die_with_parent()
    _keep_only(job.source, tree, status)
    confine.keep_capabilities(confine.FILE_CAPABILITIES)
    confine.limit_resources(job.limits)
    confine.filter_system_calls()
    writer = TreeWriter(tree, job.limits, _reporter(status))
    notes: tuple[str, ...] = ()
    if job.directory:
        reader = DirectoryReader(job.source, job.limits)
        reader.copy(writer)
        notes = reader.notes()
    else:
        stream = Forward(job.source, job.limits)
        for entry in entries(stream, job.limits):
            stored = entry.size if entry.segments is None else sum(length for _, length in entry.segments)
            writer.add(entry, stream.blocks(stored))
        if not writer.entries:
            raise corrupt("the archive is empty")
    writer.finish()
    send(status, Progress(writer.entries, writer.bytes))
    send(status, Unpacked(notes + writer.notes()))


def _fork_unpacker(job: Job, tree: int, userns: int) -> tuple[int, int]:
    """The unpacker's pid and the pipe that it writes to."""
    status_r, status_w = os.pipe()
    child = os.fork()
    if child:
        os.close(status_w)
        return child, status_r
    try:
        _unpack(job, tree, userns, status_w)
        os._exit(0)
    except BaseException as error:
        send(status_w, _failure(error, "unpacking"))
    finally:
        os._exit(1)


def _relay(source: int, status: int) -> Unpacked | Failed | None:
    """Pass progress on until the unpacker closes its pipe; its last word. Anything else that it sends is a failure."""
    last: Unpacked | Failed | None = None
    with open(source, "rb") as lines:
        while line := lines.readline(MESSAGE_MAX):
            message = msgspec.json.decode(line, type=Progress | Failed | Unpacked)
            if isinstance(message, Progress):
                send(status, message)
            else:
                last = message
    return last


def _measure_and_sync(tree: int) -> Measured:
    """The digest of what is on disk, while a thread makes sure that it is on disk."""
    failures: list[OSError] = []

    def sync() -> None:
        try:
            libc_call("syncfs", tree)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=sync, name="syncfs")
    thread.start()
    measured = measure(tree)
    thread.join()
    if failures:
        raise AgentosError("disk-failed", f"the image cannot be written to the disk: {failures[0].strerror}")
    return measured


def _ended(status: int, job: Job) -> AgentosError:
    """Why the unpacker is gone without a word."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return AgentosError(
            "image-too-large", f"the import took more than {job.limits.cpu_seconds} s of processor time"
        )
    how = (
        f"signal {os.WTERMSIG(status)}"
        if os.WIFSIGNALED(status)
        else f"exit status {os.waitstatus_to_exitcode(status)}"
    )
    return AgentosError(
        "import-failed", f"the unpacker ended by {how}", hint="out of memory, or an archive made to break it?"
    )


def run(job: Job) -> None:
    """The warden's life."""
    os.umask(0)
    userns = tree = -1
    if job.directory:
        tree = os.dup(job.tree)
    else:
        userns = confine.make_userns(confine.UNPACKER_BASE)
        tree = confine.idmapped(job.tree, userns)
    own_pids = ns.open_own("pid")
    confine.leave_host()
    child, pipe = _fork_unpacker(job, tree, userns)
    ns.setns(own_pids, ns.CLONE_NEWPID)  # a process whose children would be elsewhere cannot start threads
    os.close(own_pids)
    confine.keep_capabilities(confine.FILE_CAPABILITIES)
    confine.die_with_parent()
    os.close(tree)
    os.close(job.source)
    word = _relay(pipe, job.status)
    _, status = os.waitpid(child, 0)
    if isinstance(word, Failed):
        send(job.status, word)
    elif word is None or status != 0:
        raise _ended(status, job)
    else:
        send(job.status, word)
        send(job.status, _measure_and_sync(job.tree))


def main() -> None:
    """Entry point; the exit status says nothing, the messages do."""
    sys.setswitchinterval(
        0.0005
    )  # the decompressor's thread waits for the lock at each chunk; 5 ms each would be the longest part
    job = msgspec.json.decode(sys.argv[1], type=Job)
    confine.die_with_parent()
    if os.getppid() != job.parent:
        os._exit(1)  # the importer died before the line above
    try:
        run(job)
    except BaseException as error:
        send(job.status, _failure(error, "importing"))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
