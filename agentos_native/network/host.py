"""What a node does in the host's own network namespace, one agent at a time: devices, elements, tracked connections.

Two netlink sockets, each behind a lock: the kernel works on such requests one after the other anyway (its rtnl and
nftables commit locks). No policy here, and no memory of agents: `node` has both.
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterable, Iterator
from typing import Final

from agentos_native.network import ruleset
from agentos_native.network.addressing import group, index_of, index_of_address, table_name
from agentos_native.network.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Channel, NetlinkError, attributes, send
from agentos_native.network.reaper import Reaper
from agentos_native.network.templates import Template, Templates

_IFLA_IFNAME: Final = 3
_IFLA_IFALIAS: Final = 20
_IFINFOMSG_BYTES: Final = 16
_NFGENMSG_BYTES: Final = 4
_NFTA_SET_ELEM_LIST_ELEMENTS: Final = 3
_NFTA_SET_ELEM_KEY: Final = 1
_CTA_TUPLE_ORIG: Final = 1
_CTA_TUPLE_IP: Final = 1
_IFNAMSIZ: Final = 16
_NFT: Final = ("/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft")
_NFT_SECONDS: Final = 60

Fields = dict[str, bytes]


class NftError(OSError):
    """`nft` refused the ruleset, or is not there; `text` is what it said."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.text = text

    def __str__(self) -> str:
        return f"nft -f: {self.text}"


class HostSide:
    """The node's sockets and templates. Thread-safe."""

    def __init__(self, node: str, block: int) -> None:
        self._node = node
        self._block = block
        self.templates = Templates(node, group(block))
        self._route = Channel(NETLINK_ROUTE)
        self._reaper = Reaper(self.templates)
        self._netfilter = Channel(NETLINK_NETFILTER)
        self._route_lock = threading.Lock()
        self._netfilter_lock = threading.Lock()
        self._rules = 0

    def close(self) -> None:
        self._route.close()
        self._netfilter.close()
        self._reaper.close()

    # -- the table --

    def load_table(self, connections: int) -> None:
        """Put the rules in place in one transaction. The elements stay, unless the table's sets had another shape.

        Raises:
            NftError: nft is missing, or refused.
        """
        try:
            _nft(ruleset.text(self._node, self._block, connections=connections))
        except NftError as error:
            if error.errno == errno.ENOENT:
                raise
            # A set or chain of that name but of another shape: an older version's table, or not ours at all.
            _nft(ruleset.text(self._node, self._block, connections=connections, from_scratch=True))
        self._rules = self.count_rules()

    def table_is_whole(self) -> bool:
        """Whether all rules are where `load_table` put them (somebody may have flushed the ruleset)."""
        return self._rules > 0 and self.count_rules() == self._rules

    def count_rules(self) -> int:
        made = self.templates.list_rules
        with self._netfilter_lock:
            return len(self._netfilter.dump(made.data, made.steps[0]))

    def delete_table(self) -> None:
        """Idempotent."""
        table = table_name(self._node)
        _nft(f"add table inet {table}\ndelete table inet {table}\n")

    # -- one agent --

    def make_link(self, values: Fields) -> None:
        """The pair. Sent alone: what follows names the device by number and must not meet somebody else's."""
        self.route(self.templates.link, values)

    def configure_host_end(self, values: Fields) -> None:
        self.route(self.templates.host_end, values)

    def delete_link(self, values: Fields) -> None:
        """Idempotent; returns when the device is gone."""
        self.delete_links([values])

    def delete_links(self, links: Iterable[Fields]) -> None:
        """As `delete_link`; many take as long as one (`reaper`)."""
        if any([self._doom_link(values) for values in links]):
            self._reaper.delete_doomed()

    def _doom_link(self, values: Fields) -> bool:
        """Move the device to the group of those that the reaper deletes; False when it is not there."""
        try:
            self.route(self.templates.doom_link, values)
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            return False
        return True

    def delete_all_links(self) -> None:
        """Every device of the node. Idempotent."""
        self._reaper.delete_doomed()
        try:
            self.route(self.templates.delete_living, {})
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise

    def admit(self, values: Fields, mode: str) -> None:
        """The agent's elements: its source addresses, and the way out when its mode is egress. May be repeated."""
        self.netfilter(self.templates.admit[mode], values)

    def expel(self, values: Fields) -> None:
        """All of the agent's elements. Idempotent."""
        try:
            self.netfilter(self.templates.expel, values)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:  # the whole table is gone
                raise

    def forget_connections(self, values: Fields) -> None:
        """What the host tracks of the agent's connections."""
        self.netfilter(self.templates.forget_connections, values)

    def alias_of(self, values: Fields) -> str:
        """The ifalias of the agent's host end; empty when there is no such device."""
        made = self.templates.get_link
        try:
            with self._route_lock:
                bodies = self._route.exchange(made.fill(values), made.steps, made.last)
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            return ""
        return _texts(bodies[0]).get(_IFLA_IFALIAS, "")

    def links(self) -> dict[int, str]:
        """Machine-wide index → ifalias of every device on the host that is named like an agent's."""
        made = self.templates.list_links
        found: dict[int, str] = {}
        with self._route_lock:
            for body in self._route.dump(made.data, made.steps[0]):
                texts = _texts(body)
                index = index_of(texts.get(_IFLA_IFNAME, ""))
                if index is not None:
                    found[index] = texts.get(_IFLA_IFALIAS, "")
        return found

    def elements(self) -> set[int]:
        """Machine-wide index of every agent that has an element in some set of the node's table."""
        found: set[int | None] = set()
        for made in self.templates.list_elements:
            with self._netfilter_lock:
                for body in self._netfilter.dump(made.data, made.steps[0]):
                    found.update(index_of(name) for name in _element_names(body))
        return {index for index in found if index is not None}

    def connected(self) -> set[int]:
        """Machine-wide index of every agent, of any node and living or not, of which the host tracks a connection."""
        made = self.templates.list_connections
        found: set[int | None] = set()
        with self._netfilter_lock:
            for body in self._netfilter.dump(made.data, made.steps[0]):
                found.update(map(index_of_address, _connected_addresses(body)))
        return {index for index in found if index is not None}

    # -- sockets --

    def route(self, template: Template, values: Fields) -> None:
        with self._route_lock:
            send(self._route, template, values)

    def netfilter(self, template: Template, values: Fields) -> None:
        with self._netfilter_lock:
            send(self._netfilter, template, values)


