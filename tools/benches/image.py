"""``tools/bench image``: importing against tar and umoci, starts from many layers, memory, a build with nothing to do.

Both sides of a comparison have the same filesystem, made anew for every turn (`tools.benches.image_disk`), and end with
the same durability: an import returns when its tree is on the disk (syncfs), so tar's and umoci's figure is with
``sync -f`` after them. What they take without it is told beside, as is the comparison on a tmpfs, where there is
nothing to sync and only the work is left.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tools.benches import image_layers, image_memory, image_sources
from tools.benches.image_disk import Filesystem, disk, tmpfs
from tools.benches.image_sources import Sources
from tools.benches.place import BenchError, Place
from tools.benches.report import Row, judge
from tools.benches.rounds import Comparison, Times, alternate, executed_p50
from tools.benches.stats import median

TAR_BUDGET: Final = 1.3
UMOCI_BUDGET: Final = 1.0
AGAIN_BUDGET: Final = 0.05
PARTS: Final = ("tar", "layout", "layers", "memory", "build")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--parts", default=",".join(PARTS), help=f"what is measured, of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=10, help="turns of every contender")
    parser.add_argument("--tar", type=Path, help="the root filesystem (rootfs/build python)")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="where the filesystem's file is made")


def run(options: argparse.Namespace, here: Place, progress: Callable[[str], None]) -> list[Row]:
    """All rows. Raises BenchError when a program or the root filesystem is missing."""
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        raise BenchError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    rows: list[Row] = []
    if {"tar", "layout", "memory"} & set(parts):
        with disk(options.disk) as device:
            sources = image_sources.prepare(here, options.tar)
            if "tar" in parts:
                rows += _tar(sources, device, options.rounds, progress)
            if "layout" in parts:
                rows += _layout(sources, device, options.rounds, progress)
            if "memory" in parts:
                rows += image_memory.rows(sources, device, progress)
    if "layers" in parts:
        rows += image_layers.started(here, options.rounds, progress)
    if "build" in parts:
        rows += image_layers.built(here, options.rounds, progress)
    return rows


def fetch(options: argparse.Namespace) -> None:
    """Build the root filesystem where it is not in the cache; Debian's packages come over the network."""
    if options.tar is None:
        options.tar = image_sources.python_rootfs()


