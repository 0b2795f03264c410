"""``tools/bench startup``: how soon a supervisor that has just started divides the machine, and what its engines cost.

"Start" is the execution of the supervisor's process by its launcher (as /proc tells it, to 10 ms); told besides is the
way from the command ``agentos-native supervise``. An *allocation* is a turn of the tick, as the API shows it. The
compiled engine is loaded in a process that has imported what the supervisor has.

Modules are there as bytecode, as installation leaves them: the first round, which does not count, makes it where a
checkout has none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tools.benches.machine import TICKS, read_processor_times, shares
from tools.benches.place import BenchError, Place, cgroup2_mount
from tools.benches.report import Row, judge
from tools.benches.service import STOP_SECONDS, Connection, agentos_native
from tools.benches.stats import median

FIRST_BUDGET: Final = 0.3
READY_BUDGET: Final = 1.5
RSS_BUDGET_MIB: Final = 160.0
COLUMNS: Final = (
    ("supervisor's start to first allocation", "s", FIRST_BUDGET),
    ("supervisor's start to an answering API", "s", None),
    ("command to an answering API", "s", None),
    ("compiled engine from its cache", "s", READY_BUDGET),
    ("RSS with the compiled engine", "MiB", RSS_BUDGET_MIB),
)
PATIENCE: Final = 120.0
IN_VM: Final = {"--rounds": "3"}
ENGINE: Final = """
import json, time
import agentos_native.supervisor.app
from agentos_native.supervisor.loop.engine import load
begun = time.perf_counter()
assert load()
taken = time.perf_counter() - begun
rss = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(json.dumps([taken, rss / 1024]))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=12, help="how many starts")
    parser.add_argument("--vm", action="store_true", help="run in the virtual machine")


def run(options: argparse.Namespace, here: Place, progress: Callable[[str], None]) -> list[Row]:
    """Rows of the starts, and of the compiled engine."""
    figures: list[tuple[float, ...]] = []
    clean: list[tuple[float, ...]] = []
    for number in range(options.rounds + 1):
        progress(f"start {number} of {options.rounds}")
        before, used = read_processor_times(), _children_seconds()
        start, engine = one_start(here, number), one_engine()
        if number:
            figures.append((*start, *engine))
            if shares(before, read_processor_times(), _children_seconds() - used).clean:
                clean.append(figures[-1])
    lost = f"{options.rounds - len(clean)} of {options.rounds} dropped for steal or other load"
    rows = []
    for column, (name, unit, budget) in enumerate(COLUMNS):
        samples = figures if unit == "MiB" else clean  # memory does not depend on who else runs
        everything = median([row[column] for row in figures])
        rows.append(_row(name, unit, [row[column] for row in samples], budget, lost, everything))
    return rows


def _row(name: str, unit: str, samples: list[float], budget: float | None, lost: str, otherwise: float) -> Row:
    verdict = judge(samples, budget if budget is not None else 0.0, lost=lost, otherwise=otherwise)
    if budget is None:
        return Row(name, verdict.middle, unit, spread=verdict.spread)
    return Row(name, verdict.middle, unit, "", None, budget, verdict.ok, verdict.reason, verdict.spread)


def _children_seconds() -> float:
    """CPU time of all processes that have ended and been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def one_engine() -> list[float]:
    """Seconds from wanting the compiled engine to having it, and MiB of the process then."""
    command = [sys.executable, "-c", ENGINE]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment())
    result: list[float] = json.loads(done.stdout)
    return result


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def one_start(here: Place, number: int) -> tuple[float, float, float]:
    """Seconds: from the supervisor's start to its first allocation and to its API; from the command to the API."""
    state = here.directory / f"startup-{number}"
    state.mkdir(mode=0o711)
    group = here.cgroup / f"startup-{number}"
    group.mkdir()
    socket = str(state / "api.sock")
    command = [agentos_native(), "supervise", "--node", f"s{os.getpid() % 1000000}", "--socket", socket]
    command += ["--state-dir", str(state / "state"), "--cgroup-root", f"/{group.relative_to(cgroup2_mount())}"]
    log = state / "log"
    called = time.clock_gettime(time.CLOCK_BOOTTIME)
    process = subprocess.Popen(command, stderr=log.open("wb"), stdout=subprocess.DEVNULL, env=_environment())
    try:
        answered = _until(lambda: _call(socket, "/v1/version"), process, log)
        _until(lambda: _call(socket, "/v1/node")["first_tick"], process, log)
        divided = float(_call(socket, "/v1/node")["first_tick"])
        begun = _started(_supervisor(process.pid))
        return divided - begun, answered - begun, answered - called
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _until(tried: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> float:
    """CLOCK_BOOTTIME when `tried` first gave an answer."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up and process.poll() is None:
        if tried() is not None:
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        time.sleep(0.002)
    raise BenchError(f"the supervisor did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _call(socket: str, target: str) -> Any:
    with contextlib.suppress(OSError), contextlib.closing(Connection(socket)) as connection:
        return connection.call("GET", target)
    return None


def _supervisor(launcher: int) -> int:
    """The launcher's child (the command has become the launcher)."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"agentos_native.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    raise BenchError("the launcher has no supervisor")


def _started(pid: int) -> float:
    """Seconds since boot; proc_pid_stat(5), field 22."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / TICKS
