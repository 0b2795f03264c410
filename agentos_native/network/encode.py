"""The netlink messages of one agent, as pyroute2 encodes them: the only place that knows their shape, and slow (some
ms).

`templates` calls these functions once with recognisable values and from then on patches bytes; the unit tests call them
with real values and compare. A function returns (what the message does, its bytes) for each message of a batch.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg
from pyroute2.netlink.nfnetlink.nftsocket import nft_gen_msg, nft_rule_msg, nft_set_elem_list_msg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from agentos_native.network import addressing as names
from agentos_native.network.netlink import NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST
from agentos_native.network.ruleset import SET_SOURCE4, SET_SOURCE6

AF_UNSPEC: Final = 0
AF_INET: Final = 2
AF_INET6: Final = 10
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_NEWROUTE: Final = 24
RTM_NEWNEIGH: Final = 28
_IFF_UP: Final = 1
_ADDR_GEN_MODE_NONE: Final = 1
_RTEXT_FILTER_SKIP_STATS: Final = 8
_IFA_F_NODAD: Final = 0x02
_IFA_F_NOPREFIXROUTE: Final = 0x200
_NUD_PERMANENT: Final = 0x80
_RT_TABLE_MAIN: Final = 254
_RTPROT_STATIC: Final = 4
_RT_SCOPE_UNIVERSE: Final = 0
_RT_SCOPE_LINK: Final = 253
_RTN_UNICAST: Final = 1
_RTNH_F_ONLINK: Final = 4
_NFNL_SUBSYS_CTNETLINK: Final = 1
_NFNL_SUBSYS_NFTABLES: Final = 10
_NFNL_MSG_BATCH_BEGIN: Final = 16
_NFNL_MSG_BATCH_END: Final = 17
_NFT_MSG_GETRULE: Final = 7
_NFT_MSG_NEWSETELEM: Final = 12
_NFT_MSG_GETSETELEM: Final = 13
_NFT_MSG_DESTROYSETELEM: Final = 30
_NFPROTO_INET: Final = 1
_IPCTNL_MSG_CT_GET: Final = 1
_IPCTNL_MSG_CT_DELETE: Final = 2
_CTA_FILTER_IP_SRC: Final = 1
_CTA_FILTER_IP_DST: Final = 2
_CREATE_OR_REPLACE: Final = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE
_CREATE_NEW: Final = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL

Message = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Values:
    """All that differs between two agents of one node; the last three only in messages about rates.

    Attributes:
        rate: bytes per second; `burst`, `queue`: bytes, as `shaping.shape` chooses them.
    """

    ifname: str
    ifindex: int
    ipv4: str
    ipv6: str
    mac: str
    agent_id: str
    netns_fd: int
    rate: int = 0
    burst: int = 0
    queue: int = 0

    @classmethod
    def of(cls, own: names.Addresses, agent_id: str, netns_fd: int) -> Values:
        return cls(own.host_ifname, own.host_ifindex, own.ipv4, own.ipv6, own.mac, agent_id, netns_fd)


def encoded(message: Any, kind: int, flags: int, fields: dict[str, Any], attributes: list[tuple[str, Any]]) -> bytes:
    """One message of pyroute2's, with its header."""
    message["header"]["type"] = kind
    message["header"]["flags"] = flags
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)


def _no_link_local() -> tuple[str, Any]:
    mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]}
    return ("IFLA_AF_SPEC", {"attrs": [("AF_INET6", mode)]})


def _up(ifindex: int) -> bytes:
    return encoded(ifinfmsg(), RTM_NEWLINK, NLM_F_REQUEST, {"index": ifindex, "flags": _IFF_UP, "change": _IFF_UP}, [])


def _neighbour(family: int, ifindex: int, address: str, mac: str) -> bytes:
    fields = {"family": family, "ifindex": ifindex, "state": _NUD_PERMANENT}
    return encoded(ndmsg(), RTM_NEWNEIGH, _CREATE_OR_REPLACE, fields, [("NDA_DST", address), ("NDA_LLADDR", mac)])


def _route(family: int, prefix: int, scope: int, flags: int, attributes: list[tuple[str, Any]]) -> bytes:
    fields = {
        "family": family,
        "dst_len": prefix,
        "table": _RT_TABLE_MAIN,
        "proto": _RTPROT_STATIC,
        "scope": scope,
        "type": _RTN_UNICAST,
        "flags": flags,
    }
    return encoded(rtmsg(), RTM_NEWROUTE, _CREATE_OR_REPLACE, fields, attributes)


def link(values: Values, group: int) -> list[Message]:
    """In the host's namespace: the pair, its inner end born inside `netns_fd`. One queue each, whatever the number of
    processors."""
    queues = [("IFLA_NUM_TX_QUEUES", 1), ("IFLA_NUM_RX_QUEUES", 1)]
    peer = {
        "index": names.AGENT_IFINDEX,
        "attrs": [
            ("IFLA_IFNAME", names.AGENT_IFNAME),
            ("IFLA_ADDRESS", values.mac),
            ("IFLA_NET_NS_FD", values.netns_fd),
            *queues,
        ],
    }
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]}
    attributes = [
        ("IFLA_IFNAME", values.ifname),
        ("IFLA_ADDRESS", names.HOST_MAC),
        ("IFLA_GROUP", group),
        *queues,
        ("IFLA_LINKINFO", info),
    ]
    return [
        ("create the veth pair", encoded(ifinfmsg(), RTM_NEWLINK, _CREATE_NEW, {"index": values.ifindex}, attributes))
    ]