class Once:
    """A contender whose turn is one call of `work`: microseconds with and without what makes it durable, and stages."""

    def __init__(
        self, name: str, work: Callable[[], tuple[float, float, tuple[float, ...]]], stage_names: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.stage_names = stage_names
        self._work = work

    def run(self, count: int, depth: int) -> Times:
        """See `rounds.Contender.run`; `ended` is the figure without syncing."""
        durable, plain, stages = self._work()
        return Times((durable,), (plain,), durable, (stages,) if stages else ())

    def processor_seconds(self) -> float:
        """What this process and those that it has waited for have used."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    def settle(self) -> bool:
        return True


def plain(times: Times) -> float:
    """Microseconds without syncing (of an import: with, since it does not return before)."""
    return times.ended[0]


def _take_turns(contenders: Sequence[Once], rounds: int, what: str, progress: Callable[[str], None]) -> Comparison:
    counts = {contender.name: 1 for contender in contenders}
    return alternate(contenders, 1, rounds, counts, progress=lambda text: progress(f"{what}: {text}"))


def _tar(sources: Sources, device: Filesystem, rounds: int, progress: Callable[[str], None]) -> list[Row]:
    rows = []
    for where, filesystem in (("", device), (" on a tmpfs", tmpfs())):
        pair = [
            Once("import", lambda at=filesystem: image_sources.imported(at, sources.tar)),  # type: ignore[misc]
            Once("tar -x", lambda at=filesystem: image_sources.extracted(at, sources.tar)),  # type: ignore[misc]
        ]
        comparison = _take_turns(pair, rounds, f"tar{where}", progress)
        budget = None if where else TAR_BUDGET
        rows += tar_rows(comparison, f"{sources.tar_mib:.0f} MiB tar{where}", budget)
    return rows


def tar_rows(comparison: Comparison, what: str, budget: float | None) -> list[Row]:
    """The verdict is about both with the tree on the disk; without a budget (on a tmpfs) all is only told."""
    rows = figure_rows(comparison, what, ("import", "tar -x"))
    title = f"{what}: import against tar -x"
    rows.append(ratio_row(comparison, ("import", "tar -x"), f"{title}, both synced", budget))
    if budget is not None:
        rows.append(ratio_row(comparison, ("import", "tar -x"), f"{title} that does not sync", None, theirs=plain))
    return rows


def _layout(sources: Sources, device: Filesystem, rounds: int, progress: Callable[[str], None]) -> list[Row]:
    pair = [
        Once("import", lambda: image_sources.imported_twice(device, sources.layout), ("first", "second")),
        Once("umoci unpack", lambda: image_sources.unpacked(device, sources.layout)),
    ]
    rows = layout_rows(_take_turns(pair, rounds, "layout", progress), f"OCI layout of {sources.layers} layers")
    stages = ("first", "second", "another file")
    packed = [Once("import", lambda: image_sources.imported_thrice(device, sources.layout_tar), stages)]
    return rows + layout_tar_rows(_take_turns(packed, rounds, "layout in a tar", progress))


def layout_rows(comparison: Comparison, what: str) -> list[Row]:
    """Against umoci, and the second import of the same layers against the first in the same store."""
    names = ("import", "umoci unpack")
    rows = figure_rows(comparison, what, names)
    rows.append(ratio_row(comparison, names, f"{what}: import against umoci unpack, both synced", UMOCI_BUDGET))
    title = f"{what}: import against umoci unpack that does not sync"
    rows.append(ratio_row(comparison, names, title, None, theirs=plain))
    rows.append(_again_row(comparison, f"{what}: second import against the first", 1))
    return rows


def layout_tar_rows(comparison: Comparison) -> list[Row]:
    """The same archive again, and the same bytes in a file that this process has not seen: that takes a worker, whose
    start alone is more than a twentieth of such an import, so that it is only told.
    """
    what = "OCI layout in a tar"
    return [
        _again_row(comparison, f"{what}: second import against the first", 1),
        _again_row(comparison, f"{what}: the same in another file against the first", 2, budget=None),
    ]


def _again_row(comparison: Comparison, title: str, stage: int, *, budget: float | None = AGAIN_BUDGET) -> Row:
    """An import of layers that are known against that of the same turn that brought them."""
    shown, reason = comparison.to_show("import")
    stages = [batch.times.stages[0] for batch in shown]
    ratios = [each[stage] / each[0] for each in stages]
    lost = comparison.lost("import", "import")
    verdict = judge([] if reason else ratios, budget or 0.0, lost=lost, otherwise=median(ratios))
    return Row(
        title,
        median([each[stage] for each in stages]) / 1e3,
        "ms",
        "first",
        verdict.middle,
        budget,
        None if budget is None else verdict.ok,
        reason if budget is None else verdict.reason,
        verdict.spread,
    )


def figure_rows(comparison: Comparison, what: str, names: Sequence[str]) -> list[Row]:
    """Milliseconds of each, synced, and the worst of what the machine did besides."""
    rows = []
    for name in names:
        batches, reason = comparison.to_show(name)
        middle = median([executed_p50(batch.times) for batch in batches]) / 1e3
        rows.append(Row(f"{what}: {name}, synced", middle, "ms", reason=reason))
    worst = max(batch.shares.steal for name in names for batch in comparison.batches[name])
    rows.append(Row(f"{what}: steal in the worst turn", worst * 100, "%"))
    return rows


def ratio_row(
    comparison: Comparison,
    names: tuple[str, str],
    title: str,
    budget: float | None,
    *,
    theirs: Callable[[Times], float] = executed_p50,
) -> Row:
    """The first of `names` over the second, pair by pair; `theirs` is the second's figure."""
    ratios, unclean = comparison.compare(*names, lambda mine, other: executed_p50(mine) / theirs(other))
    shown, _ = comparison.to_show(names[0])
    value = median([executed_p50(batch.times) for batch in shown]) / 1e3
    lost = comparison.lost(*names)
    if budget is None:
        told = judge(ratios, 0.0, otherwise=unclean)
        return Row(title, value, "ms", names[1], told.middle, spread=told.spread, reason=lost)
    verdict = judge(ratios, budget, lost=lost, otherwise=unclean)
    return Row(title, value, "ms", names[1], verdict.middle, budget, verdict.ok, verdict.reason, verdict.spread)
