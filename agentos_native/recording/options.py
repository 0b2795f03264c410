"""What the command line asks of the process that reads a recording."""

from __future__ import annotations

from typing import Literal

import msgspec


class Replay(msgspec.Struct, frozen=True, kw_only=True, tag="replay"):
    """Compute turns anew. `directory`: a state directory or a ring; `last`: only so many ticks."""

    directory: str
    last: int | None = None
    output: Literal["table", "json"] = "table"


class Report(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """Draw a page.

    Attributes:
        directory: a state directory or a ring.
        output: path of the page; ``-`` for standard output.
        since: seconds before the last tick; None: from the beginning.
        agents: NAME or TENANT/NAME of those to be drawn; none: all, or the worst where they are many.
    """

    directory: str
    output: str
    since: float | None = None
    agents: tuple[str, ...] = ()


Request = Replay | Report
