"""Rates of the wires: how fast an agent may send and receive, and how much it did.

Theory of operation. A wire is shaped where its packets queue before they cross it: what the agent receives at the
host's end, what it sends at its own end, inside its network namespace. That namespace belongs to the initial user
namespace and the agent has no capability over it, so it cannot change or remove what is set there. Delaying at the
sender's own device holds TCP back without losing packets; policing at the host's end would drop them, and kernels
without act_police cannot do it at all.

Each end has one token bucket (tbf), and only when it has a rate. It is a class of its own: no other agent's packets
pass the device, so a hierarchy (htb) on it would have nobody to lend to. What one agent does not use is handed to
others by setting the rates anew (`agentos_native.supervisor.loop.network`).

The supervisor keeps one route socket in the namespace of each agent that may need rates; it is made with the namespace
or, for an adopted agent, by a thread that enters through the pidfd of the agent's process and ends there. A wire that
is deleted takes its rates along.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from agentos_native.kernel import ns
from agentos_native.network.addressing import AGENT_IFINDEX, IFINDEX_BASE, SLOTS_PER_BLOCK
from agentos_native.network.encode_rates import HANDLE, ROOT
from agentos_native.network.netlink import NETLINK_ROUTE, Channel, NetlinkError, attributes, send
from agentos_native.network.templates import RateTemplates, Template, rate_fields

Direction = Literal["egress", "ingress"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("egress", "ingress")

LEAST_BURST: Final = 72 * 1024
"""More than one packet of TCP before it is cut (GSO: 64 KiB and its headers). A bucket that is made smaller
than a packet which waits in it would never let that through, nor anything behind it (sch_tbf, tbf_dequeue)."""
_BURST_SECONDS: Final = 0.001
_LEAST_QUEUE: Final = 128 * 1024
_QUEUE_SECONDS: Final = 0.1
_MOST: Final = 2**24
_TCMSG: Final = struct.Struct("=BxxxiIII")
_STATS_HEADER: Final = struct.Struct("=BxxxII")
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2 = 1, 2, 7
_TCA_TBF_PARMS, _TCA_TBF_RATE64 = 1, 4
_TCA_STATS_QUEUE: Final = 3
_PARMS_RATE_OFFSET: Final = 8


@dataclass(frozen=True, slots=True)
class Rates:
    """Bits per second; None: no bound."""

    egress: int | None = None
    ingress: int | None = None

    def __bool__(self) -> bool:
        return self.egress is not None or self.ingress is not None


NO_RATES: Final = Rates()


@dataclass(frozen=True, slots=True)
class Queue:
    """What one end of a wire has as its root discipline.

    Attributes:
        rate: bits per second; None for something else than our bucket.
        backlog: bytes that wait; `drops`, `overlimits`: packets that found no room, and that had to wait, since the
            discipline was made (both wrap at 2³²).
    """

    rate: int | None
    backlog: int
    drops: int
    overlimits: int


def shape(rate: int) -> tuple[int, int, int]:
    """Rate in bytes per second, bucket, and queue in bytes, for `rate` bits per second.

    1 ms of burst is longer than timers are late; 100 ms of queue are what loss-based TCP needs to fill the rate over
    common distances, and still bearable to wait in. Slow rates have more of both (`LEAST_BURST`).
    """
    wanted = max(rate // 8, 1)
    burst = min(max(int(wanted * _BURST_SECONDS), LEAST_BURST), _MOST)
    queue = min(max(int(wanted * _QUEUE_SECONDS), _LEAST_QUEUE), _MOST)
    return wanted, burst, max(queue, burst)


class Shaper:
    """The rates of one node's wires. Thread-safe."""

    def __init__(self, block: int) -> None:
        self._first = IFINDEX_BASE + block * SLOTS_PER_BLOCK
        self._templates = RateTemplates()
        self._host = Channel(NETLINK_ROUTE)
        self._inside: dict[int, Channel] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close every socket; rates stay as they are."""
        with self._lock:
            self._host.close()
            while self._inside:
                self._inside.popitem()[1].close()

    # -- the sockets inside --

    def keep(self, slot: int, channel: Channel) -> None:
        """Own `channel`, a route socket in the namespace of the agent in `slot`."""
        with self._lock:
            former = self._inside.pop(slot, None)
            self._inside[slot] = channel
        if former is not None:
            former.close()

    def enter(self, slot: int, pidfd: int) -> None:
        """Make the socket in the network namespace of a process.

        Raises:
            OSError: it has ended, or it is in this process's own network namespace.
        """
        self.keep(slot, _channel_beside(pidfd))

    def forget(self, slot: int) -> None:
        """Its wire is gone or about to. Idempotent."""
        with self._lock:
            channel = self._inside.pop(slot, None)
        if channel is not None:
            channel.close()

    def _at(self, slot: int, direction: Direction) -> tuple[Channel, int]:
        if direction == "ingress":
            return self._host, self._first + slot
        channel = self._inside.get(slot)
        if channel is None:
            raise NetlinkError(errno.ENOENT, "reach the agent's namespace", "no socket in it")
        return channel, AGENT_IFINDEX

    # -- rates --

    def set_rate(self, slot: int, direction: Direction, rate: int | None) -> None:
        """Make, change or (None) remove the rate of one direction. Idempotent.

        A discipline that somebody else put there is replaced.

        Raises:
            NetlinkError: there is no such wire (ENODEV), or the kernel has no tbf (ENOENT).
        """
        with self._lock:
            channel, ifindex = self._at(slot, direction)
            if rate is None:
                self._drop(channel, ifindex)
                return
            values = rate_fields(ifindex, *shape(rate))
            try:
                send(channel, self._templates.set_rate, values)
            except NetlinkError as error:
                if error.errno not in (errno.EEXIST, errno.EINVAL):
                    raise
                self._drop(channel, ifindex)  # not a bucket: it cannot be changed into one
                send(channel, self._templates.set_rate, values)

    def _drop(self, channel: Channel, ifindex: int) -> None:
        try:
            send(channel, self._templates.drop_rate, rate_fields(ifindex))
        except NetlinkError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):  # what a device without any gives
                raise

    def set_rates(self, slot: int, rates: Rates) -> None:
        """Both directions; see `set_rate`."""
        self.set_rate(slot, "egress", rates.egress)
        self.set_rate(slot, "ingress", rates.ingress)

    # -- what is there --

    def queues(self, direction: Direction, slots: Iterable[int]) -> dict[int, Queue]:
        """The disciplines of those of `slots` that have one; wires that cannot be read are left out."""
        wanted = set(slots)
        if not wanted:
            return {}
        with self._lock:
            if direction == "ingress":
                found = self._list(self._host)
                return {i - self._first: queue for i, queue in found.items() if i - self._first in wanted}
            answers = {}
            for slot in wanted & self._inside.keys():
                try:
                    queue = self._list(self._inside[slot]).get(AGENT_IFINDEX)
                except OSError:  # being deleted
                    continue
                if queue is not None:
                    answers[slot] = queue
            return answers

    def _list(self, channel: Channel) -> dict[int, Queue]:
        made = self._templates.list_queues
        return dict(filter(None, map(_queue, _dump(channel, made))))

    def counters(self) -> dict[int, tuple[int, int]]:
        """Slot → bytes that the agent has sent and received since its wire was made; one request for all."""
        with self._lock:
            bodies = _dump(self._host, self._templates.list_counters)
        found = {}
        for body in bodies:
            slot = int(_STATS_HEADER.unpack_from(body)[1]) - self._first
            if 0 <= slot < SLOTS_PER_BLOCK:
                # one attribute: struct rtnl_link_stats64, of which bytes received and sent are the numbers 2 and 3
                received, sent = struct.unpack_from("=QQ", body, _STATS_HEADER.size + 4 + 16)
                found[slot] = (received, sent)
        return found


def _dump(channel: Channel, template: Template) -> list[bytes]:
    return channel.dump(template.data, template.steps[0])


def _queue(body: bytes) -> tuple[int, Queue] | None:
    """(interface, discipline) from the body of an RTM_NEWQDISC; None for what is below a root, or the kernel's own.

    A device without a discipline is listed with one that has no handle.
    """
    _, ifindex, handle, parent, _ = _TCMSG.unpack_from(body)
    if parent != ROOT or handle == 0:
        return None
    kind, rate = b"", 0
    backlog = drops = overlimits = 0
    for number, payload in attributes(body, _TCMSG.size):
        if number == _TCA_KIND:
            kind = payload.rstrip(b"\0")
        elif number == _TCA_OPTIONS and kind == b"tbf":
            rate = _rate(payload)
        elif number == _TCA_STATS2:
            for inner, stats in attributes(payload, 0):
                if inner == _TCA_STATS_QUEUE:
                    _, backlog, drops, _, overlimits = struct.unpack_from("=5I", stats)
    ours = kind == b"tbf" and handle == HANDLE
    return ifindex, Queue(rate if ours else None, backlog, drops, overlimits)


def _rate(options: bytes) -> int:
    """Bits per second of a bucket."""
    rate = 0
    for number, payload in attributes(options, 0):
        if number == _TCA_TBF_PARMS:
            rate = max(rate, int(struct.unpack_from("=I", payload, _PARMS_RATE_OFFSET)[0]))
        elif number == _TCA_TBF_RATE64:
            rate = int(struct.unpack_from("=Q", payload)[0])
    return rate * 8


def _channel_beside(pidfd: int) -> Channel:
    outcome: list[Channel | OSError] = []
    here = os.stat("/proc/self/ns/net").st_ino

    def body() -> None:
        try:
            ns.setns(pidfd, ns.CLONE_NEWNET)
            if os.stat("/proc/thread-self/ns/net").st_ino == here:
                raise OSError(errno.EINVAL, "the process is in the host's network namespace")
            outcome.append(Channel(NETLINK_ROUTE))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=body, name="netns-visit")
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]
