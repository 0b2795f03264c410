"""Some seconds of entries as one compressed body, and back.

A *batch* holds ticks of one roster whose arrays all have the same shapes, so each array of a turn becomes a column with
one row for each tick. Most columns do not change at all and are kept as one row; of the others the difference (XOR) to
the tick before is kept, or for shares, which are the demand wherever an agent has what it wants, the difference to the
demand if that is zero more often. The bytes are then sorted by significance, which is what makes doubles compress.
Nothing is rounded: the columns come back bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import zstandard

from agentos_native import alloc
from agentos_native.errors import AgentosError
from agentos_native.recording.fields import Array, flatten, restore
from agentos_native.recording.model import Entry, Happening, Member, Roster, Rows, Tick

LEVEL: Final = 3
LARGEST: Final = 2**30
"""Bytes that a body may have when it is decompressed."""
_KINDS: Final = "biuf"
CONSTANT, XOR_PREVIOUS, XOR_OTHER = 0, 1, 2
RELATED: Final = {"share": "inputs.problem.demand"}
"""Columns that often are equal to another one."""


class Column(msgspec.Struct, array_like=True):
    """One array of each tick: `shape` is that of a tick's, `kind` how `data` is to be read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: int
    data: bytes


class Batch(msgspec.Struct, array_like=True):
    """The body of a frame. `agents` is None where an earlier batch of the segment has the roster of this number."""

    session: str
    roster: int
    agents: list[tuple[str, str, str, str, str]] | None
    tenants: list[str]
    engine: str
    ticks: int
    columns: list[Column]
    absent: list[str]
    rows: list[tuple[float, str, dict[str, dict[str, float]]]]
    happenings: list[tuple[float, str, str, str, str, str]]
    dropped: int = 0


Table = dict[str, Array | None]


def table_of(tick: Tick) -> Table:
    """All arrays of a tick by their paths."""
    plain = {"monotonic": tick.monotonic, "wall": tick.wall, "writes": tick.writes, "failures": tick.failures}
    table: Table = {name: np.asarray(value) for name, value in plain.items()}
    table["duration"] = np.asarray(tick.duration, dtype=np.float32)
    table.update(flatten(tick.inputs, "inputs"))
    table.update(flatten(tick.weights, "weights"))
    table.update(share=tick.share, used=tick.used, stalled=tick.stalled)
    return table


def layout_of(tick: Tick, table: Table) -> tuple[object, ...]:
    """What two ticks must have in common to be in one batch (and the roster, by identity)."""
    shapes = ((name, None if leaf is None else (leaf.dtype.str, leaf.shape)) for name, leaf in table.items())
    return (tick.engine, *shapes)


def _bits(stack: Array) -> Array:
    """The stack as unsigned integers of the same width, shape (ticks, …)."""
    return stack.view(np.dtype(f"u{stack.dtype.itemsize}"))


def _shuffled(bits: Array) -> bytes:
    """The bytes by significance: first the lowest byte of each number, last the highest."""
    width = bits.dtype.itemsize
    return np.ascontiguousarray(bits.reshape(-1).view(np.uint8).reshape(-1, width).T).tobytes()


def _pack_column(name: str, stack: Array, related: Array | None) -> Column:
    bits = _bits(np.ascontiguousarray(stack))
    kind, coded = XOR_PREVIOUS, bits.copy()
    coded[1:] ^= bits[:-1]
    if not coded[1:].any():
        kind, coded = CONSTANT, bits[:1]
    elif related is not None and related.dtype == stack.dtype and related.shape == stack.shape:
        other = bits ^ _bits(np.ascontiguousarray(related))
        if np.count_nonzero(other) < np.count_nonzero(coded):
            kind, coded = XOR_OTHER, other
    return Column(name, stack.dtype.str, stack.shape[1:], kind, _shuffled(coded))


