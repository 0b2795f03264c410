"""Traces: what agents do over time, as CSV with a header or as JSON lines with the same keys.

Each line says that something happens to an agent at a time. Columns, all but the first two optional, in any order:

    time            when: seconds from the start, or 90s, 1m30s, 2h
    agent           its name, unique in its tenant
    event           arrive, change or leave; without it: arrive, or change where the agent has arrived before
    tenant          "default" without it
    count           arrive: so many alike, which are spoken of by the one name; 1
    priority        system, high, normal, low or idle; normal
    weight          1 to 10000; 100
    cpu             what it could use from now on, in CPUs (0.5, 500m); max, or nothing at its arrival: all it can get
    cpu_request     reserved for it;   cpu_limit  never more than this
    memory, memory_request, memory_limit        likewise, in bytes (64Mi, 2G); without it: none is wanted
    network, network_request, network_limit     likewise, in bits per second (10M, 1G); without it: none is wanted
    duration        it leaves so long after it has started
    work            it leaves when it has used so many CPU-seconds

An empty field is as one that is not there: what the document of ``--spec`` says of the agent, or what is said above; in
a change, as before. Lines need not be sorted; of those at the same time, the earlier one comes first.

    time,agent,tenant,cpu,cpu_request,duration
    0,learner,lab,2,,
    10,dialogue,home,0.2,0.5,1m
    15,dialogue,home,1.5,,
"""

from __future__ import annotations

import csv
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Final, Literal

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.spec import names, quantities
from agentos_native.spec.model import PRIORITIES
from agentos_native.spec.tree import clip, nearest

Kind = Literal["arrive", "change", "leave"]
ARRIVE: Final[Kind] = "arrive"
CHANGE: Final[Kind] = "change"
LEAVE: Final[Kind] = "leave"
AMOUNTS: Final = tuple(
    word for resource in ("cpu", "memory", "network") for word in (resource, f"{resource}_request", f"{resource}_limit")
)
MAX_COUNT: Final = 10_000_000
MAX_FIGURE: Final = 1e18
"""Of any amount, in any unit, and of any time: far beyond every machine, and sums of it stay finite."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line. `amounts`: by column (`AMOUNTS`), in CPUs, bytes and bits per second; ∞ for max."""

    time: float
    kind: Kind
    tenant: str
    agent: str
    count: int = 1
    tier: int | None = None
    weight: float | None = None
    amounts: Mapping[str, float] = field(default_factory=dict)
    duration: float | None = None
    work: float | None = None
    line: int = 0


def _refuse(what: str, hint: str = "") -> AgentosError:
    return AgentosError("invalid-trace", what, hint=hint)


def _plain(text: str) -> float | None:
    """The number, where it is a plain one: most are, and exact fractions are slow."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _amount(text: str) -> float:
    if text == "max":
        return math.inf
    value = _plain(text)
    return _bounded(text, value if value is not None else float(quantities.parse_quantity(text)))


def _time(text: str) -> float:
    value = _plain(text)
    return _bounded(text, value if value is not None else quantities.parse_duration(text))


def _bounded(text: str, value: float) -> float:
    if value > MAX_FIGURE:
        raise _refuse(f"{clip(text)} is too large", f"at most {MAX_FIGURE:g}")
    return value


def _event(text: str) -> str:
    if text not in (ARRIVE, CHANGE, LEAVE):
        raise _refuse(f"no event {clip(text)}", nearest(text, (ARRIVE, CHANGE, LEAVE)) or "arrive, change or leave")
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= MAX_COUNT):
        raise _refuse(f"{clip(text)} is no count", f"a whole number from 1 to {MAX_COUNT}")
    return int(text)


def _priority(text: str) -> int:
    if text not in PRIORITIES:
        raise _refuse(f"no priority {clip(text)}", ", ".join(PRIORITIES))
    return [str(name) for name in PRIORITIES].index(text)


def _weight(text: str) -> float:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= 10_000):
        raise _refuse(f"{clip(text)} is no weight", "a whole number from 1 to 10000")
    return float(text)


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "time": _time,
    "agent": names.check_name,
    "event": _event,
    "tenant": names.check_name,
    "count": _count,
    "priority": _priority,
    "weight": _weight,
    **dict.fromkeys(AMOUNTS, _amount),
    "duration": _time,
    "work": _amount,
}
COLUMNS: Final = tuple(_READERS)


def _values(fields: Mapping[str, str], cache: dict[str, Any]) -> dict[str, Any]:
    """What is written in each column; `cache` holds what was read before, since most words come again and again."""
    values: dict[str, Any] = {}
    for column, text in fields.items():
        if text:
            key = f"{column} {text}"
            if key not in cache:
                cache[key] = _READERS[column](text)
            values[column] = cache[key]
    for column in ("time", "agent"):
        if column not in values:
            raise _refuse(f"{column} is missing")
    return values


def _kind(values: Mapping[str, Any], who: tuple[str, str], known: dict[tuple[str, str], float]) -> Kind:
    """What the line does; `known` are the agents that are there, with the time of their arrival."""
    kind: Kind = values.get("event") or (CHANGE if who in known else ARRIVE)
    if kind == ARRIVE:
        if who in known:
            raise _refuse(f"{who[0]}/{who[1]} has arrived already", "event: change, or leave before")
        known[who] = values["time"]
    elif who not in known:
        raise _refuse(f"{who[0]}/{who[1]} is not there", "the line with its arrival must come before in the file")
    elif values["time"] < known[who]:
        raise _refuse(f"{who[0]}/{who[1]} arrives later than this")
    if kind == LEAVE:
        del known[who]
    return kind


def _step(fields: Mapping[str, str], line: int, known: dict[tuple[str, str], float], cache: dict[str, Any]) -> Step:
    """The line's meaning."""
    values = _values(fields, cache)
    who = (values.get("tenant", "default"), values["agent"])
    kind = _kind(values, who, known)
    amounts = {column: values[column] for column in AMOUNTS if column in values}
    for resource in ("cpu", "memory", "network"):
        if amounts.get(f"{resource}_request", 0.0) > amounts.get(f"{resource}_limit", math.inf):
            raise _refuse(f"{resource}_request is above {resource}_limit")
    if math.inf in (values.get("work"), *(amounts.get(word) for word in AMOUNTS if word.endswith("request"))):
        raise _refuse("max is a demand or a limit, not a request or work")
    return Step(
        time=values["time"],
        kind=kind,
        tenant=who[0],
        agent=who[1],
        count=values.get("count", 1),
        tier=values.get("priority"),
        weight=values.get("weight"),
        amounts=amounts,
        duration=values.get("duration"),
        work=values.get("work"),
        line=line,
    )


