"""A routed veth pair, nftables elements and rates for each agent. `NodeNetwork` is the door; the rest of the package is
private."""

from agentos_native.network.addressing import Addresses, addresses
from agentos_native.network.leftovers import blocks_in_use
from agentos_native.network.node import MODES, Attachment, NodeNetwork
from agentos_native.network.shaping import DIRECTIONS, NO_RATES, Direction, Queue, Rates

__all__ = [
    "DIRECTIONS",
    "MODES",
    "NO_RATES",
    "Addresses",
    "Attachment",
    "Direction",
    "NodeNetwork",
    "Queue",
    "Rates",
    "addresses",
    "blocks_in_use",
]
