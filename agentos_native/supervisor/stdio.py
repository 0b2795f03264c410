"""The pipes between an agent and its supervisor: FIFOs in the agent's directory, so that the next supervisor finds
them.

The agent's ends of stdout and stderr are open for reading and writing: without a reader it then waits instead of being
killed by SIGPIPE. Its end of stdin is for reading only, otherwise it could never see the end of its input; so an
agent with ``stdin: true`` does see that end when its supervisor dies.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from agentos_native.supervisor.logs import STREAMS, Stream

_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class Stdio:
    """The pipes of one agent, opened.

    Attributes:
        agent: the agent's stdin, stdout, stderr; empty for an agent with a terminal.
        readers: this side's ends of its output.
        input: this side's end of its input, or -1.
    """

    def __init__(self) -> None:
        self.agent: list[int] = []
        self.readers: dict[int, Stream] = {}
        self.input = -1

    def close(self) -> None:
        """Close what nobody has taken over."""
        for fd in (*self.agent, *self.readers, self.input):
            if fd >= 0:
                os.close(fd)
        self.agent, self.readers, self.input = [], {}, -1

    def take_readers(self) -> dict[int, Stream]:
        """The reading ends; now the caller's."""
        readers, self.readers = self.readers, {}
        return readers

    def take_input(self) -> int:
        """The writing end; now the caller's."""
        fd, self.input = self.input, -1
        return fd


def make(directory: str, uid: int, *, stdin: bool) -> Stdio:
    """Make the FIFOs of an agent and open every end.

    Args:
        directory: the agent's own, closed to everybody but the host's root.
        uid: the program's user as the host numbers it, who may reopen them through /proc/self/fd.
    """
    stdio = Stdio()
    try:
        if stdin:
            path = _fifo(directory, "stdin", uid)
            agent_end = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OPEN)
            stdio.agent.append(agent_end)
            stdio.input = os.open(path, os.O_WRONLY | os.O_NONBLOCK | _OPEN)
            os.set_blocking(agent_end, True)
        else:
            stdio.agent.append(os.open("/dev/null", os.O_RDONLY | _OPEN))
        for stream in STREAMS:
            path = _fifo(directory, stream, uid)
            stdio.readers[os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OPEN)] = stream
            stdio.agent.append(os.open(path, os.O_RDWR | _OPEN))
    except BaseException:
        stdio.close()
        raise
    return stdio


def reopen(directory: str, *, stdin: bool) -> Stdio:
    """This side's ends only, of an agent that runs already; what is missing is left out."""
    stdio = Stdio()
    for stream in STREAMS:
        with contextlib.suppress(OSError):
            stdio.readers[os.open(os.path.join(directory, stream), os.O_RDONLY | os.O_NONBLOCK | _OPEN)] = stream
    if stdin:
        with contextlib.suppress(OSError):  # ENXIO: it has closed its input
            stdio.input = os.open(os.path.join(directory, "stdin"), os.O_WRONLY | os.O_NONBLOCK | _OPEN)
    return stdio


def _fifo(directory: str, name: str, uid: int) -> str:
    path = os.path.join(directory, name)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    os.chown(path, uid, uid, follow_symlinks=False)
    return path
