"""How results look: JSON for programs, aligned columns in pipes, rich's tables on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

_TIMES: Final = ("created", "created_at", "started_at", "ended_at", "since")
_LINE: Final = 100
"""Characters of a list that is still printed as one line."""
STATE_COLOURS: Final = {
    "running": "green",
    "failed": "red",
    "backoff": "yellow",
    "queued": "yellow",
    "paused": "cyan",
    "exited": "dim",
    "ok": "green",
    "degraded": "yellow",
    "missing": "red",
}


def printable(text: str) -> str:
    """A line without what a terminal would obey: labels, paths, users and errors quote what others wrote."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def to_plain(value: Any) -> Any:
    """Structures of `wire.api` as builtins."""
    return msgspec.to_builtins(value)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_line(value: Any) -> None:
    """One JSON value in one line, at once: for streams."""
    print(msgspec.json.encode(value).decode(), flush=True)


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), fold: Sequence[str] = ()
) -> None:
    """Print rows; `right` are the headers of columns that hold figures, `fold` of those that take several lines on a
    terminal that is too narrow."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(headers, rows, right=right, fold=fold))
        return
    widths = [
        max(len(header), *(len(row[i]) for row in rows)) if rows else len(header) for i, header in enumerate(headers)
    ]
    for row in (headers, *rows):
        cells = (
            cell.rjust(width) if header in right else cell.ljust(width)
            for cell, width, header in zip(row, widths, headers, strict=True)
        )
        print("  ".join(cells).rstrip())


def rich_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), fold: Sequence[str] = ()
) -> Any:
    """The same as a renderable for a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        folds = header in fold
        overflow: Literal["fold", "ellipsis"] = "fold" if folds else "ellipsis"
        made.add_column(header, justify="right" if header in right else "left", no_wrap=not folds, overflow=overflow)
    for row in rows:
        made.add_row(*(Text(cell, style=STATE_COLOURS.get(cell, "")) for cell in row))
    return made


def cpus(value: float | None) -> str:
    """CPUs with the digits that matter."""
    return "-" if value is None else f"{value:.3f}"


def cpu_millis(value: int | str | None) -> str:
    """A CPU quantity out of millicores or out of one that is already written."""
    if value is None or value == 0:
        return "-"
    if isinstance(value, str):
        return value
    from agentos_native.spec.quantities import format_cpu

    return format_cpu(value)


def size(value: float | None) -> str:
    """Bytes for people: 64Mi, 1.5Gi."""
    if value is None:
        return "-"
    for power, letter in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if value >= 1024**power:
            shown = value / 1024**power
            return f"{shown:.0f}{letter}" if shown >= 100 else f"{shown:.3g}{letter}"
    return f"{value:.0f}"


def count(number: int, noun: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def age(since: float | None, now: float | None = None) -> str:
    """Time since an epoch time: 5s, 12m, 3h, 2d."""
    if since is None:
        return "-"
    seconds = max(0.0, (time.time() if now is None else now) - since)
    for unit, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds / unit:.0f}{letter}"
    return f"{seconds:.0f}s"


def clock(epoch: float) -> str:
    """Local date and time with milliseconds."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch)) + f".{int(epoch * 1000) % 1000:03d}"


def sections(value: Any, indent: int = 0) -> None:
    """Print nested builtins as indented ``key: value`` lines; what is empty is left out."""
    pad = "  " * indent
    for key, item in value.items():
        shown = printable(str(key).replace("_", " "))
        if item in (None, "", [], {}):
            continue
        if isinstance(item, dict):
            print(f"{pad}{shown}:")
            sections(item, indent + 1)
        elif isinstance(item, list) and all(isinstance(part, str | int | float) for part in item):
            words = [printable(str(part)) for part in item]
            if sum(map(len, words)) <= _LINE:
                print(f"{pad}{shown}: " + ", ".join(words))
            else:
                print("\n".join([f"{pad}{shown}:", *(f"{pad}  - {word}" for word in words)]))
        elif isinstance(item, list):
            print(f"{pad}{shown}:")
            for part in item:
                print(f"{pad}  - " + msgspec.json.encode(part).decode())
        elif isinstance(item, bool):
            print(f"{pad}{shown}: {'yes' if item else 'no'}")
        elif isinstance(item, float) and key in _TIMES:
            print(f"{pad}{shown}: {clock(item)}")
        else:
            print(f"{pad}{shown}: {printable(str(item))}")
