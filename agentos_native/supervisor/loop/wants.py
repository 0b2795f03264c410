"""What agents could use, from what was measured of them: bounded by their limits, their threads and the machine."""

from __future__ import annotations

from typing import Final

import numpy as np

from agentos_native.alloc import demand
from agentos_native.alloc.waterfill import Floats, Indices
from agentos_native.cgroup import Tree, sensors
from agentos_native.supervisor.loop.meter import Measured
from agentos_native.supervisor.loop.slots import Slots

UNKNOWN: Final = 0.0
"""Threads that nobody has counted yet."""


class Wants:
    """What is known of the agents' wants beside their demand, by slot.

    Args:
        tree: where agents' groups are; cpus: of the machine, or fewer where the node divides fewer.
        slots: how many to begin with.

    Attributes:
        unheld: the last estimate of demand, not cut by the limit, CPUs.
        lately: the most that was wanted lately, CPUs (`demand.lately`).
    """

    def __init__(self, tree: Tree, cpus: float, slots: int) -> None:
        self._tree = tree
        self._cpus = cpus
        self._tasks: Floats = np.full(slots, UNKNOWN)
        self.unheld: Floats = np.zeros(slots)
        self.lately: Floats = np.zeros(slots)

    def grow(self, more: int) -> None:
        self._tasks = np.append(self._tasks, np.full(more, UNKNOWN))
        self.unheld = np.append(self.unheld, np.zeros(more))
        self.lately = np.append(self.lately, np.zeros(more))

    def add(self, slot: int) -> None:
        """A new agent has the slot."""
        self._tasks[slot], self.unheld[slot] = UNKNOWN, self._cpus
        self.lately[slot] = 0.0

    def remember(self, places: Indices, current: Floats, elapsed: float) -> None:
        """The demand that agents have now, by slot."""
        self.lately[places] = demand.lately(self.lately[places], current, elapsed)

    def estimate(self, slots: Slots, measured: Measured, entitled: Floats, capacity: float, had: Floats) -> Floats:
        """The demand of each agent of the plan, in CPUs: never more than its limit or its threads can use, shape (n,).

        Args:
            entitled: what each was given last, for where the kernel has no PSI.
            capacity: CPUs that are there for all agents.
            had: what each uses, for who might have more of its CPUs than the average (`demand.in_parallel`).
        """
        places = slots.plan().slots
        unknown = np.isnan(measured.stalled)
        wanted = demand.estimate(measured.used, measured.stalled)
        wanted = np.where(unknown, demand.without_pressure(measured.used, entitled), wanted)
        unheld = self.unheld[places] = np.minimum(wanted, self._cpus)
        limit = slots.limit[places]
        # threads are counted only for those that would otherwise get more than their last known number allows
        for index in np.flatnonzero(np.minimum(unheld, limit) > np.maximum(self._tasks[places], 1.0)).tolist():
            slot = int(places[index])
            self._tasks[slot] = sensors.read_tasks(self._tree.get(slots.at(slot).ref).path) or np.inf
        tasks = np.where(self._tasks[places] > 0, self._tasks[places], np.inf)
        unheld = np.minimum(unheld, np.maximum(tasks, 1.0))
        # how many threads there are is told by what they want without the limit, which several of them may share
        return np.minimum(demand.in_parallel(unheld, had, capacity / self._cpus, self._cpus), limit)
