"""``tools/bench tick``: one turn of the tick over many groups, next to what the kernel alone costs.

The C program (preads.c) reads the same kept-open files of the same groups and does nothing with them; so the ratio says
what parsing, estimating, allocating and comparing cost on top of the kernel's own work. Where there is a cpu
controller, it also writes the same weights as the product does. How many weights a tick rewrites is in `wandering`.
"""

from __future__ import annotations

import argparse
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import numpy as np

from agentos_native.cgroup import GroupRef, GroupSettings, Tree, discover
from agentos_native.cgroup.actuators import WeightFiles
from agentos_native.supervisor.loop.ticker import Ticker
from tools.benches import wandering
from tools.benches.place import BenchError, Place, cgroup2_mount
from tools.benches.programs import LineProgram
from tools.benches.report import Row, judge
from tools.benches.rounds import Batch, Comparison, Contender, Times, alternate, executed_p50
from tools.benches.stats import median

BUDGET: Final = 1.5
GROWTH_BUDGET: Final = 1.25
"""Processor time for each group at the largest number of groups, over that at the smallest: 1 is linear."""
PROGRESS_BUDGET: Final = 0.3
"""Of what another thread does alone. With the GIL held it would be next to nothing."""
IN_VM: Final = {"--rounds": "12", "--count": "3", "--sizes": "1000"}
COMPILED_SECONDS: Final = 180.0
TENANTS: Final = 10
FILES: Final = ("cpu.stat", "cpu.pressure")
SPARE_FDS: Final = 200
NEEDED_FDS: Final = 65536


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--sizes", default="1000,2000,5000,10000", help="how many groups")
    parser.add_argument("--rounds", type=int, default=40, help="turns of every contender")
    parser.add_argument("--count", type=int, default=6, help="ticks in one turn (fewer with more groups)")
    parser.add_argument("--numpy", action="store_true", help="without the compiled engine")
    parser.add_argument("--vm", action="store_true", help="run in the virtual machine, where weights are written")


class Turns:
    """Something done again and again in this process, as a contender: a "start" is one `turn`."""

    stage_names: tuple[str, ...] = ()

    def __init__(self, name: str, turn: Callable[[], object]) -> None:
        self.name = name
        self._turn = turn

    def run(self, count: int, depth: int) -> Times:
        """See `rounds.Contender.run`."""
        taken = []
        for _ in range(count):
            begun = time.perf_counter()
            self._turn()
            taken.append((time.perf_counter() - begun) * 1e6)
        return Times(tuple(taken), tuple(taken), sum(taken))

    def processor_seconds(self) -> float:
        """Of this whole process, which does nothing else meanwhile."""
        return time.process_time()

    def settle(self) -> bool:
        return True


class Herd:
    """A node's tree with agents' groups of several tenants, each with its leaf, and a ticker that cares for all."""

    def __init__(self, here: Place, *, compiled: bool) -> None:
        base = here.cgroup / "tick"
        base.mkdir()
        self.tree = Tree(discover(), "bench", f"/{base.relative_to(cgroup2_mount())}")
        self.tree.open()
        self.references: list[GroupRef] = []
        self.ticker = Ticker(self.tree, float(os.cpu_count() or 1), compile_from=int(compiled))
        self.ticker._meter.sensors.keep(open_files() - SPARE_FDS)

    def grow(self, count: int) -> None:
        """Up to `count` groups."""
        for number in range(len(self.references), count):
            ref = GroupRef(f"t{number % TENANTS}", "normal", f"{number:012x}")
            os.close(self.tree.create(ref, GroupSettings()).leaf("main"))
            self.ticker.add(ref.agent_id, ref, 100, 0, None)
            self.references.append(ref)

    def paths(self, *files: str) -> list[str]:
        """The files of every group."""
        return [f"{self.tree.get(ref).path}/{name}" for ref in self.references for name in files]

    def tick(self) -> None:
        self.ticker.tick(time.monotonic())

    def close(self) -> None:
        self.ticker.close()


