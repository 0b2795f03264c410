"""The door: slots are given once, reservations that do not fit are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, NetworkRates, Requests, Resources, TenantLimits, TenantSpec
from agentos_native.supervisor import admission
from agentos_native.supervisor.admission import Capacity, admit, admit_tenant, promised

NODE = Capacity(cpu=2000, memory=1 << 30)


def agent(name: str = "a", tenant: str = "default", cpu: int = 0, memory: int = 0) -> AgentSpec:
    resources = Resources(requests=Requests(cpu=cpu, memory=memory))
    return AgentSpec(name=name, tenant=tenant, image="box", resources=resources)


def test_id_ranges_are_disjoint_and_fit_a_signed_number() -> None:
    last = admission.id_base(admission.BLOCKS - 1, admission.SLOTS - 1) + admission.ID_RANGE - 1
    assert last < 0x80000000
    step = admission.id_base(0, 1) - admission.id_base(0, 0)
    assert step == admission.ID_RANGE
    assert admission.id_base(1, 0) - admission.id_base(0, admission.SLOTS - 1) >= admission.ID_RANGE
    assert admission.id_base(0, 0) > 0xFFFF


def test_slots_are_the_lowest_free() -> None:
    assert admission.lowest_free_slot(set()) == 0
    assert admission.lowest_free_slot({0, 1, 3}) == 2
    with pytest.raises(AgentosError) as caught:
        admission.lowest_free_slot(set(range(admission.SLOTS)))
    assert caught.value.code == "node-full"


def test_a_reservation_that_fits_is_admitted_to_the_last_bit() -> None:
    admit(agent("b", cpu=1500, memory=1 << 29), [agent(cpu=500, memory=1 << 29)], {}, NODE)


def test_a_refusal_has_the_numbers() -> None:
    with pytest.raises(AgentosError) as caught:
        admit(agent("b", cpu=1501), [agent(cpu=500)], {}, NODE)
    assert caught.value.code == "reservation-too-large"
    assert caught.value.details == {
        "resource": "cpu", "asked": 1501, "free": 1500, "capacity": 2000, "where": "agent default/b"
    }  # fmt: skip
    assert "1500m of 2000m" in caught.value.what
    with pytest.raises(AgentosError, match="memory reservation of 1025Mi"):
        admit(agent(memory=1025 << 20), [], {}, NODE)


def test_without_a_reservation_a_full_node_takes_more() -> None:
    admit(agent("b"), [agent(cpu=2000, memory=NODE.memory)], {}, NODE)


def test_a_tenants_own_reservation_counts_once() -> None:
    home = {"home": TenantSpec(name="home", requests=Requests(cpu=1500))}
    assert promised([agent(tenant="home", cpu=700)], home).cpu == 1500
    assert promised([agent(tenant="home", cpu=1700)], home).cpu == 1700
    admit(agent("x", "home", cpu=1500), [], home, NODE)  # within its own
    with pytest.raises(AgentosError):
        admit(agent("x", "other", cpu=501), [], home, NODE)  # what home may still ask for is kept for it


def test_a_tenants_limits_hold() -> None:
    limits = TenantLimits(cpu=1000, memory=1 << 28, agents=2)
    home = {"home": TenantSpec(name="home", limits=limits)}
    one = agent("one", "home", cpu=600)
    with pytest.raises(AgentosError) as caught:
        admit(agent("two", "home", cpu=401), [one], home, NODE)
    assert (caught.value.details["free"], caught.value.details["where"]) == (400, "tenant home")
    with pytest.raises(AgentosError) as caught:
        admit(agent("three", "home"), [one, agent("two", "home")], home, NODE)
    assert caught.value.code == "tenant-full"
    admit(agent("three", "elsewhere"), [one, agent("two", "home")], home, NODE)


def test_a_tenants_reservation_must_fit_beside_the_others() -> None:
    tenants = {"home": TenantSpec(name="home", requests=Requests(cpu=1500))}
    admit_tenant(TenantSpec(name="home", requests=Requests(cpu=2000)), [], tenants, NODE)  # replaces its own
    with pytest.raises(AgentosError):
        admit_tenant(TenantSpec(name="work", requests=Requests(cpu=501)), [], tenants, NODE)


names = st.sampled_from(["home", "work", "default"])
specs = st.builds(agent, st.text("abc", min_size=1, max_size=3), names, st.integers(0, 900), st.integers(0, 1 << 29))
tenant_specs = st.dictionaries(
    names, st.builds(TenantSpec, name=names, requests=st.builds(Requests, cpu=st.integers(0, 600))), max_size=3
)


@given(st.lists(specs, max_size=12), tenant_specs)
def test_what_was_admitted_one_by_one_never_promises_more_than_there_is(
    wanted: list[AgentSpec], declared: dict[str, TenantSpec]
) -> None:
    tenants: dict[str, TenantSpec] = {}
    running: list[AgentSpec] = []
    for spec in declared.values():
        try:
            admit_tenant(spec, running, tenants, NODE)
        except AgentosError:
            continue
        tenants[spec.name] = spec
    for one in wanted:
        try:
            admit(one, running, tenants, NODE)
        except AgentosError:
            continue
        running.append(one)
    total = promised(running, tenants)
    assert total.cpu <= NODE.cpu
    assert total.memory <= NODE.memory


def wired(egress: int, ingress: int = 0, tenant: str = "default") -> AgentSpec:
    resources = Resources(requests=Requests(network=NetworkRates(egress=egress or None, ingress=ingress or None)))
    return AgentSpec(name="wired", tenant=tenant, image="box", resources=resources, network="egress")


def test_the_uplink_can_be_reserved_up_to_its_rate_in_each_direction() -> None:
    node = NODE._replace(network=80_000_000)
    admit(wired(40_000_000, 80_000_000), [wired(40_000_000)], {}, node)
    with pytest.raises(AgentosError) as caught:
        admit(wired(40_000_001), [wired(40_000_000, 1)], {}, node)
    assert caught.value.details["resource"] == "egress"
    assert "40M of 80M left" in caught.value.what
    assert "resources.requests.network.egress" in caught.value.hint
    with pytest.raises(AgentosError, match="ingress reservation of 80M"):
        admit(wired(0, 80_000_000), [wired(0, 1)], {}, node)


def test_a_tenants_part_of_the_uplink_counts_once() -> None:
    node = NODE._replace(network=80_000_000)
    home = TenantSpec(name="home", requests=Requests(network=NetworkRates(egress=60_000_000)))
    admit(wired(60_000_000, tenant="home"), [wired(20_000_000)], {"home": home}, node)
    with pytest.raises(AgentosError, match="egress reservation"):
        admit(wired(20_000_001), [], {"home": home}, node)
    with pytest.raises(AgentosError, match="egress reservation of 60M"):
        admit_tenant(home, [wired(21_000_000)], {}, node)


def test_an_unknown_uplink_cannot_be_reserved() -> None:
    with pytest.raises(AgentosError) as caught:
        admit(wired(1000), [], {}, NODE)
    assert caught.value.code == "unenforceable"
    assert "--network-rate" in caught.value.hint
    home = TenantSpec(name="home", requests=Requests(network=NetworkRates(ingress=1000)))
    with pytest.raises(AgentosError, match="uplink is not known"):
        admit_tenant(home, [], {}, NODE)
