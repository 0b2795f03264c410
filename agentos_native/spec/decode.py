"""Trees of `Node` → the structures of `spec.model`, driven by their own field lists and types.

There is one decoder for YAML, Kubernetes manifests and API bodies, so a quantity, a name or a default means the same
wherever it comes from. `_FIELDS` names the fields whose text has a meaning of its own; every other field is read by its
type alone.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.spec import model, names, quantities
from agentos_native.spec.tree import Node, Place, clip, expect, fail, nearest, only

MAX_ITEMS: Final = 1024
"""Items of one list or mapping in a spec."""
_Struct = TypeVar("_Struct", bound=msgspec.Struct)
Reader = Callable[[Node], Any]


def _placed(node: Node, check: Callable[[str], Any]) -> Any:
    """Runs a check that knows no place and adds this one's to its error."""
    try:
        return check(node.text)
    except AgentosError as error:
        raise fail(error.code, error.what, node.place, error.hint)


def _string(check: Callable[[str], str]) -> Reader:
    return lambda node: _placed(expect(node, "str"), check)


def _quantity(check: Callable[[str], Any], least: float = 0, show: Callable[[int], str] = str) -> Reader:
    def read(node: Node) -> Any:
        value = _placed(expect(node, "str", "int", "float"), check)
        if value < least:
            raise fail(
                "invalid-quantity", f"{clip(node.text)} is too small", node.place, f"at least {show(int(least))}"
            )
        return value

    return read


def _whole(least: int, most: int) -> Reader:
    def read(node: Node) -> int:
        value = expect(node, "int").scalar
        if not isinstance(value, int) or not least <= value <= most:
            raise fail(
                "out-of-range",
                f"{clip(node.text)} is out of range",
                node.place,
                f"a whole number from {least} to {most}",
            )
        return value

    return read


def _optional(reader: Reader) -> Reader:
    return lambda node: None if node.kind == "null" else reader(node)


def _mapping(key: Callable[[str], Any], value: Reader) -> Reader:
    def read(node: Node) -> dict[str, Any]:
        entries = _bounded(expect(node, "map"), len(node.entries)).entries
        for name, entry in entries.items():
            try:
                key(name)
            except AgentosError as error:
                raise fail(error.code, error.what, entry.place, error.hint)
        return {name: value(entry) for name, entry in entries.items()}

    return read


def _list(item: Reader) -> Reader:
    return lambda node: tuple(item(entry) for entry in _bounded(expect(node, "list"), len(node.items)).items)


def _bounded(node: Node, count: int) -> Node:
    if count > MAX_ITEMS:
        raise fail("too-large", f"{count} entries", node.place, f"at most {MAX_ITEMS} are allowed")
    return node


def _labels(node: Node) -> dict[str, str]:
    for key, value in _bounded(expect(node, "map"), len(node.entries)).entries.items():
        _placed(expect(value, "str"), functools.partial(names.check_label, key))
    return {key: value.text for key, value in node.entries.items()}


def _timeout(node: Node) -> float:
    seconds: float = _quantity(quantities.parse_duration)(node)
    if seconds <= 0:
        raise fail("invalid-quantity", "a time-out of nothing", node.place, "leave it out for no time-out")
    return seconds


_text: Final = _string(names.check_text)
_path: Final = _string(names.check_path)
_duration: Final = _quantity(quantities.parse_duration)
_cpu: Final = _quantity(quantities.parse_cpu)
_memory: Final = _quantity(quantities.parse_memory)
_cpu_limit: Final = _optional(_quantity(quantities.parse_cpu, 10, quantities.format_cpu))
"""cpu.max refuses a quota below 1000 µs of its period of 100 ms."""
_memory_limit: Final = _optional(_quantity(quantities.parse_memory, 2**20, quantities.format_memory))
_rate: Final = _optional(_quantity(quantities.parse_rate, 1000, quantities.format_rate))
_weight: Final = _whole(1, 10000)
_count: Final = 2**63 - 1

