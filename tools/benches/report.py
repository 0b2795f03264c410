"""Rows of a benchmark: a figure, what it is held against, and a verdict never kinder than the measurement."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.benches.stats import median, median_interval


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Args:
        name: what was measured.
        value: the figure in `unit`; None when it could not be measured.
        against: what `ratio` compares it with; empty for an absolute budget.
        ratio: value over the other's value (of one run).
        budget: the bound of `ratio`, or of `value` when there is no ratio; None for a figure that is only told.
        ok: held, not held, or None: not measured cleanly (then `reason` says why) or nothing to hold.
        spread: the interval that holds the true ratio (or value) with 95 % confidence, or what the benchmark says.
    """

    name: str
    value: float | None
    unit: str
    against: str = ""
    ratio: float | None = None
    budget: float | None = None
    ok: bool | None = None
    reason: str = ""
    spread: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `reason` and `spread` only where there is one."""
        row: dict[str, Any] = {
            "name": self.name,
            "value": rounded(self.value),
            "unit": self.unit,
            "against": self.against,
            "ratio": rounded(self.ratio),
            "budget": self.budget,
            "ok": self.ok,
        }
        if self.reason:
            row["reason"] = self.reason
        if self.spread:
            row["spread"] = [rounded(bound) for bound in self.spread]
        return row


def rounded(value: float | None) -> float | None:
    """Four significant digits: more would be noise."""
    return None if value is None else float(f"{value:.4g}")


@dataclass(frozen=True)
class Verdict:
    """What the samples of one quantity say about its budget."""

    middle: float | None
    ok: bool | None
    reason: str
    spread: tuple[float, float] | None


def judge(
    samples: Sequence[float], budget: float, *, at_least: bool = False, lost: str = "", otherwise: float | None = None
) -> Verdict:
    """Hold the median of `samples` against `budget`; `otherwise` is shown where there is no sample.

    The verdict is None when there are too few samples for an interval (`lost` says where the others went) or when the
    interval holds the budget itself, unless the samples lie on one side of it anyway.
    """
    lost = f"; {lost}" if lost else ""
    if not samples:
        return Verdict(otherwise, None, f"inconclusive: no clean sample{lost}", None)
    middle = median(samples)
    spread = median_interval(samples)
    if spread is None:
        return Verdict(middle, None, f"inconclusive: {len(samples)} clean samples are too few{lost}", None)
    low, high = spread
    if low <= budget <= high and low != high:
        return Verdict(middle, None, f"inconclusive: the 95 % interval {low:.3g}..{high:.3g} holds the budget", spread)
    return Verdict(middle, middle >= budget if at_least else middle <= budget, "", spread)


def print_json(bench: str, rows: Iterable[Row]) -> None:
    """The machine's form, and nothing else, on standard output."""
    json.dump({"bench": bench, "rows": [row.to_dict() for row in rows]}, sys.stdout)
    sys.stdout.write("\n")


def print_table(bench: str, rows: Sequence[Row]) -> None:
    """The reader's form on standard output."""
    head = (bench, "value", "unit", "against", "ratio", "budget", "spread", "")
    lines = [head]
    for row in rows:
        verdict = {True: row.reason or "ok", False: row.reason or "OVER BUDGET", None: row.reason or "-"}[row.ok]
        budget = "" if row.budget is None else f"{row.budget:g}"
        spread = f"{_short(row.spread[0])}..{_short(row.spread[1])}" if row.spread else ""
        lines.append((row.name, _short(row.value), row.unit, row.against, _short(row.ratio), budget, spread, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        sys.stdout.write("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() + "\n")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
