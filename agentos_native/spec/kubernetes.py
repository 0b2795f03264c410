"""Kubernetes' ``apps/v1 Deployment`` and ``v1 Pod``, as far as they say the same as an agent's own spec.

A field that this product cannot honour is an error, never ignored: a manifest that is accepted means here what it means
there. Namespaces become tenants, a Deployment's replicas become agents, a limit without a request is its request too
(Kubernetes' rule). The agent's own words travel in annotations: ``agentos/type``, ``agentos/weight``,
``agentos/priority``, ``agentos/network``. Limits of the network have the annotations that Kubernetes' bandwidth plugin
reads.
"""

from __future__ import annotations

from typing import Any, Final

from agentos_native.spec.tree import Node, Place, clip, expect, fail, nearest, only

_ANNOTATIONS: Final = ("agentos/type", "agentos/weight", "agentos/priority", "agentos/network")
_BANDWIDTH: Final = {"kubernetes.io/egress-bandwidth": "egress", "kubernetes.io/ingress-bandwidth": "ingress"}
_RESTART: Final = {"Always": "always", "OnFailure": "on-failure", "Never": "never"}
_HOST_FLAGS: Final = ("hostNetwork", "hostPID", "hostIPC", "automountServiceAccountToken")
_POD: Final = (
    *("containers", "restartPolicy", "terminationGracePeriodSeconds", "hostname", "volumes", "priorityClassName"),
    *("securityContext", "activeDeadlineSeconds", *_HOST_FLAGS),
)
_CONTAINER: Final = (
    *("name", "image", "imagePullPolicy", "command", "args", "env", "resources", "workingDir", "stdin", "tty"),
    *("volumeMounts", "securityContext"),
)
_POD_SECURITY: Final = ("runAsUser", "runAsGroup", "runAsNonRoot")
_SECURITY: Final = (
    *("runAsUser", "runAsGroup", "readOnlyRootFilesystem", "allowPrivilegeEscalation", "privileged", "capabilities"),
)
_UNSUPPORTED: Final = {
    "initContainers": "an agent is one program; prepare its files in the image",
    "ports": "an agent's ports are reached at its own address; nothing is published",
    "livenessProbe": "probes are not supported; the restart policy watches the program's exit",
    "readinessProbe": "probes are not supported; the restart policy watches the program's exit",
    "valueFrom": "there are no config maps and secrets; write the value",
    "envFrom": "there are no config maps and secrets; write the values under env",
    "strategy": "an update stops an agent and starts it anew",
    "nodeSelector": "there is one node",
    "serviceAccountName": "there are no service accounts",
}


def deployment(node: Node) -> tuple[dict[str, Node], Node]:
    """The fields of an `AgentSpec` in a Deployment, and the node of its spec."""
    _only(node, ("apiVersion", "kind", "metadata", "spec"))
    fields = _metadata(_required(node, "metadata"))
    spec = _required(node, "spec")
    _only(spec, ("replicas", "selector", "template"))
    template = _required(spec, "template")
    _only(template, ("metadata", "spec"))
    inner = template.entries.get("metadata", Node("map", template.place.child("metadata")))
    _only(inner, ("labels", "annotations", "name"))
    labels = inner.entries.get("labels", Node("map", inner.place.child("labels")))
    _check_selector(spec, expect(labels, "map"))
    if labels.entries:
        fields["labels"] = labels
    fields.update(_annotations(inner))
    pod_spec = _required(template, "spec")
    fields.update(_pod_fields(pod_spec))
    if fields["restart"].entries["policy"].text != "always":
        raise fail(
            "invalid-value",
            "a Deployment's restartPolicy must be Always",
            pod_spec.at("restartPolicy"),
            "use a Pod instead",
        )
    if "replicas" in spec.entries:
        fields["replicas"] = spec.entries["replicas"]
    return _with_bandwidth(fields), spec


def pod(node: Node) -> tuple[dict[str, Node], Node]:
    """The fields of an `AgentSpec` in a Pod, and the node of its spec."""
    _only(node, ("apiVersion", "kind", "metadata", "spec"))
    spec = _required(node, "spec")
    return _with_bandwidth({**_metadata(_required(node, "metadata")), **_pod_fields(spec)}), spec


def _only(node: Node, known: tuple[str, ...]) -> None:
    """Like `tree.only`, with a reason for the fields that Kubernetes knows and this product does not."""
    for key, value in expect(node, "map").entries.items():
        if key not in known:
            if key in _UNSUPPORTED:
                raise fail("unsupported-field", f"field {clip(key)} is not supported", value.place, _UNSUPPORTED[key])
            raise fail("unknown-field", f"unknown or unsupported field {clip(key)}", value.place, nearest(key, known))


def _required(node: Node, key: str) -> Node:
    if key not in expect(node, "map").entries:
        raise fail("missing-field", f"{key!r} is missing", node.place.child(key))
    return expect(node.entries[key], "map")


