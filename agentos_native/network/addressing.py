"""What an agent is called on the network: pure arithmetic from (block, slot), so that nothing needs to be stored or
looked up.

``g = block * 2048 + slot`` is unique on the machine (each supervisor holds a block of its own). All names that are
derived from it have a fixed length, which lets `templates` patch them into ready-made netlink messages.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

BLOCKS: Final = 8
SLOTS_PER_BLOCK: Final = 2048

AGENTS_IPV4: Final = ipaddress.IPv4Network("100.65.0.0/16")
"""Inside 100.64.0.0/10 (RFC 6598): shared space that no site routes, so it cannot hide a neighbour of the host."""
AGENTS_IPV6: Final = ipaddress.IPv6Network("fd61:6f6e:6174::/48")
"""A unique local prefix (RFC 4193). It never leaves the host: what goes out is masqueraded."""
GATEWAY_IPV4: Final = "169.254.1.1"
GATEWAY_IPV6: Final = "fe80::1"
HOST_MAC: Final = "02:61:6f:ff:ff:01"
"""Every host end has the same address: each pair is a wire of its own, so nothing else ever sees it."""

AGENT_IFNAME: Final = "eth0"
AGENT_IFINDEX: Final = 2
LOOPBACK_IFINDEX: Final = 1
IFINDEX_BASE: Final = 0x40000000
"""Chosen interface numbers start here; those that the kernel gives out count up from 1 and never come near."""
GROUP_BASE: Final = 0x616F0000
ANY_NODE_MASK: Final = 0xFFFF0000
NODE_MASK: Final = 0xFFFF0FFF
DOOMED: Final = 0x1000
"""Interface group of a host end = GROUP_BASE + block, and + DOOMED while it is being deleted. It is set when the device
is born, so there is no moment at which the rules do not know it; the upper half alone says "an agent of some node of
this machine"."""

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_IFNAME: Final = re.compile(r"ao([0-9a-z]{4})")


@dataclass(frozen=True, slots=True)
class Addresses:
    """The names and numbers of one agent's wire; `ipv4` and `ipv6` are its own addresses, as text without a prefix
    length."""

    index: int
    ipv4: str
    ipv6: str
    mac: str
    host_ifname: str
    host_ifindex: int

    @property
    def ipv4_packed(self) -> bytes:
        return socket.inet_aton(self.ipv4)

    @property
    def ipv6_packed(self) -> bytes:
        return socket.inet_pton(socket.AF_INET6, self.ipv6)

    @property
    def mac_packed(self) -> bytes:
        return bytes.fromhex(self.mac.replace(":", ""))


def addresses(block: int, slot: int) -> Addresses:
    """Derive everything from the machine-wide index.

    Raises:
        ValueError: block or slot out of range; both come from the supervisor itself, never from a user.
    """
    if not 0 <= block < BLOCKS or not 0 <= slot < SLOTS_PER_BLOCK:
        raise ValueError(f"block {block} / slot {slot} out of range")
    return of_index(block * SLOTS_PER_BLOCK + slot)


def unused() -> Addresses:
    """Addresses that no agent ever has, for asking the kernel what it can do."""
    return of_index(BLOCKS * SLOTS_PER_BLOCK)


def of_index(index: int) -> Addresses:
    """`addresses` of a machine-wide index."""
    ipv4 = int(AGENTS_IPV4.network_address) + index
    # The upper 1 keeps clear of ::0, the subnet-router anycast address (RFC 4291, 2.6.1).
    ipv6 = int(AGENTS_IPV6.network_address) + (1 << 32) + index
    return Addresses(
        index=index,
        ipv4=socket.inet_ntoa(ipv4.to_bytes(4, "big")),
        ipv6=socket.inet_ntop(socket.AF_INET6, ipv6.to_bytes(16, "big")),
        mac=f"02:61:6f:{index >> 16:02x}:{index >> 8 & 255:02x}:{index & 255:02x}",
        host_ifname=_ifname(index),
        host_ifindex=IFINDEX_BASE + index,
    )


def _ifname(index: int) -> str:
    digits = ""
    for _ in range(4):
        index, digit = divmod(index, 36)
        digits = _DIGITS[digit] + digits
    return "ao" + digits


def index_of(ifname: str) -> int | None:
    """The machine-wide index behind a host interface's name; None for an interface that is not an agent's."""
    match = _IFNAME.fullmatch(ifname)
    return int(match.group(1), 36) if match else None


def index_of_address(packed: bytes) -> int | None:
    """The machine-wide index behind an agent's address, of 4 or 16 bytes; None for any other."""
    first = AGENTS_IPV4.network_address if len(packed) == 4 else AGENTS_IPV6.network_address + (1 << 32)
    index = int.from_bytes(packed) - int(first)
    return index if 0 <= index < BLOCKS * SLOTS_PER_BLOCK else None


def group(block: int) -> int:
    """The interface group of every agent of a node; see `DOOMED`."""
    return GROUP_BASE + block


def table_name(node: str) -> str:
    return f"agentos-{node}"


def alias(node: str, agent_id: str) -> str:
    """The host interface's ifalias: how a later supervisor recognises whose it is."""
    return f"agentos-{node}/{agent_id}"
