"""The lives of the warden's children, from fork to the last message; see `worker` for who they are."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from agentos_native.images import confine
from agentos_native.images.model import Limits
from agentos_native.images.unpack import jobs
from agentos_native.images.unpack.feed import feed
from agentos_native.images.unpack.jobs import failure, send
from agentos_native.images.unpack.messages import Job
from agentos_native.kernel import ns
from agentos_native.kernel.process import close_range


class Means(NamedTuple):
    """What the worker has prepared: functions by name, the user namespace of unprivileged children, and the filter
    of system calls."""

    functions: Mapping[str, Callable[..., Any]]
    userns: int
    program: bytes


COPY: Final = "copy"
"""The name of the function that does the job ``copy``, among those that the worker loads."""
SIGNALLED: Final = 128
"""A feeder whose unpacker was ended by a signal exits with this and the signal's number, as a shell would."""

_MAX_FD: Final = 0xFFFFFFFF
_ASK_SECONDS: Final = 60
_CPU_CLOCK: Final = 0.1
_ANSWER_MAX: Final = 64 << 20
_PIPE_SIZE: Final = 1 << 20


def fork(life: Callable[[], None]) -> int:
    """A child that lives `life` and nothing after it; its pid."""
    child = os.fork()
    if child == 0:
        try:
            life()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def wait(child: int, cpu_seconds: int) -> int:
    """Wait for a child; its exit status, or -n for signal n.

    The kernel ends a process that has used up its time by SIGKILL: SIGXCPU means nothing to the pid 1 of a namespace.
    Here it is SIGXCPU again.
    """
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL and usage.ru_utime + usage.ru_stime >= cpu_seconds - _CPU_CLOCK:
        return -signal.SIGXCPU
    return code


def reader(job: Job, given: Mapping[str, int], means: Means, status: int) -> None:
    """Copy what is on the host, with the warden's file capabilities."""
    with _telling(status):
        _confine_reader(job.limits, means, *given.values(), status)
        if job.kind == "copy":
            send(status, means.functions[COPY](job, given, jobs.reporter(status)))
        else:
            send(status, jobs.read_directory(job, given, status))


def measurer(tree: int, limits: Limits, means: Means, status: int, pipes: tuple[int, int], *, sync: bool) -> None:
    """Read the whole tree; `sync`: and write it to the disk.

    Args:
        pipes: what says which files are finished, and what says that all are; see `jobs.measure_tree`.
    """
    with _telling(status):
        _confine_reader(limits, means, tree, status, *(each for each in pipes if each >= 0))
        send(status, jobs.measure_tree(tree, *pipes, sync=sync))


def feeder(job: Job, given: Mapping[str, int], means: Means, pipes: tuple[int, int]) -> None:
    """Start the unpacker, feed it when something is expected of the archive, and end as it ended.

    Args:
        pipes: where the unpacker's messages go, and where the feeder's.
    """
    status, fed = pipes
    with _telling(fed):
        confine.become_root_of(means.userns)
        confine.die_with_parent()
        checked = bool(job.expect.digest) or job.expect.size >= 0
        feed_r, feed_w = _pipe() if checked else (-1, -1)
        ns.unshare(ns.CLONE_NEWPID)
        unpacks = dict(given) | ({"source": feed_r} if checked else {})
        child = fork(lambda: _unpacker(job, unpacks, means, status))
        keep_only(fed, *((given["source"], feed_w) if checked else ()))
        confine.keep_capabilities(())
        confine.limit_resources(job.limits)
        confine.filter_system_calls(means.program)
        if checked:
            send(fed, feed(given["source"], feed_w, job.expect, job.limits))
        code = wait(child, _limits(job).cpu_seconds)
    os._exit(code if code >= 0 else SIGNALLED - code)


def _unpacker(job: Job, given: Mapping[str, int], means: Means, status: int) -> None:
    """Parse what strangers wrote, with no power but over the fds it is given."""
    with _telling(status):
        confine.die_with_parent()
        asked = job.kind == "ask"
        roles = ("answer",) if asked else ("source", "target", "base", "hints")
        descriptors = {role: given[role] for role in roles if role in given}
        os.dup2(0, 2)  # the complaints are a file of the supervisor's
        keep_only(status, *descriptors.values())
        confine.keep_capabilities(() if asked else confine.FILE_CAPABILITIES)
        confine.limit_resources(_limits(job))
        confine.filter_system_calls(means.program)
        if asked:
            send(status, jobs.answer(job, means.functions[job.task], descriptors))
        else:
            send(status, jobs.unpack(job, descriptors, status))


def _limits(job: Job) -> Limits:
    """Those of the unpacker."""
    if job.kind != "ask":
        return job.limits
    seconds = min(job.limits.cpu_seconds, _ASK_SECONDS)
    return msgspec.structs.replace(job.limits, bytes=_ANSWER_MAX, cpu_seconds=seconds)


def _confine_reader(limits: Limits, means: Means, *descriptors: int) -> None:
    confine.die_with_parent()
    keep_only(*descriptors)
    confine.limit_resources(limits)
    confine.filter_system_calls(means.program)


@contextlib.contextmanager
def _telling(status: int) -> Iterator[None]:
    """An exception is the last message."""
    try:
        yield
    except BaseException as error:
        send(status, failure(error, ""))
        os._exit(1)


def _pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    with contextlib.suppress(OSError):  # EPERM: beyond what this machine allows
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return read_end, write_end


def keep_only(*descriptors: int) -> None:
    """Close every other fd but stdio."""
    first = 3
    for descriptor in sorted(set(descriptors)):
        if descriptor > first:
            close_range(first, descriptor - 1)
        first = descriptor + 1
    close_range(first, _MAX_FD)
