"""signalfd(2): signals as readable records, for a process whose only loop is epoll."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from typing import Final

from agentos_native.kernel.libc import libc_call

_RECORD: Final = 128
_CLOEXEC, _NONBLOCK = 0o2000000, 0o4000


def signalfd(signals: Iterable[signal.Signals]) -> int:
    """Block `signals` in this thread and give a non-blocking, close-on-exec fd that receives them instead."""
    wanted = set(signals)
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    mask = (ctypes.c_uint64 * 16)(sum(1 << (number - 1) for number in wanted))  # sigset_t of libc: 1024 bits
    return libc_call("signalfd", -1, mask, _CLOEXEC | _NONBLOCK)


def read_signals(fd: int) -> set[int]:
    """The numbers that arrived since the last call; the kernel merges equal ones."""
    numbers: set[int] = set()
    try:
        while data := os.read(fd, _RECORD * 8):
            numbers.update(data[offset] for offset in range(0, len(data), _RECORD))  # ssi_signo < 256 is its low byte
            if len(data) < _RECORD * 8:
                break
    except BlockingIOError:
        pass
    return numbers
