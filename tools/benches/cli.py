"""``tools/bench cli``: the processor time of the commands that people type most."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

from tools.benches.machine import MAX_STEAL, read_processor_times, shares
from tools.benches.place import Place
from tools.benches.report import Row, judge
from tools.benches.service import agentos_native, service

BUDGET_MS: Final = 120.0
HEAVY: Final = ("numba", "pyroute2", "numpy", "starlette", "uvicorn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=15, help="how often each command runs")


def run(options: argparse.Namespace, here: Place, progress: Callable[[str], None]) -> list[Row]:
    """CPU milliseconds of each command, and whether it imports what it must not."""
    program = [agentos_native()]
    with service(here, "cli") as running:
        environment = {**os.environ, "AGENTOS_SOCKET": running.socket}
        commands = {"--help": [*program, "--help"], "ps": [*program, "ps"]}
        samples: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(options.rounds + 1):
            progress(f"round {number} of {options.rounds}")
            for name, command in commands.items():
                cost = processor_ms(command, environment)
                if number and cost is not None:
                    samples[name].append(cost)
        rows = [_row(name, costs, options.rounds) for name, costs in samples.items()]
        return [*rows, *(_imports(name, command, environment) for name, command in commands.items())]


def processor_ms(command: Sequence[str], environment: dict[str, str]) -> float | None:
    """User and system time of one run in ms; None when too much was stolen (it is charged to whoever runs)."""
    before = read_processor_times()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, list(command))
    if shares(before, read_processor_times(), 0.0).steal > MAX_STEAL:
        return None
    return (usage.ru_utime + usage.ru_stime) * 1e3


def _row(name: str, costs: Sequence[float], rounds: int) -> Row:
    verdict = judge(costs, BUDGET_MS, lost=f"{rounds - len(costs)} of {rounds} dropped for steal")
    spread = verdict.spread
    return Row(f"{name}: CPU time p50", verdict.middle, "ms", "", None, BUDGET_MS, verdict.ok, verdict.reason, spread)


def _imports(name: str, command: Sequence[str], environment: dict[str, str]) -> Row:
    """How many of `HEAVY` the command imports, as the interpreter itself tells (``-X importtime``)."""
    interpreter = [sys.executable, "-X", "importtime", *command]
    told = subprocess.run(interpreter, env=environment, check=True, capture_output=True, text=True).stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in told.splitlines() if line.startswith("import time:")}
    found = [module for module in HEAVY if module in imported]
    return Row(f"{name}: heavy imports", float(len(found)), "modules", "", None, 0, not found, ", ".join(found))
