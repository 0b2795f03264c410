"""A small world for network tests: this (outer) namespace is the host, a second one is everything outside of it.

    agent ── veth ── host (192.0.2.1, 2001:db8::1) ── wan0/wan1 ── outside (192.0.2.2, 2001:db8::2, and more on its
    loopback)

Nothing of it is connected to the machine's own network; `require_outer_namespace` makes sure.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

from agentos_native.kernel import ns

HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
OUTSIDE4, OUTSIDE6 = "192.0.2.2", "2001:db8::2"
FAR4, FAR6 = "198.51.100.7", "2001:db8:7::7"
METADATA4 = "169.254.169.254"
SILENCE_SECONDS = 0.3
ARRIVES_SECONDS = 20.0

Result = TypeVar("Result")


def require_outer_namespace() -> None:
    """Fail (never skip) when this process is on the machine's own network."""
    own = os.stat("/proc/self/ns/net").st_ino
    initial = set()
    for pid in (1, 2):  # init's may be unreadable for us; kthreadd's is the initial one too
        with contextlib.suppress(OSError):
            initial.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
    assert initial, "cannot tell whether this is the machine's own network namespace"
    assert own not in initial, "run privileged tests inside: unshare --net --mount (tools/test does)"


def run(command: str, netns: int = -1) -> str:
    """Run a command line, in the namespace `netns` if given; its standard output."""
    words = command.split()
    if netns >= 0:
        words = ["nsenter", f"--net=/proc/self/fd/{netns}", *words]
    keep = (netns,) if netns >= 0 else ()
    return subprocess.run(words, check=True, capture_output=True, text=True, pass_fds=keep).stdout


