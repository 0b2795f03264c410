"""An agent's output on disk: JSON lines in files that rotate, so that a chatty agent takes a bounded part of the disk.

``output.jsonl`` is the newest file, ``output.jsonl.1`` … the older ones. Readers keep the file open that they are in
and recognise it by its inode, so a rotation under a follower loses no line as long as the file still exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, Literal

import msgspec

from agentos_native.wire.api import LogLine

Stream = Literal["stdout", "stderr"]
STREAMS: Final[tuple[Stream, Stream]] = ("stdout", "stderr")
MAX_LINE: Final = 16 * 1024
"""Bytes; a longer line is written in pieces marked ``partial`` (docker's limit as well)."""
_TOGETHER: Final = 64
"""Lines that a follower is sent at once."""
_NAME: Final = "output.jsonl"
_WHOLE: Final = b',"partial":false}\n'
_PARTIAL: Final = b',"partial":true}\n'
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(LogLine).decode


class LogWriter:
    """Writes one agent's lines; `news` is set (and replaced) whenever something was written.

    Args:
        directory: exists; belongs to the host, never to the agent.
        max_bytes, files: each file's bound, and how many of them are kept (at least 1).
    """

    def __init__(self, directory: str, max_bytes: int, files: int, clock: Callable[[], float] = time.time) -> None:
        self._path = os.path.join(directory, _NAME)
        self._max_bytes = max_bytes
        self._files = files
        self._clock = clock
        self._open_lines: dict[Stream, bytearray] = {stream: bytearray() for stream in STREAMS}
        self.news = asyncio.Event()
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)

    def write(self, stream: Stream, data: bytes) -> None:
        """Append output as it came; unfinished lines are held back until `flush`, their end, or `MAX_LINE`."""
        pending = self._open_lines[stream]
        pending += data
        now = self._clock()
        packed = bytearray()
        *lines, rest = pending.split(b"\n")
        for line in lines:
            packed += _pack(now, stream, line, open_ended=False)
        if len(rest) >= MAX_LINE:
            packed += _pack(now, stream, rest, open_ended=True)
            rest = bytearray()
        self._open_lines[stream] = bytearray(rest)
        self._append(packed)

    def flush(self) -> None:
        """Write unfinished lines as partial ones (a prompt without a newline shall be seen, too)."""
        packed = bytearray()
        for stream, rest in self._open_lines.items():
            if rest:
                packed += _pack(self._clock(), stream, rest, open_ended=True)
                rest.clear()
        self._append(packed)

    def _append(self, packed: bytearray) -> None:
        if not packed:
            return
        if self._size and self._size + len(packed) > self._max_bytes:
            self._rotate()
        # A full disk must not end the supervisor: the output is lost, the agent goes on.
        with contextlib.suppress(OSError):
            self._size += os.write(self._fd, packed)
        self.wake()

    def _rotate(self) -> None:
        os.close(self._fd)
        for number in range(self._files - 1, 0, -1):
            older = self._path if number == 1 else f"{self._path}.{number - 1}"
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, f"{self._path}.{number}")
        if self._files == 1:
            os.unlink(self._path)
        self._fd = self._open()
        self._size = 0

    def wake(self) -> None:
        """Let followers look."""
        self.news.set()
        self.news = asyncio.Event()

    def close(self) -> None:
        """Flush and close; followers get what is left."""
        self.flush()
        os.close(self._fd)
        self._fd = -1
        self.wake()


def _pack(now: float, stream: Stream, line: bytes | bytearray, *, open_ended: bool) -> bytes:
    """`LogLine` as JSON. Put together by hand but for the text, since a chatty agent makes 100 000 lines a second."""
    head = b'{"ts":%b,"stream":"%b","log":' % (_encode(now), stream.encode())
    if len(line) <= MAX_LINE:
        return head + _encode(line.decode("utf-8", "replace")) + (_PARTIAL if open_ended else _WHOLE)
    packed = bytearray()
    for start in range(0, len(line), MAX_LINE):
        partial = open_ended or start + MAX_LINE < len(line)
        piece = line[start : start + MAX_LINE].decode("utf-8", "replace")
        packed += head + _encode(piece) + (_PARTIAL if partial else _WHOLE)
    return bytes(packed)


class LogCursor:
    """Reads one agent's log files from the oldest line on, across rotations. Blocking, but only on the page cache."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, _NAME)
        self._fd = -1
        self._tail = b""
        numbers = [0]
        while os.path.exists(f"{self._path}.{numbers[-1] + 1}"):
            numbers.append(numbers[-1] + 1)
        self._enter(numbers[-1])

    def _enter(self, number: int) -> None:
        path = f"{self._path}.{number}" if number else self._path
        with contextlib.suppress(FileNotFoundError):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def lines(self) -> Iterator[bytes]:
        """Every complete line that has not been read yet (without its newline); may be called again later."""
        while True:
            if self._fd < 0:
                self._enter(0)
                if self._fd < 0:
                    return
            while chunk := os.read(self._fd, 1 << 16):
                *lines, self._tail = (self._tail + chunk).split(b"\n")
                yield from lines
            newer = self._newer()
            if newer is None:
                return
            os.close(self._fd)
            self._fd = -1
            self._enter(newer)

    def _newer(self) -> int | None:
        """The number of the file after the one that is open, None when it is the newest."""
        own = os.fstat(self._fd)
        number = 0
        while True:
            path = f"{self._path}.{number}" if number else self._path
            try:
                found = os.stat(path)
            except FileNotFoundError:
                # Ours was rotated away altogether (go on with the oldest that is left), or there is none at all.
                return max(number - 1, 0) if number and own.st_nlink == 0 else None
            if found.st_ino == own.st_ino:
                return number - 1 if number else None
            number += 1

    def close(self) -> None:
        """Forget the open file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _wanted(line: bytes, since: float, stream: str | None) -> bool:
    if not since and stream is None:
        return True
    try:
        entry = _decode(line)
    except msgspec.DecodeError:
        return False  # a line cut by a crash
    return entry.ts >= since and (stream is None or entry.stream == stream)


def read(cursor: LogCursor, *, tail: int | None = None, since: float = 0.0, stream: str | None = None) -> list[bytes]:
    """The lines that are there now; the last `tail` of them."""
    chosen = (line for line in cursor.lines() if _wanted(line, since, stream))
    return list(chosen if tail is None else deque(chosen, maxlen=tail))


async def follow(
    cursor: LogCursor,
    news: Callable[[], asyncio.Event | None],
    *,
    tail: int | None = None,
    since: float = 0.0,
    stream: str | None = None,
) -> AsyncIterator[bytes]:
    """The lines that are there, several together, then new ones until `news` gives None (its output has ended)."""
    try:
        while True:
            event = news()  # asked before reading: what is written during the read sets this very event
            lines = await asyncio.to_thread(read, cursor, tail=tail, since=since, stream=stream)
            tail = None
            for first in range(0, len(lines), _TOGETHER):
                yield b"\n".join(lines[first : first + _TOGETHER])
            if event is None:
                return
            await event.wait()
    finally:
        cursor.close()
