"""Rates of wires on the real kernel: what TCP gets, what survives whom, and what the loop makes of an uplink."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentos_native.cgroup import GroupRef
from agentos_native.errors import AgentosError
from agentos_native.kernel.process import pidfd_open
from agentos_native.network import Attachment, NodeNetwork, Queue, Rates
from agentos_native.spec.model import AgentSpec, Limits, NetworkRates, Requests, Resources
from agentos_native.supervisor.loop.controllers import Member
from agentos_native.supervisor.loop.network import NetworkController
from tests import networks
from tests.flows import Flow, windows
from tests.networks import FAR4, FAR6, World
from tests.sandboxes import Node
from tests.supervisors import Place, _alive, eventually, place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MEGA = 1_000_000
UPLINK = 40 * MEGA
PAYLOAD = 1448 / 1514
"""Of each byte that a bucket counts, on a wire of 1500 bytes with IPv4 and time stamps."""
TURN = 1.0


@pytest.fixture
def network(world: World) -> Iterator[NodeNetwork]:
    made = NodeNetwork("rates", 4, ahead=0)
    made.open()
    yield made
    with contextlib.suppress(AgentosError):
        made.teardown()


@contextlib.contextmanager
def wire(network: NodeNetwork, slot: int, rates: Rates | None = None, mode: str = "egress") -> Iterator[Attachment]:
    made = network.create(slot, f"{slot:012x}", mode, rates or Rates())
    try:
        yield made
    finally:
        os.close(made.netns_fd)
        network.destroy(slot)


def disciplines(netns: int = -1) -> list[dict[str, Any]]:
    """What tc(8) shows, but for the empty ones."""
    listed: list[dict[str, Any]] = json.loads(networks.run("tc -j -s qdisc show", netns))
    return [row for row in listed if row["kind"] != "noqueue"]


def arrived(flow: Flow) -> None:
    """Wait until nothing of a paused flow is on its way any more."""
    before = -1
    while before != flow.received:
        before = flow.received
        time.sleep(0.5)


def assert_carries(flow: Flow, expected: float, rel: float) -> None:
    """`expected` Mbit/s of payload, within `rel` of it."""
    wanted = pytest.approx(expected, rel=rel)
    assert windows([flow], lambda found: bool(found[0] == wanted))[0] == wanted


# -- one wire --


def test_without_rates_a_wire_has_no_discipline_at_all(network: NodeNetwork) -> None:
    with wire(network, 0) as made:
        assert disciplines() == disciplines(made.netns_fd) == []
        assert network.queues("egress", [0]) == network.queues("ingress", [0]) == {}


@pytest.mark.parametrize("address", [FAR4, FAR6])
def test_a_limit_holds_in_both_directions(network: NodeNetwork, world: World, address: str) -> None:
    with wire(network, 0, Rates(egress=8 * MEGA, ingress=20 * MEGA)) as made:
        for upload, limit in ((True, 8), (False, 20)):
            with Flow(made.netns_fd, world.outside, address, upload=upload) as flow:
                time.sleep(1)
                assert_carries(flow, limit * PAYLOAD, 0.1)
        assert network.queues("egress", [0])[0].overlimits > 0


def test_a_rate_that_falls_while_large_packets_wait_holds_nobody_up(network: NodeNetwork, world: World) -> None:
    with wire(network, 0) as made, Flow(made.netns_fd, world.outside, FAR4, upload=True) as flow:
        for rate in (1000, 60, 2000, 4) * 3:
            network.set_rate(0, "egress", rate * MEGA)
            time.sleep(0.2)
        time.sleep(0.5)
        assert_carries(flow, 4 * PAYLOAD, 0.15)


def test_a_rate_is_changed_under_way_and_taken_away(network: NodeNetwork, world: World) -> None:
    with (
        wire(network, 0, Rates(egress=8 * MEGA)) as made,
        Flow(made.netns_fd, world.outside, FAR4, upload=True) as flow,
    ):
        slow = windows([flow], lambda found: found[0] < 9, 2.0)
        assert slow[0] < 9
        network.set_rate(0, "egress", 24 * MEGA)
        time.sleep(0.5)
        assert_carries(flow, 24 * PAYLOAD, 0.1)
        assert network.queues("egress", [0])[0].rate == 24 * MEGA
        network.set_rate(0, "egress", None)
        network.set_rate(0, "egress", None)
        assert windows([flow], lambda found: found[0] > 50)[0] > 50
        assert disciplines(made.netns_fd) == []


def test_rates_beyond_32_bits_are_what_the_kernel_has(network: NodeNetwork) -> None:
    with wire(network, 0, Rates(ingress=100_000 * MEGA, egress=1000)) as made:
        assert network.queues("ingress", [0])[0].rate == 100_000 * MEGA
        assert network.queues("egress", [0])[0].rate == 1000
        (shown,) = disciplines(made.netns_fd)
        assert shown["kind"] == "tbf"
        assert shown["options"]["rate"] == 125


def test_counters_tell_what_was_sent_and_received(network: NodeNetwork, world: World) -> None:
    with wire(network, 3) as made:
        before = network.counters()[3]
        with Flow(made.netns_fd, world.outside, FAR4, upload=True, offer=8 * MEGA) as flow:
            networks.run("sleep 1")
            flow.pause()
            arrived(flow)  # what a closed connection has not handed over was sent all the same
        sent, received = (now - then for now, then in zip(network.counters()[3], before, strict=True))
        assert flow.received <= sent <= 1.2 * flow.received + 100_000
        assert 0 < received < 0.2 * sent
    assert 3 not in network.counters()


def test_anothers_discipline_is_seen_and_replaced(network: NodeNetwork) -> None:
    with wire(network, 0, Rates(ingress=8 * MEGA)) as made:
        networks.run(f"tc qdisc replace dev {made.ifname} root handle 1: htb")
        assert network.queues("ingress", [0])[0] == Queue(None, 0, 0, 0)
        network.set_rate(0, "ingress", 8 * MEGA)
        assert network.queues("ingress", [0])[0].rate == 8 * MEGA


def test_nothing_is_left_after_the_wire(network: NodeNetwork) -> None:
    with wire(network, 0):  # what is made once, such as the templates, is there now
        pass
    files = networks.open_fds()
    for _ in range(3):
        with wire(network, 0, Rates(8 * MEGA, 8 * MEGA)):
            assert len(disciplines()) == 1
    assert networks.open_fds() == files
    assert disciplines() == networks.agent_links() == []


def test_a_rate_that_cannot_be_set_takes_everything_back(network: NodeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire(network, 0):
        pass
    files = networks.open_fds()
    shaper = network._shaper
    assert shaper is not None
    made = shaper._templates.set_rate
    offset = made.data.index(b"tbf\0")
    broken = made.data[:offset] + b"xxx" + made.data[offset + 3 :]
    monkeypatch.setattr(shaper._templates, "set_rate", replace(made, data=broken))
    with pytest.raises(AgentosError) as caught:
        network.create(0, "0" * 12, "egress", Rates(egress=8 * MEGA))
    assert caught.value.details == {"stage": "rates", "step": "set the rate", "errno": errno.ENOENT}
    assert "modprobe sch_tbf" in caught.value.hint
    assert networks.agent_links() == []
    assert networks.open_fds() == files


def test_an_adopted_wire_has_the_rates_that_its_spec_says(network: NodeNetwork) -> None:
    with wire(network, 0, Rates(ingress=8 * MEGA, egress=8 * MEGA)) as made:
        inside = f"nsenter --net=/proc/self/fd/{made.netns_fd} sleep 60".split()
        process = subprocess.Popen(inside, pass_fds=(made.netns_fd,))
        eventually(lambda: b"nsenter" not in Path(f"/proc/{process.pid}/cmdline").read_bytes(), "it is inside")
        pidfd = pidfd_open(process.pid)
        try:
            network.close()
            network.open()
            network.adopt(0, f"{0:012x}", "egress", Rates(egress=16 * MEGA), pidfd)
            assert network.queues("egress", [0])[0].rate == 16 * MEGA
            assert network.queues("ingress", [0]) == {}
        finally:
            os.close(pidfd)
            process.kill()
            process.wait()


def test_a_process_beside_the_supervisor_is_never_taken_for_an_agent(network: NodeNetwork) -> None:
    with wire(network, 0):
        pidfd = pidfd_open(os.getpid())
        try:
            with pytest.raises(AgentosError, match="host's network namespace"):
                network.adopt(0, f"{0:012x}", "egress", Rates(egress=MEGA), pidfd)
        finally:
            os.close(pidfd)
    assert disciplines() == []


TAMPER = """
import socket, struct, sys
def ask(kind, flags, payload):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(struct.pack("=IHHII", 16 + len(payload), kind, flags | 5, 1, 0) + payload)
        return -struct.unpack_from("=i", sock.recv(65536), 16)[0]
