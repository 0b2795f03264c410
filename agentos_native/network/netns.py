"""New network namespaces, made by one thread that does nothing else.

Theory of operation: unshare(2) moves the calling *thread*, so it must not be a thread that other code runs on: were it
not brought back, that code would act on the wrong network. The maker's thread (root, in the host's namespaces) takes
one order at a time: it unshares, opens the namespace and a netlink socket in it, writes the one sysctl, and goes home.
If it cannot go home it refuses all later orders. A namespace belongs to the initial user namespace, so the agent never
has a capability over it, and lives as long as its fd (there is no bind mount to clean up).
"""

from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from agentos_native.kernel import ns
from agentos_native.network.netlink import NETLINK_ROUTE, Channel

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


class NamespaceMaker:
    """Makes namespaces on a thread of its own; `make` may be called from any thread."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Future[Namespace] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def make(self) -> Namespace:
        """Order one and wait for it.

        Raises:
            OSError: which call failed, as the kernel said it.
        """
        order: Future[Namespace] = Future()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="netns-maker", daemon=True)
                self._thread.start()
            self._orders.put(order)
        return order.result()

    def close(self) -> None:
        """End the thread; a later `make` starts another."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._orders.put(None)
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        home = ns.open_own("net")
        lost: OSError | None = None
        try:
            while (order := self._orders.get()) is not None:
                if lost is not None:
                    order.set_exception(lost)
                    continue
                try:
                    made = _unshare()
                except OSError as error:
                    order.set_exception(error)
                else:
                    order.set_result(made)
                try:
                    ns.setns(home, ns.CLONE_NEWNET)
                except OSError as error:
                    lost = error
        finally:
            os.close(home)


def _unshare() -> Namespace:
    ns.unshare(ns.CLONE_NEWNET)
    fd = ns.open_own("net")
    try:
        # /proc/sys/net shows the namespace of the thread that looks (proc(5)).
        sysctl = os.open(_UNPRIVILEGED_PORTS, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(sysctl, b"0")
        finally:
            os.close(sysctl)
        return Namespace(fd, Channel(NETLINK_ROUTE))
    except OSError:
        os.close(fd)
        raise
