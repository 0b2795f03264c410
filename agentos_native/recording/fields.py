"""Dataclasses of arrays and numbers as flat tables of named arrays, and back.

`flatten` walks whatever fields the allocator's structures have, so that a field that is added to them is recorded
without a word here, and cannot be forgotten; a record from before it gets the field's default.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from agentos_native.errors import AgentosError

Array = NDArray[Any]
T = TypeVar("T")


def flatten(value: Any, name: str) -> dict[str, Array | None]:
    """Every leaf of `value` by its path below `name`; None where an optional part is not there.

    Raises TypeError for anything but dataclasses, arrays, numbers and None.
    """
    if value is None:
        return {name: None}
    if isinstance(value, np.ndarray):
        return {name: value}
    if isinstance(value, bool | int | float | np.generic):
        return {name: np.asarray(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found: dict[str, Array | None] = {}
        for field in dataclasses.fields(value):
            found.update(flatten(getattr(value, field.name), f"{name}.{field.name}"))
        return found
    raise TypeError(f"{name} cannot be recorded: {type(value).__name__}")


@functools.cache
def _shape(cls: Hashable) -> list[tuple[dataclasses.Field[Any], type[Any] | None]]:
    """The fields of `cls`, each with the class of its parts where it is a dataclass itself."""
    assert isinstance(cls, type)
    hints = typing.get_type_hints(cls)
    shape: list[tuple[dataclasses.Field[Any], type[Any] | None]] = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        parts = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        shape.append((field, typing.cast("type[Any]", parts[0]) if parts else None))
    return shape


def restore(cls: type[T], name: str, table: Mapping[str, Array | None]) -> T:
    """The inverse of `flatten` for a value of class `cls`."""
    values: dict[str, Any] = {}
    for field, part in _shape(typing.cast(Hashable, cls)):
        path = f"{name}.{field.name}"
        if path in table:
            leaf = table[path]
            values[field.name] = leaf if leaf is None or leaf.ndim else leaf.item()
        elif part is not None and any(key.startswith(path + ".") for key in table):
            values[field.name] = restore(part, path, table)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            what = f"the record has no {path}: it was written by another version of the allocator"
            raise AgentosError("record-version", what)
    return cls(**values)
