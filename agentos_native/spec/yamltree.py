"""YAML text → trees of `Node`, one for each document.

PyYAML is used for its events only. Its composer recurses in C and its constructor drops the lines, lets a repeated key
win silently, and reads ``yes`` and ``1:30`` by YAML 1.1's rules; here scalars follow the core schema of YAML 1.2, a
repeated key is an error, and depth and size (after aliases are expanded) are bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from agentos_native.spec.tree import MAX_DEPTH, MAX_NODES, Kind, Node, Place, clip, fail

MAX_TEXT: Final = 4 * 1024 * 1024
"""Characters of one file."""
MAX_KEY: Final = 1024

_INT: Final = re.compile(r"[-+]?[0-9]{1,150}\Z")
_BASED: Final = re.compile(r"0(?:o[0-7]{1,150}|x[0-9a-fA-F]{1,120})\Z")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_SPECIAL: Final = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_NULLS: Final = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TAGS: Final[dict[str, Kind]] = {
    "tag:yaml.org,2002:str": "str",
    "tag:yaml.org,2002:map": "map",
    "tag:yaml.org,2002:seq": "list",
    "!": "str",
}
_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def documents(text: str, origin: str) -> list[Node]:
    """All documents of `text`; an empty one is skipped. Raises `AgentosError` and nothing else."""
    place = Place(origin)
    if len(text) > MAX_TEXT:
        raise fail("too-large", f"more than {MAX_TEXT} characters", place)
    try:
        return [node for node in _Composer(origin).compose(yaml.parse(text, Loader=_Loader)) if node.kind != "null"]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 0
        raise fail("invalid-yaml", f"a character that YAML does not allow ({error.reason})", Place(origin, line))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.problem, error.context) if part)
        raise fail("invalid-yaml", said or "not YAML", Place(origin, mark.line + 1 if mark else 0), _hint(text, mark))
    except yaml.YAMLError as error:
        raise fail("invalid-yaml", str(error).splitlines()[0] if str(error) else "not YAML", place)
    except UnicodeError:
        raise fail("invalid-yaml", "a character that is not Unicode text", place)


def _hint(text: str, mark: Any) -> str:
    """What usually is wrong at the place where the parser stopped."""
    if mark is None:
        return ""
    lines = text.splitlines()
    around = "\n".join(lines[max(0, mark.line - 2) : mark.line + 1])
    if "\t" in around:
        return "YAML is indented with spaces, not with tabs"
    if found := re.search(r"^\s*([A-Za-z]{2,20})\s*$", around, re.MULTILINE):
        return f"a colon may be missing after {found[1]!r} (a field with fields below it ends in ':')"
    return ""


class _Composer:
    """Builds nodes from events with a stack of its own, so that nesting costs no recursion."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._count = 0

    def compose(self, events: Iterator[Any]) -> Iterator[Node]:
        anchors: dict[str, tuple[Node, int]] = {}
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                anchors = {}
            elif isinstance(event, yaml.NodeEvent):
                yield self._node(event, events, anchors)

    def _node(self, first: Any, events: Iterator[Any], anchors: dict[str, tuple[Node, int]]) -> Node:
        stack: list[_Open] = []
        event = first
        while True:
            line = event.start_mark.line + 1
            if isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                self._charge(1, line)
                if len(stack) >= MAX_DEPTH:
                    raise fail("too-deep", f"more than {MAX_DEPTH} levels of nesting", Place(self._origin, line))
                stack.append(_Open(event, self._place(stack, line)))
                event = next(events)
                continue
            if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                done = stack.pop()
                node, size, anchor = done.close(), done.size, done.anchor
            elif isinstance(event, yaml.AliasEvent):
                node, size = self._alias(event, anchors, line)
                anchor = None
            else:
                self._charge(1, line)
                node, size, anchor = _scalar(event, self._place(stack, line)), 1, event.anchor
            if anchor:
                anchors[anchor] = (node, size)
            if not stack:
                return node
            stack[-1].add(node, size, line)
            event = next(events)

    def _alias(self, event: Any, anchors: dict[str, tuple[Node, int]], line: int) -> tuple[Node, int]:
        if event.anchor not in anchors:
            raise fail(
                "invalid-yaml",
                f"the alias {clip('*' + event.anchor)} names nothing above it",
                Place(self._origin, line),
            )
        node, size = anchors[event.anchor]
        self._charge(size, line)
        return node, size

    def _charge(self, size: int, line: int) -> None:
        self._count += size
        if self._count > MAX_NODES:
            hint = "an alias repeats everything below its anchor"
            raise fail("too-large", f"more than {MAX_NODES} values", Place(self._origin, line), hint)

    def _place(self, stack: list[_Open], line: int) -> Place:
        return stack[-1].next_place(line) if stack else Place(self._origin, line)


class _Open:
    """A list or mapping whose end has not been seen."""

    def __init__(self, event: Any, place: Place) -> None:
        self.anchor: str | None = event.anchor
        self.size = 1
        self._is_map = isinstance(event, yaml.MappingStartEvent)
        self._place = place
        self._items: list[Node] = []
        self._entries: dict[str, Node] = {}
        self._lines: dict[str, int] = {}
        self._key: str | None = None
        wanted: Kind = "map" if self._is_map else "list"
        if event.tag and _TAGS.get(event.tag) != wanted:
            raise fail("invalid-yaml", f"the tag {clip(event.tag)} is not supported", place)

    def next_place(self, line: int) -> Place:
        if not self._is_map:
            return self._place.item(len(self._items), line)
        return (
            self._place.child(self._key, line)
            if self._key is not None
            else Place(self._place.origin, line, self._place.path)
        )

    def add(self, node: Node, size: int, line: int) -> None:
        self.size += size
        if not self._is_map:
            self._items.append(node)
        elif self._key is None:
            self._key = self._check_key(node, line)
        else:
            self._entries[self._key] = node
            self._key = None

    def _check_key(self, node: Node, line: int) -> str:
        where = Place(self._place.origin, line, self._place.path)
        if node.kind in ("list", "map"):
            raise fail("invalid-yaml", "a field name must be a word, not a list or mapping", where)
        if len(node.text) > MAX_KEY:
            raise fail("too-large", f"a field name of more than {MAX_KEY} characters", where)
        if node.text in self._lines:
            what = f"field {clip(node.text)} given twice (first in line {self._lines[node.text]})"
            raise fail("duplicate-field", what, self._place.child(node.text, line))
        self._lines[node.text] = line
        return node.text

    def close(self) -> Node:
        if self._is_map:
            return Node("map", self._place, entries=self._entries)
        return Node("list", self._place, items=tuple(self._items))


def _scalar(event: Any, place: Place) -> Node:
    text: str = event.value
    if event.tag and _TAGS.get(event.tag) != "str":
        raise fail("invalid-yaml", f"the tag {clip(event.tag)} is not supported", place)
    if event.tag or event.style:  # quoted, literal or folded
        return Node("str", place, text, text)
    if text in _NULLS:
        return Node("null", place, text)
    if text in _BOOLS:
        return Node("bool", place, text, _BOOLS[text])
    number = _number(text)
    if number is None:
        return Node("str", place, text, text)
    return Node("int" if isinstance(number, int) else "float", place, text, number)


def _number(text: str) -> int | float | None:
    if _INT.match(text):
        return int(text)
    if _BASED.match(text):
        return int(text, 0)
    if _FLOAT.match(text):
        return float(text)
    if _SPECIAL.match(text):
        return math.nan if "n" in text[1:2].lower() else math.inf
    return None
