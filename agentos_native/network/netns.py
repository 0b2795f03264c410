"""New network namespaces, made by one thread that does nothing else, some of them ahead of time.

Theory of operation. unshare(2) moves the calling *thread*, so it must not be a thread that other code runs on: were it
not brought back, that code would act on the wrong network. The maker's thread (root, in the host's namespaces) takes
one order at a time: it unshares, opens the namespace and a netlink socket in it, writes the one sysctl, brings loopback
up and goes home. If it cannot go home it refuses all later orders. When no order has come for a moment, it makes a
namespace for the shelf, because the kernel needs longer for that than for all the rest of a wire.

A namespace belongs to the initial user namespace, so the agent never has a capability over it, and lives as long as its
fd (there is no bind mount to clean up): what is on the shelf dies with this process.
"""

from __future__ import annotations

import contextlib
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
_IDLE_SECONDS: Final = 0.01
"""Longer than a start takes: restocking must not compete with the start that took the last one."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A fresh network namespace: its fd, and a route socket inside it. The owner closes both."""

    fd: int
    channel: Channel

    def close(self) -> None:
        self.channel.close()
        os.close(self.fd)


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
        self._orders: queue.SimpleQueue[Future[Namespace] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def make(self) -> Namespace:
        """Take one from the shelf, or order one and wait for it.

        Raises:
            OSError: which call failed, as the kernel said it.
        """
        order: Future[Namespace] = Future()
        with contextlib.suppress(IndexError):
            order.set_result(self._shelf.popleft())
        with self._lock:
            self._ensure_thread()
            self._orders.put(order)  # a filled one too: it tells the maker that the shelf has room
        return order.result()

    def start(self) -> None:
        """Begin to stock the shelf. Idempotent."""
        with self._lock:
            self._ensure_thread()

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
        refill = True
        while True:
            order: Future[Namespace] | None = Future()
            try:
                idle = refill and lost is None and len(self._shelf) < self._ahead
                order = self._orders.get(timeout=_IDLE_SECONDS if idle else None)
            except queue.Empty:
                refill = self._restock()
            else:
                if order is None:
                    return
                refill = True
                if order.done():
                    continue
                self._fill(order, lost)
            try:
                ns.setns(home, ns.CLONE_NEWNET)
            except OSError as error:
                lost = error

    def _restock(self) -> bool:
        """One for the shelf; False when there is none to be had, so that nobody tries in a loop."""
        try:
            self._shelf.append(_unshare(self._loopback))
        except OSError:
            return False
        return True

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
