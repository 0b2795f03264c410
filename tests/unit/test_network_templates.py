"""Patched netlink batches are byte for byte what pyroute2 encodes; and what is derived from (block, slot) never
collides."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.network import addressing, encode, failures, leftovers, netlink, ruleset, templates
from agentos_native.network.encode import Message, Values

NODE = "main"
GROUP = addressing.group(3)

BUILDERS: dict[str, tuple[Callable[[templates.Templates], templates.Template], Callable[[Values], list[Message]]]] = {
    "link": (lambda made: made.link, lambda values: encode.link(values, GROUP)),
    "host end": (lambda made: made.host_end, lambda values: encode.host_end(values, NODE)),
    "agent end": (lambda made: made.agent_end, encode.agent_end),
    "look": (lambda made: made.get_link, encode.get_link),
    "doom": (lambda made: made.doom_link, lambda values: encode.doom_link(values, GROUP | addressing.DOOMED)),
    "admit isolated": (
        lambda made: made.admit["isolated"],
        lambda values: encode.elements(values, NODE, add=("source4", "source6"), destroy=("egress",)),
    ),
    "admit egress": (
        lambda made: made.admit["egress"],
        lambda values: encode.elements(values, NODE, add=("source4", "source6", "egress")),
    ),
    "expel": (lambda made: made.expel, lambda values: encode.elements(values, NODE, destroy=ruleset.SETS)),
    "forget": (lambda made: made.forget_connections, encode.forget_connections),
}
SLOTS = st.tuples(st.integers(0, addressing.BLOCKS - 1), st.integers(0, addressing.SLOTS_PER_BLOCK - 1))


@pytest.fixture(scope="module")
def made() -> templates.Templates:
    return templates.Templates(NODE, GROUP)


@pytest.mark.parametrize("name", BUILDERS)
@given(where=SLOTS, agent=st.integers(0, 16**12 - 1), netns_fd=st.integers(0, 2**20))
def test_patched_bytes_equal_fresh_ones(
    made: templates.Templates, name: str, where: tuple[int, int], agent: int, netns_fd: int
) -> None:
    of_templates, build = BUILDERS[name]
    own = addressing.addresses(*where)
    agent_id = f"{agent:012x}"
    fresh = templates.number(build(Values.of(own, agent_id, netns_fd)))
    assert of_templates(made).fill(templates.fields_of(own, agent_id, netns_fd)) == fresh


def test_the_batches_hold_the_fields_they_depend_on(made: templates.Templates) -> None:
    def names(template: templates.Template) -> set[str]:
        return {name for name, _ in template.holes}

    assert names(made.link) == {"ifname", "ifindex", "mac", "netns_fd"}
    assert names(made.host_end) == {"ifindex", "ipv4", "ipv6", "mac", "agent_id"}
    assert names(made.agent_end) == {"ipv4", "ipv6"}
    assert names(made.admit["egress"]) == names(made.expel) == {"ifname", "ipv4", "ipv6"}
    assert names(made.forget_connections) == {"ipv4", "ipv6"}


def test_a_batch_is_numbered_and_asks_for_one_answer() -> None:
    values = Values.of(addressing.addresses(0, 0), "0" * 12, 3)
    headers = [header for header in _headers(templates.number(encode.host_end(values, NODE)))]
    assert [sequence for _, _, sequence in headers] == list(range(1, len(headers) + 1))
    assert [bool(flags & netlink.NLM_F_ACK) for _, flags, _ in headers] == [False] * (len(headers) - 1) + [True]


def test_a_transaction_is_answered_by_its_last_element() -> None:
    values = Values.of(addressing.addresses(0, 0), "0" * 12, 3)
    headers = _headers(templates.number(encode.elements(values, NODE, add=("source4", "egress"))))
    assert [bool(flags & netlink.NLM_F_ACK) for _, flags, _ in headers] == [False, False, True, False]


def test_a_batch_that_cannot_be_patched_is_refused() -> None:
    def varying_length(values: Values) -> list[Message]:
        return [("", struct.pack("=LHHLL", 16 + values.netns_fd % 2 * 4, 0, 0, 0, 0) + bytes(values.netns_fd % 2 * 4))]

    with pytest.raises(RuntimeError, match="not what pyroute2 encodes"):
        templates.template(varying_length)


def _headers(batch: bytes) -> list[tuple[int, int, int]]:
    return [(kind, flags, sequence) for kind, flags, sequence, _ in netlink.messages(batch)]


def test_every_slot_of_every_block_has_names_of_its_own() -> None:
    seen: set[str] = set()
    for block in range(addressing.BLOCKS):
        for slot in range(addressing.SLOTS_PER_BLOCK):
            own = addressing.addresses(block, slot)
            seen.update((own.ipv4, own.ipv6, own.mac, own.host_ifname, str(own.host_ifindex)))
            assert ipaddress.ip_address(own.ipv4) in addressing.AGENTS_IPV4
            assert ipaddress.ip_address(own.ipv6) in addressing.AGENTS_IPV6
    assert len(seen) == 5 * addressing.BLOCKS * addressing.SLOTS_PER_BLOCK
    assert ipaddress.IPv4Network("100.64.0.0/10").supernet_of(addressing.AGENTS_IPV4)


@given(where=SLOTS)
def test_an_interface_name_leads_back_to_its_index(where: tuple[int, int]) -> None:
    own = addressing.addresses(*where)
    assert addressing.index_of(own.host_ifname) == own.index == where[0] * addressing.SLOTS_PER_BLOCK + where[1]
    assert addressing.index_of_address(own.ipv4_packed) == addressing.index_of_address(own.ipv6_packed) == own.index
    assert addressing.of_index(own.index) == own
    assert len(own.host_ifname) == 6


@pytest.mark.parametrize("name", ["ao", "ao1", "ao00000", "AO0000", "ao00-1", "eth0", "", "ao000\n"])
def test_other_interfaces_are_nobodys(name: str) -> None:
    assert addressing.index_of(name) is None


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "203.0.113.9", "255.255.255.255", "::1", "fd61:6f6e:6174::", "ff02::1"]
)
def test_other_addresses_are_nobodys(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    assert addressing.index_of_address(socket.inet_pton(family, address)) is None


@pytest.mark.parametrize(("block", "slot"), [(-1, 0), (24, 0), (0, -1), (0, 2048)])
def test_numbers_out_of_range_are_refused(block: int, slot: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        addressing.addresses(block, slot)


def test_groups_tell_node_and_machine() -> None:
    groups = [addressing.group(block) for block in range(addressing.BLOCKS)]
    assert len(set(groups)) == addressing.BLOCKS
    for number in groups:
        doomed = number | addressing.DOOMED
        assert doomed not in groups
        assert doomed & addressing.NODE_MASK == number == number & addressing.NODE_MASK
        assert doomed & addressing.ANY_NODE_MASK == addressing.GROUP_BASE


def test_the_rules_are_the_same_for_any_number_of_agents_and_name_no_policy_but_accept() -> None:
    text = ruleset.text("n1", 5, connections=7)
    assert "ct count over 7" in text
    assert "inet agentos-n1" in text
    assert text.count("policy accept") == text.count("hook ")
    assert hex(addressing.group(5)) in text
    assert "delete table" not in text
    assert "delete table inet agentos-n1" in ruleset.text("n1", 5, from_scratch=True)


def test_a_refused_message_becomes_an_error_that_names_stage_step_and_hint() -> None:
    refused = netlink.NetlinkError(errno.EEXIST, "create the veth pair", "device exists")
    error = failures.failure("link", refused, "agent 00")
    assert error.code == "network"
    assert "'link'" in error.what
    assert "create the veth pair" in error.what
    assert "device exists" in error.what
    assert error.hint == failures.LEFTOVER
    assert error.details == {"stage": "link", "step": "create the veth pair", "errno": errno.EEXIST}


def test_lack_of_privilege_has_its_hint_at_every_stage() -> None:
    error = failures.failure("elements", netlink.NetlinkError(errno.EPERM, "anything", ""), "agent 00")
    assert error.hint == failures.ROOT


def test_a_node_keeps_its_block_as_long_as_it_has_agents_there() -> None:
    devices = {2048 + 5: "agentos-main/0123456789ab", 7: "agentos-other/0123456789ab", 9: ""}
    leftovers.refuse_other_block(devices, "main", 1)
    leftovers.refuse_other_block(devices, "third", 4)
    with pytest.raises(AgentosError) as caught:
        leftovers.refuse_other_block(devices, "main", 0)
    assert caught.value.details == {"blocks": [1]}
