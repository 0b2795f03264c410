"""Values together with the place they were written at, so that every complaint can name line and path.

YAML and the builtins of an API body both become a tree of `Node`; everything behind this file sees only that.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from agentos_native.errors import AgentosError

MAX_DEPTH: Final = 64
MAX_NODES: Final = 100_000
"""Nodes of one text after its aliases are expanded: an alias bomb stops here, not in memory."""

Kind = Literal["null", "bool", "int", "float", "str", "list", "map"]
_WORDS: Final[dict[Kind, str]] = {
    "null": "nothing",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "list": "a list",
    "map": "a mapping",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: the text's name, its line (0: unknown) and the path within the document."""

    origin: str = ""
    line: int = 0
    path: str = ""

    def child(self, key: str, line: int | None = None) -> Place:
        """The place of a mapping's `key`."""
        shown = key if key.isprintable() and len(key) <= 80 else repr(key[:80])
        path = f"{self.path}.{shown}" if self.path else shown
        return Place(self.origin, self.line if line is None else line, path)

    def item(self, index: int, line: int | None = None) -> Place:
        """The place of a list's item."""
        return Place(self.origin, self.line if line is None else line, f"{self.path}[{index}]")

    def __str__(self) -> str:
        head = self.origin
        if self.line:
            head = f"{head}:{self.line}" if head else f"line {self.line}"
        return ": ".join(part for part in (head, self.path) if part)


@dataclass(frozen=True, slots=True)
class Node:
    """One value. `text` is a scalar as it was written (quantities are read from it); lists and mappings have none."""

    kind: Kind
    place: Place
    text: str = ""
    scalar: bool | int | float | str | None = None
    items: tuple[Node, ...] = ()
    entries: Mapping[str, Node] = field(default_factory=dict)

    def describe(self) -> str:
        """What the user wrote, for an error."""
        if self.kind in ("null", "list", "map"):
            return _WORDS[self.kind]
        return f"{_WORDS[self.kind]} ({clip(self.text)})"

    def at(self, *path: str) -> Place:
        """The place of the value at `path` below this mapping, or of the deepest mapping on the way that exists."""
        node, place = self, self.place
        for key in path:
            place = place.child(key)
            if key in node.entries:
                node = node.entries[key]
                place = node.place
        return place


def clip(text: str, length: int = 60) -> str:
    """`text` quoted and shortened for an error message: control characters escaped, never longer than `length`."""
    shown = text if len(text) <= length else text[: length - 1] + "…"
    return f'"{shown}"' if shown.isprintable() and '"' not in shown else repr(shown)


def fail(code: str, what: str, place: Place, hint: str = "") -> AgentosError:
    """An error at a place; the caller raises it."""
    return AgentosError(code, what, str(place), hint)


def expect(node: Node, *kinds: Kind) -> Node:
    """`node` itself when it is of one of `kinds`; raises ``invalid-value`` otherwise."""
    if node.kind in kinds:
        return node
    wanted = " or ".join(_WORDS[kind] for kind in kinds)
    hint = f'put it in quotes: "{node.text}"' if "str" in kinds and node.kind in ("int", "float", "bool") else ""
    raise fail("invalid-value", f"expected {wanted}, got {node.describe()}", node.place, hint)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that offers the nearest known word, or lists all of them when none is near."""
    choices = sorted(known)
    if near := difflib.get_close_matches(word[:100], choices, 1, 0.6):
        return f"did you mean {near[0]!r}?"
    return "known here: " + ", ".join(choices) if choices else ""


def only(node: Node, known: Iterable[str], code: str = "unknown-field") -> None:
    """Raises ``unknown-field`` for the first entry of a mapping that is not one of `known`."""
    choices = tuple(known)
    for key, value in expect(node, "map").entries.items():
        if key not in choices:
            raise fail(code, f"unknown field {clip(key)}", value.place, nearest(key, choices))


def from_object(value: Any, place: Place, _depth: int = 0) -> Node:
    """The tree of plain builtins (a decoded JSON body). Raises `AgentosError` on anything that JSON cannot hold."""
    if _depth > MAX_DEPTH:
        raise fail("too-deep", f"more than {MAX_DEPTH} levels of nesting", place)
    if isinstance(value, list | tuple):
        items = tuple(from_object(item, place.item(i), _depth + 1) for i, item in enumerate(value))
        return Node("list", place, items=items)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise fail("invalid-value", f"a field name that is not a string: {key!r}", place)
        entries = {key: from_object(item, place.child(key), _depth + 1) for key, item in value.items()}
        return Node("map", place, entries=entries)
    return _scalar(value, place)


def _scalar(value: Any, place: Place) -> Node:
    match value:
        case None:
            return Node("null", place)
        case bool():
            return Node("bool", place, str(value).lower(), value)
        case int() if value.bit_length() <= 512:  # str() of a very long int is refused by Python itself
            return Node("int", place, str(value), value)
        case float() if math.isfinite(value):
            return Node("float", place, repr(value), value)
        case str():
            return Node("str", place, value, value)
    raise fail("invalid-value", f"a {type(value).__name__} that cannot be used", place)
