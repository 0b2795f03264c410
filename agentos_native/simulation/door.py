"""Who may start: the admission of a node, with its queues, for the crowd of a simulation."""

from __future__ import annotations

import math

import numpy as np

from agentos_native.alloc.queueing import Entry, FairQueue
from agentos_native.alloc.room import Amounts, Room
from agentos_native.alloc.waterfill import Indices
from agentos_native.simulation.crowd import REFUSED, RUNNING, Crowd


class Door:
    """Lets agents in while their reservations fit, and lets the others wait (`alloc.queueing`) or refuses them.

    Args:
        cpus, memory, slots: of the machine; memory in Mi; ∞ for no bound.
        wait: who does not fit waits; else it is refused. Who could never fit is refused in any case.
    """

    def __init__(self, crowd: Crowd, cpus: float, memory: float, slots: float, wait: bool) -> None:
        self._crowd = crowd
        self._capacity: Amounts = (math.floor(cpus * 1000 + 1e-6), memory, slots, math.inf)
        self._accounts = {
            name: account._replace(floor=_millis(account.floor), limit=_millis(account.limit))
            for name, account in crowd.accounts().items()
        }
        self._wait = wait
        self._queue = FairQueue()
        self._tickets = 0
        self._tenants = list(crowd.tenants)

    def __len__(self) -> int:
        return len(self._queue)

    def _room(self) -> Room:
        """What is promised to those that run."""
        crowd = self._crowd
        running = np.flatnonzero(crowd.state == RUNNING)
        tenant = crowd.tenant[running]
        columns = [
            np.bincount(tenant, values, minlength=len(self._tenants))
            for values in (
                np.rint(crowd.resources["cpu"].floor[running] * 1000),
                crowd.resources["memory"].floor[running],
                np.ones(len(running)),
            )
        ]
        room = Room(self._capacity, self._accounts)
        for index in np.flatnonzero(columns[2]).tolist():
            cpu, memory, count = (float(column[index]) for column in columns)
            room.take(self._tenants[index], (cpu, memory, count, count))
        return room

    def _asked(self, index: int) -> Amounts:
        cpu, memory = (self._crowd.resources[name].floor[index] for name in ("cpu", "memory"))
        return (float(np.rint(cpu * 1000)), float(memory), 1.0, 1.0)

    def come(self, places: Indices, now: float) -> bool:
        """New arrivals, and whoever waits and fits now: they start. Whether somebody did."""
        if not len(places) and not len(self._queue):
            return False
        if not len(self._queue) and self._all_fit(places, self._room()):
            self._crowd.start(places, now)
            return True
        for index in places.tolist():
            asked, tenant = self._asked(index), self._tenants[int(self._crowd.tenant[index])]
            if self._never(tenant, asked):
                self._refuse(index, now)
                continue
            self._tickets += 1
            self._queue.put(Entry(str(index), tenant, int(self._crowd.tier[index]), self._tickets, asked))
        return self._serve(self._room(), now)

    def _all_fit(self, places: Indices, room: Room) -> bool:
        """Whether all of `places` fit together: the usual case, and the only fast one for a great many."""
        crowd = self._crowd
        tenant = crowd.tenant[places]
        count = len(self._tenants)
        cpu = np.bincount(tenant, np.rint(crowd.resources["cpu"].floor[places] * 1000), minlength=count)
        memory = np.bincount(tenant, crowd.resources["memory"].floor[places], minlength=count)
        agents = np.bincount(tenant, minlength=count)
        for index in np.flatnonzero(agents).tolist():
            asked = (float(cpu[index]), float(memory[index]), float(agents[index]), float(agents[index]))
            if room.obstacle(self._tenants[index], asked) is not None:
                return False
            room.take(self._tenants[index], asked)
        return True

    def _never(self, tenant: str, asked: Amounts) -> bool:
        """Whether it would not even fit alone."""
        return Room(self._capacity, self._accounts).obstacle(tenant, asked) is not None

    def _refuse(self, index: int, now: float) -> None:
        self._crowd.state[index] = REFUSED
        self._crowd.ended[index] = now

    def _serve(self, room: Room, now: float) -> bool:
        started: list[int] = []
        while (entry := self._queue.choose(room)) is not None:
            room.take(entry.tenant, entry.asked)
            started.append(int(entry.key))
        self._crowd.start(np.array(started, dtype=np.int64), now)
        if not self._wait:
            for entry in list(self._queue):
                self._queue.remove(entry.key)
                self._refuse(int(entry.key), now)
        return bool(started)

    def leave(self, places: Indices) -> None:
        """Who waits of them waits no more."""
        if len(self._queue):
            for index in places.tolist():
                self._queue.remove(str(index))

    def lengths(self) -> list[int]:
        """How many of each tenant wait."""
        return [self._queue.length(name) for name in self._tenants]


def _millis(amounts: Amounts) -> Amounts:
    """CPUs as whole millicores, so that sums are exact."""
    cpu, memory, slots, agents = amounts
    return (cpu if math.isinf(cpu) else float(round(cpu * 1000)), memory, slots, agents)
