"""The supervisor as the launcher's child: started with a fresh socketpair, started again when it dies of a defect."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Final

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0
_CALM: Final = 60.0
"""Seconds of life after which a death counts as the first one again."""
_EX_SOFTWARE, _LAST_RESTARTED = 70, 119
"""sysexits(3) and what follows, up to the statuses that this program gives a meaning of its own (124 and above)."""


class Supervised:
    """At most one supervisor process at a time."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._delay = _FIRST_DELAY
        self._started_at = 0.0
        self.pid = 0
        self.starts = 0
        self.status = 0

    def start(self, now: float) -> socket.socket:
        """Spawn it; returns the launcher's end of the socketpair, whose other end it gets as AGENTOS_LAUNCHER_FD.

        It gets a process group of its own, so that the terminal's Ctrl-C comes once, forwarded by the launcher.
        """
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        its.set_inheritable(True)
        environment = dict(os.environ, AGENTOS_LAUNCHER_FD=str(its.fileno()))
        self.pid = os.posix_spawnp(
            self._command[0],
            self._command,
            environment,
            setpgroup=0,
            setsigmask=[],
            setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE],
        )
        its.close()
        self.starts += 1
        self._started_at = now
        return mine

    def died(self, status: int, now: float, *, again: bool) -> float | None:
        """Seconds until it shall be started again; None when its own exit `status` is to be the launcher's.

        Args:
            again: false when it was told to stop: then it is not started again, however it ended.
        """
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        refused = 0 < code < _EX_SOFTWARE or code > _LAST_RESTARTED
        # What refuses a second start passes: a command's embedded supervisor may have the socket for a moment.
        if not again or code == 0 or (refused and self.starts <= 1):
            self.status = code if code >= 0 else 128 - code
            return None
        if now - self._started_at > _CALM:
            self._delay = _FIRST_DELAY
        delay, self._delay = self._delay, min(self._delay * 2, _LONGEST_DELAY)
        how = f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        print(f"agentos-native: the supervisor {how}; it is started again in {delay:g} s", file=sys.stderr, flush=True)
        return delay

    def signal(self, number: int) -> None:
        """Forward a signal, if it runs."""
        if self.pid:
            os.kill(self.pid, number)
