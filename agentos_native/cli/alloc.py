"""``alloc show|explain`` and ``top``: what agents are given, what they use, and why."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from agentos_native.cli.alloc_simulate import simulate
from agentos_native.cli.context import AGENT, client_of, output_option
from agentos_native.cli.effects import amount
from agentos_native.cli.output import cpus, print_json, print_line, rich_table, size, table
from agentos_native.cli.report import replay

_FIGURES: Final = ("WEIGHT", "REQUEST", "LIMIT", "DEMAND", "ENTITLED", "MEASURED", "CPU.WEIGHT", "MEMORY", "PIDS")
_SHOW: Final = ("TENANT", "AGENT", "TIER", *_FIGURES[:7], "BOUND BY")
_SHOW_ALL: Final = ("TENANT", "AGENT", "RESOURCE", "TIER", *_FIGURES[:6], "BOUND BY")
_TOP: Final = (
    *("TENANT", "AGENT", "TYPE", "TIER", "STATE", "WEIGHT", "REQUEST", "LIMIT", "ENTITLED", "MEASURED"),
    *("MEMORY", "MEMORY SHARE", "PIDS", "CPU PRESSURE", "MEMORY PRESSURE"),
)
_RIGHT: Final = (*_FIGURES, "MEMORY SHARE", "CPU PRESSURE", "MEMORY PRESSURE")


@click.group()
def alloc() -> None:
    """What the allocator gives, and why. CPU is in CPUs."""


alloc.add_command(simulate)
alloc.add_command(replay)


@alloc.command("show", short_help="What each agent is entitled to, and what it had.")
@click.option(
    *("-r", "--resource"),
    type=click.Choice(["cpu", "memory", "io", "network", "all"]),
    default="cpu",
    help="Which resource (cpu); each in its own unit: CPUs, bytes, bits per second.",
)
@output_option
def show(resource: str, output: str) -> None:
    """What each agent is entitled to, and what it had in the last tick."""
    rows = client_of().alloc(resource)
    if output == "json":
        print_json({"rows": rows})
    elif resource == "cpu":
        table(_SHOW, [_show_row(row) for row in rows], right=_RIGHT)
    else:
        table(_SHOW_ALL, [_resource_row(row) for row in rows], right=_RIGHT)
    if resource == "network" and not rows:
        print("no agent shares the network: without `supervise --network-rate` only limits hold", file=sys.stderr)


def _show_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    written = row.get("kernel_weight")
    who = (str(row.get("tenant", "")), _name(row), str(row.get("tier", "")), str(row.get("weight", "-")))
    return (*who, *_amounts(row), "-" if written is None else str(written), str(row.get("bound") or "-"))


def _resource_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    who = (str(row.get("tenant", "")), _name(row), str(row.get("resource", "cpu")), str(row.get("tier", "")))
    return (*who, str(row.get("weight", "-")), *_amounts(row), str(row.get("bound") or "-"))


def _amounts(row: Mapping[str, Any]) -> Sequence[str]:
    resource = str(row.get("resource", "cpu"))
    return [amount(resource, row.get(key)) for key in ("request", "limit", "demand", "entitled", "measured")]


def _name(row: Mapping[str, Any]) -> str:
    return str(row.get("name") or row.get("agent_id") or "")


@alloc.command("explain", short_help="Why an agent has what it has; what would give it more.")
@click.argument("name", type=AGENT)
@click.option("-v", "--verbose", is_flag=True, help="Also the derivation: every equation with its numbers.")
@output_option
def explain(name: str, verbose: bool, output: str) -> None:
    """Why an agent has what it has, in words and figures, and what would give it more.

    Of an agent that waits for its start: what it waits for, and what would let it in.
    """
    explanation = client_of().explain(name)
    if output == "json":
        print_json(explanation)
        return
    for line in explanation.get("words", ()):
        print(line)
    if verbose and explanation.get("equations"):
        print("\nDerivation")
        for line in explanation["equations"]:
            print(f"  {line}")


@click.command()
@click.option("--once", is_flag=True, help="Print one table and end.")
@click.option("-n", "--interval", type=click.FloatRange(0.1, 60), default=1.0, metavar="SECONDS", help="Pace (1).")
@output_option
def top(once: bool, interval: float, output: str) -> None:
    """Live: request, limit, share, use and pressure of each agent.

    CPU is in CPUs; pressure is the part of the last 10 s in which some process waited for the resource, in percent.
    """
    client = client_of()
    if output == "json":
        if once:
            print_json(client.top())
            return
        while True:
            print_line(client.top())
            time.sleep(interval)
    if once or not sys.stdout.isatty():
        table(_TOP, _top_rows(client.top()), right=_RIGHT)
        return
    _live(interval)


def _live(interval: float) -> None:
    """Redraw until Ctrl-C."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    client = client_of()

    def frame() -> Group:
        answer = client.top()
        return Group(Text(_headline(answer), style="bold"), rich_table(_TOP, _top_rows(answer), right=_RIGHT))

    with contextlib.suppress(KeyboardInterrupt), Live(frame(), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval)
            live.update(frame(), refresh=True)


def _headline(answer: Mapping[str, Any]) -> str:
    rows = answer["rows"]
    used = sum(row.get("measured") or 0.0 for row in rows)
    capacity = answer["node"]["cpu"]["capacity"] / 1000
    return f"{len(rows)} agents, {used:.2f} of {capacity:g} CPUs used, {time.strftime('%H:%M:%S')}"


def _top_rows(answer: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    return [_top_row(row) for row in answer["rows"]]


def _top_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    pids = row.get("pids_current")
    pressure = row.get("pressure") or {}
    return (
        *(str(row.get("tenant", "")), _name(row)),
        *(str(row.get(key) or "-") for key in ("type", "tier", "state", "weight")),
        *(cpus(row.get(key)) for key in ("request", "limit", "entitled", "measured")),
        *(size(row.get("memory_current")), size(row.get("memory_entitled")), "-" if pids is None else str(pids)),
        *("-" if pressure.get(kind) is None else f"{pressure[kind]:.1f}" for kind in ("cpu", "memory")),
    )
