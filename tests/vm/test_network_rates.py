"""Rates on the distribution's kernel, where the token bucket is a module that comes when it is asked for."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import pytest

from agentos_native.kernel import ns
from agentos_native.network import NodeNetwork, Rates
from tests.flows import Flow, windows
from tests.networks import FAR4, World

MEGA = 1_000_000
PAYLOAD = 1448 / 1514
"""Of each byte that a bucket counts."""


@pytest.fixture
def world() -> Iterator[World]:
    home = ns.open_own("net")
    ns.unshare(ns.CLONE_NEWNET)
    try:
        made = World()
        yield made
        made.close()
    finally:
        ns.setns(home, ns.CLONE_NEWNET)
        os.close(home)


@pytest.fixture
def network(world: World) -> Iterator[NodeNetwork]:
    made = NodeNetwork("rates", 4, ahead=0)
    made.open()
    yield made
    made.teardown()


def held(found: list[float]) -> bool:
    """Emulated, TCP takes long to recover from a loss: less than on the host is expected, more is not."""
    return all(0.8 * limit * PAYLOAD < got < 1.05 * limit for limit, got in zip((4, 12), found, strict=True))


@pytest.mark.parametrize("upload", [True, False], ids=["egress", "ingress"])
def test_limits_hold_and_divide(network: NodeNetwork, world: World, upload: bool) -> None:
    with contextlib.ExitStack() as stack:
        flows = []
        for slot, limit in enumerate((4, 12)):
            made = network.create(slot, f"{slot:012x}", "egress", Rates(limit * MEGA, limit * MEGA))
            stack.callback(os.close, made.netns_fd)
            flow = Flow(made.netns_fd, world.outside, FAR4, upload=upload, offer=30 * MEGA)
            flows.append(stack.enter_context(flow))
        time.sleep(4)
        found = windows(flows, held, 5.0)
        assert held(found), found
        assert all(queue.rate for queue in network.queues("egress" if upload else "ingress", [0, 1]).values())