root = struct.pack("=BxxxiIII", 0, 2, 0, 0xFFFFFFFF, 0)
kind = struct.pack("=HH", 10, 1) + b"pfifo\\0\\0\\0"
print(ask(37, 0, root), ask(36, 0x500, root + kind))
"""


def test_an_agent_cannot_change_its_own_rate(network: NodeNetwork, node: Node) -> None:
    with wire(network, 0, Rates(egress=8 * MEGA)) as made:
        result = node.python(TAMPER, fds={"netns": made.netns_fd})
        assert result.out.split() == [str(errno.EPERM), str(errno.EPERM)], result.err
        assert network.queues("egress", [0])[0].rate == 8 * MEGA


# -- the loop --


class Loop:
    """A controller on real wires, turned once a second by a thread."""

    def __init__(self, network: NodeNetwork) -> None:
        self.events: list[tuple[str, str]] = []
        self.controller = NetworkController(network, UPLINK, lambda kind, agent, **_: self.events.append((kind, agent)))
        self.trouble: list[AgentosError] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(TURN):
            try:
                self.controller.turn(time.monotonic())
            except AgentosError as error:
                self.trouble.append(error)

    def add(self, slot: int, weight: int = 100, request: int | None = None) -> None:
        requests = Requests(network=NetworkRates(egress=request, ingress=request))
        spec = AgentSpec(
            name=f"a{slot}",
            image="x",
            weight=weight,
            network="egress",
            resources=Resources(requests=requests, limits=Limits()),
        )
        agent_id = f"{slot:012x}"
        self.controller.add(Member(agent_id, slot, GroupRef("default", "normal", agent_id), "", spec))

    def __enter__(self) -> Loop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.trouble == []
        assert self.events == []


def three_to_one(found: list[float]) -> bool:
    light, heavy = found
    return heavy / light == pytest.approx(3, rel=0.1) and all_of_it(found)


def all_of_it(found: list[float]) -> bool:
    return sum(found) == pytest.approx(UPLINK / MEGA * PAYLOAD, rel=0.1)


@pytest.mark.parametrize("upload", [True, False], ids=["egress", "ingress"])
def test_the_uplink_is_divided_by_weight_handed_on_and_given_back(
    network: NodeNetwork, world: World, upload: bool
) -> None:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(wire(network, slot)) for slot in range(2)]
        loop = stack.enter_context(Loop(network))
        for slot, weight in enumerate((100, 300)):
            loop.add(slot, weight)
        flows = [stack.enter_context(Flow(made.netns_fd, world.outside, FAR4, upload=upload)) for made in wires]
        time.sleep(5 * TURN)
        found = windows(flows, three_to_one)
        assert three_to_one(found), found

        flows[1].pause()
        time.sleep(6 * TURN)
        found = windows(flows[:1], all_of_it)
        assert all_of_it(found), found

        flows[1].resume()
        time.sleep(5 * TURN)
        found = windows(flows, three_to_one)
        assert three_to_one(found), found

        flows[0].pause()
        flows[1].pause()
        nothing = "nothing is capped when nobody wants more"
        eventually(lambda: disciplines() == disciplines(wires[0].netns_fd) == [], nothing, 30)


def test_a_reservation_holds_against_a_heavier_agent(network: NodeNetwork, world: World) -> None:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(wire(network, slot)) for slot in range(2)]
        loop = stack.enter_context(Loop(network))
        loop.add(0, weight=100, request=UPLINK // 2)
        loop.add(1, weight=10000)
        flows = [stack.enter_context(Flow(made.netns_fd, world.outside, FAR4, upload=True)) for made in wires]
        time.sleep(5 * TURN)
        least = UPLINK / 2 / MEGA * PAYLOAD * 0.95
        found = windows(flows, lambda found: found[0] >= least and all_of_it(found))
        assert found[0] >= least
        assert all_of_it(found), found

        def bound() -> tuple[str, bool]:
            row = loop.controller.rows()[f"{0:012x}"]["egress"]
            return row["bound"], row["contended"]

        eventually(lambda: bound() == ("request", True), "it has what it has because it is reserved", 30)


# -- the whole supervisor --


class RatedPlace(Place):
    """A place whose supervisors know their uplink."""

    @property
    def options(self) -> list[str]:
        return [*super().options, "--network-rate=80M"]


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Place]:
    networks.require_outer_namespace()
    with place(tmp_path, "rated", RatedPlace) as made:
        yield made


def kept(netns: int = -1) -> list[int]:
    """Bits per second of every bucket on the host, or of an agent's own."""
    return [row["options"]["rate"] * 8 for row in disciplines(netns) if row["kind"] == "tbf"]


