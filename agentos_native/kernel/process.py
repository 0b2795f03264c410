"""Processes by pidfd: pidfd_open(2), pidfd_send_signal(2), waitid(2), close_range(2), PIDFD_GET_INFO."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple

from agentos_native.kernel.libc import SyscallError, syscall

_PIDFD_SEND_SIGNAL, _PIDFD_OPEN, _CLOSE_RANGE = 424, 434, 436
CLOSE_RANGE_CLOEXEC: Final = 4

# include/uapi/linux/pidfd.h; struct pidfd_info is 64 bytes in its first version (Linux 6.13)
_PIDFD_GET_INFO: Final = 0xC040FF0B
_PIDFD_INFO_PID: Final = 1
_PIDFD_INFO_EXIT: Final = 8
_INFO: Final = struct.Struct("=QQ11Ii")


class ExitInfo(NamedTuple):
    """How a child ended, as waitid(2) tells it, with its own resource usage."""

    pid: int
    code: int
    status: int
    user_seconds: float
    system_seconds: float
    max_rss_bytes: int


def pidfd_open(pid: int, flags: int = 0) -> int:
    """A close-on-exec handle of process `pid`; until this has returned the number may be reused: check afterwards."""
    return syscall("pidfd_open", _PIDFD_OPEN, pid, flags, path=f"pid {pid}")


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Signal exactly the process that `pidfd` was made for; ESRCH when it has been reaped."""
    syscall("pidfd_send_signal", _PIDFD_SEND_SIGNAL, pidfd, signal, None, 0)


def close_range(first: int, last: int, flags: int = 0) -> None:
    """Close (or mark close-on-exec) the fds `first`..`last`, both included."""
    syscall("close_range", _CLOSE_RANGE, first, last, flags)


def wait_pidfd(pidfd: int, *, block: bool = False, keep: bool = False) -> ExitInfo | None:
    """Reap the child of `pidfd`; None when it still runs and `block` is false.

    Args:
        keep: leave the zombie (WNOWAIT), so that its pid stays taken.

    Raises:
        ChildProcessError: it is not a child of this process.
    """
    siginfo = (ctypes.c_int32 * 32)()
    rusage = (ctypes.c_long * 18)()
    options = os.WEXITED | (0 if block else os.WNOHANG) | (os.WNOWAIT if keep else 0)
    while True:
        try:
            _waitid(os.P_PIDFD, pidfd, siginfo, options, rusage)
            break
        except SyscallError as error:
            if error.errno == errno.ECHILD:
                raise ChildProcessError(errno.ECHILD, "not a child of this process") from error
            if error.errno != errno.EINTR:
                raise
    # siginfo_t of SIGCHLD on 64-bit: si_signo, si_errno, si_code, pad, si_pid, si_uid, si_status
    if siginfo[4] == 0:
        return None
    return ExitInfo(
        siginfo[4],
        siginfo[2],
        siginfo[6],
        rusage[0] + rusage[1] / 1e6,
        rusage[2] + rusage[3] / 1e6,
        rusage[4] * 1024,
    )


# waitid(2) by number, because libc's wrapper does not give the rusage that the system call has as its fifth argument
_WAITID: Final = {"x86_64": 247, "aarch64": 95}[os.uname().machine]


def _waitid(
    kind: int, ident: int, siginfo: ctypes.Array[ctypes.c_int32], options: int, rusage: ctypes.Array[ctypes.c_long]
) -> None:
    syscall("waitid", _WAITID, kind, ident, siginfo, options, rusage)


def exit_status_of(pidfd: int) -> int | None:
    """The wait status (os.WIFEXITED …) of a reaped process that is not one's child; None where it cannot be known.

    PIDFD_GET_INFO with PIDFD_INFO_EXIT: Linux 6.15 (commit 7477d7dce48a); EINVAL or ENOTTY before.
    """
    request = bytearray(_INFO.pack(_PIDFD_INFO_EXIT, 0, *([0] * 11), 0))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request)
    except OSError:
        return None
    fields = _INFO.unpack(request)
    return int(fields[-1]) if fields[0] & _PIDFD_INFO_EXIT else None


def has_pidfd_exit_info() -> bool:
    """Whether this kernel tells the exit status of any process by pidfd (`exit_status_of`)."""
    child = os.fork()
    if child == 0:
        os._exit(7)
    pidfd = pidfd_open(child)
    try:
        os.waitpid(child, 0)
        status = exit_status_of(pidfd)
        return status is not None and os.waitstatus_to_exitcode(status) == 7
    finally:
        os.close(pidfd)
