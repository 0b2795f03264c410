"""Making, adopting, recovering and taking away: all or nothing, and nothing left, for one agent and for 1100."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.kernel import ns
from agentos_native.network import Attachment, NodeNetwork, addresses, blocks_in_use, netns
from agentos_native.network.templates import Template
from tests import networks
from tests.networks import FAR4, FAR6, HOST4, World, passes, udp

TABLE = "agentos-life"
ID = "0123456789ab"
PORT = 4000
MANY = 1100
MANY_SECONDS = 120
NS_GET_USERNS = 0xB701
EMPTY = {"source4": 0, "source6": 0, "egress": 0, "connections": 0}


@pytest.fixture
def network(world: World) -> Iterator[NodeNetwork]:
    made = NodeNetwork("life", 2, ahead=0)
    made.open()
    yield made
    with contextlib.suppress(AgentosError):
        made.teardown()


def fresh(network: NodeNetwork) -> NodeNetwork:
    """The same node after its supervisor died without a word: another object that knows nothing yet."""
    network.close()
    successor = NodeNetwork("life", 2, ahead=0)
    successor.open()
    return successor


# -- what an agent gets --


def test_mode_none_is_loopback_and_nothing_else(network: NodeNetwork) -> None:
    made = network.create(0, ID, "none")
    links = networks.run("ip -o link show", made.netns_fd).splitlines()
    assert len(links) == 1
    assert "lo:" in links[0]
    assert "UP" in links[0]
    assert networks.agent_links() == []

    def try_out() -> int:
        with socket.socket() as client:
            return client.connect_ex((FAR4, PORT))

    assert networks.inside(made.netns_fd, try_out) == errno.ENETUNREACH
    assert made.ifname == made.ipv4 == ""
    os.close(made.netns_fd)
    network.destroy(0)


@pytest.mark.parametrize("mode", ["none", "isolated"])
def test_the_namespace_belongs_to_the_host_and_gives_low_ports(network: NodeNetwork, mode: str) -> None:
    made = network.create(1, ID, mode)
    owner = fcntl.ioctl(made.netns_fd, NS_GET_USERNS)
    assert os.fstat(owner).st_ino == os.stat("/proc/self/ns/user").st_ino
    os.close(owner)
    port_start = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    assert networks.inside(made.netns_fd, lambda: Path(port_start).read_text(encoding="ascii").strip()) == "0"
    assert Path(port_start).read_text(encoding="ascii").strip() != "0"
    os.close(made.netns_fd)


def test_the_wire_is_configured_and_nothing_on_it_is_automatic(network: NodeNetwork) -> None:
    made = network.create(5, ID, "isolated")
    own = addresses(2, 5)
    (link,) = networks.agent_links()
    assert link["ifname"] == made.ifname == own.host_ifname
    assert link["ifindex"] == own.host_ifindex
    assert link["ifalias"] == f"agentos-life/{ID}"
    assert link["inet6_addr_gen_mode"] == "none"
    assert "UP" in link["flags"]
    inner = networks.run("ip -o address show dev eth0", made.netns_fd)
    assert f"inet {made.ipv4}/32" in inner
    assert f"inet6 {made.ipv6}/128" in inner
    assert "fe80" not in inner
    assert "tentative" not in inner
    assert "fe80" not in networks.run(f"ip -o address show dev {made.ifname}")
    neighbours = networks.run("ip neighbour show dev eth0", made.netns_fd).splitlines()
    assert len([line for line in neighbours if "PERMANENT" in line]) == 2
    assert made.mac in networks.run("ip link show dev eth0", made.netns_fd)
    os.close(made.netns_fd)


def test_isolated_agents_leave_routing_alone_and_egress_says_what_it_changed(network: NodeNetwork) -> None:
    networks.run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv6.conf.wan0.accept_ra=1")
    switches = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")

    def state() -> list[str]:
        return [Path(path).read_text(encoding="ascii").strip() for path in switches]

    os.close(network.create(0, ID, "isolated").netns_fd)
    assert state() == ["0", "0"]
    assert network.notices == []
    os.close(network.create(1, ID, "egress").netns_fd)
    assert state() == ["1", "1"]
    assert len(network.notices) == 3
    assert Path("/proc/sys/net/ipv6/conf/wan0/accept_ra").read_text(encoding="ascii").strip() == "2"
    os.close(network.create(2, ID, "egress").netns_fd)
    assert len(network.notices) == 3


@pytest.mark.parametrize(("mode", "agent_id"), [("bridge", ID), ("", ID), ("Isolated", ID)])
def test_an_unknown_mode_is_refused(network: NodeNetwork, mode: str, agent_id: str) -> None:
    with pytest.raises(AgentosError, match="network mode"):
        network.create(0, agent_id, mode)


def test_a_slot_in_use_is_refused_and_its_agent_keeps_its_network(network: NodeNetwork, world: World) -> None:
    first = network.create(0, ID, "egress")
    with pytest.raises(AgentosError, match="belongs to"):
        network.create(0, "f" * 12, "isolated")
    with udp(world.outside, FAR4, PORT) as into, udp(first.netns_fd, first.ipv4) as out:
        assert passes(out, into, (FAR4, PORT), expect=True)
    os.close(first.netns_fd)


# -- all or nothing --


def broken(template: Template, step: int) -> Template:
    """The template with message number `step` (from 0) asking for something that no kernel knows."""
    data = bytearray(template.data)
    offset = 0
    for _ in range(step):
        offset += int.from_bytes(data[offset : offset + 4], "little") + 3 & ~3
    data[offset + 4 : offset + 6] = (0x7FF0).to_bytes(2, "little")
    return Template(bytes(data), template.holes, template.steps, template.last)


FAILING = [
    ("host", step) for step in range(6)
] + [("agent", step) for step in range(8)] + [("link", 0), ("elements", 1)]  # fmt: skip


@pytest.mark.parametrize(("stage", "step"), FAILING)
def test_a_failing_step_leaves_nothing(network: NodeNetwork, stage: str, step: int) -> None:
    host = network._host
    assert host is not None
    templates = host.templates
    intact = {name: getattr(templates, name) for name in ("host_end", "agent_end", "link")}, dict(templates.admit)
    os.close(network.create(3, ID, "egress").netns_fd)  # warm: threads, caches
    network.destroy(3)
    fds = networks.open_fds()
    match stage:
        case "host":
            templates.host_end = broken(templates.host_end, step)
        case "agent":
            templates.agent_end = broken(templates.agent_end, step)
        case "link":
            templates.link = broken(templates.link, step)
        case "elements":
            templates.admit["egress"] = broken(templates.admit["egress"], step)
    with pytest.raises(AgentosError) as caught:
        network.create(3, ID, "egress")
    assert caught.value.code == "network"
    assert caught.value.details["stage"] == stage
    assert caught.value.details["step"]
    assert caught.value.details["errno"] in (errno.EOPNOTSUPP, errno.EINVAL)
    assert ID in caught.value.where
    assert networks.agent_links() == []
    assert networks.set_elements(TABLE) == EMPTY
    assert networks.open_fds() == fds
    for name, template in intact[0].items():
        setattr(templates, name, template)
    templates.admit.update(intact[1])
    os.close(network.create(3, ID, "egress").netns_fd)  # the slot is as good as new


def test_no_namespace_to_be_had_leaves_nothing(network: NodeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> netns.Namespace:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(netns, "_unshare", refused)
    with pytest.raises(AgentosError) as caught:
        network.create(3, ID, "isolated")
    assert caught.value.details["stage"] == "netns"
    assert networks.set_elements(TABLE) == EMPTY
    monkeypatch.undo()
    os.close(network.create(3, ID, "isolated").netns_fd)


@pytest.mark.parametrize("clash", ["name", "number"])
def test_somebody_elses_interface_is_an_error_and_survives(network: NodeNetwork, clash: str) -> None:
    own = addresses(2, 4)
    name, index = (own.host_ifname, 999) if clash == "name" else ("precious0", own.host_ifindex)
    networks.run(f"ip link add {name} index {index} type veth peer name precious1")
    networks.run(f"ip link set {name} alias precious")
    try:
        with pytest.raises(AgentosError) as caught:
            network.create(4, ID, "isolated")
        assert caught.value.details["stage"] == "link"
        assert "ip link" in caught.value.hint
        assert "precious" in networks.run(f"ip link show dev {name}")
        assert networks.set_elements(TABLE) == EMPTY
    finally:
        networks.run(f"ip link delete {name}")


# -- recovery --


def test_a_successor_finds_adopts_and_removes(network: NodeNetwork, world: World) -> None:
    free, shut = network.create(7, ID, "egress"), network.create(8, "b" * 12, "isolated")
    successor = fresh(network)
    assert successor.found() == {7: ID, 8: "b" * 12}
    assert blocks_in_use() == {2: {"life"}}
    adopted = successor.adopt(7, ID, "egress")
    assert adopted is not None
    assert adopted.netns_fd == -1
    assert (adopted.ipv4, adopted.ipv6, adopted.ifname) == (free.ipv4, free.ipv6, free.ifname)
    with udp(world.outside, FAR4, PORT) as into, udp(free.netns_fd, free.ipv4) as out:
        assert passes(out, into, (FAR4, PORT), expect=True)
    assert successor.adopt(8, "c" * 12, "isolated") is None  # another agent's
    assert successor.adopt(9, ID, "isolated") is None  # not there
    successor.destroy(8)
    assert successor.found() == {7: ID}
    successor.destroy(7)
    assert networks.agent_links() == []
    assert networks.set_elements(TABLE) == EMPTY
    os.close(free.netns_fd)
    os.close(shut.netns_fd)
    successor.teardown()


@pytest.mark.parametrize(("address", "far"), [("ipv4", FAR4), ("ipv6", FAR6)])
def test_adoption_puts_back_what_was_deleted(network: NodeNetwork, world: World, address: str, far: str) -> None:
    made = network.create(7, ID, "egress")
    networks.run("nft delete table inet agentos-life")
    networks.run(f"ip route flush dev {made.ifname}")
    networks.run(f"ip -6 route flush dev {made.ifname}")
    networks.run(f"ip neighbour flush nud permanent dev {made.ifname}")
    successor = fresh(network)
    assert networks.set_elements(TABLE) == EMPTY
    with udp(world.outside, far, PORT) as into, udp(made.netns_fd, getattr(made, address)) as out:
        assert not passes(out, into, (far, PORT), expect=False)
        assert successor.adopt(7, ID, "egress") is not None
        assert passes(out, into, (far, PORT), expect=True)
        assert successor.adopt(7, ID, "isolated") is not None  # the way out goes with the mode
        assert not passes(out, into, (far, PORT), expect=False)
    os.close(made.netns_fd)
    successor.teardown()


def test_a_half_made_start_is_swept_and_lends_nothing_to_the_next_agent(network: NodeNetwork) -> None:
    own = addresses(2, 6)
    for element in (f"source4 {{ {own.host_ifname} . {own.ipv4} }}", f"egress {{ {own.host_ifname} }}"):
        networks.run(f"nft add element inet agentos-life {element}")
    os.close(network.create(6, ID, "isolated").netns_fd)
    assert networks.set_elements(TABLE) == {**EMPTY, "source4": 1, "source6": 1}
    network.destroy(6)
    networks.run(f"nft add element inet agentos-life egress {{ {own.host_ifname} }}")
    networks.run(f"ip link add {own.host_ifname} index {own.host_ifindex} type veth peer name half1")
    successor = fresh(network)
    assert networks.set_elements(TABLE) == EMPTY
    assert networks.agent_links() == []
    successor.teardown()


def test_the_table_of_another_version_is_replaced(network: NodeNetwork) -> None:
    networks.run("nft delete table inet agentos-life")
    networks.run("nft add table inet agentos-life")
    networks.run("nft add set inet agentos-life egress { type ipv4_addr ; }")
    successor = fresh(network)
    os.close(successor.create(0, ID, "egress").netns_fd)
    assert networks.set_elements(TABLE) == {**EMPTY, "source4": 1, "source6": 1, "egress": 1}
    successor.teardown()


def test_a_flushed_ruleset_comes_back_with_the_next_start(network: NodeNetwork) -> None:
    first = network.create(0, ID, "egress")
    networks.run("nft flush ruleset")
    second = network.create(1, "b" * 12, "isolated")
    assert networks.set_elements(TABLE) == {**EMPTY, "source4": 2, "source6": 2, "egress": 1}
    os.close(first.netns_fd)
    os.close(second.netns_fd)


def test_another_block_than_that_of_living_agents_is_refused(network: NodeNetwork) -> None:
    made = network.create(0, ID, "isolated")
    network.close()
    moved = NodeNetwork("life", 3)
    with pytest.raises(AgentosError) as caught:
        moved.open()
    assert caught.value.details == {"blocks": [2]}
    moved.close()
    network.open()
    os.close(made.netns_fd)


def test_open_may_be_repeated_and_keeps_what_runs(network: NodeNetwork, world: World) -> None:
    made = network.create(0, ID, "egress")
    network.open()
    with udp(world.outside, FAR4, PORT) as into, udp(made.netns_fd, made.ipv4) as out:
        assert passes(out, into, (FAR4, PORT), expect=True)
    os.close(made.netns_fd)


def test_a_host_without_nftables_still_runs_agents_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentos_native.network import host

    monkeypatch.setattr(host, "_NFT", ("/nonexistent/nft",))
    network = NodeNetwork("bare", 4)
    with pytest.raises(AgentosError, match="nftables") as caught:
        network.open()
    assert "apt-get install nftables" in caught.value.hint
    network.open(required=False)
    os.close(network.create(0, ID, "none").netns_fd)
    with pytest.raises(AgentosError, match="nftables"):
        network.create(1, ID, "isolated")
    network.destroy(0)
    network.close()


# -- taking away --


def test_destroy_is_idempotent_and_leaves_no_trace(network: NodeNetwork, world: World) -> None:
    made = network.create(0, ID, "egress")
    with udp(world.outside, FAR4, PORT) as into, udp(made.netns_fd, made.ipv4) as out:
        assert passes(out, into, (FAR4, PORT), expect=True)
    assert networks.tracked() > 0
    assert networks.set_elements(TABLE)["connections"] == 1
    for _ in range(2):
        network.destroy(0)
        assert networks.agent_links() == []
        assert networks.set_elements(TABLE) == EMPTY
        assert networks.tracked() == 0
    assert made.ifname not in networks.run("ip route show table all")
    network.destroy(1234)
    os.close(made.netns_fd)


def test_teardown_removes_the_node_and_nothing_of_another(network: NodeNetwork) -> None:
    other = NodeNetwork("neighbour", 5)
    other.open()
    kept = other.create(0, ID, "isolated")
    os.close(network.create(0, ID, "egress").netns_fd)
    network.teardown()
    assert [link["ifname"] for link in networks.agent_links()] == [kept.ifname]
    assert networks.set_elements(TABLE) == {}
    assert networks.set_elements("agentos-neighbour")["source4"] == 1
    other.teardown()
    os.close(kept.netns_fd)
    assert "agentos" not in networks.run("nft list ruleset")


def test_many_threads_make_and_destroy_at_the_same_time(network: NodeNetwork) -> None:
    def cycle(slot: int) -> None:
        for turn in range(5):
            made = network.create(slot, f"{slot:06x}{turn:06x}", ("none", "isolated", "egress")[(slot + turn) % 3])
            os.close(made.netns_fd)
            network.destroy(slot)

    fds = networks.open_fds()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cycle, range(32)))
    assert networks.agent_links() == []
    assert networks.set_elements(TABLE) == EMPTY
    assert networks.open_fds() <= fds + 1  # the maker's own home, if it was not running before


def test_a_closed_node_leaves_no_fd_and_no_thread(world: World) -> None:
    fds = networks.open_fds()
    network = NodeNetwork("short", 6, ahead=0)
    network.open()
    os.close(network.create(0, ID, "isolated").netns_fd)
    network.teardown()
    assert networks.open_fds() == fds
    assert os.stat("/proc/thread-self/ns/net").st_ino == ns.inode("self", "net")


def test_a_teardown_that_fails_leaves_no_fd(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the socket would be found by whoever collects garbage next."""
    fds = networks.open_fds()
    network = NodeNetwork("short", 6, ahead=0)
    network.open()

    def refuse() -> None:
        raise OSError(errno.EBUSY, "busy")

    with monkeypatch.context() as patch:
        patch.setattr(network._opened(), "delete_table", refuse)
        with pytest.raises(AgentosError):
            network.teardown()
    assert networks.open_fds() == fds
    network.open()
    network.teardown()
    assert networks.open_fds() == fds


