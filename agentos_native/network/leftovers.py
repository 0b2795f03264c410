"""What supervisors that are no more left on the host: whose it is, and what of it has to go."""

from __future__ import annotations

from collections.abc import Mapping

from agentos_native.errors import AgentosError
from agentos_native.network.addressing import SLOTS_PER_BLOCK, alias, of_index
from agentos_native.network.host import HostSide
from agentos_native.network.templates import fields_of


def blocks_in_use() -> dict[int, set[str]]:
    """block → names of the nodes that have wires in it, on the whole machine; for choosing a block to claim."""
    host = HostSide("main", 0)
    try:
        devices = host.links()
    finally:
        host.close()
    used: dict[int, set[str]] = {}
    for index, owner in devices.items():
        table, _, agent_id = owner.partition("/")
        if agent_id:
            used.setdefault(index // SLOTS_PER_BLOCK, set()).add(table.removeprefix("agentos-"))
    return used


def refuse_other_block(devices: Mapping[int, str], node: str, block: int) -> None:
    """Rules for another block's group would leave the agents that this node already has without any.

    Raises:
        AgentosError: the node has wires (`devices`, from `HostSide.links`) outside `block`.
    """
    prefix = alias(node, "")
    others = {index // SLOTS_PER_BLOCK for index, owner in devices.items() if owner.startswith(prefix)} - {block}
    if others:
        raise AgentosError(
            "network",
            f"node {node} has running agents in block {min(others)}, not in block {block}",
            hint="claim that block, or stop those agents (`ip link delete` takes their network away)",
            details={"blocks": sorted(others)},
        )


def sweep(host: HostSide, block: int) -> None:
    """Remove what a supervisor that died in the middle of a start or an end left: nameless devices, elements without a
    device, tracked connections without elements.

    Its namespace died with it, so its device is going away by itself; an element would stay, and lend its rights to the
    next agent of the slot, and so would a connection: the answers to it would reach that agent.
    """
    devices, elements = host.links(), host.elements()
    mine = range(block * SLOTS_PER_BLOCK, (block + 1) * SLOTS_PER_BLOCK)
    nameless = {index for index, owner in devices.items() if not owner and index in mine}
    gone = (elements - devices.keys()) | nameless
    for index in gone:
        values = fields_of(of_index(index))
        host.delete_link(values)
        host.expel(values)
    for index in gone | {index for index in host.connected() - elements if index in mine}:
        host.forget_connections(fields_of(of_index(index)))
