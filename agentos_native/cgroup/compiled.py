"""The tick's file I/O compiled by numba: pread(2) and pwrite(2) from machine code, without the GIL.

Importing compiles, or loads from the cache on disk; only `sensors.use_compiled` does so. The parsers accept what the
Python ones in `sensors` accept.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from agentos_native.cgroup.counters import BUFFER, GONE, NO_PRESSURE, OK

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

_pread = types.ExternalFunction("pread", types.intp(types.int32, types.intp, types.uintp, types.int64))
_pwrite = types.ExternalFunction("pwrite", types.intp(types.int32, types.intp, types.uintp, types.int64))

_USAGE = np.frombuffer(b"usage_usec ", dtype=np.uint8)
_THROTTLED = np.frombuffer(b"throttled_usec ", dtype=np.uint8)
_SOME = np.frombuffer(b"some ", dtype=np.uint8)
_TOTAL = np.frombuffer(b"total=", dtype=np.uint8)
_NEWLINE, _ZERO, _NINE = 10, 48, 57
_DIGITS = 18


@njit("b1(u1[::1], i8, i8, Array(u1, 1, 'C', readonly=True))", cache=True, nogil=True)
def _matches(text: Bytes, length: int, at: int, key: Bytes) -> bool:
    if at + len(key) > length:
        return False
    for i in range(len(key)):  # noqa: SIM110 -- numba compiles no generator here
        if text[at + i] != key[i]:
            return False
    return True


@njit("i8(u1[::1], i8, i8)", cache=True, nogil=True)
def _number(text: Bytes, length: int, at: int) -> int:
    """The digits at `at`; -1 when there are none, or more than a counter can have."""
    value, begin = 0, at
    while at < length and text[at] >= _ZERO and text[at] <= _NINE:
        value = value * 10 + (np.int64(text[at]) - _ZERO)  # type: ignore[assignment]  # keeps numba from uint64
        at += 1
    return value if begin < at <= begin + _DIGITS else -1


@njit("i8(u1[::1], i8, Array(u1, 1, 'C', readonly=True))", cache=True, nogil=True)
def _keyed(text: Bytes, length: int, key: Bytes) -> int:
    """The number after `key` at the start of a line; -1 when there is no such line."""
    at = 0
    while at < length:
        if _matches(text, length, at, key):
            number: int = _number(text, length, at + len(key))
            return number
        while at < length and text[at] != _NEWLINE:
            at += 1
        at += 1
    return -1


@njit("i8(u1[::1], i8)", cache=True, nogil=True)
def _some_total(text: Bytes, length: int) -> int:
    """The total of the ``some`` line, which is the first; -1 when it is not."""
    if not _matches(text, length, 0, _SOME):
        return -1
    at = 0
    while at < length and text[at] != _NEWLINE:
        if _matches(text, length, at, _TOTAL):
            number: int = _number(text, length, at + len(_TOTAL))
            return number
        at += 1
    return -1


@njit("(i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1])", cache=True, nogil=True)
def read_groups(
    slots: Integers,
    stat_fd: Integers,
    pressure_fd: Integers,
    usage: Integers,
    throttled: Integers,
    stalled: Integers,
    status: Integers,
) -> None:
    """As `Sensors.read`."""
    text = np.empty(BUFFER, dtype=np.uint8)
    for i in range(len(slots)):
        slot = slots[i]
        length = _pread(stat_fd[slot], text.ctypes.data, BUFFER, 0) if stat_fd[slot] >= 0 else -1
        used = _keyed(text, length, _USAGE) if length > 0 else -1
        if used < 0:
            status[slot] = GONE
            continue
        usage[slot] = used
        throttled[slot] = max(_keyed(text, length, _THROTTLED), 0)
        length = _pread(pressure_fd[slot], text.ctypes.data, BUFFER, 0) if pressure_fd[slot] >= 0 else -1
        total = _some_total(text, length) if length > 0 else -1
        if total < 0:
            status[slot] = NO_PRESSURE
            continue
        stalled[slot] = total
        status[slot] = OK


@njit("(i8[::1], i8[::1], b1[::1])", cache=True, nogil=True)
def write_numbers(fds: Integers, values: Integers, written: NDArray[np.bool_]) -> None:
    """Write each value, in decimal, at the start of its file; `written` says whether the kernel took it.

    Without a file, or for a negative value, nothing is written.
    """
    text = np.empty(24, dtype=np.uint8)
    for i in range(len(fds)):
        written[i] = False
        if fds[i] < 0 or values[i] < 0:
            continue
        at, value = 24, values[i]
        while True:
            at -= 1
            text[at] = _ZERO + value % 10
            value //= 10
            if value == 0:
                break
        written[i] = _pwrite(fds[i], text.ctypes.data + at, 24 - at, 0) == 24 - at