def inside(netns: int, action: Callable[[], Result]) -> Result:
    """Call `action` on a thread that is in `netns`; sockets that it makes stay there."""
    outcome: list[Any] = []

    def body() -> None:
        try:
            ns.setns(netns, ns.CLONE_NEWNET)
            outcome.append((True, action()))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    succeeded, value = outcome[0]
    if not succeeded:
        raise value
    return value  # type: ignore[no-any-return]


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def udp(netns: int, address: str, port: int = 0) -> socket.socket:
    """A bound UDP socket in `netns` (-1: here)."""

    def make() -> socket.socket:
        made = socket.socket(family_of(address), socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        return made

    return make() if netns < 0 else inside(netns, make)


def receives(receiver: socket.socket, payload: bytes, seconds: float) -> bool:
    """Whether `payload` comes in within `seconds`; other datagrams are thrown away."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        receiver.settimeout(left)
        try:
            if receiver.recv(2048) == payload:
                return True
        except TimeoutError:
            return False
        except ConnectionError:
            continue
    return False


_serial = iter(range(1 << 30))


def passes(sender: socket.socket, receiver: socket.socket, destination: tuple[str, int], *, expect: bool) -> bool:
    """Send datagrams from one to the other and say whether one arrived; waits long only for what is expected."""
    payload = b"probe %d" % next(_serial)
    deadline = time.monotonic() + (ARRIVES_SECONDS if expect else SILENCE_SECONDS)
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # no route, or an ICMP error of an earlier one: not arriving is the answer
            sender.sendto(payload, destination)
        if receives(receiver, payload, 0.1):
            return True
    return False


def connects(netns: int, destination: tuple[str, int], *, expect: bool) -> bool:
    """Whether a TCP connection from `netns` is accepted or refused at all, that is, whether anything comes back."""

    def attempt() -> bool:
        with socket.socket(family_of(destination[0])) as client:
            client.settimeout(ARRIVES_SECONDS if expect else SILENCE_SECONDS)
            return client.connect_ex(destination) in (0, errno.ECONNREFUSED)

    return inside(netns, attempt) if netns >= 0 else attempt()


@contextlib.contextmanager
def listening(netns: int, address: str, port: int) -> Iterator[socket.socket]:
    """A TCP listener in `netns` (-1: here)."""

    def make() -> socket.socket:
        made = socket.socket(family_of(address))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(16)
        made.settimeout(ARRIVES_SECONDS)
        return made

    listener = make() if netns < 0 else inside(netns, make)
    with listener:
        yield listener


class World:
    """The host's uplink and the outside; `outside` is the fd of its namespace."""

    earlier: ClassVar[set[tuple[str, ...]]] = set()
    """The connections that were tracked before the last world was made."""

    def __init__(self) -> None:
        World.earlier = connections()
        self.outside = new_namespace()
        run("ip link set lo up")
        run(f"ip link add wan0 type veth peer name wan1 netns /proc/{os.getpid()}/fd/{self.outside}")
        for command in (
            f"ip address add {HOST4}/24 dev wan0",
            f"ip address add {HOST6}/64 dev wan0 nodad",
            "ip link set wan0 up",
        ):
            run(command)
        for command in (
            "ip link set lo up",
            f"ip address add {OUTSIDE4}/24 dev wan1",
            f"ip address add {OUTSIDE6}/64 dev wan1 nodad",
            f"ip address add {FAR4}/32 dev lo",
            f"ip address add {FAR6}/128 dev lo",
            f"ip address add {METADATA4}/32 dev lo",
            "ip link set wan1 up",
            # So that a packet to an agent's own address would find its way, were it let in.
            f"ip route add 100.64.0.0/10 via {HOST4}",
            f"ip route add fd00::/8 via {HOST6}",
        ):
            run(command, self.outside)
        run(f"ip route add default via {OUTSIDE4}")
        run(f"ip route add default via {OUTSIDE6}")

    def close(self) -> None:
        run("ip link delete wan0")
        os.close(self.outside)


def new_namespace() -> int:
    """A bare network namespace; its fd, which is the caller's to close."""
    made: list[int] = []

    def body() -> None:
        ns.unshare(ns.CLONE_NEWNET)
        made.append(ns.open_own("net"))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return made[0]


def agent_links() -> list[dict[str, Any]]:
    """Every device here that is named like an agent's, as `ip -j -d link` shows it."""
    links = json.loads(run("ip -j -d link show"))
    return [link for link in links if link["ifname"].startswith("ao")]


def set_elements(table: str) -> dict[str, int]:
    """Set → number of elements, of the table `inet <table>`; empty when there is no such table."""
    listed = json.loads(run("nft -j list ruleset"))["nftables"]
    sets = [entry["set"] for entry in listed if "set" in entry]
    return {entry["name"]: len(entry.get("elem", [])) for entry in sets if entry["table"] == table}


def connections() -> set[tuple[str, ...]]:
    """What the host tracks: protocol, addresses, ports and zone of each connection."""
    with open("/proc/net/nf_conntrack", encoding="ascii") as file:
        return {(line.split()[2], *re.findall(r"(?:src|dst|sport|dport|id|zone)=\S+", line)) for line in file}


def tracked() -> int:
    """Connections that the host tracks, but for those of other tests, which were there before the world."""
    return len(connections() - World.earlier)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def ipv6_packet(source: str, destination: str, port: int, payload: bytes) -> bytes:
    """A UDP datagram with its IPv6 header and checksum, for a raw socket."""
    src, dst = (socket.inet_pton(socket.AF_INET6, address) for address in (source, destination))
    length = 8 + len(payload)
    datagram = struct.pack("!HHHH", 9, port, length, 0) + payload
    pseudo = src + dst + struct.pack("!II", length, socket.IPPROTO_UDP) + datagram
    datagram = datagram[:6] + struct.pack("!H", _checksum(pseudo)) + payload
    return struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + src + dst + datagram


def ipv4_packet(source: str, destination: str, port: int, payload: bytes) -> bytes:
    """A UDP datagram with its IPv4 header; the checksums are left to the kernel and (0) to nobody."""
    length = 20 + 8 + len(payload)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 1, 0, 64, socket.IPPROTO_UDP, 0)
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    return header + addresses + struct.pack("!HHHH", 9, port, 8 + len(payload), 0) + payload


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF) or 0xFFFF
