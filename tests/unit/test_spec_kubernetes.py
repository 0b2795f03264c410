"""Kubernetes' manifests: what maps, and that what does not is named rather than dropped."""

from __future__ import annotations

import pytest

from agentos_native.errors import AgentosError
from agentos_native.spec import load
from agentos_native.spec.model import AgentSpec, NetworkRates, Volume

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: my-agent
spec:
  replicas: 3
  selector:
    matchLabels:
      app: my-agent
  template:
    metadata:
      labels:
        app: my-agent
    spec:
      containers:
      - name: my-agent
        image: my-agent:latest
        resources:
          requests:
            cpu: 100m
            memory: 128Mi
          limits:
            cpu: 200m
            memory: 256Mi
"""
POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: helper
  namespace: home
  annotations: {agentos/type: dialogue, agentos/weight: "300"}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 3
  activeDeadlineSeconds: 60
  hostname: box
  securityContext: {runAsUser: 1000, runAsGroup: 1001}
  volumes: [{name: data, hostPath: {path: /srv}}]
  containers:
  - name: main
    image: python
    command: [python3]
    args: [-V]
    workingDir: /tmp
    env: [{name: A, value: b}, {name: E}]
    resources: {limits: {cpu: 500m}}
    volumeMounts: [{name: data, mountPath: /data, readOnly: true}]
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"""


def agent(text: str) -> AgentSpec:
    (document,) = load(text, "x.yaml")
    assert isinstance(document, AgentSpec)
    return document


def test_a_deployment() -> None:
    spec = agent(DEPLOYMENT)
    assert (spec.name, spec.image, spec.replicas, spec.labels) == (
        "my-agent",
        "my-agent:latest",
        3,
        {"app": "my-agent"},
    )
    assert (spec.resources.requests.cpu, spec.resources.requests.memory) == (100, 128 * 2**20)
    assert (spec.resources.limits.cpu, spec.resources.limits.memory) == (200, 256 * 2**20)
    assert spec.restart.policy == "always"


def test_a_pod() -> None:
    spec = agent(POD)
    assert (spec.name, spec.tenant, spec.type, spec.weight) == ("helper", "home", "dialogue", 300)
    assert (spec.command, spec.args, spec.workdir) == (("python3",), ("-V",), "/tmp")
    assert spec.env == {"A": "b", "E": ""}
    assert (spec.restart.policy, spec.stop.grace, spec.timeout) == ("never", 3.0, 60.0)
    assert spec.volumes == (Volume(source="/srv", target="/data", read_only=True),)
    assert (spec.user, spec.read_only, spec.hostname) == ("1000:1001", True, "box")


def test_a_limit_without_a_request_is_its_request() -> None:
    assert agent(POD).resources.requests.cpu == 500


WRONG = [
    (
        "image: python",
        "image: python\n    ports: [{containerPort: 80}]",
        "unsupported-field",
        "spec.containers[0].ports",
    ),
    ("hostname: box", "nodeSelector: {a: b}", "unsupported-field", "spec.nodeSelector"),
    ("hostname: box", "hostnme: box", "unknown-field", "spec.hostnme"),
    ("hostname: box", "hostNetwork: true", "unsupported-field", "spec.hostNetwork"),
    (
        "allowPrivilegeEscalation: false",
        "privileged: true",
        "unsupported-field",
        "spec.containers[0].securityContext.privileged",
    ),
    (
        "{drop: [ALL]}",
        "{add: [SYS_ADMIN]}",
        "invalid-capability",
        "spec.containers[0].securityContext.capabilities.add[0]",
    ),
    ("{name: A, value: b}", "{name: A, valueFrom: {}}", "unsupported-field", "spec.containers[0].env[0].valueFrom"),
    ("{name: data, mountPath", "{name: dta, mountPath", "invalid-value", "spec.containers[0].volumeMounts[0].name"),
    ("hostPath: {path: /srv}", "emptyDir: {}", "unknown-field", "spec.volumes[0].emptyDir"),
    ("restartPolicy: Never", "restartPolicy: Sometimes", "invalid-value", "spec.restartPolicy"),
    ('"300"', '"many"', "invalid-value", "metadata.annotations.agentos/weight"),
    ("{limits: {cpu: 500m}}", "{limits: {cpu: 12Q}}", "invalid-quantity", "spec.containers[0].resources.limits.cpu"),
    ("runAsUser: 1000, ", "", "unsupported-field", "spec.securityContext.runAsGroup"),
    ("    image: python\n", "", "missing-field", "spec.containers[0].image"),
    (
        "image: python",
        "image: python\n    imagePullPolicy: Always",
        "unsupported-field",
        "spec.containers[0].imagePullPolicy",
    ),
]


@pytest.mark.parametrize(("old", "new", "code", "path"), WRONG, ids=[path for *_, path in WRONG])
def test_what_does_not_map_is_named(old: str, new: str, code: str, path: str) -> None:
    assert old in POD
    with pytest.raises(AgentosError) as caught:
        load(POD.replace(old, new, 1), "x.yaml")
    assert caught.value.code == code
    assert caught.value.where.partition(": ")[2] == path
    assert caught.value.where.startswith("x.yaml:")


def test_two_containers_are_two_agents() -> None:
    with pytest.raises(AgentosError, match="2 containers"):
        load(POD + "  - {name: b, image: c}\n", "x.yaml")


def test_a_selector_that_selects_nothing() -> None:
    with pytest.raises(AgentosError, match="no such label"):
        load(DEPLOYMENT.replace("      app: my-agent\n  template", "      app: other\n  template"), "x.yaml")


def test_a_deployment_that_shall_not_restart() -> None:
    with pytest.raises(AgentosError, match="must be Always"):
        load(DEPLOYMENT.replace("      containers:", "      restartPolicy: Never\n      containers:"), "x.yaml")


@pytest.mark.parametrize("text", ["10M", "10000000", '"10M"'])
def test_bandwidth_annotations_are_limits(text: str) -> None:
    annotations = f"  annotations: {{kubernetes.io/egress-bandwidth: {text}, kubernetes.io/ingress-bandwidth: 1G}}"
    (spec,) = load(POD.replace('  annotations: {agentos/type: dialogue, agentos/weight: "300"}', annotations))
    assert isinstance(spec, AgentSpec)
    assert spec.resources.limits.network == NetworkRates(egress=10_000_000, ingress=1_000_000_000)
    assert spec.resources.limits.cpu == 500
    assert spec.resources.requests.network is None
    template = DEPLOYMENT.replace("    metadata:\n", f"    metadata:\n    {annotations}\n", 1)
    (spec,) = load(template)
    assert isinstance(spec, AgentSpec)
    assert spec.resources.limits.network == NetworkRates(egress=10_000_000, ingress=1_000_000_000)
    assert spec.resources.limits.memory == 256 << 20


def test_a_bandwidth_that_is_none_is_named() -> None:
    bad = POD.replace("agentos/type: dialogue", "kubernetes.io/egress-bandwidth: fast")
    with pytest.raises(AgentosError, match=r"kubernetes\.io/egress-bandwidth") as caught:
        load(bad)
    assert "10M" in caught.value.hint
