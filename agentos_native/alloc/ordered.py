"""A sorted map that finds its first value with a property in O(log n).

A treap (Seidel and Aragon, "Randomized search trees", 1996) whose nodes know the least of each figure below them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, Generic, TypeVar

Figures = tuple[float, ...]
Key = tuple[float, int, str]
V = TypeVar("V")
_dice: Final = random.Random(1)  # its throws decide how deep the tree is, and nothing else


class _Node(Generic[V]):
    __slots__ = ("figures", "key", "least", "left", "right", "throw", "value")

    def __init__(self, key: Key, value: V, figures: Figures) -> None:
        self.key = key
        self.value = value
        self.figures = self.least = figures
        self.throw = _dice.random()
        self.left: _Node[V] | None = None
        self.right: _Node[V] | None = None

    def pull(self) -> _Node[V]:
        """Know again what is below."""
        least = self.figures
        for child in (self.left, self.right):
            if child is not None:
                least = tuple(map(min, least, child.least))
        self.least = least
        return self


class Ordered(Generic[V]):
    """Values by key, each with figures (of one length for all)."""

    def __init__(self) -> None:
        self._root: _Node[V] | None = None

    def __bool__(self) -> bool:
        return self._root is not None

    def insert(self, key: Key, value: V, figures: Figures) -> None:
        """Add a value under a key that is not there."""
        self._root = _inserted(self._root, _Node(key, value, figures))

    def remove(self, key: Key) -> None:
        """Take out what is under `key`; KeyError when there is nothing."""
        self._root = _removed(self._root, key)

    def first(self, after: Key | None, may: Callable[[Figures], bool]) -> tuple[Key, V] | None:
        """The first value beyond `after` whose figures `may` agrees to.

        Args:
            may: never refuses figures of which a smaller or equal part would have been refused: what it refuses of the
                least below a node, it would refuse of everything there.
        """
        found = _first(self._root, after, may)
        return (found.key, found.value) if found is not None else None


def _inserted(node: _Node[V] | None, new: _Node[V]) -> _Node[V]:
    if node is None:
        return new
    if new.throw > node.throw:
        new.left, new.right = _split(node, new.key)
        return new.pull()
    if new.key < node.key:
        node.left = _inserted(node.left, new)
    else:
        node.right = _inserted(node.right, new)
    return node.pull()


def _split(node: _Node[V] | None, key: Key) -> tuple[_Node[V] | None, _Node[V] | None]:
    if node is None:
        return None, None
    if node.key < key:
        node.right, beyond = _split(node.right, key)
        return node.pull(), beyond
    before, node.left = _split(node.left, key)
    return before, node.pull()


def _removed(node: _Node[V] | None, key: Key) -> _Node[V] | None:
    if node is None:
        raise KeyError(key)
    if node.key == key:
        return _joined(node.left, node.right)
    if key < node.key:
        node.left = _removed(node.left, key)
    else:
        node.right = _removed(node.right, key)
    return node.pull()


def _joined(one: _Node[V] | None, other: _Node[V] | None) -> _Node[V] | None:
    """`one`'s keys are all before `other`'s."""
    if one is None or other is None:
        return one or other
    if one.throw > other.throw:
        one.right = _joined(one.right, other)
        return one.pull()
    other.left = _joined(one, other.left)
    return other.pull()


def _first(node: _Node[V] | None, after: Key | None, may: Callable[[Figures], bool]) -> _Node[V] | None:
    while node is not None and may(node.least):
        if after is None or node.key > after:
            if (found := _first(node.left, after, may)) is not None:
                return found
            if may(node.figures):
                return node
        node = node.right
    return None
