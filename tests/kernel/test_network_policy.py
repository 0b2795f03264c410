"""What agents can reach and what not, with real packets. Each refusal has a control: the same packet gets through
without the rule."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from agentos_native.network import Attachment, NodeNetwork, addresses
from agentos_native.network.addressing import GATEWAY_IPV4
from tests import networks
from tests.networks import FAR4, FAR6, HOST4, HOST6, METADATA4, OUTSIDE4, OUTSIDE6, World, connects, passes, udp

PORT = 4000
CAP = 8


class Agents:
    """Agents of one node; makes them by mode and takes all of them away again."""

    def __init__(self, network: NodeNetwork) -> None:
        self.network = network
        self._made: list[Attachment] = []

    def make(self, mode: str) -> Attachment:
        slot = len(self._made)
        attachment = self.network.create(slot, f"{slot:012x}", mode)
        self._made.append(attachment)
        return attachment

    def close(self) -> None:
        for attachment in self._made:
            os.close(attachment.netns_fd)
        self.network.teardown()


@pytest.fixture
def agents(world: World) -> Iterator[Agents]:
    network = NodeNetwork("policy", 0, connections=CAP)
    network.open()
    made = Agents(network)
    yield made
    made.close()


def own_addresses(agent: Attachment) -> tuple[str, str]:
    return agent.ipv4, agent.ipv6


# -- agent to agent --


@pytest.mark.parametrize("modes", [("isolated", "isolated"), ("egress", "isolated"), ("egress", "egress")])
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_agents_cannot_reach_each_other(agents: Agents, modes: tuple[str, str], family: int) -> None:
    sender, receiver = agents.make(modes[0]), agents.make(modes[1])
    # Forwarding on: it must be the rules that hold, not its absence.
    networks.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    target = own_addresses(receiver)[family]
    with udp(sender.netns_fd, own_addresses(sender)[family]) as out, udp(receiver.netns_fd, target, PORT) as into:
        assert not passes(out, into, (target, PORT), expect=False)
        with networks.listening(receiver.netns_fd, target, PORT):
            assert not connects(sender.netns_fd, (target, PORT), expect=False)
        # Control: without the table the very same packet arrives; with it back (`ensure`), it does not.
        networks.run("nft delete table inet agentos-policy")
        assert passes(out, into, (target, PORT), expect=True)
        assert agents.network.ensure()
        assert not agents.network.ensure()
        assert not passes(out, into, (target, PORT), expect=False)


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_agents_of_two_nodes_cannot_reach_each_other(agents: Agents, world: World, family: int) -> None:
    other = NodeNetwork("other", 1)
    other.open()
    try:
        foreign = other.create(0, "f" * 12, "egress")
        own = agents.make("egress")
        target = own_addresses(foreign)[family]
        with udp(own.netns_fd, own_addresses(own)[family]) as out, udp(foreign.netns_fd, target, PORT) as into:
            assert not passes(out, into, (target, PORT), expect=False)
        far = (FAR4, FAR6)[family]
        with udp(world.outside, far, PORT) as into:
            for agent in (own, foreign):  # two tables side by side, each lets its own out
                with udp(agent.netns_fd, own_addresses(agent)[family]) as out:
                    assert passes(out, into, (far, PORT), expect=True)
        os.close(foreign.netns_fd)
    finally:
        other.teardown()
    with udp(own.netns_fd, own_addresses(own)[family]) as out, udp(world.outside, (FAR4, FAR6)[family], PORT) as into:
        assert passes(out, into, ((FAR4, FAR6)[family], PORT), expect=True)


# -- sources --


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_an_agent_sends_from_its_own_address_only(agents: Agents, world: World, family: int) -> None:
    agent, victim = agents.make("egress"), agents.make("egress")
    prefix, far = (32, 128)[family], (FAR4, FAR6)[family]
    foreign = ("203.0.113.5", "2001:db8:5::5")[family]
    with udp(world.outside, far, PORT) as into:
        with udp(agent.netns_fd, own_addresses(agent)[family]) as out:
            assert passes(out, into, (far, PORT), expect=True)
        for spoofed in (own_addresses(victim)[family], foreign):
            nodad = " nodad" if family else ""
            networks.run(f"ip address add {spoofed}/{prefix} dev eth0{nodad}", agent.netns_fd)
            with udp(agent.netns_fd, spoofed) as out:
                assert not passes(out, into, (far, PORT), expect=False)
    assert counted("source-check") > 0


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_a_forged_header_is_dropped_before_it_is_tracked(agents: Agents, world: World, family: int) -> None:
    agent = agents.make("egress")
    own, far = own_addresses(agent)[family], (FAR4, FAR6)[family]
    foreign = ("203.0.113.5", "2001:db8:5::5")[family]
    build = (networks.ipv4_packet, networks.ipv6_packet)[family]

    def raw() -> socket.socket:
        made = socket.socket((socket.AF_INET, socket.AF_INET6)[family], socket.SOCK_RAW, socket.IPPROTO_RAW)
        if not family:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        return made

    with udp(world.outside, far, PORT) as into, networks.inside(agent.netns_fd, raw) as out:
        before = networks.tracked()
        out.sendto(build(foreign, far, PORT, b"forged"), (far, 0))
        assert not networks.receives(into, b"forged", networks.SILENCE_SECONDS)
        assert networks.tracked() == before
        out.sendto(build(own, far, PORT, b"honest"), (far, 0))  # control
        assert networks.receives(into, b"honest", networks.ARRIVES_SECONDS)


def test_link_local_addresses_lead_nowhere(agents: Agents) -> None:
    agent = agents.make("egress")
    networks.run("ip address add fe80::5/64 dev eth0 nodad", agent.netns_fd)
    networks.run(f"ip address add fe80::1/64 dev {agent.ifname} nodad")
    inner = networks.inside(agent.netns_fd, lambda: socket.if_nametoindex("eth0"))
    outer = socket.if_nametoindex(agent.ifname)

    def sender() -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        made.bind(("fe80::5", 0, 0, inner))
        return made

    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as into, networks.inside(agent.netns_fd, sender) as out:
        into.bind(("::", PORT))
        group = socket.inet_pton(socket.AF_INET6, "ff02::1234") + outer.to_bytes(4, "little")
        into.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        for target in ("fe80::1", "ff02::1", "ff02::1234"):
            out.sendto(b"local", (target, PORT, 0, inner))
            assert not networks.receives(into, b"local", networks.SILENCE_SECONDS)
        networks.run("nft delete table inet agentos-policy")
        out.sendto(b"local", ("fe80::1", PORT, 0, inner))  # control
        assert networks.receives(into, b"local", networks.ARRIVES_SECONDS)


# -- agent and host --


@pytest.mark.parametrize("mode", ["isolated", "egress"])
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_an_agent_cannot_open_a_connection_to_the_host(agents: Agents, mode: str, family: int) -> None:
    agent = agents.make(mode)
    host = (HOST4, HOST6)[family]
    with udp(-1, host, PORT) as into, udp(agent.netns_fd, own_addresses(agent)[family]) as out:
        assert not passes(out, into, (host, PORT), expect=False)
        with networks.listening(-1, host, PORT):
            assert not connects(agent.netns_fd, (host, PORT), expect=False)
        networks.run("nft delete table inet agentos-policy")
        assert passes(out, into, (host, PORT), expect=True)  # control


def test_the_gateways_address_is_nobodys(agents: Agents) -> None:
    agent = agents.make("egress")
    assert not connects(agent.netns_fd, (GATEWAY_IPV4, 22), expect=False)


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_the_host_reaches_an_agent_and_gets_its_answer(agents: Agents, family: int) -> None:
    agent = agents.make("isolated")
    target = own_addresses(agent)[family]
    with networks.listening(agent.netns_fd, target, 80) as listener:
        client = socket.create_connection((target, 80), timeout=networks.ARRIVES_SECONDS)
        served, peer = listener.accept()
        with client, served:
            served.sendall(b"answer")
            assert client.recv(16) == b"answer"
        # The answer's path is no way in: the same agent port to another port of the host is a new connection.
        assert not connects(agent.netns_fd, (peer[0], PORT), expect=False)


def test_a_port_that_another_table_forwards_to_a_container_is_still_the_host(agents: Agents, world: World) -> None:
    agent = agents.make("egress")
    networks.run("nft add table ip published")
    try:
        networks.run("nft add chain ip published ports { type nat hook prerouting priority dstnat ; }")
        networks.run(f"nft add rule ip published ports ip daddr {HOST4} udp dport {PORT} dnat to {FAR4}:{PORT}")
        with udp(world.outside, FAR4, PORT) as into:
            with udp(agent.netns_fd, agent.ipv4) as out:
                assert not passes(out, into, (HOST4, PORT), expect=False)
                networks.run("nft flush chain inet agentos-policy local")
            with udp(agent.netns_fd, agent.ipv4) as out:  # control, as a new connection
                assert passes(out, into, (HOST4, PORT), expect=True)
    finally:
        networks.run("nft delete table ip published")


# -- agent and outside --


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_egress_goes_out_masqueraded_and_isolated_does_not(agents: Agents, world: World, family: int) -> None:
    far, host = (FAR4, FAR6)[family], (HOST4, HOST6)[family]
    free, isolated = agents.make("egress"), agents.make("isolated")
    with networks.listening(world.outside, far, PORT) as listener:

        def exchange() -> bytes:
            with socket.create_connection((far, PORT), timeout=networks.ARRIVES_SECONDS) as client:
                return client.recv(16)

        answer: list[bytes] = []
        client = threading.Thread(target=lambda: answer.append(networks.inside(free.netns_fd, exchange)))
        client.start()
        served, peer = listener.accept()
        served.sendall(b"hello")
        served.close()
        client.join()
        assert answer == [b"hello"]
        assert peer[0] == host
        assert not connects(isolated.netns_fd, (far, PORT), expect=False)


def test_a_refusal_from_outside_reaches_the_agent(agents: Agents) -> None:
    agent = agents.make("egress")
    for far in (FAR4, FAR6):
        assert connects(agent.netns_fd, (far, 9), expect=True)  # TCP reset
        with udp(agent.netns_fd, agent.ipv6 if ":" in far else agent.ipv4) as out:
            out.connect((far, 9))
            out.settimeout(networks.ARRIVES_SECONDS)
            out.send(b"x")
            with pytest.raises(ConnectionRefusedError):  # ICMP port unreachable, a related packet
                out.recv(16)


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_the_outside_cannot_open_a_connection_to_an_agent(agents: Agents, world: World, family: int) -> None:
    agent = agents.make("egress")
    outside, target = (OUTSIDE4, OUTSIDE6)[family], own_addresses(agent)[family]
    with udp(world.outside, outside) as out, udp(agent.netns_fd, target, PORT) as into:
        assert not passes(out, into, (target, PORT), expect=False)
        networks.run("nft delete table inet agentos-policy")
        assert passes(out, into, (target, PORT), expect=True)  # control


def test_the_clouds_credentials_are_out_of_reach(agents: Agents, world: World) -> None:
    agent = agents.make("egress")
    with udp(world.outside, METADATA4, PORT) as into, udp(agent.netns_fd, agent.ipv4) as out:
        assert not passes(out, into, (METADATA4, PORT), expect=False)
        networks.run("nft flush chain inet agentos-policy from-agent")
        assert passes(out, into, (METADATA4, PORT), expect=True)  # control


def test_addresses_of_agents_that_do_not_exist_stay_on_the_host(agents: Agents, world: World) -> None:
    agent = agents.make("egress")
    absent = addresses(7, 7).ipv4
    networks.run(f"ip address add {absent}/32 dev lo", world.outside)
    try:
        with udp(world.outside, absent, PORT) as into, udp(agent.netns_fd, agent.ipv4) as out:
            assert not passes(out, into, (absent, PORT), expect=False)
    finally:
        networks.run(f"ip address delete {absent}/32 dev lo", world.outside)


def test_one_agent_cannot_fill_the_connection_table(agents: Agents, world: World) -> None:
    greedy, modest = agents.make("egress"), agents.make("egress")
    before = networks.tracked()

    def flood() -> None:
        for number in range(5 * CAP):
            for far in (FAR4, FAR6):
                with socket.socket(networks.family_of(far), socket.SOCK_DGRAM) as out:
                    out.sendto(b"%d" % number, (far, 5000 + number))

    networks.inside(greedy.netns_fd, flood)
    assert CAP - 1 <= networks.tracked() - before <= CAP + 1
    with udp(world.outside, FAR4, PORT) as into, udp(modest.netns_fd, modest.ipv4) as out:
        assert passes(out, into, (FAR4, PORT), expect=True)
    with udp(world.outside, FAR4, PORT) as into, udp(greedy.netns_fd, greedy.ipv4) as out:
        assert not passes(out, into, (FAR4, PORT), expect=False)


def test_the_next_agent_of_a_slot_inherits_no_connection(agents: Agents, world: World) -> None:
    first = agents.make("egress")
    with udp(world.outside, FAR4, PORT) as server:
        with udp(first.netns_fd, first.ipv4, 7777) as out:
            out.sendto(b"request", (FAR4, PORT))
            server.settimeout(networks.ARRIVES_SECONDS)
            _, peer = server.recvfrom(64)
        assert networks.tracked() > 0
        agents.network.destroy(first.slot)
        assert networks.tracked() == 0
        second = agents.network.create(first.slot, "e" * 12, "egress")
        with udp(second.netns_fd, second.ipv4, 7777) as into:
            server.sendto(b"late answer", peer)
            assert not networks.receives(into, b"late answer", networks.SILENCE_SECONDS)
        os.close(second.netns_fd)


def test_other_traffic_of_the_host_passes_untouched(agents: Agents, world: World) -> None:
    agents.make("egress")
    neighbour = networks.new_namespace()
    try:
        networks.run(f"ip link add lan0 type veth peer name lan1 netns /proc/{os.getpid()}/fd/{neighbour}")
        networks.run("ip address add 10.9.0.1/24 dev lan0")
        networks.run("ip link set lan0 up")
        networks.run("ip address add 10.9.0.2/24 dev lan1", neighbour)
        networks.run("ip link set lan1 up", neighbour)
        networks.run("ip route add default via 10.9.0.1", neighbour)
        networks.run(f"ip route add 10.9.0.0/24 via {HOST4}", world.outside)
        with udp(world.outside, FAR4, PORT) as into, udp(neighbour, "10.9.0.2") as out:
            assert passes(out, into, (FAR4, PORT), expect=True)
        with udp(-1, HOST4, PORT) as into, udp(neighbour, "10.9.0.2") as out:
            assert passes(out, into, (HOST4, PORT), expect=True)
    finally:
        networks.run("ip link delete lan0")
        networks.run("ip route flush 10.9.0.0/24", world.outside)
        os.close(neighbour)


def test_no_address_resolution_is_ever_needed(agents: Agents, world: World) -> None:
    agent = agents.make("egress")
    ethertype_all = 3
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype_all)) as tap:
        tap.bind((agent.ifname, 0))
        for far, own in ((FAR4, agent.ipv4), (FAR6, agent.ipv6)):
            with udp(world.outside, far, PORT) as into, udp(agent.netns_fd, own) as out:
                assert passes(out, into, (far, PORT), expect=True)
        frames = []
        tap.settimeout(networks.SILENCE_SECONDS)
        with contextlib.suppress(TimeoutError):
            while True:
                frames.append(tap.recv(2048))
    assert len(frames) >= 2
    assert not [frame for frame in frames if frame[12:14] == b"\x08\x06"], "ARP"
    icmpv6 = [frame for frame in frames if frame[12:14] == b"\x86\xdd" and frame[20] == socket.IPPROTO_ICMPV6]
    assert not [frame for frame in icmpv6 if 133 <= frame[54] <= 137], "neighbour discovery"


def counted(chain: str) -> int:
    """Packets that the counters of a chain of the table have seen."""
    text = networks.run(f"nft list chain inet agentos-policy {chain}")
    return sum(map(int, re.findall(r"packets (\d+)", text)))


def test_the_count_of_an_agents_connections_falls_again(agents: Agents, world: World) -> None:
    agent = agents.make("egress")
    networks.run("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1")
    try:
        for _ in range(2):
            with udp(world.outside, FAR4, PORT) as into:
                for _ in range(CAP):
                    with udp(agent.netns_fd, agent.ipv4) as out:
                        assert passes(out, into, (FAR4, PORT), expect=True)
            time.sleep(2.5)
    finally:
        networks.run("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=30")
