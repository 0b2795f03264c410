"""``logs`` and ``events``: what agents wrote, and what happened to them."""

from __future__ import annotations

import json
import sys
import time

import click

from agentos_native.cli.context import AGENT, client_of, output_option
from agentos_native.cli.output import clock, print_line, printable
from agentos_native.errors import AgentosError


def _since(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """A length of time before now (``10m``), a date and time (ISO 8601) or seconds since the epoch (``@…``)."""
    if value is None:
        return None
    from datetime import datetime

    from agentos_native.spec.quantities import parse_duration

    try:
        if value.startswith("@"):
            return float(value[1:])
        if value[4:5] == "-":
            return datetime.fromisoformat(value).timestamp()
    except ValueError:
        raise AgentosError(
            "invalid-value", f"{value!r} is not a time", "--since", "write 10m, 2026-01-31T12:00 or @SECONDS"
        )
    return time.time() - parse_duration(value)


@click.command()
@click.argument("name", type=AGENT)
@click.option("-f", "--follow", is_flag=True, help="Go on until the agent ends.")
@click.option("-n", "--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.option("--since", callback=_since, metavar="TIME", help="Only since then: 10m, 2026-01-31T12:00 or @SECONDS.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this stream.")
@click.option("-t", "--timestamps", is_flag=True, help="Put the time before each line.")
@output_option
def logs(
    name: str, follow: bool, tail: int | None, since: float | None, stream: str | None, timestamps: bool, output: str
) -> None:
    """What an agent wrote; its stderr goes to stderr. With -o json one JSON object in each line."""
    for line in client_of().logs(name, follow=follow, tail=tail, since=since, stream=stream):
        if output == "json":
            print_line(line)
            continue
        target = sys.stderr if line.stream == "stderr" else sys.stdout
        head = f"{clock(line.ts)} " if timestamps else ""
        target.write(head + line.log + ("" if line.partial else "\n"))
        target.flush()


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen.")
@click.option("--since", callback=_since, metavar="TIME", help="Only since then: 10m, 2026-01-31T12:00 or @SECONDS.")
@output_option
def events(follow: bool, since: float | None, output: str) -> None:
    """What happened on this node. With -o json one JSON object in each line."""
    for event in client_of().events(follow=follow, since=since):
        if output == "json":
            print_line(event)
            continue
        who = f"{event.tenant}/{event.name}" if event.tenant and event.name else event.name or event.tenant
        detail = " ".join(f"{key}={_plain(value)}" for key, value in event.detail.items() if value not in (None, ""))
        print(printable("  ".join(part for part in (clock(event.ts), event.type, who, detail) if part)), flush=True)


def _plain(value: object) -> str:
    """A detail of an event: text as it is, what has parts as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
