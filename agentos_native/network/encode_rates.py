"""The netlink messages about rates, as pyroute2 encodes them: queueing disciplines of one device, and counters of all.

`templates` treats them as those of `encode`. pyroute2's own description of tbf ends before the attributes of 64 bits,
so it is completed here (linux/pkt_sched.h, TCA_TBF_*).
"""

from __future__ import annotations

from typing import Any, Final

from pyroute2.netlink import nla
from pyroute2.netlink.rtnl.ifstatsmsg import ifstatsmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from agentos_native.network.encode import Message, Values, encoded
from agentos_native.network.netlink import NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST

RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_GETQDISC: Final = 38
RTM_GETSTATS: Final = 94
HANDLE: Final = 0x616F0000
"""Of every discipline that this product makes, 616f: in tc(8)'s words. One with another handle is somebody else's."""
ROOT: Final = 0xFFFFFFFF
_ETHERNET: Final = 1
"""TC_LINKLAYER_ETHERNET: said, so that the kernel does not look for the table of costs that old tc programs sent."""
_LINK_64_ONLY: Final = 1


class _Tbf(tcmsg):  # type: ignore[misc]  # pyroute2 has no types
    nla_map = tuple((name, "tbf" if name == "TCA_OPTIONS" else kind) for name, kind in tcmsg.nla_map)

    class tbf(nla):  # type: ignore[misc]
        nla_map = (
            ("TCA_TBF_UNSPEC", "none"),
            ("TCA_TBF_PARMS", "parms"),
            ("TCA_TBF_RTAB", "hex"),
            ("TCA_TBF_PTAB", "hex"),
            ("TCA_TBF_RATE64", "uint64"),
            ("TCA_TBF_PRATE64", "uint64"),
            ("TCA_TBF_BURST", "uint32"),
        )

        class parms(nla):  # type: ignore[misc]
            fields = (
                *(("cell_log", "B"), ("linklayer", "B"), ("overhead", "H"), ("cell_align", "h"), ("mpu", "H")),
                ("rate", "I"),
                *(("peak_cells", "I"), ("peak_align", "I"), ("peak", "I")),
                *(("limit", "I"), ("buffer", "I"), ("mtu", "I")),
            )


def set_rate(values: Values) -> list[Message]:
    """Make the device's tbf, or change it in place (what is queued stays queued)."""
    # The kernel takes the larger of both rates (psched_ratecfg_precompute), so the one of 64 bits says all.
    parms = {"linklayer": _ETHERNET, "rate": 1, "limit": values.queue}
    options: list[tuple[str, Any]] = [
        ("TCA_TBF_PARMS", parms),
        ("TCA_TBF_RATE64", values.rate),
        ("TCA_TBF_BURST", values.burst),
    ]
    fields = {"index": values.ifindex, "handle": HANDLE, "parent": ROOT}
    attributes = [("TCA_KIND", "tbf"), ("TCA_OPTIONS", {"attrs": options})]
    flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE
    return [("set the rate", encoded(_Tbf(), RTM_NEWQDISC, flags, fields, attributes))]


def drop_rate(values: Values) -> list[Message]:
    """Take away whatever discipline the device has; it is without a queue again."""
    fields = {"index": values.ifindex, "handle": 0, "parent": ROOT}
    return [("remove the rate", encoded(tcmsg(), RTM_DELQDISC, NLM_F_REQUEST, fields, []))]


def list_queues() -> list[Message]:
    """Dump the disciplines of every device, with their counters."""
    return [("list the rates", encoded(tcmsg(), RTM_GETQDISC, NLM_F_REQUEST | NLM_F_DUMP, {}, []))]


def list_counters() -> list[Message]:
    """Dump the 64-bit counters of every device, and nothing else of it (Linux 4.7)."""
    fields = {"filter_mask": _LINK_64_ONLY}
    return [
        ("read the counters", encoded(ifstatsmsg(), RTM_GETSTATS, NLM_F_REQUEST | NLM_F_DUMP, fields, [])),
    ]
