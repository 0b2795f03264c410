"""Texts, files and API bodies → `Document`s: the native kinds of ``agentos/v1``, Kubernetes' by `spec.kubernetes`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.spec import check, decode, kubernetes, model, quantities, yamltree
from agentos_native.spec.model import AgentSpec, Document, TenantSpec
from agentos_native.spec.tree import Node, Place, clip, expect, fail, from_object, nearest, only

API_VERSION: Final = "agentos/v1"
DocumentKind = Literal["Agent", "Tenant"]
_METADATA: Final = {"Agent": ("name", "tenant", "labels"), "Tenant": ("name",)}


def load(text: str, origin: str = "", base: str | None = None) -> list[Document]:
    """Parse every document of `text`.

    Args:
        text: YAML (JSON is a part of it).
        origin: the text's name in errors, usually its path.
        base: a directory; volume sources that begin with ``./`` or ``../`` are resolved against it. None refuses them.

    Raises `AgentosError`, and nothing else, for whatever is wrong, with line and path.
    """
    parsed = [(_document(node, base), node.place) for node in yamltree.documents(text, origin)]
    if not parsed:
        raise AgentosError(
            "empty-document", "no document found", origin, "write at least one with apiVersion, kind and metadata"
        )
    check.check_distinct(parsed)
    return [document for document, _ in parsed]


def load_file(path: str) -> list[Document]:
    """`load` of a file; sources of volumes are relative to its directory. Raises ``cannot-read`` where that fails."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(yamltree.MAX_TEXT + 1)
    except OSError as error:
        raise AgentosError("cannot-read", error.strerror or str(error), path)
    except UnicodeDecodeError:
        raise AgentosError("invalid-yaml", "not a UTF-8 text", path)
    return load(text, path, os.path.dirname(os.path.abspath(path)))


def from_builtins(obj: Any, kind: DocumentKind = "Agent") -> Document:
    """A spec from the body of an API request: one flat mapping, with the same words and quantities as YAML."""
    node = expect(from_object(obj, Place()), "map")
    if kind == "Tenant":
        return check.check_tenant(decode.decode(node, TenantSpec), dict(node.entries), node.place)
    return check.check_agent(decode.decode(node, AgentSpec), dict(node.entries), node.place)


def agent_from_builtins(obj: Any) -> AgentSpec:
    """`from_builtins` where only an agent will do."""
    document = from_builtins(obj, "Agent")
    assert isinstance(document, AgentSpec)
    return document


def agent_from_nodes(fields: dict[str, Node]) -> AgentSpec:
    """An agent from fields whose places are not those of one text, for example options of a command line."""
    place = Place()
    only(Node("map", place, entries=fields), decode.fields_of(AgentSpec))
    return check.check_agent(decode.build(AgentSpec, fields, place), fields, place)


def to_builtins(document: Document) -> dict[str, Any]:
    """The inverse of `from_builtins`: camelCase, defaults left out, CPU as a quantity (``"200m"``), memory in bytes."""
    return _fields(document)


def _encode(part: Any) -> Any:
    if isinstance(part, model.IoLimits | model.Requests | model.Limits | model.TenantLimits):
        encoded = _fields(part)
        if "cpu" in encoded:
            encoded["cpu"] = quantities.format_cpu(encoded["cpu"])
        return encoded
    if isinstance(part, tuple):
        return [_encode(item) for item in part]
    return _fields(part) if isinstance(part, msgspec.Struct) else part


def _fields(part: msgspec.Struct) -> dict[str, Any]:
    """Only what differs from the defaults."""
    encoded = {}
    for written, (attribute, _, required) in decode.fields_of(type(part)).items():
        value = getattr(part, attribute)
        if required or value != _default(type(part), attribute):
            encoded[written] = _encode(value)
    return encoded


@functools.cache  # msgspec looks at every annotation of a class anew: 60 ms for one agent on a busy machine
@functools.cache
def _default(cls: type[msgspec.Struct], attribute: str) -> Any:
    """Kept: `msgspec.structs.fields` resolves every annotation anew, which takes 20 ms for a whole spec."""
    field = next(info for info in msgspec.structs.fields(cls) if info.name == attribute)
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _document(node: Node, base: str | None) -> Document:
    expect(node, "map")
    version, kind = _word(node, "apiVersion"), _word(node, "kind")
    readers: dict[tuple[str, str], Callable[[Node], tuple[dict[str, Node], Node]]] = {
        ("apps/v1", "Deployment"): kubernetes.deployment,
        ("v1", "Pod"): kubernetes.pod,
        (API_VERSION, "Agent"): _native,
        (API_VERSION, "Tenant"): _native,
    }
    if (version.text, kind.text) not in readers:
        known = [f"{v} {k}" for v, k in readers]
        word = f"{version.text} {kind.text}"
        hint = nearest(word, known)
        raise fail("unknown-kind", f"documents of {clip(word)} are not known", kind.place, hint)
    fields, spec = readers[version.text, kind.text](node)
    if base is not None and "volumes" in fields:
        fields["volumes"] = _resolve(fields["volumes"], base)
    if kind.text == "Tenant":
        return check.check_tenant(decode.build(TenantSpec, fields, spec.place), fields, spec.place)
    return check.check_agent(decode.build(AgentSpec, fields, spec.place), fields, spec.place)


def _word(node: Node, key: str) -> Node:
    if key not in node.entries:
        hint = "every document begins with apiVersion: agentos/v1 and kind: Agent or Tenant"
        raise fail("missing-field", f"{key!r} is missing", node.place, hint)
    return expect(node.entries[key], "str")


def _native(node: Node) -> tuple[dict[str, Node], Node]:
    """The fields of metadata and spec together, and the node whose place stands for what is missing."""
    only(node, ("apiVersion", "kind", "metadata", "spec"))
    kind = node.entries["kind"].text
    cls = AgentSpec if kind == "Agent" else TenantSpec
    if "metadata" not in node.entries:
        raise fail("missing-field", "'metadata' is missing", node.place, "metadata: {name: …}")
    metadata = node.entries["metadata"]
    only(metadata, _METADATA[kind])
    if "name" not in metadata.entries:
        raise fail("missing-field", "'name' is missing", metadata.place.child("name"))
    spec = node.entries.get("spec", Node("map", node.place.child("spec")))
    if spec.kind == "null" and kind == "Tenant":
        spec = Node("map", spec.place)
    only(spec, (field for field in decode.fields_of(cls) if field not in _METADATA[kind]))
    return {**spec.entries, **metadata.entries}, spec


def _resolve(volumes: Node, base: str) -> Node:
    """`volumes` with relative sources made absolute."""
    items = []
    for volume in expect(volumes, "list").items:
        source = volume.entries.get("source")
        if source is not None and source.kind == "str" and source.text.split("/")[0] in (".", ".."):
            path = os.path.normpath(os.path.join(base, source.text))
            moved = Node("str", source.place, path, path)
            volume = Node("map", volume.place, entries={**volume.entries, "source": moved})  # noqa: PLW2901
        items.append(volume)
    return Node("list", volumes.place, items=tuple(items))
