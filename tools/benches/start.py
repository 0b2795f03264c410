"""``tools/bench start``: request to exec and starts per second, next to a C program, bubblewrap and OCI runtimes.

Who takes part:

- ``C``: floor.c, the same system calls without policy; the measure of the budgets.
- ``stages``: the product's launcher and start stages, driven without HTTP and registry (`tools.benches.stages`).
- ``API``: the whole product, one POST for each start.
- ``bwrap``; in the VM also ``runc`` and ``crun``. On a hybrid host runc makes its groups in the machine's own v1
  hierarchies and crun refuses the layout, so both stay out there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from tools.benches import programs, service
from tools.benches.place import BenchError, Place
from tools.benches.report import Row, judge
from tools.benches.rounds import Batch, Comparison, Contender, Times, alternate, executed_p50, per_second
from tools.benches.stats import median, percentile


def _c(here: Place) -> AbstractContextManager[Contender]:
    from agentos_native.sandbox import seccomp

    return programs.floor(here, seccomp.compile_filter())


def _stages(here: Place) -> AbstractContextManager[Contender]:
    from tools.benches import stages

    return stages.contender(here)


MAKERS: Final[dict[str, Callable[[Place], AbstractContextManager[Contender]]]] = {
    "C": _c,
    "stages": _stages,
    "API": service.contender,
    "bwrap": programs.bubblewrap,
    "runc": lambda here: programs.oci(here, "runc"),
    "crun": lambda here: programs.oci(here, "crun"),
}
"""Each imports what it measures when it takes part."""


@dataclass(frozen=True)
class Figure:
    """A quantity of one batch, and how it is printed."""

    name: str
    unit: str
    of: Callable[[Times], float]
    scale: float
    more_is_better: bool


EXECUTED: Final = Figure("request to exec p50", "ms", executed_p50, 1e-3, False)
RATE: Final = Figure("rate", "starts/s", per_second, 1.0, True)
IN_VM: Final = {"--who": "C,stages,API,bwrap,runc,crun", "--rounds": "7", "--count": "8"}
"""Options of a run in the virtual machine unless they are given: everything takes fifty times as long when emulated."""
P50_BUDGET: Final = 1.6
RATE_BUDGET: Final = 0.7
API_BUDGET_MS: Final = 2.0
RUNC_BUDGET: Final = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--who", default="C,stages,API,bwrap", help=f"contenders, of {','.join(MAKERS)}")
    parser.add_argument("--depths", default="1,4,8", help="starts in flight")
    parser.add_argument("--rounds", type=int, default=12, help="turns of every contender at each depth")
    parser.add_argument("--count", type=int, default=24, help="starts in one turn")
    parser.add_argument("--vm", action="store_true", help="run in the virtual machine, with runc and crun")


def run(options: argparse.Namespace, here: Place, progress: Callable[[str], None]) -> list[Row]:
    """All rows. Raises BenchError for a contender that does not exist or cannot start."""
    who = options.who.split(",")
    if unknown := set(who) - set(MAKERS):
        raise BenchError(f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(MAKERS)}")
    rows: list[Row] = []
    with contenders(here, who) as entered:
        for depth in (int(word) for word in options.depths.split(",")):
            counts = {contender.name: max(options.count, depth) for contender in entered}
            comparison = alternate(entered, depth, options.rounds, counts, progress=progress)
            rows += rows_of(comparison, who)
            if depth == 1:
                rows += [row for contender in entered for row in _stage_rows(comparison, contender)]
    return rows


@contextmanager
def contenders(here: Place, who: Sequence[str]) -> Iterator[list[Contender]]:
    """Everybody who takes part, ended afterwards in reverse order."""
    with ExitStack() as stack:
        yield [stack.enter_context(MAKERS[name](here)) for name in who]


def rows_of(comparison: Comparison, who: Sequence[str]) -> list[Row]:
    """What one depth says."""
    rows = [row for name in who for row in _figures(comparison, name)]
    if "C" in who:
        for name in (name for name in who if name != "C"):
            rows += _against_floor(comparison, name)
    if "stages" in who and "API" in who:
        rows.append(_api_above_stages(comparison))
    for peer in (name for name in who if name in {"bwrap", "runc", "crun"}):
        rows += [_against_peer(comparison, name, peer) for name in who if name in {"API", "stages"}]
    return rows


def _figures(comparison: Comparison, name: str) -> list[Row]:
    """The plain figures of one contender, and what the machine did besides."""
    batches, reason = comparison.to_show(name)
    executed = [figure for batch in batches for figure in batch.times.executed]
    prefix = f"{name}, {comparison.depth} in flight"
    worst = comparison.batches[name]
    return [
        Row(f"{prefix}: request to exec p50", percentile(executed, 0.5) / 1e3, "ms", reason=reason),
        Row(f"{prefix}: request to exec p99", percentile(executed, 0.99) / 1e3, "ms", reason=reason),
        Row(f"{prefix}: rate", median([per_second(batch.times) for batch in batches]), "starts/s", reason=reason),
        Row(f"{prefix}: processor time of a start and its removal", _processor_ms(batches), "ms", reason=reason),
        Row(f"{prefix}: steal in its worst batch", max(batch.shares.steal for batch in worst) * 100, "%"),
        Row(f"{prefix}: other load in its worst batch", max(batch.shares.foreign for batch in worst) * 100, "%"),
    ]


def _processor_ms(batches: Sequence[Batch]) -> float:
    """Over all batches, since /proc counts in ticks of 10 ms. It says more than the clock on a busy machine."""
    return sum(batch.used for batch in batches) / sum(len(batch.times.ended) for batch in batches) * 1e3


def _stage_rows(comparison: Comparison, contender: Contender) -> list[Row]:
    """Where the time goes, as the contender itself tells it: medians over all starts."""
    batches, reason = comparison.to_show(contender.name)
    starts = [start for batch in batches for start in batch.times.stages]
    return [
        Row(f"{contender.name}, {comparison.depth} in flight: {stage}", median(figures) / 1e3, "ms", reason=reason)
        for stage, figures in zip(contender.stage_names, zip(*starts, strict=True), strict=False)
    ]


def _against_floor(comparison: Comparison, name: str) -> list[Row]:
    """The budgets that are ratios to the C program: they bind the stages; for the others the ratio is only told."""
    bound = name == "stages"
    slowest = P50_BUDGET if bound and comparison.depth == 1 else None
    return [
        _ratio_row(comparison, (name, "C"), EXECUTED, slowest),
        _ratio_row(comparison, (name, "C"), RATE, RATE_BUDGET if bound else None),
    ]


def _against_peer(comparison: Comparison, name: str, peer: str) -> Row:
    """How many times faster than somebody else's sandbox; `runc` is held to the budget, through the API."""
    budget = RUNC_BUDGET if (name, peer, comparison.depth) == ("API", "runc", 1) else None
    return _ratio_row(comparison, (peer, name), EXECUTED, budget, at_least=True)