_FIELDS: Final[dict[type[msgspec.Struct], dict[str, Reader]]] = {
    model.IoLimits: {
        "read_bps": _optional(_quantity(quantities.parse_memory, 1)),
        "write_bps": _optional(_quantity(quantities.parse_memory, 1)),
        "read_iops": _optional(_quantity(quantities.parse_memory, 1)),
        "write_iops": _optional(_quantity(quantities.parse_memory, 1)),
    },
    model.NetworkRates: {"egress": _rate, "ingress": _rate},
    model.Requests: {"cpu": _cpu, "memory": _memory},
    model.Limits: {"cpu": _cpu_limit, "memory": _memory_limit, "pids": _optional(_whole(1, 4194304))},
    model.Resources: {"io_weight": _optional(_weight)},
    model.Restart: {"backoff": _duration, "max_backoff": _duration, "max": _optional(_whole(0, 1_000_000))},
    model.Stop: {"signal": _optional(_string(names.check_signal)), "grace": _duration},
    model.Volume: {"source": _path, "target": _string(names.check_target)},
    model.AgentSpec: {
        "name": _string(names.check_name),
        "tenant": _string(functools.partial(names.check_name, what="tenant")),
        "image": _string(names.check_image),
        "labels": _labels,
        "command": _list(_text),
        "args": _list(_text),
        "env": _mapping(names.check_env_name, _text),
        "user": _optional(_string(names.check_user)),
        "workdir": _optional(_path),
        "hostname": _optional(_string(functools.partial(names.check_name, what="hostname"))),
        "replicas": _whole(0, 1000),
        "weight": _weight,
        "capabilities": _list(_string(names.check_capability)),
        "rlimits": _mapping(names.check_rlimit, _whole(0, _count)),
        "timeout": _optional(_timeout),
        "wait_timeout": _optional(_timeout),
    },
    model.TenantLimits: {
        "cpu": _cpu_limit,
        "memory": _memory_limit,
        "agents": _optional(_whole(0, 1_000_000)),
        "queued": _optional(_whole(0, 1_000_000)),
    },
    model.TenantSpec: {"name": _string(functools.partial(names.check_name, what="tenant")), "weight": _weight},
}


@functools.cache
def fields_of(cls: type[msgspec.Struct]) -> dict[str, tuple[str, Reader, bool]]:
    """For each field as it is written: its attribute, its reader, and whether it must be given."""
    hints = get_type_hints(cls)
    own = _FIELDS.get(cls, {})
    return {
        info.encode_name: (info.name, own.get(info.name) or _reader(hints[info.name]), info.required)
        for info in msgspec.structs.fields(cls)
    }


def _reader(wanted: Any) -> Reader:
    """How a value of type `wanted` is read, for the fields that need no reader of their own."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _optional(_reader(inner))
    if origin is Literal:
        return lambda node: _choice(node, arguments)
    if origin is tuple:
        return _list(_reader(arguments[0]))
    if wanted is bool:
        return lambda node: expect(node, "bool").scalar
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        return lambda node: decode(node, wanted)
    raise TypeError(f"a field of type {wanted!r} needs a reader in spec.decode._FIELDS")


def _choice(node: Node, choices: tuple[str, ...]) -> str:
    text = expect(node, "str").text
    if text not in choices:
        raise fail(
            "invalid-value", f"{clip(text)} is not one of {', '.join(choices)}", node.place, nearest(text, choices)
        )
    return text


def decode(node: Node, cls: type[_Struct]) -> _Struct:
    """The structure written at `node`. Raises `AgentosError` with its line and path."""
    only(node, fields_of(cls))
    return build(cls, node.entries, node.place)


def build(cls: type[_Struct], entries: Mapping[str, Node], place: Place) -> _Struct:
    """`cls` from entries that may come from several mappings; all of them are known fields of it."""
    values: dict[str, Any] = {}
    for written, (attribute, reader, required) in fields_of(cls).items():
        if written in entries:
            values[attribute] = reader(entries[written])
        elif required:
            raise fail("missing-field", f"{written!r} is missing", place.child(written))
    return cls(**values)
