"""What the launcher knows of the processes it cloned, and how the pieces of news about one unit come together.

News of a unit come by two ways that do not wait for each other: the status socket (born, terminal, released) and
SIGCHLD. A unit is over only when it has been released *and* reaped.
"""

from __future__ import annotations

import os
import resource
import time

from agentos_native.sandbox import _child
from agentos_native.wire.launch import Exited, Failure

PREPARING, EXECUTING, FAILED, NOT_CLONED = range(4)
BORN, RELEASED, TERMINAL = 1, 2, 3


class Unit:
    """One process that was cloned, from the request until it is over.

    Args:
        fds: the request's, to be closed once the child has its copies.
        deadline: when it is killed unless it has executed, on the clock of time.monotonic; None: it has been.
    """

    __slots__ = (
        "deadline", "executed", "exited", "failure", "fds", "name", "pid", "pidfd", "released", "seq", "slot",
        "terminal",
    )  # fmt: skip

    def __init__(self, seq: int, name: str, slot: int, fds: list[int], deadline: float | None) -> None:
        self.seq = seq
        self.name = name
        self.slot = slot
        self.fds = fds
        self.deadline = deadline
        self.pid = 0
        self.pidfd = -1
        self.terminal = -1
        self.released = False
        self.executed = False
        self.failure: Failure | None = None
        self.exited: tuple[int, resource.struct_rusage] | None = None

    @property
    def over(self) -> bool:
        """Released and reaped, or never cloned."""
        return self.released and (self.exited is not None or self.pidfd < 0)

    def learn_identity(self) -> None:
        """Take pid and pidfd from the slot, once the clone has happened.

        A clone that fails late leaves the number of a pidfd that it has closed again, but never a pid.
        """
        if self.pid == 0:
            _, pid, pidfd, *_ = _child.result(self.slot)
            if pid:
                self.pid, self.pidfd = pid, pidfd

    def release(self) -> None:
        """Read the outcome from the slot and give the slot back."""
        self.learn_identity()
        state, _, _, stage, call, path, errno = _child.result(self.slot)
        _child.free(self.slot)
        self.released = True
        self.executed = state == EXECUTING
        if state in {FAILED, NOT_CLONED}:
            self.failure = self.failure or Failure(stage, call, os.fsdecode(path), errno)
        elif state == PREPARING:
            self.failure = self.failure or Failure(stage, call, os.fsdecode(path), 0, "killed before it could execute")

    def close(self) -> None:
        """Close every fd that is still held for this unit."""
        for fd in (*self.fds, self.pidfd, self.terminal):
            if fd >= 0:
                os.close(fd)
        self.fds, self.pidfd, self.terminal = [], -1, -1


def exit_message(unit: Unit, exit_id: int) -> Exited:
    """The `Exited` of a unit that is over and had executed."""
    assert unit.exited is not None
    status, usage = unit.exited
    code, number = _code_and_status(status)
    return Exited(
        exit_id,
        unit.name,
        unit.pid,
        code,
        number,
        usage.ru_utime,
        usage.ru_stime,
        usage.ru_maxrss * 1024,
        time.time(),
    )


def _code_and_status(status: int) -> tuple[int, int]:
    """A wait status as (si_code, si_status) of waitid(2)."""
    if os.WIFEXITED(status):
        return os.CLD_EXITED, os.WEXITSTATUS(status)
    return (os.CLD_DUMPED if os.WCOREDUMP(status) else os.CLD_KILLED), os.WTERMSIG(status)
