"""From a refused message to an error that says what to do. Hints are data: (what failed, errno) → text."""

from __future__ import annotations

import errno
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.network.netlink import NetlinkError

ROOT: Final = "run the supervisor as root: it needs CAP_NET_ADMIN and CAP_SYS_ADMIN in the host's network namespace"
NO_VETH: Final = "the kernel has no veth devices: build it with CONFIG_VETH, or load the module: modprobe veth"
NO_IPV6: Final = (
    "IPv6 is off for new interfaces; each agent has an IPv6 address too.\n"
    "sysctl -w net.ipv6.conf.default.disable_ipv6=0, and start the kernel without ipv6.disable=1"
)
LEFTOVER: Final = (
    "an interface of this name or number is there already (`ip link`);\n"
    "the next start of the supervisor removes its own leftovers"
)
NO_TABLE: Final = "the nftables table was deleted by somebody (`nft flush ruleset`?); it could not be put back"
NO_NFT: Final = "install nftables: apt-get install nftables"
NO_NFTABLES: Final = (
    "the kernel lacks something of nftables: it needs NF_TABLES_INET, NFT_CT, NFT_CONNLIMIT, NFT_NAT, NFT_MASQ\n"
    "and NFT_FIB_INET (the error says at which rule)"
)
NO_FILTERED_DELETE: Final = (
    "the kernel cannot delete tracked connections by address: it needs CONFIG_NF_CT_NETLINK of Linux 6.8 or newer"
)
NO_TBF: Final = (
    "the kernel has no token buckets: build it with CONFIG_NET_SCH_TBF, or load the module: modprobe sch_tbf;\n"
    "without them an agent can run without limits.network only"
)
LIMIT: Final = "the kernel's limit on network namespaces is reached: sysctl user.max_net_namespaces, and memory"

_HINTS: Final[dict[tuple[str, int], str]] = {
    ("create the veth pair", errno.EEXIST): LEFTOVER,
    ("create the veth pair", errno.EBUSY): LEFTOVER,
    ("create the veth pair", errno.EOPNOTSUPP): NO_VETH,
    ("add the route to the agent (IPv6)", errno.EACCES): NO_IPV6,
    ("add the route to the agent (IPv6)", errno.EINVAL): NO_IPV6,
    ("add the address (IPv6)", errno.EACCES): NO_IPV6,
    ("set the rate", errno.ENOENT): NO_TBF,
    ("unshare", errno.ENOSPC): LIMIT,
}


def failure(stage: str, error: OSError, where: str) -> AgentosError:
    """The error of a stage ("netns", "link", …) of one agent's network, or of the node's own set-up."""
    step = error.step if isinstance(error, NetlinkError) else getattr(error, "call", "")
    number = error.errno or 0
    hint = _HINTS.get((step, number), "")
    if not hint and "nftables" in step and number == errno.ENOENT:
        hint = NO_TABLE
    if not hint and number in (errno.EPERM, errno.EACCES):
        hint = ROOT
    details = {"stage": stage, "step": step, "errno": number}
    return AgentosError("network", f"network stage {stage!r} failed: {error}", where, hint, details=details)
