"""TCP streams between network namespaces, to see how fast wires are."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence

from tests import networks

_SO_MAX_PACING_RATE = 47
_CHUNK = b"x" * 16384
WINDOWS = 4
"""Tries of a comparison: other work on the machine may keep the flows' own processes from sending for a while."""


class Flow:
    """One TCP connection that carries data as fast as it may, until `close`.

    The agent connects, as it must (nobody may connect to an agent); who sends is `upload`'s matter.

    Args:
        agent, outside: fds of network namespaces.
        address: of the outside, where the port is made up.
        offer: bits per second at most; far above what is measured, and far below what would keep a processor busy.
    """

    def __init__(self, agent: int, outside: int, address: str, *, upload: bool, offer: int = 120_000_000) -> None:
        self.received = 0
        self._running = threading.Event()
        self._running.set()
        self._ended = False
        family = networks.family_of(address)

        def listen() -> socket.socket:
            made = socket.socket(family)
            made.bind((address, 0))
            made.listen(1)
            made.settimeout(networks.ARRIVES_SECONDS)
            return made

        def connect() -> socket.socket:
            made = socket.socket(family)
            made.settimeout(networks.ARRIVES_SECONDS)
            made.connect((address, listener.getsockname()[1]))
            return made

        with networks.inside(outside, listen) as listener:
            inner = networks.inside(agent, connect)
            outer, _ = listener.accept()
        sender, receiver = (inner, outer) if upload else (outer, inner)
        sender.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, offer // 8)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        self._sockets = (sender, receiver)
        for made in self._sockets:
            made.settimeout(None)
        self._threads = [
            threading.Thread(target=self._send, args=(sender,), daemon=True),
            threading.Thread(target=self._receive, args=(receiver,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, sender: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not self._ended:
                self._running.wait()
                sender.sendall(_CHUNK)

    def _receive(self, receiver: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := receiver.recv(1 << 16):
                self.received += len(data)

    def pause(self) -> None:
        """Send nothing until `resume`; what is on its way arrives."""
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    def close(self) -> None:
        self._ended = True
        self._running.set()
        for made in self._sockets:
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(networks.ARRIVES_SECONDS)
        for made in self._sockets:
            made.close()

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def goodput(flows: Sequence[Flow], seconds: float) -> list[float]:
    """Mbit/s of payload that each receives during the next `seconds`."""
    began, before = time.monotonic(), [flow.received for flow in flows]
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    return [(flow.received - start) * 8e-6 / elapsed for flow, start in zip(flows, before, strict=True)]


def windows(flows: Sequence[Flow], fits: Callable[[list[float]], bool], seconds: float = 3.0) -> list[float]:
    """The `goodput` of the first window that `fits`, or of the last one."""
    for _ in range(WINDOWS):
        found = goodput(flows, seconds)
        if fits(found):
            break
    return found