def _known_columns(columns: Iterable[str]) -> None:
    for column in columns:
        if column not in _READERS:
            hint = nearest(column, COLUMNS) or "columns: " + ", ".join(COLUMNS)
            raise _refuse(f"no column {clip(column)}", hint)


def _csv_lines(file: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(file, skipinitialspace=True, strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if not row or row[0].lstrip().startswith("#"):
                continue
            if header is None:
                header = [cell.strip() for cell in row]
                _known_columns(header)
                if len(set(header)) < len(header):
                    raise _refuse("a column is named twice")
            elif len(row) > len(header):
                raise _refuse(f"{len(row)} fields where the header has {len(header)}")
            else:
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, row, strict=False)}
    except (csv.Error, AgentosError) as error:
        if isinstance(error, AgentosError):
            error.where = error.where or f"line {reader.line_num}"
            raise
        raise AgentosError("invalid-trace", str(error), f"line {reader.line_num}")


def _json_lines(file: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            fields = msgspec.json.decode(text, type=dict[str, str | int | float | None])
            _known_columns(fields)
        except msgspec.MsgspecError as error:
            raise AgentosError("invalid-trace", f"not a JSON object of plain values: {error}", f"line {number}")
        except AgentosError as error:
            error.where = f"line {number}"
            raise
        yield number, {name: "" if value is None else str(value) for name, value in fields.items()}


def parse(file: Iterable[str], origin: str = "") -> list[Step]:
    """Every step, by time. Raises ``invalid-trace`` and ``invalid-quantity`` with the line."""
    lines = iter(file)
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    else:
        raise AgentosError("invalid-trace", "the trace is empty", origin, "its format: alloc simulate --help")
    source = itertools.chain(head, lines)
    reader = _json_lines if head[-1].lstrip().startswith("{") else _csv_lines
    steps: list[Step] = []
    known: dict[tuple[str, str], float] = {}
    cache: dict[str, Any] = {}
    number = 0
    try:
        for number, fields in reader(source):
            if len(cache) > 100_000:
                cache.clear()
            steps.append(_step(fields, number, known, cache))
    except AgentosError as error:
        place = error.where or f"line {number}"
        raise AgentosError(error.code, error.what, f"{origin}:{place.removeprefix('line ')}", error.hint)
    if not steps:
        raise AgentosError("invalid-trace", "the trace has a header only", origin)
    return sorted(steps, key=lambda step: step.time)


def load(path: str) -> list[Step]:
    """`parse` of a file, or of standard input for ``-``. Raises ``cannot-read`` as well."""
    try:
        if path == "-":
            return parse(sys.stdin, "-")
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets begin a CSV with a BOM
            return parse(_text(file), path)
    except OSError as error:
        raise AgentosError("cannot-read", error.strerror or str(error), path)
    except UnicodeDecodeError:
        raise AgentosError("invalid-trace", "not a UTF-8 text", path)


def _text(file: IO[str]) -> Iterator[str]:
    yield from file
