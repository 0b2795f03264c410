"""New network namespaces, made by one thread that does nothing else, some of them ahead of time.

Theory of operation. unshare(2) moves the calling *thread*, so it must not be a thread that other code runs on: were it
not brought back, that code would act on the wrong network. The maker's thread (root, in the host's namespaces) takes
one order at a time: it unshares, opens the namespace and a netlink socket in it, writes the one sysctl, brings loopback
up and goes home. If it cannot go home it refuses all later orders. Orders come first; between them it stocks the shelf,
because the kernel needs longer for a namespace than for all the rest of a wire. It begins when it is told to, after a
wire is made: both take the kernel's network lock, so one would wait for the other.

A namespace belongs to the initial user namespace, so the agent never has a capability over it, and lives as long as its
fd (there is no bind mount to clean up): what is on the shelf dies with this process.
"""

from __future__ import annotations

import contextlib
import enum
import os
import queue
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from agentos_native.kernel import ns
from agentos_native.network.netlink import NETLINK_ROUTE, Batch, Channel, send

_UNPRIVILEGED_PORTS: Final = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
"""0 gives the agent its low ports (it has no CAP_NET_BIND_SERVICE over a namespace of the host's); ip-sysctl(7)."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A fresh network namespace: its fd, and a route socket inside it. The owner closes both."""

    fd: int
    channel: Channel

    def close(self) -> None:
        self.channel.close()
        os.close(self.fd)


class _Restock(enum.Enum):
    """What the maker is told beside orders."""

    WORD = enum.auto()


_RESTOCK: Final = _Restock.WORD


class NamespaceMaker:
    """Makes namespaces on a thread of its own; `make` may be called from any thread.

    Args:
        loopback: the batch that brings loopback up in a new namespace.
        ahead: how many to keep on the shelf.
    """

    def __init__(self, loopback: Batch, ahead: int = 0) -> None:
        self._loopback = loopback
        self._ahead = ahead
        self._shelf: deque[Namespace] = deque()
        self._orders: queue.SimpleQueue[Future[Namespace] | _Restock | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def make(self) -> Namespace:
        """Take one from the shelf, or order one and wait for it.

        Raises:
            OSError: which call failed, as the kernel said it.
        """
        with contextlib.suppress(IndexError):
            return self._shelf.popleft()
        order: Future[Namespace] = Future()
        self._tell(order)
        return order.result()

    def restock(self) -> None:
        """Fill the shelf, in the background."""
        if len(self._shelf) < self._ahead:
            self._tell(_RESTOCK)

    def _tell(self, word: Future[Namespace] | _Restock) -> None:
        with self._lock:
            self._ensure_thread()
            self._orders.put(word)

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="netns-maker", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread and clear the shelf; a later `make` starts anew."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._orders.put(None)
        if thread is not None:
            thread.join()
        while self._shelf:
            self._shelf.pop().close()

    def _run(self) -> None:
        home = ns.open_own("net")
        try:
            self._serve(home)
        finally:
            os.close(home)

    def _serve(self, home: int) -> None:
        lost: OSError | None = None
        while (order := self._orders.get()) is not None:
            if isinstance(order, Future):
                self._fill(order, lost)
            elif lost is None:
                self._restock()
            try:
                ns.setns(home, ns.CLONE_NEWNET)
            except OSError as error:
                lost = error

    def _restock(self) -> None:
        """One for the shelf, and more later: an order that has come meanwhile is first. None are to be had: whoever
        orders one learns why."""
        with contextlib.suppress(OSError):
            if len(self._shelf) < self._ahead:
                self._shelf.append(_unshare(self._loopback))
                self._orders.put(_RESTOCK)

    def _fill(self, order: Future[Namespace], lost: OSError | None) -> None:
        if lost is not None:
            order.set_exception(lost)
            return
        try:
            order.set_result(_unshare(self._loopback))
        except OSError as error:
            order.set_exception(error)


def _unshare(loopback: Batch) -> Namespace:
    """Move this thread into a new namespace and prepare it."""
    ns.unshare(ns.CLONE_NEWNET)
    with contextlib.ExitStack() as undo:
        fd = ns.open_own("net")
        undo.callback(os.close, fd)
        # /proc/sys/net shows the namespace of the thread that looks (proc(5)).
        sysctl = os.open(_UNPRIVILEGED_PORTS, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(sysctl, b"0")
        finally:
            os.close(sysctl)
        channel = undo.enter_context(Channel(NETLINK_ROUTE))
        send(channel, loopback, {})
        undo.pop_all()
    return Namespace(fd, channel)
