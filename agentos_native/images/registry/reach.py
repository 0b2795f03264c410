"""Where a registry may send its clients: by what kind of address it has, and what kind they are sent to."""

from __future__ import annotations

import ipaddress
import socket
from typing import Literal

Reach = Literal["public", "private", "link-local", "loopback"]


def leads(here: Reach, there: Reach) -> bool:
    """Whether a registry at one address may send its clients to another: to the internet, and to where it is itself.

    So a public one does not lead to a private address, and none to the machine's own (loopback) or to those of its
    link, where clouds give out what a machine is and may, unless it is there.
    """
    allowed = {"public", here}
    if "loopback" in allowed:
        allowed.add("private")  # who is on this machine may be anywhere in its network
    return there in allowed


def named(host: str) -> Reach:
    """What a host is that a proxy looks up: an address says it, however it is written (127.1, 0x7f000001), a name is
    taken for one of the internet's."""
    try:
        return reach(host.strip("[]"))
    except ValueError:
        pass
    try:
        return reach(socket.inet_ntoa(socket.inet_aton(host)))
    except OSError:
        return "public"


def reach(address: str) -> Reach:
    """What an address is; raises ValueError where it is none."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    found = mapped or parsed
    if found.is_loopback or found.is_unspecified:
        return "loopback"
    if found.is_link_local:
        return "link-local"
    return "public" if found.is_global else "private"
