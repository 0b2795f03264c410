"""``tools/bench queue``: what one decision of the queue costs while 100, 10 000 and 100 000 starts wait.

A *decision* is what follows when an agent ends on a full node: the start to be served is found, it is found that no
further one fits, another start arrives and does not fit either, and why it waits is worked out. The starts ask for
different amounts of CPU and memory, of ten tenants or of one tenant for each ten starts. Sizes take turns within a
round, and a ratio is formed within a round only. The budget is the growth of the logarithm.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from math import inf, log
from typing import Final

from agentos_native.alloc.queueing import Entry, FairQueue
from agentos_native.alloc.room import Amounts, Room, minus
from tools.benches.place import Place
from tools.benches.report import Row, judge
from tools.benches.stats import median, median_interval

SIZES: Final = (100, 10_000, 100_000)
NODE: Final[Amounts] = (64_000, 256_000, 2048, inf, inf, inf)
NOTHING: Final[Amounts] = (0, 0, 0, 0, 0, 0)
IN_VM: Final = {"--rounds": "7"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=25, help="turns of every size")
    parser.add_argument("--count", type=int, default=40, help="decisions in one turn")


class Node:
    """A full node on which `waiting` starts of `tenants` tenants wait."""

    def __init__(self, waiting: int, tenants: int) -> None:
        self._random = random.Random(waiting + tenants)
        self._tenants = tenants
        self._ticket = 0
        self._queue = FairQueue()
        self._room = Room(NODE, {})
        self._running: list[tuple[str, Amounts]] = []
        for _ in range(waiting):
            self._arrive()
        self._serve()

    def _arrive(self) -> str:
        self._ticket += 1
        tenant = f"t{self._random.randrange(self._tenants)}"
        asked = (self._random.randrange(100, 4000), self._random.randrange(100, 16_000), 0, 1, 0, 0)
        self._queue.put(Entry(str(self._ticket), tenant, 2, self._ticket, asked))
        return str(self._ticket)

    def _serve(self) -> int:
        served = 0
        while (entry := self._queue.choose(self._room)) is not None:
            self._room.take(entry.tenant, entry.asked)
            self._running.append((entry.tenant, entry.asked))
            served += 1
        return served

    def decide(self) -> int:
        """One agent ends, and another start arrives; how many were served meanwhile."""
        tenant, asked = self._running.pop(self._random.randrange(len(self._running)))
        self._room.take(tenant, minus(NOTHING, asked))
        served = self._serve()
        key = self._arrive()
        served += self._serve()
        if self._queue.get(key) is not None:
            self._queue.obstacle(key)
        return served

    def place(self) -> None:
        """The place of the last one that has come."""
        self._queue.place(self._arrive(), self._room)


def _timed(node: Node, count: int) -> float:
    """Microseconds of processor time for each start that was served or came (of which there are as many)."""
    began = time.process_time()
    done = sum(node.decide() for _ in range(count)) + count
    return (time.process_time() - began) / done * 1e6


def run(options: argparse.Namespace, here: Place, progress: Callable[[str], None]) -> list[Row]:
    """The rows."""
    rows = []
    for name, tenants in (("10 tenants", lambda _: 10), ("n / 10 tenants", lambda waiting: waiting // 10)):
        progress(f"{name}: {', '.join(map(str, SIZES))} starts wait")
        nodes = {waiting: Node(waiting, tenants(waiting)) for waiting in SIZES}
        for node in nodes.values():
            _timed(node, options.count)
        rounds = [
            {waiting: _timed(node, options.count) for waiting, node in nodes.items()} for _ in range(options.rounds)
        ]
        rows += [_row(name, waiting, rounds) for waiting in SIZES]
        rows += [_placed(name, waiting, nodes[waiting]) for waiting in SIZES]
    return rows


def _row(name: str, waiting: int, rounds: list[dict[int, float]]) -> Row:
    value = median([times[waiting] for times in rounds])
    label = f"a decision, {waiting} wait, {name}"
    if waiting == SIZES[0]:
        return Row(label, value, "µs", spread=median_interval([times[waiting] for times in rounds]))
    budget = log(waiting) / log(SIZES[0])
    verdict = judge([times[waiting] / times[SIZES[0]] for times in rounds], budget)
    against = f"{SIZES[0]} wait"
    return Row(label, value, "µs", against, verdict.middle, budget, verdict.ok, verdict.reason, verdict.spread)


def _placed(name: str, waiting: int, node: Node) -> Row:
    times = []
    for _ in range(9):
        began = time.process_time()
        node.place()
        times.append((time.process_time() - began) * 1e6)
    return Row(f"a place, {waiting} wait, {name}", median(times), "µs", spread=median_interval(times))