def host_end(values: Values, node: str) -> list[Message]:
    """In the host's namespace: owner, no autoconfiguration, up, and the way to the agent. May be repeated."""
    index = values.ifindex
    label = [("IFLA_IFALIAS", names.alias(node, values.agent_id)), _no_link_local()]
    return [
        ("name the host end's owner", encoded(ifinfmsg(), RTM_NEWLINK, NLM_F_REQUEST, {"index": index}, label)),
        ("bring the host end up", _up(index)),
        ("add the neighbour (IPv4)", _neighbour(AF_INET, index, values.ipv4, values.mac)),
        ("add the neighbour (IPv6)", _neighbour(AF_INET6, index, values.ipv6, values.mac)),
        (
            "add the route to the agent (IPv4)",
            _route(AF_INET, 32, _RT_SCOPE_LINK, 0, [("RTA_DST", values.ipv4), ("RTA_OIF", index)]),
        ),
        (
            "add the route to the agent (IPv6)",
            _route(AF_INET6, 128, _RT_SCOPE_UNIVERSE, 0, [("RTA_DST", values.ipv6), ("RTA_OIF", index)]),
        ),
    ]


def agent_end(values: Values) -> list[Message]:
    """In the agent's namespace: its end of the wire, addresses, the gateway and the way out.

    The inner end comes up after the host's: the second end of a pair to come up can send at once, the first one only
    when the kernel's link watcher has run (net/core/link_watch.c).
    """
    eth0 = names.AGENT_IFINDEX
    v4 = {"family": AF_INET, "prefixlen": 32, "scope": _RT_SCOPE_UNIVERSE, "index": eth0}
    v6 = {"family": AF_INET6, "prefixlen": 128, "scope": _RT_SCOPE_UNIVERSE, "index": eth0, "flags": _IFA_F_NODAD}
    v6_flags = ("IFA_FLAGS", _IFA_F_NODAD | _IFA_F_NOPREFIXROUTE)
    no_link_local = encoded(ifinfmsg(), RTM_NEWLINK, NLM_F_REQUEST, {"index": eth0}, [_no_link_local()])
    v4_attributes = [("IFA_LOCAL", values.ipv4), ("IFA_ADDRESS", values.ipv4)]
    v6_attributes: list[tuple[str, Any]] = [("IFA_ADDRESS", values.ipv6), v6_flags]
    return [
        ("switch off address generation", no_link_local),
        ("bring eth0 up", _up(eth0)),
        ("add the address (IPv4)", encoded(ifaddrmsg(), RTM_NEWADDR, _CREATE_NEW, v4, v4_attributes)),
        ("add the address (IPv6)", encoded(ifaddrmsg(), RTM_NEWADDR, _CREATE_NEW, v6, v6_attributes)),
        ("add the gateway (IPv4)", _neighbour(AF_INET, eth0, names.GATEWAY_IPV4, names.HOST_MAC)),
        ("add the gateway (IPv6)", _neighbour(AF_INET6, eth0, names.GATEWAY_IPV6, names.HOST_MAC)),
        (
            "add the default route (IPv4)",
            _route(
                AF_INET,
                0,
                _RT_SCOPE_UNIVERSE,
                _RTNH_F_ONLINK,
                [("RTA_GATEWAY", names.GATEWAY_IPV4), ("RTA_OIF", eth0)],
            ),
        ),
        (
            "add the default route (IPv6)",
            _route(AF_INET6, 0, _RT_SCOPE_UNIVERSE, 0, [("RTA_GATEWAY", names.GATEWAY_IPV6), ("RTA_OIF", eth0)]),
        ),
    ]


def loopback() -> list[Message]:
    """In a new namespace: what every mode has."""
    return [("bring loopback up", _up(names.LOOPBACK_IFINDEX))]


def doom_link(values: Values, group: int) -> list[Message]:
    """Move the host end into another group."""
    attributes = [("IFLA_GROUP", group)]
    return [
        ("doom the veth pair", encoded(ifinfmsg(), RTM_NEWLINK, NLM_F_REQUEST, {"index": values.ifindex}, attributes))
    ]


def delete_group(group: int) -> list[Message]:
    """Every device of the group in one go (rtnl_group_dellink); the other ends go with them."""
    return [("delete the veth pairs", encoded(ifinfmsg(), RTM_DELLINK, NLM_F_REQUEST, {}, [("IFLA_GROUP", group)]))]


def get_link(values: Values) -> list[Message]:
    """The host end, by number."""
    wanted = [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)]
    fields = {"index": values.ifindex}
    return [("look at the veth pair", encoded(ifinfmsg(), RTM_GETLINK, NLM_F_REQUEST, fields, wanted))]


