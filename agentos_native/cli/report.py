"""``report`` and ``alloc replay``: what was recorded. This process turns into the one that reads it."""

from __future__ import annotations

import os
from typing import Literal

import click

from agentos_native.cli.alloc_simulate import DURATION, become
from agentos_native.cli.context import output_option
from agentos_native.errors import AgentosError
from agentos_native.recording.options import Replay, Report
from agentos_native.spec import settings

_state_dir = click.option(
    *("--state-dir",), metavar="DIR", type=click.Path(), help="State of the supervisor [AGENTOS_STATE_DIR]."
)


def _directory(state_dir: str | None) -> str:
    return os.path.abspath(state_dir or settings.load().state_dir)


@click.command()
@click.option("-o", "--output", metavar="FILE.html", default="report.html", type=click.Path(), help="(report.html)")
@_state_dir
@click.option("--since", type=DURATION, help="Only so long before the last recorded tick: 10m, 1h.")
@click.option("--agent", "agents", multiple=True, metavar="NAME", help="Only this one; may be given several times.")
def report(output: str, state_dir: str | None, since: float | None, agents: tuple[str, ...]) -> None:
    """Draw one self-contained HTML page from the recorded ticks, with or without a running supervisor.

    Shares against entitlement of each agent over time, pressure, writes, refused and queued starts. A running
    supervisor writes what it records every 10 seconds.
    """
    become("recording", Report(directory=_directory(state_dir), output=output, since=since, agents=agents))


@click.command()
@click.argument("directory", required=False, type=click.Path())
@_state_dir
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the last N ticks.")
@output_option
def replay(directory: str | None, state_dir: str | None, last: int | None, output: Literal["table", "json"]) -> None:
    """Compute every recorded turn anew and compare bit for bit. Exit status 1 when something differs.

    DIRECTORY is a state directory or a copy of its recording.
    """
    if directory and state_dir:
        raise AgentosError("usage", "a directory and --state-dir say the same", hint="give one of them")
    become("recording", Replay(directory=_directory(directory or state_dir), last=last, output=output))
