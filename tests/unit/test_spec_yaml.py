"""The YAML reader: bounded, strict about keys, and never anything but `AgentosError`."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.spec import load
from agentos_native.spec.tree import Node
from agentos_native.spec.yamltree import documents


def one(text: str) -> Node:
    (node,) = documents(text, "x.yaml")
    return node


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        *(("12", "int", 12), ("0x1f", "int", 31), ("0o17", "int", 15), ("010", "int", 10), ("1.5", "float", 1.5)),
        *(("1e3", "float", 1000.0), ("true", "bool", True), ("yes", "str", "yes"), ("on", "str", "on")),
        *(("1:30", "str", "1:30"), ('"12"', "str", "12"), ("!!str 12", "str", "12"), ("|\n  a\n", "str", "a\n")),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, kind: str, value: object) -> None:
    node = one(text)
    assert (node.kind, node.scalar) == (kind, value)


def test_lines_and_paths() -> None:
    node = one("a:\n  - b: 1\n  - c:\n      d: 2\n")
    inner = node.entries["a"].items[1].entries["c"].entries["d"]
    assert (inner.place.line, inner.place.path) == (4, "a[1].c.d")


def test_several_documents_and_empty_ones() -> None:
    assert [node.scalar for node in documents("1\n---\n---\n2\n", "x")] == [1, 2]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *(("a: [1", "invalid-yaml"), ("a: 1\na: 2", "duplicate-field"), ("{a: 1, 'a': 2}", "duplicate-field")),
        *(("a: *b", "invalid-yaml"), ("&a [*a]", "invalid-yaml"), ("!!python/object:os.system x", "invalid-yaml")),
        *(
            ("? [1]\n: 2", "invalid-yaml"),
            ("\x00", "invalid-yaml"),
            ("\ud800", "invalid-yaml"),
            ("a:\n\tb: 1", "invalid-yaml"),
        ),
        *(("- " * 5000, "too-deep"), ("[" * 5000, "too-deep"), ("%YAML 9.9\n---\na", "invalid-yaml")),
        *(("? " + "x" * 2000 + "\n: 1", "too-large"), ("!!set {a}", "invalid-yaml"), ("!!binary aGk=", "invalid-yaml")),
    ],
)
def test_refusals(text: str, code: str) -> None:
    with pytest.raises(AgentosError) as caught:
        documents(text, "x.yaml")
    assert caught.value.code == code
    assert caught.value.where.startswith("x.yaml")


def test_an_alias_bomb_stops_early() -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    bomb += "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
    with pytest.raises(AgentosError) as caught:
        documents(bomb, "x.yaml")
    assert caught.value.code == "too-large"
    assert "alias" in caught.value.hint


def test_an_alias_means_what_it_names() -> None:
    node = one("a: &x {b: 1}\nc: *x\n")
    assert node.entries["c"].entries["b"].scalar == 1


def test_the_hint_finds_a_missing_colon() -> None:
    with pytest.raises(AgentosError) as caught:
        documents("kind: Deployment\nmeta\n  name: my-agent\n", "x.yaml")
    assert "'meta'" in caught.value.hint
    assert caught.value.where == "x.yaml:3"


@settings(max_examples=400)
@given(st.text(st.characters(), max_size=400))
@example("a: !<x> 1")
@example("\x85")
@example("%TAG ! x\n---\n!a b")
def test_nothing_but_an_agentos_error_on_any_text(text: str) -> None:
    try:
        load(text, "x")
    except AgentosError as error:
        assert error.where.startswith("x")


WORDS = st.sampled_from(
    [
        *(
            "apiVersion",
            "kind",
            "metadata",
            "spec",
            "agentos/v1",
            "apps/v1",
            "v1",
            "Agent",
            "Tenant",
            "Deployment",
            "Pod",
        ),
        *(
            "name",
            "tenant",
            "image",
            "resources",
            "requests",
            "limits",
            "cpu",
            "memory",
            "template",
            "containers",
            "env",
        ),
        *(
            "volumes",
            "volumeMounts",
            "securityContext",
            "restart",
            "-1",
            "1e309",
            "12Q",
            "200m",
            "64Mi",
            "a",
            "1",
            "null",
        ),
    ]
)
VALUES = st.recursive(
    WORDS | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=20,
)


@settings(max_examples=300)
@given(
    st.dictionaries(WORDS, VALUES, max_size=6),
    st.sampled_from(["agentos/v1 Agent", "agentos/v1 Tenant", "apps/v1 Deployment", "v1 Pod"]),
)
def test_nothing_but_an_agentos_error_on_any_structure(value: dict[str, object], head: str) -> None:
    import json

    version, kind = head.split()
    text = json.dumps({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": value})
    try:
        load(text, "x")
    except AgentosError as error:
        assert str(error).startswith("error[")
