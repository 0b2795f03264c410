"""Rates of the network in specs and on the command line: what they mean, and what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.cli.spec_options import TEXTS, attribute, build
from agentos_native.errors import AgentosError
from agentos_native.spec import agent_from_builtins, load, quantities, to_builtins
from agentos_native.spec.model import AgentSpec, NetworkRates

AGENT = """\
apiVersion: agentos/v1
kind: Agent
metadata: {name: crawler}
spec:
  image: box
  network: egress
  resources:
    requests: {network: {egress: 2M}}
    limits: {network: {egress: 10M, ingress: 1Gi}}
"""


def test_rates_are_bits_per_second() -> None:
    (spec,) = load(AGENT)
    assert isinstance(spec, AgentSpec)
    assert spec.resources.requests.network == NetworkRates(egress=2_000_000)
    assert spec.resources.limits.network == NetworkRates(egress=10_000_000, ingress=2**30)
    assert agent_from_builtins(to_builtins(spec)) == spec


WRONG = [
    # what is replaced, by what, the code, the place
    ("{egress: 2M}", "{egress: 11M}", "request-above-limit", "x.yaml:8: spec.resources.requests.network.egress"),
    ("network: egress", "network: isolated", "invalid-value", "x.yaml:8: spec.resources.requests.network.egress"),
    ("ingress: 1Gi", "ingress: 10m", "invalid-quantity", "x.yaml:9: spec.resources.limits.network.ingress"),
    ("ingress: 1Gi", "ingress: 999", "invalid-quantity", "x.yaml:9: spec.resources.limits.network.ingress"),
    ("ingress: 1Gi", "upload: 1Gi", "unknown-field", "x.yaml:9: spec.resources.limits.network.upload"),
]


@pytest.mark.parametrize(("old", "new", "code", "where"), WRONG)
def test_what_cannot_be_meant_is_refused_with_its_place(old: str, new: str, code: str, where: str) -> None:
    with pytest.raises(AgentosError) as caught:
        load(AGENT.replace(old, new), "x.yaml")
    assert (caught.value.code, caught.value.where) == (code, where)


def test_a_limit_needs_a_network() -> None:
    alone = AGENT.replace("    requests: {network: {egress: 2M}}\n", "")
    assert load(alone.replace("network: egress", "network: isolated"))
    with pytest.raises(AgentosError, match="limit without a network"):
        load(alone.replace("network: egress", "network: none"))


def test_the_options_of_run() -> None:
    given: dict[str, Any] = {attribute(path): None for _, path, _ in TEXTS}
    given |= dict.fromkeys(("env", "env_file", "volume", "label", "rlimit", "cap_add"), ())
    given |= dict.fromkeys(("restart", "entrypoint", "allow_unenforced", "read_only"))
    given |= {
        "spec_network": "egress",
        "spec_resources_limits_network_egress": "10M",
        "spec_resources_limits_network_ingress": "100M",
        "spec_resources_requests_network_egress": "1M",
        "spec_resources_requests_network_ingress": "5M",
    }
    spec = build("box", (), given, {})
    assert spec.resources.limits.network == NetworkRates(egress=10_000_000, ingress=100_000_000)
    assert spec.resources.requests.network == NetworkRates(egress=1_000_000, ingress=5_000_000)
    with pytest.raises(AgentosError) as caught:
        build("box", (), given | {"spec_resources_limits_network_egress": "fast"}, {})
    assert caught.value.where.startswith("--egress-limit")
    with pytest.raises(AgentosError, match="network mode isolated") as caught:
        build("box", (), given | {"spec_network": None}, {})
    assert caught.value.where.startswith("--egress-request")


@given(st.integers(0, 2**63 - 1))
def test_a_rate_is_written_so_that_it_is_read_back(rate: int) -> None:
    assert quantities.parse_rate(quantities.format_rate(rate)) == rate


def test_rates_are_written_by_thousands() -> None:
    assert [quantities.format_rate(rate) for rate in (80_000_000, 2**30, 1, 0)] == ["80M", "1Gi", "1", "0"]
