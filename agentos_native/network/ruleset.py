"""The one nftables table of a node: a fixed number of rules; all that grows with the agents are the elements of its
sets.

Which packets the rules look at is decided by the interface *group* that every agent's host end is born with, so an
agent without elements can do nothing at all, and packets of other interfaces pass with one comparison per chain:

    prerouting -310  source    before connection tracking: (interface, source address) is a known pair, else drop
    prerouting -150  local     before anyone's DNAT: no new packet to an address of this host
    input         0  input     to this host: only answers, and ICMP errors about them
    forward       0  forward   never agent → agent (of any node); agent → outside for members of @egress, with a cap on
                               tracked connections; outside → agent only answers
    postrouting 100  outbound  masquerade

A verdict of accept ends only this table's chain; other tables (docker, a firewall) still have their say, and a drop is
final. Host → agent is not filtered: who is root on the host can enter the agent anyway.
"""

from __future__ import annotations

from typing import Final

from agentos_native.network.addressing import (
    AGENTS_IPV4,
    AGENTS_IPV6,
    ANY_NODE_MASK,
    GROUP_BASE,
    NODE_MASK,
    group,
    table_name,
)

SET_SOURCE4: Final = "source4"
SET_SOURCE6: Final = "source6"
SET_EGRESS: Final = "egress"
SET_CONNECTIONS: Final = "connections"
SETS: Final = (SET_SOURCE4, SET_SOURCE6, SET_EGRESS, SET_CONNECTIONS)

CONNECTIONS_PER_AGENT: Final = 1024
"""Entries of the connection-tracking table that one agent can hold: 1100 agents cannot fill a table of 262144 by
accident, and one agent can never fill it for the others."""

FORBIDDEN4: Final = ("169.254.0.0/16", "100.100.100.200/32", "192.0.0.192/32", str(AGENTS_IPV4))
"""Link-local and other addresses at which clouds hand the host's credentials to whoever asks; and addresses of
agents."""
FORBIDDEN6: Final = ("fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128", str(AGENTS_IPV6))

_ICMP4_ERRORS: Final = "{ destination-unreachable, time-exceeded, parameter-problem }"
_ICMP6_ERRORS: Final = "{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"

_TABLE: Final = """\
add table inet {table}
{reset}
add set inet {table} {source4} {{ type ifname . ipv4_addr; size 65535; }}
add set inet {table} {source6} {{ type ifname . ipv6_addr; size 65535; }}
add set inet {table} {egress} {{ type ifname; size 65535; }}
add set inet {table} {connections} {{ type ifname; size 65535; flags dynamic; }}

add chain inet {table} source {{ type filter hook prerouting priority -310; policy accept; }}
add chain inet {table} source-check
add chain inet {table} local {{ type filter hook prerouting priority -150; policy accept; }}
add chain inet {table} input {{ type filter hook input priority 0; policy accept; }}
add chain inet {table} answers
add chain inet {table} forward {{ type filter hook forward priority 0; policy accept; }}
add chain inet {table} from-agent
add chain inet {table} outbound {{ type nat hook postrouting priority 100; policy accept; }}
flush table inet {table}

add rule inet {table} source iifgroup and {node_mask} == {group} jump source-check
add rule inet {table} source-check iifname . ip saddr @{source4} return
add rule inet {table} source-check iifname . ip6 saddr @{source6} return
add rule inet {table} source-check counter drop

add rule inet {table} local iifgroup and {node_mask} == {group} fib daddr type local ct state new counter drop

add rule inet {table} input iifgroup and {node_mask} == {group} jump answers

add rule inet {table} answers ct state established ct direction reply accept
add rule inet {table} answers ct state related icmp type {icmp4} accept
add rule inet {table} answers ct state related icmpv6 type {icmp6} accept
add rule inet {table} answers counter drop

add rule inet {table} forward iifgroup and {node_mask} == {group} jump from-agent
add rule inet {table} forward oifgroup and {node_mask} == {group} jump answers
add rule inet {table} from-agent oifgroup and {any_mask} == {any_group} counter drop
add rule inet {table} from-agent iifname != @{egress} counter drop
add rule inet {table} from-agent ip daddr {forbidden4} counter drop
add rule inet {table} from-agent ip6 daddr {forbidden6} counter drop
add rule inet {table} from-agent ct state new add @{connections} {{ iifname ct count over {cap} }} counter drop
add rule inet {table} from-agent ct state invalid,untracked counter drop
add rule inet {table} from-agent accept

add rule inet {table} outbound iifgroup and {node_mask} == {group} masquerade
"""


def text(node: str, block: int, *, connections: int = CONNECTIONS_PER_AGENT, from_scratch: bool = False) -> str:
    """The table as one nft transaction; with an existing table the rules are replaced and the elements stay.

    Args:
        connections: tracked connections that one agent may have at a time.
        from_scratch: delete what is there in the same transaction, for a table whose sets have another shape.
    """
    table = table_name(node)
    return _TABLE.format(
        table=table,
        reset=f"delete table inet {table}\nadd table inet {table}" if from_scratch else "",
        source4=SET_SOURCE4,
        source6=SET_SOURCE6,
        egress=SET_EGRESS,
        connections=SET_CONNECTIONS,
        group=hex(group(block)),
        node_mask=hex(NODE_MASK),
        any_mask=hex(ANY_NODE_MASK),
        any_group=hex(GROUP_BASE),
        forbidden4="{ " + ", ".join(FORBIDDEN4) + " }",
        forbidden6="{ " + ", ".join(FORBIDDEN6) + " }",
        icmp4=_ICMP4_ERRORS,
        icmp6=_ICMP6_ERRORS,
        cap=connections,
    )
