"""A task agent: plans shortest routes for orders that keep coming, through a building whose doors open and close.

Usage: route_planner.py [ROOMS]. The building is a random plane graph of ROOMS rooms (400); each order asks for a way
between two of them and is planned with A* anew, since some doors have changed in between.
"""

from __future__ import annotations

import heapq
import math
import random
import sys
from collections.abc import Iterator

import workers

NEIGHBOURS = 5


class Building:
    """Rooms in the unit square, doors to the nearest ones."""

    def __init__(self, rooms: int, seed: int) -> None:
        self._random = random.Random(seed)
        self.places = [(self._random.random(), self._random.random()) for _ in range(rooms)]
        self.doors: list[dict[int, float]] = [{} for _ in range(rooms)]
        for room, place in enumerate(self.places):
            nearest = sorted(range(rooms), key=lambda other: math.dist(place, self.places[other]))
            for other in nearest[1 : NEIGHBOURS + 1]:
                length = math.dist(place, self.places[other])
                self.doors[room][other] = self.doors[other][room] = length

    def change(self) -> None:
        """Somebody shuts or opens a door: passing it gets dearer or cheaper."""
        room = self._random.randrange(len(self.doors))
        other = self._random.choice(list(self.doors[room]))
        factor = self._random.choice((1.0, 1.0, 4.0))
        length = math.dist(self.places[room], self.places[other]) * factor
        self.doors[room][other] = self.doors[other][room] = length

    def order(self) -> tuple[int, int]:
        """From where to where."""
        return self._random.randrange(len(self.doors)), self._random.randrange(len(self.doors))


def plan(building: Building, start: int, goal: int) -> list[int]:
    """The rooms of a shortest way by A*; empty when there is none."""
    target = building.places[goal]
    best = {start: 0.0}
    before: dict[int, int] = {}
    queue = [(0.0, start)]
    while queue:
        _, room = heapq.heappop(queue)
        if room == goal:
            way = [room]
            while room != start:
                room = before[room]
                way.append(room)
            return way[::-1]
        for other, length in building.doors[room].items():
            cost = best[room] + length
            if cost < best.get(other, math.inf):
                best[other], before[other] = cost, room
                heapq.heappush(queue, (cost + math.dist(building.places[other], target), other))
    return []


def work(number: int) -> Iterator[None]:
    """One order in each step."""
    building = Building(int(sys.argv[1]) if len(sys.argv) > 1 else 400, seed=number)
    while True:
        building.change()
        plan(building, *building.order())
        yield


if __name__ == "__main__":
    workers.run("route planner", "routes", work)
