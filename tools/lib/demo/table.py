"""A phase as a table for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from demo.phases import TOLERANCE, Phase, Row

COLUMNS = ("tenant", "agent", "type", "tier", "weight", "request", "limit", "entitled", "measured", "difference")


def show(phase: Phase) -> None:
    """Print it: requests and limits in CPUs, shares in per cent of the machine."""
    title = f"{phase.name} ({phase.seconds:.0f} s; {phase.others:.1%} of the machine were not there for agents)"
    view = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in COLUMNS:
        view.add_column(name, justify="left" if name in COLUMNS[:4] else "right", no_wrap=True)
    for row in phase.rows:
        view.add_row(*_cells(row))
    Console(width=120).print(view, "")


def _cells(row: Row) -> list[str]:
    return [
        row.tenant,
        row.agent,
        row.type,
        row.tier,
        str(row.weight),
        f"{row.request:.2f}" if row.request else "-",
        "-" if row.limit is None else f"{row.limit:.2f}",
        f"{row.entitled:.1%}",
        f"{row.measured:.1%}",
        f"{row.difference:+.1%}{'' if row.ok else ' !'}",
    ]


def verdict(phases: list[Phase], ok: bool) -> None:
    """The last line."""
    worst = max(abs(row.difference) for phase in phases for row in phase.rows)
    missed = max(row.reservation_missed for phase in phases for row in phase.rows)
    print(f"largest difference {worst:.1%} of the machine, missed reservation {missed:.1%} (allowed: {TOLERANCE:.0%})")
    print("every agent got what it was entitled to" if ok else "FAILED: the rows marked ! are outside")
