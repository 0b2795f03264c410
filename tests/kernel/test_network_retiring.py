"""Wires of ended agents: cut off at once, gone a little later, whoever removes them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from agentos_native.network import NodeNetwork
from agentos_native.network.retiring import Retiring
from tests import networks
from tests.networks import FAR4, World, passes, udp

TABLE = "agentos-retire"
ID = "0123456789ab"
PORT = 4000
EMPTY = {"source4": 0, "source6": 0, "egress": 0, "connections": 0}


@pytest.fixture
def network(world: World) -> Iterator[NodeNetwork]:
    made = NodeNetwork("retire", 2, ahead=0)
    made.open()
    yield made
    made.teardown()


def test_a_retired_wire_passes_nothing_at_once_and_its_slot_is_given_again(network: NodeNetwork, world: World) -> None:
    made = network.create(0, ID, "egress")
    with udp(world.outside, FAR4, PORT) as into, udp(made.netns_fd, made.ipv4) as out:
        assert passes(out, into, (FAR4, PORT), expect=True)
        network.retire(0)
        assert 0 in network.retiring()
        assert networks.set_elements(TABLE) == EMPTY
        assert not passes(out, into, (FAR4, PORT), expect=False)
    following = network.create(0, "b" * 12, "egress")  # whose namespace is held: nobody else removes the first wire
    assert network.retiring() == set()
    assert networks.tracked() == 0
    assert [link["ifalias"] for link in networks.agent_links()] == [f"agentos-retire/{'b' * 12}"]
    network.retire(0)
    network.close()
    assert networks.agent_links() == []
    assert networks.tracked() == 0
    network.open()
    os.close(made.netns_fd)
    os.close(following.netns_fd)


def test_a_retired_wire_that_has_gone_with_its_namespace_leaves_no_connection(
    network: NodeNetwork, world: World
) -> None:
    made = network.create(0, ID, "egress")
    with udp(world.outside, FAR4, PORT) as into, udp(made.netns_fd, made.ipv4) as out:
        assert passes(out, into, (FAR4, PORT), expect=True)
    networks.run(f"ip link delete {made.ifname}")
    network.retire(0)
    network.close()
    assert networks.tracked() == 0
    network.open()
    os.close(made.netns_fd)


def test_a_slot_is_given_without_the_connections_of_an_agent_whose_supervisor_died_before_it_forgot_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the cut and the end of the wire, which goes by itself; an agent that lives keeps its own."""
    killed, following = NodeNetwork("retire", 2, ahead=0), NodeNetwork("retire", 2, ahead=0)
    killed.open()
    made, living = killed.create(0, ID, "egress"), killed.create(1, "b" * 12, "egress")
    with udp(world.outside, FAR4, PORT) as into:
        for one in (made, living):
            with udp(one.netns_fd, one.ipv4) as out:
                assert passes(out, into, (FAR4, PORT), expect=True)
    assert networks.tracked() == 2
    monkeypatch.setattr(killed, "_retiring", Retiring(lambda slots: None))
    killed.retire(0)
    networks.run(f"ip link delete {made.ifname}")
    killed.close()
    assert networks.tracked() == 2
    following.open()
    (left,) = networks.connections() - World.earlier
    assert f"src={living.ipv4}" in left
    following.teardown()
    assert networks.tracked() == 0
    os.close(made.netns_fd)
    os.close(living.netns_fd)
