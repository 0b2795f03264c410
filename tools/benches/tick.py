"""``tools/bench tick``: one turn of the tick over many groups in which nothing happens, next to bare preads in C.

The C program (preads.c) reads the same kept-open files of the same groups and does nothing with them; so the ratio says
what parsing, estimating, allocating and comparing cost on top of the kernel's own work. Where there is no cpu
controller the tick has no weights to write, but everything before that is the same.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final

from agentos_native.cgroup import GroupRef, GroupSettings, Tree, discover
from agentos_native.supervisor.loop.ticker import Ticker
from tools.benches.place import BenchError, Place, cgroup2_mount
from tools.benches.programs import LineProgram
from tools.benches.report import Row, judge
from tools.benches.rounds import Comparison, Contender, Times, alternate, executed_p50
from tools.benches.stats import median

BUDGET: Final = 1.5
IN_VM: Final = {"--rounds": "7"}
COMPILED_SECONDS: Final = 120.0
TENANTS: Final = 10
FILES: Final = ("cpu.stat", "cpu.pressure")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--groups", type=int, default=1000, help="how many agents' groups")
    parser.add_argument("--rounds", type=int, default=12, help="turns of every contender")
    parser.add_argument("--count", type=int, default=10, help="ticks in one turn")
    parser.add_argument("--numpy", action="store_true", help="without the compiled engine")
    parser.add_argument("--vm", action="store_true", help="run in the virtual machine, where weights are written")


class Ticks:
    """A ticker as a contender: a "start" is a tick."""

    name = "tick"
    stage_names: tuple[str, ...] = ()

    def __init__(self, made: Ticker) -> None:
        self._ticker = made

    def run(self, count: int, depth: int) -> Times:
        """See `rounds.Contender.run`."""
        taken = []
        for _ in range(count):
            begun = time.perf_counter()
            self._ticker.tick(time.monotonic())
            taken.append((time.perf_counter() - begun) * 1e6)
        return Times(tuple(taken), tuple(taken), sum(taken))

    def processor_seconds(self) -> float:
        """Of this whole process, which does nothing else meanwhile."""
        return time.process_time()

    def settle(self) -> bool:
        return True


def run(options: argparse.Namespace, here: Place, progress: Callable[[str], None]) -> list[Row]:
    """The ratio that the budget is about, with the compiled engine or without."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    progress(f"making {options.groups} groups")
    with (
        groups(here, options.groups) as (tree, references),
        closing(ticker(tree, references, compiled=not options.numpy)) as made,
    ):
        if not options.numpy:
            wait_for_compiled(made, progress)
        listing = here.directory / "files"
        listing.write_text("".join(f"{tree.get(ref).path}/{name}\n" for ref in references for name in FILES))
        with LineProgram("preads", [str(here.programs / "preads"), str(listing)]) as bare:
            everybody: list[Contender] = [bare, Ticks(made)]
            counts = {contender.name: options.count for contender in everybody}
            comparison = alternate(everybody, 1, options.rounds, counts, progress=progress)
    return rows_of(comparison, options.groups)


def rows_of(comparison: Comparison, count: int) -> list[Row]:
    """The plain figure of the preads, and the tick's, which is bound."""
    names = ("tick", "preads")
    ratios, unclean = comparison.compare(*names, lambda mine, theirs: executed_p50(mine) / executed_p50(theirs))
    verdict = judge(ratios, BUDGET, lost=comparison.lost(*names), otherwise=unclean)
    bare, tick = (_pooled(comparison, name) for name in ("preads", "tick"))
    return [
        Row(f"preads, {count} groups", bare, "ms"),
        Row(f"tick, {count} groups, nothing changed", tick, "ms", "preads", verdict.middle, BUDGET, verdict.ok,
            verdict.reason, verdict.spread),
    ]  # fmt: skip


def _pooled(comparison: Comparison, name: str) -> float:
    batches, _ = comparison.to_show(name)
    return median([taken for batch in batches for taken in batch.times.executed]) / 1e3


@contextmanager
def groups(here: Place, count: int) -> Iterator[tuple[Tree, list[GroupRef]]]:
    """A node's tree with `count` agents' groups of several tenants, each with its leaf."""
    base = here.cgroup / "tick"
    base.mkdir()
    tree = Tree(discover(), "bench", f"/{base.relative_to(cgroup2_mount())}")
    tree.open()
    references = [GroupRef(f"t{number % TENANTS}", "normal", f"{number:012x}") for number in range(count)]
    for ref in references:
        os.close(tree.create(ref, GroupSettings(), ()).leaf("main"))
    yield tree, references


def ticker(tree: Tree, references: list[GroupRef], *, compiled: bool) -> Ticker:
    """A ticker that cares for all of them."""
    made = Ticker(tree, float(os.cpu_count() or 1), compile_from=int(compiled))
    for ref in references:
        made.add(ref.agent_id, ref, 100, 0, None)
    return made


def wait_for_compiled(made: Ticker, progress: Callable[[str], None]) -> None:
    """Tick until the compiled engine has taken over. Raises BenchError when it does not."""
    give_up = time.monotonic() + COMPILED_SECONDS
    while made.tick(time.monotonic()).engine != "numba":
        progress("compiling the allocator")
        if time.monotonic() > give_up:
            raise BenchError(f"the allocator's compiled engine was not there after {COMPILED_SECONDS:.0f} s")
        time.sleep(0.2)
