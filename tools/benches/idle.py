"""``tools/bench idle``: what 0, 100 and 500 agents cost that only sleep, beyond their own program.

The machine's kernel memory also moves by itself. So the same number of bare processes (the same program, without any
sandbox) is measured in the same way in the same run, and the readings before and after a population must agree, or the
figure is inconclusive.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.benches import memory
from tools.benches.machine import MAX_STEAL, read_processor_times, shares
from tools.benches.place import Place, link_names
from tools.benches.report import Row
from tools.benches.service import Service, agent_spec, service

PSS_BUDGET_KIB: Final = 100.0
KERNEL_BUDGET_KIB: Final = 500.0
RSS_BUDGET_MIB: Final = 160.0
CPU_BUDGET_PERCENT: Final = 1.0
REST_SECONDS: Final = 20.0
CPU_POPULATION: Final = 100
IDLE: Final = ["/bin/sleep", "100000"]
IN_FLIGHT: Final = 4
DRIFT: Final = 0.2
"""How much of a budget the machine's own movement may be before a figure is called inconclusive."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--agents", default="0,100,500", help="how many idle agents")


@dataclass(frozen=True)
class Reading:
    """One look at the machine, in KiB."""

    kernel: int
    percpu: int

    @classmethod
    def take(cls) -> Reading:
        """After the kernel has had a moment to settle (RCU frees late)."""
        time.sleep(2.0)
        figures = memory.meminfo()
        return cls(memory.kernel_kib(figures), figures["Percpu"])


@dataclass(frozen=True)
class Grown:
    """What a population added, in KiB for each of its members, and how far the readings around it were apart."""

    kernel: float
    percpu: float
    drift: float


def grown(before: Reading, during: Reading, after: Reading, count: int) -> Grown:
    """Against the mean of the two readings around, so that a steady drift cancels."""
    base = (before.kernel + after.kernel) / 2, (before.percpu + after.percpu) / 2
    drift = abs(after.kernel - before.kernel) / 2 / count
    return Grown((during.kernel - base[0]) / count, (during.percpu - base[1]) / count, drift)


def run(options: argparse.Namespace, here: Place, progress: Callable[[str], None]) -> list[Row]:
    """All rows, for each population."""
    rows: list[Row] = []
    with service(here, "idle") as running:
        empty = memory.pss_kib(running.processes())
        for count in (int(word) for word in options.agents.split(",")):
            progress(f"{count} agents")
            if count:
                rows += _population(running, here, count, empty, progress)
            else:
                rows += _at_rest(running, 0)
    return rows


def _population(running: Service, here: Place, count: int, empty: int, progress: Callable[[str], None]) -> list[Row]:
    """The rows of one number of agents."""
    before = Reading.take()
    with agents(running, count) as pids:
        during = Reading.take()
        rows = _pss_rows(count, memory.pss_kib(pids), memory.pss_kib(running.processes()) - empty)
        rows += _at_rest(running, count)
    between = Reading.take()
    progress(f"{count} bare processes")
    with bare_processes(here, count):
        bare_during = Reading.take()
    cost, bare = grown(before, during, between, count), grown(between, bare_during, Reading.take(), count)
    return [*rows, *_kernel_rows(count, cost, bare)]


def _pss_rows(count: int, inits: int, grown_by: int) -> list[Row]:
    """KiB of all inits, and KiB by which launcher and supervisor have grown, for each agent."""
    pss = (inits + grown_by) / count
    title = f"{count} agents: PSS of init and of our processes"
    return [
        Row(title, pss, "KiB/agent", "", None, PSS_BUDGET_KIB, pss <= PSS_BUDGET_KIB),
        Row(f"{count} agents: PSS of init alone", inits / count, "KiB/agent"),
    ]


def _kernel_rows(count: int, cost: Grown, bare: Grown) -> list[Row]:
    value, drift = cost.kernel - bare.kernel, cost.drift + bare.drift
    ok: bool | None = value <= KERNEL_BUDGET_KIB
    reason = ""
    if drift > DRIFT * KERNEL_BUDGET_KIB:
        ok, reason = None, f"inconclusive: the machine itself moved by {drift:.0f} KiB per agent meanwhile"
    spread = (value - drift, value + drift)
    against = f"a bare process ({bare.kernel:.0f})"
    return [
        Row(f"{count} agents: kernel memory", value, "KiB/agent", against, None, KERNEL_BUDGET_KIB, ok, reason, spread),
        Row(f"{count} agents: Percpu", cost.percpu - bare.percpu, "KiB/agent", "a bare process"),
    ]


def _at_rest(running: Service, count: int) -> list[Row]:
    """Resident memory of the supervisor, and processor time of launcher and supervisor while nothing happens."""
    pids = running.processes()
    before, used = read_processor_times(), memory.processor_seconds(pids)
    time.sleep(REST_SECONDS)
    percent = (memory.processor_seconds(pids) - used) / REST_SECONDS * 100
    steal = shares(before, read_processor_times(), 0.0).steal
    rss = max(memory.rss_kib(pid) for pid in pids) / 1024
    bound = count <= CPU_POPULATION
    ok: bool | None = percent <= CPU_BUDGET_PERCENT if bound else None
    reason = "" if bound else f"the budget is for {CPU_POPULATION} agents"
    if bound and steal > MAX_STEAL:
        ok, reason = None, f"inconclusive: {steal:.0%} of the machine was stolen meanwhile"
    return [
        Row(f"{count} agents: supervisor RSS", rss, "MiB", "", None, RSS_BUDGET_MIB, rss <= RSS_BUDGET_MIB),
        Row(f"{count} agents: CPU at rest", percent, "% of a core", "", None, CPU_BUDGET_PERCENT, ok, reason),
    ]


@contextmanager
def agents(running: Service, count: int) -> Iterator[list[int]]:
    """`count` idle agents; yields the host's numbers of their first processes."""
    with ThreadPoolExecutor(IN_FLIGHT) as threads:

        def start(number: int) -> tuple[str, int]:
            with contextlib.closing(running.connect()) as connection:
                body = {"spec": agent_spec(f"idle-{count}-{number}", IDLE), "start": True}
                agent = connection.call("POST", "/v1/agents", body)
                return agent["id"], agent["pid"]

        def remove(agent_id: str) -> None:
            with contextlib.closing(running.connect()) as connection:
                connection.call("DELETE", f"/v1/agents/{agent_id}?force=1")

        started = list(threads.map(start, range(count)))
        try:
            yield [pid for _, pid in started]
        finally:
            list(threads.map(remove, [agent_id for agent_id, _ in started]))
    give_up = time.monotonic() + 30
    while link_names("ao") and time.monotonic() < give_up:
        time.sleep(0.1)


@contextmanager
def bare_processes(here: Place, count: int) -> Iterator[None]:
    """`count` processes of the same program without a sandbox."""
    command = [str(here.image / Path("bin/busybox")), "sleep", IDLE[1]]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += (subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(count))
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
