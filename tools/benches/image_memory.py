"""The memory of an import: what its confined processes hold together at the worst moment, as the image grows."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agentos_native.images import ImageStore
from tools.benches import memory
from tools.benches.image_disk import Filesystem
from tools.benches.image_sources import Sources
from tools.benches.report import Row

BUDGET_MIB: Final = 64.0
GROWTH: Final = 4
TURNS: Final = 3
EVERY: Final = 0.01
"""Seconds between two looks; a look itself takes about one millisecond for each process."""


def rows(sources: Sources, device: Filesystem, progress: Callable[[str], None]) -> list[Row]:
    """The tar, the tar with everything in it four times, and the layout."""
    made = []
    with device() as root:
        four = _several(sources.tar, root)
        for what, source in (("tar", sources.tar), (f"{GROWTH} times that tar", four), ("layout", sources.layout)):
            peaks = []
            for turn in range(TURNS):
                progress(f"memory of {what}, {turn + 1} of {TURNS}")
                peaks.append(_peak(root / f"state-{what.replace(' ', '-')}-{turn}", source))
            made.append((what, peaks))
    return peak_rows(made)


def peak_rows(peaks: Iterable[tuple[str, list[float]]]) -> list[Row]:
    """The worst of each, in MiB: memory does not depend on who else runs."""
    return [
        Row(
            f"memory of importing the {what}: peak of the worker's processes",
            max(seen),
            "MiB",
            budget=BUDGET_MIB,
            ok=max(seen) <= BUDGET_MIB,
            spread=(min(seen), max(seen)),
        )
        for what, seen in peaks
    ]


def _several(tar: Path, root: Path) -> Path:
    trees = root / "trees"
    for number in range(GROWTH):
        (trees / str(number)).mkdir(parents=True)
        subprocess.run(["tar", "-xpf", str(tar), "-C", str(trees / str(number))], check=True)
    target = root / "several.tar"
    subprocess.run(["tar", "-C", str(trees), "-cf", str(target), "."], check=True)
    return target


def _peak(state: Path, source: Path) -> float:
    """MiB that this process's children held together at most, by proportional set size."""
    with _watched() as seen:
        ImageStore(state).import_("bench", source)
    return max(seen, default=0) / 1024


@contextmanager
def _watched() -> Iterator[list[int]]:
    """Looks at the children from a thread meanwhile; KiB."""
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(EVERY):
            total = 0
            for pid in memory.tree(os.getpid())[1:]:
                with contextlib.suppress(OSError):  # it has ended
                    total += memory.pss_kib([pid])
            seen.append(total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
