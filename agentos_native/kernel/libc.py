"""The one door to the kernel: `syscall` calls by number and raises `SyscallError`, which can say what failed.

Numbers from 424 on are the same on every architecture (Linux 5.1's unified table): the newer calls need no table.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final, Self

_libc: Final = ctypes.CDLL(None, use_errno=True)
_syscall: Final = _libc.syscall
_syscall.restype = ctypes.c_long

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

Argument = int | bytes | str | None | ctypes.Structure | ctypes.Array[Any]


class SyscallError(OSError):
    """A system call that failed: its name, its arguments as text, the path it was about (or ""), and the errno.

    Like those of `os`, it is also a FileNotFoundError, PermissionError, … where Python has one for the errno.
    """

    def __new__(cls, call: str, arguments: str, path: str, errno: int) -> Self:
        error: Self = OSError.__new__(_kind(cls, errno), errno, os.strerror(errno), path or None)
        return error

    def __init__(self, call: str, arguments: str, path: str, errno: int) -> None:
        self.call = call
        self.arguments = arguments
        self.path = path

    def __str__(self) -> str:
        return f"{self.call}({self.arguments}): {self.strerror} [errno {self.errno}]"


_kinds: Final[dict[tuple[type, type], Any]] = {}


def _kind(base: type, errno: int) -> Any:
    """`base` joined with Python's own class for `errno`: the interpreter does so for OSError itself only."""
    builtin = type(OSError(errno, ""))
    if builtin is OSError:
        return base
    if (base, builtin) not in _kinds:
        _kinds[base, builtin] = type(base.__name__, (base, builtin), {"__module__": base.__module__})
    return _kinds[base, builtin]


def _convert(argument: Argument) -> Any:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, int):
        return ctypes.c_long(argument)  # a bare int would be passed as a C int and lose its upper half
    if isinstance(argument, str):
        if "\0" in argument:
            raise ValueError(f"a path or name with a NUL byte: {argument!r}")
        return ctypes.c_char_p(os.fsencode(argument))
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)
    return ctypes.byref(argument)


def _show(argument: Argument) -> str:
    if isinstance(argument, ctypes.Structure):
        return "{…}"
    if isinstance(argument, int) and argument > 4096:
        return hex(argument)
    return "NULL" if argument is None else repr(argument)


def syscall(name: str, number: int, *arguments: Argument, path: str = "") -> int:
    """Call `number` and return its result.

    Args:
        name: as in the man page; for the error only.
        arguments: ints (passed as long), str/bytes (passed as C strings), structures (by reference), None (NULL).
        path: what the error shall name as its subject.

    Raises:
        SyscallError: the call returned -1.
    """
    result = int(_syscall(ctypes.c_long(number), *map(_convert, arguments)))
    if result == -1:
        raise SyscallError(name, ", ".join(map(_show, arguments)), path, ctypes.get_errno())
    return result


def libc_call(name: str, *arguments: Argument, path: str = "") -> int:
    """Call libc's wrapper `name`, for calls whose numbers differ between architectures; otherwise as `syscall`."""
    result = int(getattr(_libc, name)(*map(_convert, arguments)))
    if result == -1:
        raise SyscallError(name, ", ".join(map(_show, arguments)), path, ctypes.get_errno())
    return result
