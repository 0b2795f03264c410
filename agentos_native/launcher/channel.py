"""The launcher's end of the socketpair to its supervisor: packets out without blocking, packets in with their fds."""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

_FDS: Final = 64
_ANCILLARY: Final = socket.CMSG_SPACE(_FDS * 4)


def receive(source: socket.socket, buffer: memoryview) -> tuple[int, list[int]]:
    """One packet into `buffer`: its length and the fds that came with it (close-on-exec, the caller's).

    Raises:
        BlockingIOError: there is none.
    """
    length, ancillary, flags, _ = source.recvmsg_into([buffer], _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) & ~3])
            fds += numbers
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise ValueError("a packet larger than the protocol allows")
    return length, fds


def close_all(fds: Sequence[int]) -> None:
    """Close every fd of `fds`."""
    for fd in fds:
        os.close(fd)


class Channel:
    """Sends packets in order; what the socket does not take at once waits in memory (bounded by the units)."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.socket = end
        self._waiting: deque[tuple[bytes, list[int]]] = deque()

    @property
    def backlog(self) -> bool:
        """Whether packets wait for the socket to become writable (`flush`)."""
        return bool(self._waiting)

    def send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Send or queue; `fds` stay the caller's. A dead peer is no error: whoever reaps it notices."""
        if self._waiting or not self._try(packet, fds):
            self._waiting.append((packet, [os.dup(fd) for fd in fds]))

    def flush(self) -> bool:
        """Send what waits, as far as the socket takes it; true when nothing waits any more."""
        while self._waiting and self._try(*self._waiting[0]):
            close_all(self._waiting.popleft()[1])
        return not self._waiting

    def close(self) -> None:
        """Give up the connection and what waits."""
        for _, fds in self._waiting:
            close_all(fds)
        self._waiting.clear()
        self.socket.close()

    def _try(self, packet: bytes, fds: Sequence[int]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([packet], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionError):
            return True
        return True