def run(options: argparse.Namespace, here: Place, progress: Callable[[str], None]) -> list[Row]:
    """Ticks in which nothing changes at each size; then, at the first size, everything else."""
    sizes = sorted({int(word) for word in options.sizes.split(",")})
    rows: list[Row] = []
    with closing(Herd(here, compiled=not options.numpy)) as herd:
        each = []
        for size in sizes:
            progress(f"making {size} groups")
            herd.grow(size)
            if not options.numpy:
                wait_for_compiled(herd.ticker, progress)
            comparison = against_preads(herd, here, options, progress)
            rows += rows_of(comparison, size)
            each.append([1e6 * _used(batch) / size for batch in comparison.batches["tick"]])
            if size == sizes[0]:
                progress("the GIL, and writes")
                rows += [] if options.numpy else [gil_row(herd, max(6, options.rounds // 3))]
                rows += against_pwrites(herd, here, options, progress)
        if len(sizes) > 1:
            rows.append(growth_row(sizes, each))
    progress("wandering demand")
    return [*rows, *wandering.rows(here.directory / "wandering", sizes[0], progress)]


def open_files() -> int:
    """Raise the limit of open files to what this benchmark could use, as far as that is allowed; returns the limit.

    What does not stay open is opened at each turn, by the product as by the C program.
    """
    for limit in (NEEDED_FDS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        with suppress(ValueError, OSError):  # more than the hard limit takes CAP_SYS_RESOURCE
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def against_preads(herd: Herd, here: Place, options: argparse.Namespace, progress: Callable[[str], None]) -> Comparison:
    """The tick and the C program in turns."""
    listing = here.directory / "files"
    listing.write_text("".join(f"{path}\n" for path in herd.paths(*FILES)))
    count = max(2, options.count * 1000 // len(herd.references))
    with LineProgram("preads", [str(here.programs / "preads"), str(listing)]) as bare:
        everybody: list[Contender] = [bare, Turns("tick", herd.tick)]
        counts = {contender.name: count for contender in everybody}
        return alternate(everybody, 1, options.rounds, counts, progress=progress)


def rows_of(comparison: Comparison, size: int) -> list[Row]:
    """The plain figure of the preads, and the tick's, which is bound."""
    return [
        Row(f"preads, {size} groups", pooled(comparison, "preads"), "ms"),
        bound_row(f"tick, {size} groups, nothing changed", comparison, ("tick", "preads"), BUDGET),
        _processor_row(f"tick, {size} groups, processor time", comparison),
    ]


def _processor_row(title: str, comparison: Comparison) -> Row:
    """The kernel's and the program's own time in each turn, of all batches together: waiting for others does not count,
    and the kernel counts a child's in steps of 10 ms."""

    def each(name: str) -> float:
        return sum(map(_used, comparison.batches[name])) / len(comparison.batches[name])

    mine, theirs = each("tick"), each("preads")
    return Row(title, mine * 1e3, "ms", "preads", mine / theirs if theirs else None)


def _used(batch: Batch) -> float:
    """Processor seconds of one turn."""
    return batch.used / len(batch.times.executed)


def bound_row(title: str, comparison: Comparison, names: tuple[str, str], budget: float) -> Row:
    """The first of `names` over the second, pair by pair."""
    ratios, unclean = comparison.compare(*names, lambda mine, theirs: executed_p50(mine) / executed_p50(theirs))
    verdict = judge(ratios, budget, lost=comparison.lost(*names), otherwise=unclean)
    value = pooled(comparison, names[0])
    return Row(title, value, "ms", names[1], verdict.middle, budget, verdict.ok, verdict.reason, verdict.spread)


def pooled(comparison: Comparison, name: str) -> float:
    """Milliseconds of one turn, median over all."""
    batches, _ = comparison.to_show(name)
    return median([taken for batch in batches for taken in batch.times.executed]) / 1e3


def growth_row(sizes: Sequence[int], each: Sequence[Sequence[float]]) -> Row:
    """The processor time for one group at the largest size, over that at the smallest."""
    first, last = median(each[0]), median(each[-1])
    verdict = judge([value / first for value in each[-1]], GROWTH_BUDGET)
    title = f"tick, processor time for each group at {sizes[-1]} groups"
    against = f"at {sizes[0]}"
    budget = GROWTH_BUDGET
    return Row(title, last, "µs", against, verdict.middle, budget, verdict.ok, verdict.reason, verdict.spread)


def gil_row(herd: Herd, rounds: int) -> Row:
    """How fast another thread's Python runs while the groups are read, relative to how fast it runs alone."""
    sensors, slots = herd.ticker._meter.sensors, herd.ticker._slots.plan().slots
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    ratios = []
    for _ in range(rounds):
        begun, before = time.perf_counter(), counted[0]
        time.sleep(0.02)  # without the GIL, as the read should be
        alone = (counted[0] - before) / (time.perf_counter() - begun)
        begun, before = time.perf_counter(), counted[0]
        for _ in range(3):
            sensors.read(slots)
        ratios.append((counted[0] - before) / (time.perf_counter() - begun) / alone)
    stop.set()
    thread.join()
    verdict = judge(ratios, PROGRESS_BUDGET, at_least=True)
    budget = PROGRESS_BUDGET
    title = "another thread's progress while groups are read"
    return Row(title, verdict.middle, "of alone", "", None, budget, verdict.ok, verdict.reason, verdict.spread)


def against_pwrites(herd: Herd, here: Place, options: argparse.Namespace, progress: Callable[[str], None]) -> list[Row]:
    """Writing every group's weight, by the product and by bare pwrites; nothing where there is no cpu controller."""
    paths = herd.paths("cpu.weight")
    if not Path(paths[0]).exists():
        return [Row("weights written", None, "ms", reason="no cpu controller on cgroup v2 here: tools/bench tick --vm")]
    listing = here.directory / "weights"
    listing.write_text("".join(f"{path}\n" for path in paths))
    files = WeightFiles(len(paths))
    for slot, path in enumerate(paths):
        files.open(slot, os.path.dirname(path))
    slots, odd = np.arange(len(paths)), [0]

    def write() -> None:
        odd[0] ^= 1
        if not files.write(slots, np.full(len(slots), 100 + odd[0])).all():
            raise BenchError("a weight was refused")

    try:
        with LineProgram("pwrites", [str(here.programs / "preads"), str(listing), "write"]) as bare:
            everybody: list[Contender] = [bare, Turns("write", write)]
            counts = {contender.name: options.count for contender in everybody}
            comparison = alternate(everybody, 1, options.rounds, counts, progress=progress)
    finally:
        files.close_all()
    size = len(paths)
    return [
        Row(f"pwrites, {size} weights", pooled(comparison, "pwrites"), "ms"),
        bound_row(f"all of {size} weights written", comparison, ("write", "pwrites"), BUDGET),
    ]


def wait_for_compiled(made: Ticker, progress: Callable[[str], None]) -> None:
    """Tick until the compiled engine has taken over. Raises BenchError when it does not."""
    give_up = time.monotonic() + COMPILED_SECONDS
    while made.tick(time.monotonic()).engine != "numba":
        progress("compiling the allocator")
        if time.monotonic() > give_up:
            raise BenchError(f"the allocator's compiled engine was not there after {COMPILED_SECONDS:.0f} s")
        time.sleep(0.2)