def test_limits_come_with_the_start_survive_the_supervisor_and_go_with_the_agent(ground: Place, world: World) -> None:
    launcher = ground.start()
    limits = {"network": {"egress": "8M", "ingress": "16M"}}
    agent = ground.run("rated", "/bin/sleep", "1000", network="egress", resources={"limits": limits})
    free = ground.run("free", "/bin/sleep", "1000", network="egress")
    inner = os.open(f"/proc/{agent.pid}/ns/net", os.O_RDONLY)
    try:
        assert kept() == [16 * MEGA]
        assert kept(inner) == [8 * MEGA]
        networks.run("tc qdisc del dev eth0 root", inner)
        supervisor = ground.supervisor(launcher)
        os.kill(supervisor, signal.SIGKILL)
        eventually(lambda: not _alive(supervisor), "it is dead")
        ground.wait_ready(ground.running[-1])
        assert kept(inner) == [8 * MEGA], "put back for the adopted agent"
        assert kept() == [16 * MEGA]

        networks.run("tc qdisc del dev eth0 root", inner)
        eventually(lambda: kept(inner) == [8 * MEGA], "the loop notices within a turn", 30)
        ground.client.change(agent.id, {"resources": {"limits": {"network": {"egress": "24M", "ingress": None}}}})
        eventually(lambda: (kept(inner), kept()) == ([24 * MEGA], []), "a change takes effect", 30)
        with pytest.raises(AgentosError) as caught:
            ground.run("greedy", "/bin/true", network="egress", resources={"requests": {"network": {"egress": "81M"}}})
        assert caught.value.code == "reservation-too-large"
    finally:
        os.close(inner)
        for made in (agent, free):
            ground.client.remove(made.id, force=True)
    eventually(lambda: (kept(), networks.agent_links()) == ([], []), "its wire is gone, and the rates with it")
    assert ground.stop(ground.running[-1].pid) == 0