def _made(value: Any, place: Place) -> Node:
    """A node that stands for something the manifest says in other words."""
    if isinstance(value, Node):
        return value
    if isinstance(value, dict):
        return Node("map", place, entries={key: _made(entry, place) for key, entry in value.items()})
    return Node("str", place, str(value), str(value))


def _metadata(metadata: Node) -> dict[str, Node]:
    _only(metadata, ("name", "namespace", "labels", "annotations"))
    if "name" not in metadata.entries:
        raise fail("missing-field", "'name' is missing", metadata.place.child("name"))
    fields = {"name": metadata.entries["name"], **_annotations(metadata)}
    if "namespace" in metadata.entries:
        fields["tenant"] = metadata.entries["namespace"]
    if "labels" in metadata.entries:
        fields["labels"] = metadata.entries["labels"]
    return fields


def _annotations(metadata: Node) -> dict[str, Node]:
    annotations = metadata.entries.get("annotations")
    if annotations is None:
        return {}
    only(annotations, (*_ANNOTATIONS, *_BANDWIDTH))
    words = {key: expect(value, "str", "int") for key, value in annotations.entries.items()}
    fields = {key.partition("/")[2]: expect(words[key], "str") for key in _ANNOTATIONS if key in words}
    if rates := {_BANDWIDTH[key]: value for key, value in words.items() if key in _BANDWIDTH}:
        fields["bandwidth"] = Node("map", annotations.place, entries=rates)
    weight = fields.get("weight")
    if weight is not None:  # annotations are strings in Kubernetes
        if not (weight.text.isascii() and weight.text.isdigit() and len(weight.text) < 10):
            raise fail("invalid-value", f"expected a whole number, got {weight.describe()}", weight.place)
        fields["weight"] = Node("int", weight.place, weight.text, int(weight.text))
    return fields


def _with_bandwidth(fields: dict[str, Node]) -> dict[str, Node]:
    """The annotations' rates as limits beside those of the container."""
    rates = fields.pop("bandwidth", None)
    if rates is not None:
        resources = fields.get("resources", Node("map", rates.place))
        limits = resources.entries.get("limits", Node("map", rates.place))
        limits = Node("map", limits.place, entries={**limits.entries, "network": rates})
        fields["resources"] = Node("map", resources.place, entries={**resources.entries, "limits": limits})
    return fields


def _check_selector(spec: Node, labels: Node) -> None:
    selector = spec.entries.get("selector")
    if selector is None:
        return
    _only(selector, ("matchLabels",))
    wanted = selector.entries.get("matchLabels", Node("map", selector.place))
    for key, value in expect(wanted, "map").entries.items():
        if key not in labels.entries or labels.entries[key].text != value.text:
            raise fail(
                "invalid-value",
                f"the selector asks for {key}={value.text}, the template has no such label",
                value.place,
            )


def _pod_fields(spec: Node) -> dict[str, Node]:
    _only(spec, _POD)
    containers = spec.entries.get("containers")
    if containers is None:
        raise fail("missing-field", "'containers' is missing", spec.place.child("containers"))
    if len(expect(containers, "list").items) != 1:
        hint = "an agent is one program; write a document for each"
        raise fail("unsupported-field", f"{len(containers.items)} containers", containers.place, hint)
    for key in _HOST_FLAGS:
        _must_be_false(spec, key)
    container = expect(containers.items[0], "map")
    fields = _container_fields(container, spec)
    policy = spec.entries.get("restartPolicy", _made("Always", spec.place.child("restartPolicy")))
    if policy.text not in _RESTART:
        raise fail(
            "invalid-value",
            f"{clip(policy.text)} is not one of {', '.join(_RESTART)}",
            policy.place,
            nearest(policy.text, _RESTART),
        )
    fields["restart"] = _made({"policy": _RESTART[policy.text]}, policy.place)
    if grace := spec.entries.get("terminationGracePeriodSeconds"):
        fields["stop"] = _made({"grace": grace}, grace.place)
    for written, field in (
        ("hostname", "hostname"),
        ("activeDeadlineSeconds", "timeout"),
        ("priorityClassName", "priority"),
    ):
        if written in spec.entries:
            fields[field] = spec.entries[written]
    return fields


def _must_be_false(node: Node, key: str) -> None:
    if (value := node.entries.get(key)) is not None and expect(value, "bool").scalar:
        raise fail(
            "unsupported-field",
            f"{key}: true is not supported",
            value.place,
            "an agent always has namespaces of its own",
        )