def test_namespaces_made_ahead_are_used_replaced_and_not_leaked(world: World) -> None:
    fds = networks.open_fds()
    network = NodeNetwork("shelf", 6, ahead=2)
    network.open()
    shelf = network._maker._shelf

    def stocked() -> bool:
        deadline = time.monotonic() + 5
        while len(shelf) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        return len(shelf) == 2

    for slot in (1, 2):
        assert stocked()
        ready = {os.fstat(namespace.fd).st_ino for namespace in shelf}
        made = network.create(slot, ID, ("none", "isolated")[slot % 2])
        assert os.fstat(made.netns_fd).st_ino in ready
        assert "UP" in networks.run("ip -o link show lo", made.netns_fd)
        os.close(made.netns_fd)
    assert stocked()
    network.teardown()
    assert networks.open_fds() == fds


@pytest.mark.timeout(MANY_SECONDS)
def test_1100_agents_at_once(network: NodeNetwork, world: World) -> None:
    def make(slot: int) -> Attachment:
        return network.create(slot, f"{slot:012x}", "isolated" if slot % 4 == 0 else "egress")

    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(MANY)))
        assert len(networks.agent_links()) == MANY
        assert networks.set_elements(TABLE) == {
            **EMPTY,
            "source4": MANY,
            "source6": MANY,
            "egress": MANY - MANY // 4,
        }
        assert network.found() == {slot: f"{slot:012x}" for slot in range(MANY)}
        for slot in (0, 1, 2, 549, 550, 1022, 1023, 1024, 1098, 1099):
            agent = made[slot]
            for far, own in ((FAR4, agent.ipv4), (FAR6, agent.ipv6)):
                free = slot % 4 != 0
                with udp(world.outside, far, PORT) as into, udp(agent.netns_fd, own) as out:
                    assert passes(out, into, (far, PORT), expect=free) is free
            with udp(-1, HOST4, PORT) as host, udp(agent.netns_fd, agent.ipv4, PORT) as into:
                assert passes(host, into, (agent.ipv4, PORT), expect=True)
        neighbour = made[1]
        with udp(neighbour.netns_fd, neighbour.ipv4, PORT) as into, udp(made[2].netns_fd, made[2].ipv4) as out:
            assert not passes(out, into, (neighbour.ipv4, PORT), expect=False)
        for agent in made:
            os.close(agent.netns_fd)
        list(pool.map(network.destroy, range(MANY)))
    assert networks.agent_links() == []
    assert networks.set_elements(TABLE) == EMPTY
    assert networks.tracked() == 0
    assert network.found() == {}
    assert time.monotonic() - started < MANY_SECONDS
