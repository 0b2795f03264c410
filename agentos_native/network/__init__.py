"""A routed veth pair and nftables elements for each agent. `NodeNetwork` is the door; the rest of the package is
private."""

from agentos_native.network.addressing import Addresses, addresses
from agentos_native.network.leftovers import blocks_in_use
from agentos_native.network.node import MODES, Attachment, NodeNetwork

__all__ = ["MODES", "Addresses", "Attachment", "NodeNetwork", "addresses", "blocks_in_use"]