def _container_fields(container: Node, spec: Node) -> dict[str, Node]:
    _only(container, _CONTAINER)
    if "image" not in container.entries:
        raise fail("missing-field", "'image' is missing", container.place.child("image"))
    policy = container.entries.get("imagePullPolicy")
    if policy is not None and policy.text not in ("Never", "IfNotPresent"):
        raise fail(
            "unsupported-field",
            f"imagePullPolicy {clip(policy.text)}",
            policy.place,
            "images are local: Never or IfNotPresent",
        )
    fields = {
        field: container.entries[written]
        for written, field in (
            *((key, key) for key in ("image", "command", "args", "stdin", "tty")),
            ("workingDir", "workdir"),
        )
        if written in container.entries
    }
    if "env" in container.entries:
        fields["env"] = _env(container.entries["env"])
    if "resources" in container.entries:
        fields["resources"] = _resources(container.entries["resources"])
    if "volumeMounts" in container.entries or "volumes" in spec.entries:
        fields["volumes"] = _volumes(container, spec)
    fields.update(_security(container, spec))
    return fields


def _env(node: Node) -> Node:
    entries: dict[str, Node] = {}
    for item in expect(node, "list").items:
        _only(item, ("name", "value"))
        if "name" not in item.entries:
            raise fail("missing-field", "'name' is missing", item.place.child("name"))
        name = expect(item.entries["name"], "str").text
        if name in entries:
            raise fail("duplicate-field", f"environment variable {clip(name)} given twice", item.place)
        entries[name] = item.entries.get("value", _made("", item.place))
    return Node("map", node.place, entries=entries)


def _resources(node: Node) -> Node:
    _only(node, ("requests", "limits"))
    sides = {}
    for side in ("requests", "limits"):
        given = node.entries.get(side, Node("map", node.place.child(side)))
        _only(given, ("cpu", "memory"))
        sides[side] = given
    limits, requests = sides["limits"], sides["requests"]
    filled = Node("map", requests.place, entries={**limits.entries, **requests.entries})
    return Node("map", node.place, entries={"requests": filled, "limits": limits})


def _volumes(container: Node, spec: Node) -> Node:
    """hostPath volumes joined with their mounts."""
    sources: dict[str, Node] = {}
    for volume in expect(spec.entries.get("volumes", Node("list", spec.place)), "list").items:
        _only(volume, ("name", "hostPath"))
        path = _required(volume, "hostPath")
        _only(path, ("path", "type"))
        for key, owner in (("name", volume), ("path", path)):
            if key not in owner.entries:
                raise fail("missing-field", f"{key!r} is missing", owner.place.child(key))
        if (kind := path.entries.get("type")) is not None and kind.text not in ("", "Directory", "File"):
            raise fail(
                "unsupported-field", f"hostPath type {clip(kind.text)}", kind.place, "use Directory, File or none"
            )
        sources[expect(volume.entries["name"], "str").text] = path.entries["path"]
    mounts = container.entries.get("volumeMounts", Node("list", container.place))
    joined = []
    for mount in expect(mounts, "list").items:
        _only(mount, ("name", "mountPath", "readOnly"))
        for key in ("name", "mountPath"):
            if key not in mount.entries:
                raise fail("missing-field", f"{key!r} is missing", mount.place.child(key))
        name = mount.entries["name"]
        if name.text not in sources:
            raise fail(
                "invalid-value", f"no volume is named {clip(name.text)}", name.place, nearest(name.text, sources)
            )
        entries = {"source": sources[name.text], "target": mount.entries["mountPath"]}
        if "readOnly" in mount.entries:
            entries["readOnly"] = mount.entries["readOnly"]
        joined.append(Node("map", mount.place, entries=entries))
    return Node("list", mounts.place, items=tuple(joined))


def _security(container: Node, spec: Node) -> dict[str, Node]:
    """securityContext of pod and container: the container's wins."""
    fields: dict[str, Node] = {}
    ids: dict[str, Node] = {}
    for owner, known in ((spec, _POD_SECURITY), (container, _SECURITY)):
        context = owner.entries.get("securityContext", Node("map", owner.place))
        _only(context, known)
        for key in ("runAsUser", "runAsGroup"):
            if key in context.entries:
                ids[key] = expect(context.entries[key], "int")
        for key in ("allowPrivilegeEscalation", "privileged"):
            _must_be_false(context, key)
        non_root = context.entries.get("runAsNonRoot")
        if (
            non_root is not None
            and expect(non_root, "bool").scalar
            and ids.get("runAsUser", non_root).scalar in (0, True)
        ):
            raise fail("unsupported-field", "runAsNonRoot needs a runAsUser here", non_root.place)
        if "readOnlyRootFilesystem" in context.entries:
            fields["readOnly"] = context.entries["readOnlyRootFilesystem"]
        if (capabilities := context.entries.get("capabilities")) is not None:
            _only(capabilities, ("add", "drop"))  # none are kept by default, so dropping asks for what is there already
            if "add" in capabilities.entries:
                fields["capabilities"] = capabilities.entries["add"]
    if "runAsUser" in ids:
        user = ids["runAsUser"]
        group = f":{ids['runAsGroup'].text}" if "runAsGroup" in ids else ""
        fields["user"] = _made(user.text + group, user.place)
    elif "runAsGroup" in ids:
        raise fail("unsupported-field", "runAsGroup without runAsUser", ids["runAsGroup"].place)
    return fields