def _texts(body: bytes) -> dict[int, str]:
    """Name and alias of a device, from the body of an RTM_NEWLINK."""
    return {
        kind: value.rstrip(b"\0").decode(errors="replace")
        for kind, value in attributes(body, _IFINFOMSG_BYTES)
        if kind in (_IFLA_IFNAME, _IFLA_IFALIAS)
    }


def _element_names(body: bytes) -> Iterator[str]:
    """The interface name that each key starts with, from the body of an NFT_MSG_NEWSETELEM (four levels of nesting)."""
    for kind, listed in attributes(body, _NFGENMSG_BYTES):
        if kind != _NFTA_SET_ELEM_LIST_ELEMENTS:
            continue
        for _, element in attributes(listed, 0):
            for kind_inside, key in attributes(element, 0):
                if kind_inside == _NFTA_SET_ELEM_KEY:
                    for _, value in attributes(key, 0):
                        yield value[:_IFNAMSIZ].rstrip(b"\0").decode(errors="replace")


def _connected_addresses(body: bytes) -> Iterator[bytes]:
    """From whom and to whom a connection was opened, from the body of an IPCTNL_MSG_CT_NEW (three levels of
    nesting)."""
    for kind, connection in attributes(body, _NFGENMSG_BYTES):
        if kind == _CTA_TUPLE_ORIG:
            for kind_inside, addresses in attributes(connection, 0):
                if kind_inside == _CTA_TUPLE_IP:
                    yield from (address for _, address in attributes(addresses, 0))


def _nft(text: str) -> None:
    program = next((path for path in _NFT if os.access(path, os.X_OK)), None)
    if program is None:
        raise NftError(errno.ENOENT, f"no such program: {_NFT[0]}")
    result = subprocess.run(
        [program, "-f", "-"], input=text, text=True, capture_output=True, timeout=_NFT_SECONDS, check=False
    )
    if result.returncode != 0:
        raise NftError(errno.EINVAL, " ".join(result.stderr.split()) or f"exit status {result.returncode}")
