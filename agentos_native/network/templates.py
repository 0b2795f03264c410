"""Ready-made netlink batches: encoded by pyroute2 once, patched per agent.

pyroute2 needs about 6 ms to encode what one start sends; copying the bytes and overwriting the few fields that differ
takes some microseconds. It works because every value that differs has a fixed length. Where those fields are is not
computed but found: each batch is encoded with two sets of values and must differ in exactly the places that were
recognised; anything else is refused.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from agentos_native.network import encode, encode_rates
from agentos_native.network.addressing import DOOMED, Addresses
from agentos_native.network.encode import Message, Values
from agentos_native.network.netlink import NLM_F_ACK
from agentos_native.network.ruleset import SET_EGRESS, SET_SOURCE4, SET_SOURCE6, SETS

_HEADER: Final = struct.Struct("=LHHLL")

# Recognisable: none of these values occurs in a message by accident (`template` would notice).
_MARKED: Final = Values(
    ifname="aoQXZV",
    ifindex=0x5A6B7C71,
    ipv4="100.99.241.242",
    ipv6="fd99:f1f2:f3f4:f5f6:e1e2:e3e4:e5e6:e7e8",
    mac="02:e9:ea:eb:ec:ed",
    agent_id="QWERTYQWERTY",
    netns_fd=0x5B6C7D72,
    rate=0x5C6D7E71,
    burst=0x5D6E7F72,
    queue=0x5E6F7A73,
)
_OTHER: Final = Values(
    ifname="ao0001",
    ifindex=0x40000001,
    ipv4="100.65.0.1",
    ipv6="fd61:6f6e:6174::1:0:1",
    mac="02:61:6f:00:00:01",
    agent_id="0123456789ab",
    netns_fd=17,
    rate=1_250_000,
    burst=16384,
    queue=81920,
)


def fields(values: Values) -> dict[str, bytes]:
    """Each varying value as it lies in a message. The names of devices and agents lie there as they are written."""
    return {
        "ifname": values.ifname.encode(),
        "ifindex": struct.pack("=I", values.ifindex),
        "ipv4": socket.inet_aton(values.ipv4),
        "ipv6": socket.inet_pton(socket.AF_INET6, values.ipv6),
        "mac": bytes.fromhex(values.mac.replace(":", "")),
        "agent_id": values.agent_id.encode(),
        "netns_fd": struct.pack("=I", values.netns_fd),
        **rate_fields(values.ifindex, values.rate, values.burst, values.queue),
    }


def rate_fields(ifindex: int, rate: int = 0, burst: int = 0, queue: int = 0) -> dict[str, bytes]:
    """The part of `fields` that messages about rates contain."""
    return {
        "ifindex": struct.pack("=I", ifindex),
        "rate": struct.pack("=Q", rate),
        "burst": struct.pack("=I", burst),
        "queue": struct.pack("=I", queue),
    }


def number(batch: list[Message]) -> bytes:
    """Join messages: numbered from 1 on, the last that the kernel answers (not an nftables commit) asked for an
    answer."""
    last = answered(batch)
    joined = bytearray()
    for sequence, (_, message) in enumerate(batch, 1):
        length, kind, flags, _, _ = _HEADER.unpack_from(message)
        if sequence == last:
            flags |= NLM_F_ACK
        joined += _HEADER.pack(length, kind, flags, sequence, 0) + message[_HEADER.size :]
        joined += bytes(-len(joined) % 4)
    return bytes(joined)


def answered(batch: list[Message]) -> int:
    """The sequence number of the message that asks for the answer: nfnetlink answers what is inside a transaction
    only."""
    return len(batch) - 1 if batch[-1][0].startswith("commit") else len(batch)


@dataclass(frozen=True, slots=True)
class Template:
    """One batch: its bytes, the places of its fields, and what each of its messages does."""

    data: bytes
    holes: tuple[tuple[str, int], ...]
    steps: tuple[str, ...]
    last: int

    def fill(self, values: dict[str, bytes]) -> bytearray:
        """The batch for one agent; `values` as from `fields`."""
        data = bytearray(self.data)
        for name, offset in self.holes:
            value = values[name]
            data[offset : offset + len(value)] = value
        return data


def template(build: Callable[[Values], list[Message]]) -> Template:
    """Find where the values lie in what `build` makes.

    Raises:
        RuntimeError: patched bytes differ from freshly encoded ones: this pyroute2 encodes something in a way not
            foreseen.
    """
    batch = build(_MARKED)
    data = number(batch)
    holes = []
    for name, mark in fields(_MARKED).items():
        offset = data.find(mark)
        while offset >= 0:
            holes.append((name, offset))
            offset = data.find(mark, offset + len(mark))
    made = Template(data, tuple(holes), tuple(step for step, _ in batch), answered(batch))
    if made.fill(fields(_OTHER)) != number(build(_OTHER)):
        raise RuntimeError(f"netlink template of {made.steps[0]!r} is not what pyroute2 encodes")
    return made


def _list_elements(node: str, name: str, _: Values) -> list[Message]:
    return encode.list_elements(node, name)


class Templates:
    """All batches of one node."""

    def __init__(self, node: str, group: int) -> None:
        self.link = template(lambda values: encode.link(values, group))
        self.host_end = template(lambda values: encode.host_end(values, node))
        self.agent_end = template(encode.agent_end)
        self.doom_link = template(lambda values: encode.doom_link(values, group | DOOMED))
        self.delete_doomed = template(lambda _: encode.delete_group(group | DOOMED))
        self.delete_living = template(lambda _: encode.delete_group(group))
        self.forget_connections = template(encode.forget_connections)
        self.list_connections = template(lambda _: encode.list_connections())
        self.get_link = template(encode.get_link)
        self.list_links = template(lambda _: encode.list_links())
        self.list_rules = template(lambda _: encode.list_rules(node))
        self.list_elements = [template(partial(_list_elements, node, name)) for name in SETS]
        source = (SET_SOURCE4, SET_SOURCE6)
        # "isolated" takes a way out away that a crash may have left, or that the agent had under another spec.
        self.admit = {
            "isolated": template(lambda values: encode.elements(values, node, add=source, destroy=(SET_EGRESS,))),
            "egress": template(lambda values: encode.elements(values, node, add=(*source, SET_EGRESS))),
        }
        self.expel = template(lambda values: encode.elements(values, node, destroy=SETS))


class RateTemplates:
    """The batches about rates, which are the same for every node; made only where somebody has a rate."""

    def __init__(self) -> None:
        self.set_rate = template(encode_rates.set_rate)
        self.drop_rate = template(encode_rates.drop_rate)
        self.list_queues = template(lambda _: encode_rates.list_queues())
        self.list_counters = template(lambda _: encode_rates.list_counters())


def fields_of(own: Addresses, agent_id: str = "", netns_fd: int = 0) -> dict[str, bytes]:
    """`fields` straight from an agent's addresses; what is left out is what the template at hand does not contain."""
    return {
        "ifname": own.host_ifname.encode(),
        "ifindex": struct.pack("=I", own.host_ifindex),
        "ipv4": own.ipv4_packed,
        "ipv6": own.ipv6_packed,
        "mac": own.mac_packed,
        "agent_id": agent_id.encode(),
        "netns_fd": struct.pack("=I", netns_fd),
    }