def pack(
    ticks: Sequence[tuple[Tick, Table]],
    roster: int,
    *,
    session: str,
    with_roster: bool,
    rows: Iterable[Rows] = (),
    happenings: Iterable[Happening] = (),
    dropped: int = 0,
) -> bytes:
    """The body that holds these ticks, which have one roster and one layout."""
    columns: list[Column] = []
    absent: list[str] = []
    for name, leaf in ticks[0][1].items() if ticks else ():
        if leaf is None:
            absent.append(name)
            continue
        stack = np.stack([np.asarray(table[name]) for _, table in ticks])
        other = RELATED.get(name)
        related = np.stack([np.asarray(table[other]) for _, table in ticks]) if other else None
        columns.append(_pack_column(name, stack, related))
    members = ticks[0][0].roster if ticks and with_roster else None
    batch = Batch(
        session=session,
        roster=roster,
        agents=[(a.agent_id, a.name, a.tenant, a.tier, a.type) for a in members.agents] if members else None,
        tenants=list(members.tenants) if members else [],
        engine=ticks[0][0].engine if ticks else "",
        ticks=len(ticks),
        columns=columns,
        absent=absent,
        rows=[(item.wall, item.resource, item.agents) for item in rows],
        happenings=[(h.wall, h.kind, h.agent_id, h.name, h.tenant, h.detail) for h in happenings],
        dropped=dropped,
    )
    return zstandard.ZstdCompressor(level=LEVEL).compress(msgspec.msgpack.encode(batch))


@functools.cache
def _decoder() -> msgspec.msgpack.Decoder[Batch]:
    return msgspec.msgpack.Decoder(Batch)


def open_body(body: bytes) -> Batch:
    """The batch in a frame's body. Raises ``record-damaged`` for anything else."""
    try:
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=LARGEST)
        return _decoder().decode(plain)
    except (zstandard.ZstdError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise AgentosError("record-damaged", f"a frame is not a batch: {error}")


def _unpack_columns(batch: Batch) -> dict[str, Array]:
    """Every column by its name, shape (ticks, …)."""
    found: dict[str, Array] = {}
    for column in batch.columns:
        dtype = np.dtype(column.dtype)
        if dtype.kind not in _KINDS or dtype.itemsize > 8:
            raise ValueError(f"{column.name} has the type {column.dtype}")
        rows = 1 if column.kind == CONSTANT else batch.ticks
        shape = (rows, *column.shape)
        planes = np.frombuffer(column.data, dtype=np.uint8).reshape(dtype.itemsize, -1)
        bits = np.ascontiguousarray(planes.T).reshape(-1).view(np.dtype(f"u{dtype.itemsize}")).reshape(shape)
        if column.kind == CONSTANT:
            bits = np.repeat(bits, batch.ticks, axis=0)
        elif column.kind == XOR_OTHER:
            bits = bits ^ _bits(found[RELATED[column.name]])
        else:
            bits = np.bitwise_xor.accumulate(bits, axis=0)
        found[column.name] = bits.view(dtype)
    return found


def unpack(batch: Batch, rosters: Mapping[int, Roster]) -> Iterator[Entry]:
    """The entries of a batch, ticks first. Raises ``record-damaged``, ``record-version``."""
    try:
        columns = _unpack_columns(batch) if batch.ticks else {}
        roster = rosters[batch.roster] if batch.ticks else Roster((), ())
    except (ValueError, TypeError, KeyError) as error:
        raise AgentosError("record-damaged", f"a batch cannot be read: {error}")
    for row in range(batch.ticks):
        table: Table = {name: np.asarray(column[row]) for name, column in columns.items()}
        table.update(dict.fromkeys(batch.absent))
        yield _tick(batch, roster, table)
    for wall, resource, agents in batch.rows:
        yield Rows(wall, resource, agents)
    for item in batch.happenings:
        yield Happening(*item)


def _tick(batch: Batch, roster: Roster, table: Mapping[str, Any]) -> Tick:
    missing = {"monotonic", "wall", "share", "used", "stalled", "writes", "failures", "duration"} - table.keys()
    if missing:
        raise AgentosError("record-damaged", f"a batch has no {', '.join(sorted(missing))}")
    return Tick(
        monotonic=float(table["monotonic"]),
        wall=float(table["wall"]),
        roster=roster,
        engine=batch.engine,
        inputs=restore(alloc.Inputs, "inputs", table),
        share=table["share"],
        weights=restore(alloc.Weights, "weights", table),
        used=table["used"],
        stalled=table["stalled"],
        writes=int(table["writes"]),
        failures=int(table["failures"]),
        duration=float(table["duration"]),
        session=batch.session,
    )


def roster_of(batch: Batch) -> Roster | None:
    """The roster that the batch brings with it."""
    if batch.agents is None:
        return None
    return Roster(tuple(Member(*words) for words in batch.agents), tuple(batch.tenants))