def _ratio_row(
    comparison: Comparison, names: tuple[str, str], figure: Figure, budget: float | None, *, at_least: bool = False
) -> Row:
    """`figure` of the first of `names` over that of the second, pair by pair."""
    ratios, unclean = comparison.compare(*names, lambda mine, theirs: figure.of(mine) / figure.of(theirs))
    lost = comparison.lost(*names)
    shown, _ = comparison.to_show(names[0])
    value = median([figure.of(batch.times) for batch in shown]) * figure.scale
    title = f"{names[0]}, {comparison.depth} in flight: {figure.name}, ratio"
    if budget is None:
        told = judge(ratios, 0.0, otherwise=unclean)
        return Row(title, value, figure.unit, names[1], told.middle, spread=told.spread, reason=lost)
    verdict = judge(ratios, budget, at_least=at_least or figure.more_is_better, lost=lost, otherwise=unclean)
    return Row(title, value, figure.unit, names[1], verdict.middle, budget, verdict.ok, verdict.reason, verdict.spread)


def _api_above_stages(comparison: Comparison) -> Row:
    """Milliseconds that HTTP, validation and the registry add; the budget is for one start at a time."""
    names = ("API", "stages")
    above, unclean = comparison.compare(*names, lambda mine, theirs: (executed_p50(mine) - executed_p50(theirs)) / 1e3)
    verdict = judge(above, API_BUDGET_MS, lost=comparison.lost(*names), otherwise=unclean)
    title = f"API, {comparison.depth} in flight: request to exec p50 above the stages'"
    if comparison.depth > 1:
        return Row(title, verdict.middle, "ms", "stages", spread=verdict.spread, reason=comparison.lost(*names))
    return Row(title, verdict.middle, "ms", "stages", None, API_BUDGET_MS, verdict.ok, verdict.reason, verdict.spread)
