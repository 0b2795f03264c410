"""Routing on the host: needed as soon as one agent may reach the outside, and left alone until then."""

from __future__ import annotations

import os
from typing import Final

from agentos_native.network.addressing import index_of

_IPV4: Final = "/proc/sys/net/ipv4/ip_forward"
_IPV6: Final = "/proc/sys/net/ipv6/conf/all/forwarding"
_IPV6_CONF: Final = "/proc/sys/net/ipv6/conf"


def enable() -> list[str]:
    """Switch routing on where it is off; returns a sentence for each setting that was changed.

    An interface that configures itself from router advertisements (accept_ra=1) would stop to, because a router does
    not listen to them; accept_ra=2 keeps it listening (ip-sysctl: "Overrule forwarding behaviour"). Interfaces of
    agents and those yet to come are left at 1, that is, deaf from now on.

    Raises:
        OSError: a setting cannot be written.
    """
    changed = []
    if _read(_IPV6) == "0":
        for name in sorted(os.listdir(_IPV6_CONF)):
            path = f"{_IPV6_CONF}/{name}/accept_ra"
            if name not in ("all", "default", "lo") and index_of(name) is None and _read(path) == "1":
                _write(path, "2")
                changed.append(f"net.ipv6.conf.{name}.accept_ra set to 2, so that it stays configured on a router")
        _write(_IPV6, "1")
        changed.append("net.ipv6.conf.all.forwarding set to 1: an agent has network mode egress")
    if _read(_IPV4) == "0":
        _write(_IPV4, "1")
        changed.append("net.ipv4.ip_forward set to 1: an agent has network mode egress")
    return changed


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
