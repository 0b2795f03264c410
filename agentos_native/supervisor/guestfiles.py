"""The three files of /etc that follow from where an agent runs, not from its image: hostname, hosts, resolv.conf."""

from __future__ import annotations

import ipaddress
from typing import Final

from agentos_native.spec.model import AgentSpec

_RESOLV: str = "/etc/resolv.conf"
PATHS: Final = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")


def hostname(spec: AgentSpec) -> str:
    """The agent's host name, at most the kernel's 64 bytes."""
    return (spec.hostname or spec.name)[:64]


def files(spec: AgentSpec, ipv4: str | None, ipv6: str | None) -> dict[str, bytes]:
    """Absolute path inside → content."""
    name = hostname(spec)
    hosts = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    hosts += [f"{address} {name}" for address in (ipv4, ipv6) if address]
    resolv = nameservers() if spec.network == "egress" else []
    return {
        "/etc/hostname": f"{name}\n".encode(),
        "/etc/hosts": ("\n".join(hosts) + "\n").encode(),
        "/etc/resolv.conf": "".join(f"nameserver {server}\n" for server in resolv).encode(),
    }


def nameservers(path: str = _RESOLV) -> list[str]:
    """The host's name servers that can be reached from another network namespace: a loopback address cannot."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            lines = file.read(65536).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                address = ipaddress.ip_address(words[1])
            except ValueError:
                continue
            if not address.is_loopback and not address.is_link_local:
                found.append(str(address))
    return found