def list_links() -> list[Message]:
    """Dump every device, without its counters."""
    wanted = [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)]
    return [("list network devices", encoded(ifinfmsg(), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, {}, wanted))]


def list_rules(node: str) -> list[Message]:
    """Dump the rules of the node's table."""
    kind = _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETRULE
    table = [("NFTA_RULE_TABLE", names.table_name(node))]
    family = {"nfgen_family": _NFPROTO_INET}
    return [("list nftables rules", encoded(nft_rule_msg(), kind, NLM_F_REQUEST | NLM_F_DUMP, family, table))]


def list_elements(node: str, name: str) -> list[Message]:
    """Dump the elements of one set of the node's table."""
    kind = _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETSETELEM
    wanted = [("NFTA_SET_ELEM_LIST_TABLE", names.table_name(node)), ("NFTA_SET_ELEM_LIST_SET", name)]
    family = {"nfgen_family": _NFPROTO_INET}
    message = encoded(nft_set_elem_list_msg(), kind, NLM_F_REQUEST | NLM_F_DUMP, family, wanted)
    return [(f"list the elements of nftables set {name}", message)]


def elements(values: Values, node: str, *, add: Sequence[str] = (), destroy: Sequence[str] = ()) -> list[Message]:
    """One nftables transaction that adds the agent's element to some sets and destroys it in others.

    Destroying is deleting what may be absent (Linux 6.3, commit f80a612dd77c "netfilter: nf_tables: add support to
    destroy operation"); a deletion that fails costs an aborted transaction, for which the kernel waits 15 ms.
    """
    batch = [("begin the nftables transaction", _boundary(_NFNL_MSG_BATCH_BEGIN))]
    for name in destroy:
        element = _element(values, node, name, _NFT_MSG_DESTROYSETELEM, NLM_F_REQUEST)
        batch.append((f"destroy in nftables set {name}", element))
    for name in add:
        element = _element(values, node, name, _NFT_MSG_NEWSETELEM, NLM_F_REQUEST | NLM_F_CREATE)
        batch.append((f"add to nftables set {name}", element))
    batch.append(("commit the nftables transaction", _boundary(_NFNL_MSG_BATCH_END)))
    return batch


def _element(values: Values, node: str, name: str, kind: int, flags: int) -> bytes:
    key = values.ifname.encode().ljust(16, b"\0")
    if name == SET_SOURCE4:
        key += socket.inet_pton(AF_INET, values.ipv4)
    elif name == SET_SOURCE6:
        key += socket.inet_pton(AF_INET6, values.ipv6)
    element = {"attrs": [("NFTA_SET_ELEM_KEY", {"attrs": [("NFTA_DATA_VALUE", key)]})]}
    attributes = [
        ("NFTA_SET_ELEM_LIST_TABLE", names.table_name(node)),
        ("NFTA_SET_ELEM_LIST_SET", name),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", [element]),
    ]
    family = {"nfgen_family": _NFPROTO_INET}
    return encoded(nft_set_elem_list_msg(), _NFNL_SUBSYS_NFTABLES << 8 | kind, flags, family, attributes)


def forget_connections(values: Values) -> list[Message]:
    """Delete the tracked connections from and to the agent, so that the next one with its addresses inherits none.

    A delete with a filter: Linux 6.8, commit 1ef7f50ccc6e ("netfilter: ctnetlink: support filtering ct entries during
    delete").
    """
    batch = []
    for family, letter, address in ((AF_INET, "4", values.ipv4), (AF_INET6, "6", values.ipv6)):
        for direction, flag in (("SRC", _CTA_FILTER_IP_SRC), ("DST", _CTA_FILTER_IP_DST)):
            addressed = {"attrs": [(f"CTA_IP_V{letter}_{direction}", address)]}
            message = encoded(
                nfct_msg(),
                _NFNL_SUBSYS_CTNETLINK << 8 | _IPCTNL_MSG_CT_DELETE,
                NLM_F_REQUEST,
                {"nfgen_family": family},
                [
                    ("CTA_TUPLE_ORIG", {"attrs": [("CTA_TUPLE_IP", addressed)]}),
                    ("CTA_FILTER", {"attrs": [("CTA_FILTER_ORIG_FLAGS", flag)]}),
                ],
            )
            batch.append((f"forget tracked connections (IPv{letter}, {direction.lower()})", message))
    return batch


def list_connections() -> list[Message]:
    """Dump every tracked connection, of both families."""
    kind = _NFNL_SUBSYS_CTNETLINK << 8 | _IPCTNL_MSG_CT_GET
    message = encoded(nfct_msg(), kind, NLM_F_REQUEST | NLM_F_DUMP, {"nfgen_family": AF_UNSPEC}, [])
    return [("list tracked connections", message)]


def _boundary(kind: int) -> bytes:
    return encoded(nft_gen_msg(), kind, NLM_F_REQUEST, {"res_id": _NFNL_SUBSYS_NFTABLES}, [])
