"""Alternation: contenders take turns within one run; a turn during which other machines took the processor is dropped.

A *round* is one batch of every contender, in an order that rotates, so that nobody always runs first; ratios are formed
within a round only. A batch during which more than `MAX_STEAL` of the machine's time was stolen makes the pairs it
belongs to unclean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from tools.benches.stats import percentile

MAX_STEAL: Final = 0.15
SETTLE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Times:
    """A batch in microseconds: from request to exec and to the end of each start, and the wall time of it all."""

    executed: tuple[float, ...]
    ended: tuple[float, ...]
    wall: float
    stages: tuple[tuple[float, ...], ...] = ()
    """For each start the figures of the contender's own `stage_names`."""


class Contender(Protocol):
    """Somebody who starts things."""

    name: str

    @property
    def stage_names(self) -> Sequence[str]:
        """What the figures of `Times.stages` are."""

    def run(self, count: int, depth: int) -> Times:
        """Make `count` starts, `depth` of them in flight at any time."""

    def processor_seconds(self) -> float:
        """What it and its starts have used so far of the processors; what the kernel does on its own is not in it."""

    def settle(self) -> bool:
        """Whether everything the last batch made is gone (the kernel removes network devices some time later)."""


@dataclass(frozen=True)
class Batch:
    """One contender's turn."""

    times: Times
    steal: float
    used: float = 0.0
    """Seconds of processor time."""

    @property
    def clean(self) -> bool:
        return self.steal <= MAX_STEAL


def read_processor_times(path: str = "/proc/stat") -> tuple[int, int]:
    """(stolen, total) ticks of all processors since boot; see proc(5). Guest time is already within user time."""
    with open(path, encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    return fields[7], sum(fields)


def stolen_since(before: tuple[int, int], after: tuple[int, int]) -> float:
    """The stolen share (0..1) of the time between two readings; 0 for an interval shorter than a tick."""
    total = after[1] - before[1]
    return (after[0] - before[0]) / total if total > 0 else 0.0


@dataclass
class Comparison:
    """Everything that was measured at one depth: for each contender its batches, in the order of the rounds."""

    depth: int
    batches: dict[str, list[Batch]] = field(default_factory=dict)

    def pairs(self, name: str, other: str) -> list[tuple[Batch, Batch]]:
        """The clean pairs of two contenders."""
        both = zip(self.batches[name], self.batches[other], strict=True)
        return [(mine, theirs) for mine, theirs in both if mine.clean and theirs.clean]

    def lost(self, name: str, other: str) -> str:
        """Where the other pairs went, for the reason of an inconclusive row."""
        dropped = len(self.batches[name]) - len(self.pairs(name, other))
        if not dropped:
            return ""
        return f"{dropped} of {len(self.batches[name])} pairs dropped for more than {MAX_STEAL:.0%} steal"

    def ratios(self, name: str, other: str, figure: Callable[[Times], float]) -> list[float]:
        """`figure` of `name` over that of `other`, one ratio for each clean pair."""
        return [figure(mine.times) / figure(theirs.times) for mine, theirs in self.pairs(name, other)]

    def pooled(self, name: str, pick: Callable[[Times], Sequence[float]]) -> list[float]:
        """The single starts of all clean batches of `name`."""
        return [value for batch in self.batches[name] if batch.clean for value in pick(batch.times)]


def executed_p50(times: Times) -> float:
    """Microseconds from request to exec."""
    return percentile(times.executed, 0.5)


def per_second(times: Times) -> float:
    """Starts per second, removal included."""
    return len(times.ended) / times.wall * 1e6


def alternate(
    contenders: Sequence[Contender],
    depth: int,
    rounds: int,
    counts: Mapping[str, int],
    *,
    read: Callable[[], tuple[int, int]] = read_processor_times,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Let `contenders` take turns for `rounds` rounds after one that only warms them up.

    Args:
        counts: starts in a batch of each contender, by name.
        read: where steal is read (tests put a script here).
        progress: told about each round.
    """
    result = Comparison(depth, {contender.name: [] for contender in contenders})
    for number in range(rounds + 1):
        progress(f"depth {depth}, round {number} of {rounds}")
        for turn in range(len(contenders)):
            contender = contenders[(number + turn) % len(contenders)]
            _settle(contender)
            before, used = read(), contender.processor_seconds()
            times = contender.run(counts[contender.name], depth)
            steal = stolen_since(before, read())
            if number:
                batch = Batch(times, steal, contender.processor_seconds() - used)
                result.batches[contender.name].append(batch)
    for contender in contenders:
        _settle(contender)
    return result


def _settle(contender: Contender) -> None:
    """Wait until the last batch has left nothing, so that its removal is not charged to the next."""
    give_up = time.monotonic() + SETTLE_SECONDS
    while not contender.settle() and time.monotonic() < give_up:
        time.sleep(0.02)
