"""``python -m agentos_native.simulation REQUEST``: what ``agentos-native alloc simulate`` becomes.

The argument is a `Request` in JSON: the command line knows the options, and may not load what this loads.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from agentos_native import alloc
from agentos_native.errors import AgentosError
from agentos_native.simulation import plot, trace
from agentos_native.simulation.crowd import UNIT, Crowd
from agentos_native.simulation.options import Request
from agentos_native.simulation.results import Tally
from agentos_native.simulation.run import Machine, Simulation
from agentos_native.spec import load_file
from agentos_native.spec.model import Document

COMPILE_FROM: Final = 600
"""Agents from which the compiled engine is worth its start."""
MOST_CPUS: Final = 1 << 20


def machine_of(request: Request, cpus: float | None = None) -> Machine:
    """The machine that is simulated."""
    return Machine(
        cpus=cpus or request.cpus or float(len(os.sched_getaffinity(0))),
        memory=None if request.memory is None else request.memory / UNIT["memory"],
        network=None if request.network_rate is None else request.network_rate / UNIT["network"],
        slots=float("inf") if request.slots is None else request.slots,
    )


def simulate(
    request: Request, steps: Sequence[trace.Step], documents: Sequence[Document], machine: Machine
) -> tuple[Simulation, Tally, float]:
    """One run; with it the seconds that it took."""
    began = time.perf_counter()
    crowd = Crowd(steps, documents)
    if request.engine == "numba" or (request.engine is None and len(crowd) >= COMPILE_FROM):
        alloc.load_compiled()
    tally = Tally(crowd, machine)
    simulation = Simulation(
        crowd,
        machine,
        tally,
        policy=request.policy,
        period=request.period,
        wait=request.wait,
        until=request.until,
    )
    simulation.run()
    tally.settle()
    return simulation, tally, time.perf_counter() - began


def find_cpus(
    request: Request, steps: Sequence[trace.Step], documents: Sequence[Document]
) -> tuple[Simulation, Tally, float]:
    """The run on the smallest number of CPUs that is enough: doubled until it is, then halved between.

    More CPUs are not worse for reservations and waits in all but contrived traces; the answer is the boundary found.
    """

    def enough(cpus: int) -> bool:
        try:
            _, tally, _ = simulate(request, steps, documents, machine_of(request, float(cpus)))
        except AgentosError as error:
            if error.code != "reservation-too-large":
                raise
            return False
        totals = tally.tenant_totals()
        return not any(total.short > 1e-6 or total.refused or total.still_waiting for total in totals) and float(
            tally.waits().max(initial=0.0)
        ) <= (request.find_cpus or 0.0)

    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_CPUS:
            what = f"not even {MOST_CPUS} CPUs are enough: something else is what agents wait for"
            raise AgentosError("never-enough", what, request.trace, "more --memory or --slots, or a longer wait")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return simulate(request, steps, documents, machine_of(request, float(high)))


def main(argv: Sequence[str]) -> int:
    """The process."""
    try:
        request = msgspec.json.decode(argv[0], type=Request)
        if request.plot:
            plot.check(request.plot)
        documents = [document for path in request.specs for document in load_file(path)]
        steps = trace.load(request.trace)
        if request.find_cpus is not None:
            simulation, tally, seconds = find_cpus(request, steps, documents)
        else:
            simulation, tally, seconds = simulate(request, steps, documents, machine_of(request))
        if request.csv:
            tally.write_csv(request.csv)
        if request.plot:
            plot.draw(tally, tally.machine, request.plot)
        _tell(request, simulation, tally, seconds)
        sys.stdout.flush()
    except AgentosError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # whoever read our output went away; the interpreter must not complain of it again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 130
    return 0


def _tell(request: Request, simulation: Simulation, tally: Tally, seconds: float) -> None:
    if request.output == "json":
        result = tally.to_json(simulation, seconds, request.top)
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
        return
    summary = tally.summary(simulation, seconds)
    print(_headline(summary))
    if request.find_cpus is not None:
        print(f"{summary['cpus']:g} CPUs are enough: no reservation short, nobody waits over {request.find_cpus:g} s")
    print()
    _table(
        ("TENANT", "AGENTS", "WANTED", "ENTITLED", "HAD", "SHORT", "WAITED", "MEAN WAIT", "WORST WAIT", "REFUSED"),
        [
            (
                *(total.tenant, str(total.agents)),
                *(f"{value:.3f}" for value in (total.wanted, total.entitled, total.had)),
                *(f"{total.short:.2f}", str(total.waits), f"{total.mean_wait:.1f}s", f"{total.worst_wait:.1f}s"),
                str(total.refused) + (f" (+{total.still_waiting} wait)" if total.still_waiting else ""),
            )
            for total in tally.tenant_totals()
        ],
    )
    if not request.top:
        return
    print()
    _table(
        ("AGENT", "RAN", "WANTED", "ENTITLED", "HAD", "SHORT", "WAITED"),
        [
            (
                *(f"{total.tenant}/{total.agent}", f"{total.ran:.0f}s"),
                *(f"{value:.3f}" for value in (total.wanted, total.entitled, total.had)),
                f"{total.short:.2f}",
                "refused" if total.refused else "-" if total.waited is None else f"{total.waited:.1f}s",
            )
            for total in tally.worst_agents(request.top)
        ],
    )


def _headline(summary: dict[str, Any]) -> str:
    speed = summary["time"] / summary["seconds"]
    return (
        f"{summary['agents']} agents (at most {summary['most_at_once']} at once) on {summary['cpus']:g} CPUs for"
        f" {summary['time']:g} s: {summary['utilisation']:.1%} used\n"
        f"reservations: {summary['agents_short']} agents short, {summary['short_cpu_seconds']:.2f} CPU-seconds;"
        f" queue: {summary['waited']} waited, {summary['mean_wait']:.1f} s on average, {summary['worst_wait']:.1f} s"
        f" at worst; {summary['refused']} refused, {summary['still_waiting']} still wait\n"
        f"{summary['ticks']} ticks ({summary['ticks_computed']} unlike the one before) in {summary['seconds']:.2f} s:"
        f" {speed:.0f} times real time"
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns, the first to the left, figures to the right."""
    widths = [max(len(line[column]) for line in (headers, *rows)) for column in range(len(headers))]
    for line in (headers, *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([line[0].ljust(len(first)), *others]).rstrip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
