"""Alternation: contenders take turns within one run; a turn during which others took the processor is dropped.

A *round* is one batch of every contender, in an order that rotates, so that nobody always runs first; ratios are formed
within a round only. A batch during which too much of the machine was stolen or did other work (`machine`) makes the
pairs it belongs to unclean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from tools.benches.machine import (
    MAX_FOREIGN,
    MAX_STEAL,
    ProcessorTimes,
    Shares,
    read_processor_times,
    shares,
)
from tools.benches.stats import median, percentile

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
    """One contender's turn; `used` in seconds of processor time."""

    times: Times
    shares: Shares
    used: float = 0.0


@dataclass
class Comparison:
    """Everything that was measured at one depth: for each contender its batches, in the order of the rounds."""

    depth: int
    batches: dict[str, list[Batch]] = field(default_factory=dict)

    def pairs(self, name: str, other: str, *, unclean: bool = False) -> list[tuple[Batch, Batch]]:
        """The clean pairs of two contenders; with `unclean` all of them."""
        both = zip(self.batches[name], self.batches[other], strict=True)
        return [(mine, theirs) for mine, theirs in both if unclean or (mine.shares.clean and theirs.shares.clean)]

    def lost(self, name: str, other: str) -> str:
        """Where the other pairs went, for the reason of an inconclusive row."""
        dropped = len(self.batches[name]) - len(self.pairs(name, other))
        if not dropped:
            return ""
        limits = f"{MAX_STEAL:.0%} steal or {MAX_FOREIGN:.0%} other load"
        return f"{dropped} of {len(self.batches[name])} pairs dropped for more than {limits}"

    def compare(self, name: str, other: str, figure: Callable[[Times, Times], float]) -> tuple[list[float], float]:
        """`figure` of each clean pair, and what to show where there is none: its median over all pairs."""
        clean = [figure(mine.times, theirs.times) for mine, theirs in self.pairs(name, other)]
        everything = self.pairs(name, other, unclean=True)
        return clean, median([figure(mine.times, theirs.times) for mine, theirs in everything])

    def clean(self, name: str) -> list[Batch]:
        """The clean batches of `name`."""
        return [batch for batch in self.batches[name] if batch.shares.clean]

    def to_show(self, name: str) -> tuple[list[Batch], str]:
        """The clean batches of `name`, or without any all of them and the reason why they prove nothing."""
        clean = self.clean(name)
        if clean:
            return clean, ""
        return self.batches[name], f"no clean batch: {MAX_STEAL:.0%} steal or {MAX_FOREIGN:.0%} other load exceeded"


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
    read: Callable[[], ProcessorTimes] = read_processor_times,
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
            used = contender.processor_seconds() - used
            batch = Batch(times, shares(before, read(), used), used)
            if number:
                result.batches[contender.name].append(batch)
    for contender in contenders:
        _settle(contender)
    return result


def _settle(contender: Contender) -> None:
    """Wait until the last batch has left nothing, so that its removal is not charged to the next."""
    give_up = time.monotonic() + SETTLE_SECONDS
    while not contender.settle() and time.monotonic() < give_up:
        time.sleep(0.02)
