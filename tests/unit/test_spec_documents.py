"""Native documents: what is understood, and that every complaint names code, line and path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.spec import from_builtins, load, load_file, to_builtins
from agentos_native.spec.model import AgentSpec, TenantSpec, Volume

FULL = """\
apiVersion: agentos/v1
kind: Tenant
metadata: {name: home}
spec: {weight: 200, requests: {cpu: 500m, memory: 256Mi}, limits: {cpu: "2", memory: 1Gi, agents: 20}}
---
apiVersion: agentos/v1
kind: Agent
metadata: {name: thermostat, tenant: home, labels: {room: hall}}
spec:
  type: task
  image: task-agent
  command: [python3, /app/agent.py]
  replicas: 1
  priority: high
  weight: 100
  resources:
    requests: {cpu: 200m, memory: 64Mi}
    limits: {cpu: "1", memory: 256Mi, pids: 64}
  restart: {policy: on-failure, backoff: 1s, max: 5}
  env: {MODE: "1"}
  volumes: [{source: /srv/data, target: /data, readOnly: true}]
  stop: {signal: INT, grace: 500ms}
  capabilities: [chown]
"""


def refusal(text: str) -> AgentosError:
    with pytest.raises(AgentosError) as caught:
        load(text, "x.yaml")
    return caught.value


def test_the_designs_example() -> None:
    tenant, agent = load(FULL, "x.yaml")
    assert isinstance(tenant, TenantSpec)
    assert isinstance(agent, AgentSpec)
    assert (tenant.name, tenant.weight, tenant.requests.cpu, tenant.limits.memory) == ("home", 200, 500, 2**30)
    assert agent.tenant == "home"
    assert agent.labels == {"room": "hall"}
    assert agent.resources.requests.cpu == 200
    assert agent.resources.limits.pids == 64
    assert (agent.restart.policy, agent.restart.backoff, agent.restart.max) == ("on-failure", 1.0, 5)
    assert agent.volumes == (Volume(source="/srv/data", target="/data", read_only=True),)
    assert (agent.stop.signal, agent.stop.grace) == ("SIGINT", 0.5)
    assert agent.capabilities == ("CAP_CHOWN",)


def test_a_spec_survives_the_api() -> None:
    for document in load(FULL, "x.yaml"):
        kind = "Tenant" if isinstance(document, TenantSpec) else "Agent"
        assert from_builtins(to_builtins(document), kind) == document  # type: ignore[arg-type]


WRONG = [
    # what is replaced, by what, the code, the place
    ("{cpu: 200m, m", "{cpuu: 200m, m", "unknown-field", "x.yaml:17: spec.resources.requests.cpuu"),
    ("  weight: 100", "  wieght: 100", "unknown-field", "x.yaml:15: spec.wieght"),
    ("labels:", "label:", "unknown-field", "x.yaml:8: metadata.label"),
    ("cpu: 200m", "cpu: -1", "invalid-quantity", "x.yaml:17: spec.resources.requests.cpu"),
    ("cpu: 200m", "cpu: 1e309", "invalid-quantity", "x.yaml:17: spec.resources.requests.cpu"),
    ("memory: 64Mi", "memory: 12Q", "invalid-quantity", "x.yaml:17: spec.resources.requests.memory"),
    ("memory: 64Mi", "memory: ~", "invalid-value", "x.yaml:17: spec.resources.requests.memory"),
    ("cpu: 200m", "cpu: .nan", "invalid-quantity", "x.yaml:17: spec.resources.requests.cpu"),
    ("cpu: 200m", "cpu: 1001m", "request-above-limit", "x.yaml:17: spec.resources.requests.cpu"),
    ("memory: 64Mi", "memory: 1Gi", "request-above-limit", "x.yaml:17: spec.resources.requests.memory"),
    ('cpu: "1"', "cpu: 1m", "invalid-quantity", "x.yaml:18: spec.resources.limits.cpu"),
    ("name: thermostat", "name: a/b", "invalid-name", "x.yaml:8: metadata.name"),
    ("name: thermostat", "name: ..", "invalid-name", "x.yaml:8: metadata.name"),
    ("name: thermostat", 'name: "a\\0b"', "invalid-name", "x.yaml:8: metadata.name"),
    ("name: thermostat", "name: " + "x" * 300, "invalid-name", "x.yaml:8: metadata.name"),
    ("name: thermostat", 'name: ""', "invalid-name", "x.yaml:8: metadata.name"),
    ("tenant: home", "tenant: ../etc", "invalid-name", "x.yaml:8: metadata.tenant"),
    ("image: task-agent", "image: ../../etc", "invalid-name", "x.yaml:11: spec.image"),
    ("image: task-agent", "image: a..b", "invalid-name", "x.yaml:11: spec.image"),
    ("  image: task-agent\n", "", "missing-field", "x.yaml:10: spec.image"),
    ("replicas: 1", "replicas: 1001", "out-of-range", "x.yaml:13: spec.replicas"),
    ("replicas: 1", "replicas: true", "invalid-value", "x.yaml:13: spec.replicas"),
    ("weight: 100", "weight: 0", "out-of-range", "x.yaml:15: spec.weight"),
    ("weight: 100", "weight: 10001", "out-of-range", "x.yaml:15: spec.weight"),
    ("weight: 100", "weight: 1.5", "invalid-value", "x.yaml:15: spec.weight"),
    ("priority: high", "priority: hihg", "invalid-value", "x.yaml:14: spec.priority"),
    ("replicas: 1", "replicas: 1\n  replicas: 2", "duplicate-field", "x.yaml:14: spec.replicas"),
    ('MODE: "1"', "MODE: 1", "invalid-value", "x.yaml:20: spec.env.MODE"),
    ("MODE:", "1MODE:", "invalid-name", "x.yaml:20: spec.env.1MODE"),
    ("source: /srv/data", "source: srv", "invalid-path", "x.yaml:21: spec.volumes[0].source"),
    ("source: /srv/data", "source: ./srv", "invalid-path", "x.yaml:21: spec.volumes[0].source"),
    ("target: /data", "target: /a/../b", "invalid-path", "x.yaml:21: spec.volumes[0].target"),
    ("target: /data", "target: /proc/x", "invalid-path", "x.yaml:21: spec.volumes[0].target"),
    ("target: /data", "target: /", "invalid-path", "x.yaml:21: spec.volumes[0].target"),
    ("signal: INT", "signal: SIGNOPE", "invalid-signal", "x.yaml:22: spec.stop.signal"),
    ("[chown]", "[SYS_ADMIN]", "invalid-capability", "x.yaml:23: spec.capabilities[0]"),
    ("command: [python3", 'command: ["py\\0"', "invalid-value", "x.yaml:12: spec.command[0]"),
    ("command: [python3", 'command: [""', "invalid-value", "x.yaml:12: spec.command"),
    ("kind: Agent", "kind: Agnet", "unknown-kind", "x.yaml:7: kind"),
    ("metadata: {name: thermostat, tenant: home, labels: {room: hall}}", "", "missing-field", "x.yaml:6"),
]


@pytest.mark.parametrize(("old", "new", "code", "where"), WRONG, ids=[f"{new[:24]!r}" for _, new, _, _ in WRONG])
def test_errors_name_code_line_and_path(old: str, new: str, code: str, where: str) -> None:
    assert old in FULL
    error = refusal(FULL.replace(old, new, 1) if old != "kind: Agent" else FULL.replace(old, new))
    assert (error.code, error.where, error.exit_status) == (code, where, 125)


def test_an_unknown_field_offers_the_nearest() -> None:
    assert str(refusal(FULL.replace("{cpu: 200m, m", "{cpuu: 200m, m"))).splitlines() == [
        'error[unknown-field]: unknown field "cpuu": x.yaml:17: spec.resources.requests.cpuu',
        "  hint: did you mean 'cpu'?",
    ]


def test_too_many_replicas_for_the_name() -> None:
    text = FULL.replace("name: thermostat", "name: " + "x" * 62).replace("replicas: 1", "replicas: 10")
    assert refusal(text).code == "invalid-name"


def test_the_same_agent_twice() -> None:
    agent = FULL.partition("---\n")[2]
    error = refusal(agent + "---\n" + agent)
    assert error.code == "duplicate-document"
    assert "first in line 1" in error.what


def test_program_and_environment_are_bounded_in_sum() -> None:
    text = FULL.replace("[python3, /app/agent.py]", "[" + ", ".join(["x" * 1000] * 70) + "]")
    assert refusal(text).code == "too-large"


def test_relative_volumes_belong_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    path = tmp_path / "p" / "x.yaml"
    path.write_text(FULL.replace("/srv/data", "../programs"))
    agent = load_file(str(path))[1]
    assert isinstance(agent, AgentSpec)
    assert agent.volumes[0].source == str(tmp_path / "programs")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(AgentosError) as caught:
        load_file(str(tmp_path / "absent.yaml"))
    assert (caught.value.code, caught.value.where) == ("cannot-read", str(tmp_path / "absent.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AgentosError, match="not a UTF-8 text"):
        load_file(str(tmp_path / "binary.yaml"))


def test_api_bodies_have_the_same_grammar_and_no_line() -> None:
    body = {"name": "a", "image": "b", "resources": {"requests": {"cpu": 2, "memory": "64Mi"}}}
    spec = from_builtins(body)
    assert isinstance(spec, AgentSpec)
    assert (spec.resources.requests.cpu, spec.resources.requests.memory) == (2000, 64 * 2**20)
    for wrong, where in (
        ({**body, "nme": 1}, "nme"),
        ({**body, "resources": {"requests": {"cpu": -1}}}, "resources.requests.cpu"),
        ({"name": "a"}, "image"),
        ({**body, "command": "sh"}, "command"),
    ):
        with pytest.raises(AgentosError) as caught:
            from_builtins(wrong)
        assert caught.value.where == where
    strange: list[object] = [None, [], "x", {1: 2}, {"name": float("nan")}, {"name": 10**400}, {"name": b"x"}]
    for nonsense in strange:
        with pytest.raises(AgentosError):
            from_builtins(nonsense)


def test_every_policy_of_the_project_is_valid() -> None:
    root = Path(__file__).resolve().parents[2] / "policies"
    found = [path for path in os.listdir(root) if path.endswith(".yaml")]
    assert len(found) >= 4
    for name in found:
        assert load_file(str(root / name))
