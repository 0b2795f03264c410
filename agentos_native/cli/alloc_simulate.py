"""``alloc simulate``: the allocator without a kernel. This process turns into the one that simulates."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

import click
import msgspec

from agentos_native.errors import AgentosError
from agentos_native.simulation.options import Request
from agentos_native.spec import model, quantities

_HELP: Final = """
    Simulate agents of a trace on a machine of any size, by the very same allocator, without a kernel.

    \b
    FILE is CSV with a header, or JSON lines with the same keys; each line is something that happens:
      time      when: seconds from the start, 90s, 1m30s
      agent     its name
      event     arrive, change or leave; without it: arrive, then change
      tenant    "default"
      count     so many alike arrive
      priority  system, high, normal, low or idle
      weight    1 to 10000
      cpu       what it could use from now on: 0.5, 500m; max or nothing: all it can get
      cpu_request, cpu_limit      reserved for it, and never more than
      memory, memory_request, memory_limit      likewise in bytes: 64Mi, 2G
      network, network_request, network_limit   likewise in bits per second: 10M, 1G
      duration  it leaves so long after its start
      work      it leaves when it has used so many CPU-seconds

    \b
      time,agent,tenant,cpu,cpu_request,duration
      0,learner,lab,2,,
      10,dialogue,home,0.2,0.5,1m
      15,dialogue,home,1.5,,

    WANTED, ENTITLED and HAD are CPUs on average (of an agent: while it ran), SHORT is what was reserved and wanted but
    not had, in CPU-seconds. The agents shown are
    those most short, then those that got the least of what they wanted.
"""


def become(module: str, argument: Any) -> NoReturn:
    """Turn this process into another of ours: streams, signals and the exit status are then its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", f"agentos_native.{module}", msgspec.json.encode(argument).decode()]
    os.execv(sys.executable, command)


class Quantity(click.ParamType[Any, str]):
    """A quantity in the project's own words, with its own errors."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except AgentosError as error:
            where = param.opts[0] if param else ""
            raise AgentosError(error.code, error.what, where, error.hint)


def _cpus(text: str) -> float:
    millis = quantities.parse_cpu(text)
    if not millis:
        raise AgentosError("invalid-quantity", "a machine has more than 0 CPUs")
    return millis / 1000


def _period(text: str) -> float:
    seconds = quantities.parse_duration(text)
    if not 0.01 <= seconds <= 3600:
        raise AgentosError("out-of-range", f"{text!r} is out of range", hint="a simulated tick takes from 10ms to 1h")
    return seconds


DURATION: Final = Quantity("time", quantities.parse_duration)


@click.command(help=_HELP, short_help="A trace of agents on a machine of any size, without a kernel.")
@click.option("-f", "--file", "trace", required=True, metavar="FILE", help="The trace; - for standard input.")
@click.option("--spec", "specs", multiple=True, metavar="FILE", help="Documents of its tenants and agents (YAML).")
@click.option("--cpus", type=Quantity("cpus", _cpus), help="Of the simulated machine (those of this one).")
@click.option("--memory", type=Quantity("size", quantities.parse_memory), help="Of the machine; else not divided.")
@click.option("--network-rate", type=Quantity("rate", quantities.parse_rate), help="Of its uplink; else not divided.")
@click.option("--slots", type=click.IntRange(1), metavar="N", help="Agents that run at once at most.")
@click.option("--policy", type=click.Choice(model.POLICIES), default="maxmin", help="Of the node (maxmin).")
@click.option("--no-wait", is_flag=True, help="Starts that do not fit are refused instead of waiting.")
@click.option("--tick", "period", type=Quantity("time", _period), default="1s", help="Length of a tick (1s).")
@click.option("--until", type=DURATION, help="Where to end; else with the trace and its queues.")
@click.option("--engine", type=click.Choice(["numpy", "numba"]), help="Else numba from some hundred agents on.")
@click.option(
    "--find-cpus",
    type=DURATION,
    metavar="WAIT",
    help="Look for the least CPUs with no reservation short and no wait longer than WAIT.",
)
@click.option("-n", "--top", type=click.IntRange(0), default=10, help="How many agents to show (10).")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw shares over time: FILE.svg or FILE.png.")
@click.option("--csv", type=click.Path(), metavar="FILE", help="Write shares over time.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="text (default) or json.")
def simulate(no_wait: bool, **given: Any) -> None:
    become("simulation", Request(wait=not no_wait, **given))
