"""Operations of the child stage as data: built here, described for people, encoded for the interpreter in ``_child.c``.

The table of operations is the interpreter's own (`_child.OPS`: name → number, kinds of arguments), so the two
cannot disagree.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from agentos_native.kernel.libc import AT_FDCWD
from agentos_native.sandbox import _child

_MAGIC: Final = 0x31706F61
_HEADER: Final = struct.Struct("=4I")
_OP: Final = struct.Struct("=2I6q")
_REGISTER_BASE: Final = -1000
_UNUSED: Final = (0,) * 6


class Fd(NamedTuple):
    """An fd of the packet, by its index; `name` is for people."""

    name: str
    number: int


class Register(NamedTuple):
    """An fd that an earlier operation made in the child."""

    name: str
    number: int


CWD: Final = Fd("cwd", AT_FDCWD)
NO_FD: Final = Fd("none", -1)

Argument = int | str | bytes | Fd | Register | tuple[str, ...]


class Operation(NamedTuple):
    """One step of the child.

    Args:
        stage: what a failure is reported under, for example "mount /proc".
        name: key of `_child.OPS`: the system call, or one of the interpreter's own operations.
        arguments: one for each letter of the table's kinds.
        note: for `describe`, where the arguments alone do not speak.
    """

    stage: str
    name: str
    arguments: tuple[Argument, ...]
    note: str = ""

    def describe(self) -> str:
        """One line: ``stage: call(arguments)  # note``."""
        shown = ", ".join(_show(argument) for argument in self.arguments)
        return f"{self.stage}: {self.name}({shown})" + (f"  # {self.note}" if self.note else "")


def _show(argument: Argument) -> str:
    if isinstance(argument, (Fd, Register)):
        return f"<{argument.name}>"
    if isinstance(argument, bytes):
        return f"[{len(argument)} bytes]"
    if isinstance(argument, int):
        return hex(argument) if argument > 4096 else str(argument)
    if isinstance(argument, str):
        return repr(argument)
    return "[" + " ".join(argument) + "]"


class _Pool:
    """The bytes that arguments point to. Offset 0 is the end of an array, offset 1 the empty string."""

    def __init__(self) -> None:
        self.data = bytearray(8)
        self._strings: dict[str, int] = {"": 1}

    def copy(self) -> Self:
        """Another pool that goes on from here."""
        other = type(self)()
        other.data, other._strings = self.data.copy(), self._strings.copy()
        return other

    def string(self, text: str) -> int:
        offset = self._strings.get(text)
        if offset is None:
            offset = self._strings[text] = len(self.data)
            self.data += os.fsencode(text) + b"\0"
        return offset

    def aligned(self, data: bytes) -> int:
        self.data += bytes(-len(self.data) % 8)
        offset = len(self.data)
        self.data += data
        return offset

    def array(self, texts: Sequence[str]) -> int:
        offsets = [self.string(text) for text in texts]
        return self.aligned(struct.pack(f"={len(offsets) + 1}q", *offsets, 0))


class Stock:
    """Operations that most programs repeat, encoded once. A program that is encoded with a stock begins its pool with
    all arguments of the stock, so nothing may be in there that belongs to one agent."""

    def __init__(self, operations: Sequence[Operation] = ()) -> None:
        self._pool = _Pool()
        self._encoded = {operation: _encode(self._pool, operation) for operation in operations}

    def encode(self, operations: Sequence[Operation]) -> bytes:
        """As `encode`."""
        pool = self._pool.copy()
        body = [self._encoded.get(operation) or _encode(pool, operation) for operation in operations]
        pool.aligned(b"")
        pool.data += bytes(8)  # the loader wants a NUL as the pool's last byte
        return b"".join((_HEADER.pack(_MAGIC, len(operations), len(pool.data), 0), *body, pool.data))


def encode(operations: Sequence[Operation]) -> bytes:
    """The program that ``_child.start`` takes: header, operations, pool.

    Raises:
        TypeError, KeyError: an operation does not fit the table; a programming error.
    """
    return Stock().encode(operations)


def _encode(pool: _Pool, operation: Operation) -> bytes:
    code, kinds = _child.OPS[operation.name]
    if len(kinds) != len(operation.arguments):
        raise TypeError(f"{operation.name} takes {len(kinds)} arguments: {operation.arguments!r}")
    numbers = [_number(pool, kind, argument) for kind, argument in zip(kinds, operation.arguments, strict=True)]
    return _OP.pack(code, pool.string(operation.stage), *numbers, *_UNUSED[len(numbers) :])


def _number(pool: _Pool, kind: str, argument: Argument) -> int:
    number: int | None = None
    if kind == "i":
        number = argument if isinstance(argument, int) else None
    elif kind == "s":
        number = pool.string(argument) if isinstance(argument, str) else None
    elif kind in "rf":
        number = _fd_number(kind, argument) if isinstance(argument, (Fd, Register)) else None
    elif kind == "b":
        number = pool.aligned(argument) if isinstance(argument, bytes) else None
    elif isinstance(argument, tuple) and not isinstance(argument, (Fd, Register)):
        number = pool.array(argument)
    if number is None:
        raise TypeError(f"{argument!r} is no argument of kind {kind!r}")
    return number


def _fd_number(kind: str, argument: Fd | Register) -> int | None:
    if isinstance(argument, Register):
        return argument.number if kind == "r" else _REGISTER_BASE - argument.number
    return argument.number if kind == "f" else None
