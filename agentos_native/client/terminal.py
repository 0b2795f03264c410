"""Joins a stream with this process's own standard streams, its terminal and its signals.

One thread, one poll loop: the stream's socket, standard input, and a pipe into which Python's signal wake-up writes the
numbers of the signals that came. The terminal is put into raw mode for as long as the loop runs and always put back.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import termios
import tty
from collections.abc import Callable, Iterator
from typing import Any, Final

from agentos_native.client.stream import Stream, write_all
from agentos_native.wire import api

FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
DETACH: Final = b"\x1d"
"""Ctrl-]: leave an attached terminal without stopping anything."""
_HIGH_WATER: Final = 1 << 20
"""Bytes that may wait to be sent before standard input is left alone."""


class Detached(Exception):
    """The user left by `DETACH`."""


class Pump:
    """Moves bytes until the stream ends.

    Args:
        stream: an open exec or attach.
        stdin: a descriptor to read, or None.
        raw: the terminal behind `stdin` goes raw, its size is sent, and `DETACH` is looked for if `detachable`.
        output: called with channel 1 or 2 and data; default: this process's standard output and error.
        on_signal: called in the loop with the number of each of `FORWARDED` that came; None leaves signals alone.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        stdin: int | None = None,
        raw: bool = False,
        detachable: bool = False,
        output: Callable[[int, bytes], None] | None = None,
        on_signal: Callable[[int], None] | None = None,
    ) -> None:
        self._stream = stream
        self._stdin = stdin
        self._raw = raw
        self._detachable = detachable
        self._output = output or write_all
        self._on_signal = on_signal

    def run(self) -> api.StreamStatus:
        """Returns how the stream ended. Raises `Detached`, or `AgentosError` as `Stream.result` does."""
        with contextlib.ExitStack() as stack:
            wakeup = stack.enter_context(_signals(self._on_signal is not None, self._raw))
            if self._raw and self._stdin is not None:
                stack.enter_context(raw_terminal(self._stdin))
                self._send_size()
            selector = stack.enter_context(selectors.PollSelector())  # epoll refuses plain files
            selector.register(self._stream, selectors.EVENT_READ, self._receive)
            if wakeup is not None:
                selector.register(wakeup, selectors.EVENT_READ, lambda: self._signalled(wakeup))
            self._loop(selector)
        return self._stream.result()

    def _loop(self, selector: selectors.BaseSelector) -> None:
        watched: int | None = None
        while self._stream.pending or not self._stream.closed:
            wanted = self._stdin if self._stream.unsent < _HIGH_WATER else None
            if wanted != watched:
                if watched is not None:
                    selector.unregister(watched)
                if wanted is not None:
                    selector.register(wanted, selectors.EVENT_READ, self._read_stdin)
                watched = wanted
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._stream.unsent else 0)
            selector.modify(self._stream, events, self._receive)
            if self._stream.pending:
                self._receive()
                continue
            for key, _ in selector.select():
                key.data()

    def _receive(self) -> None:
        self._stream.flush()
        for frame in self._stream.receive():
            if frame.channel in (api.CHANNEL_STDOUT, api.CHANNEL_STDERR) and frame.data:
                self._output(frame.channel, frame.data)

    def _read_stdin(self) -> None:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, 65536)
        except BlockingIOError:
            return
        except OSError:  # a terminal that went away
            data = b""
        if self._raw and self._detachable and DETACH in data:
            raise Detached
        if data:
            self._stream.send(api.CHANNEL_STDIN, data)
        else:
            self._stdin = None
            self._stream.close_stdin()

    def _signalled(self, wakeup: int) -> None:
        for number in os.read(wakeup, 4096):
            if number == signal.SIGWINCH:
                self._send_size()
            elif self._on_signal is not None and number in FORWARDED:
                self._on_signal(number)

    def _send_size(self) -> None:
        if self._raw and self._stdin is not None:
            with contextlib.suppress(OSError):
                size = os.get_terminal_size(self._stdin)
                self._stream.resize(size.columns, size.lines)


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Raw mode of a terminal, for as long as the context lasts; nothing for what is none."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals(forward: bool, resize: bool) -> Iterator[int | None]:
    """A pipe that receives the numbers of signals; their handlers are put back at the end."""
    watched = [*(FORWARDED if forward else ()), *((signal.SIGWINCH,) if resize else ())]
    if not watched:
        yield None
        return
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    former: dict[int, Any] = {}
    old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for number in watched:
            former[number] = signal.signal(number, lambda *_: None)
        yield reader
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        os.close(reader)
        os.close(writer)
