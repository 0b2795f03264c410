"""A task agent: plans shortest ways through a building, order after order (A* on a random geometric graph)."""

import argparse
import heapq
import math
import random

import load


def building(rooms, seed=7):
    """Rooms at random places, each with doors to its six nearest neighbours: (positions, {room: {room: metres}})."""
    chance = random.Random(seed)
    places = [(chance.uniform(0, 100), chance.uniform(0, 100)) for _ in range(rooms)]
    doors = {room: {} for room in range(rooms)}
    for room, place in enumerate(places):
        for other in sorted(range(rooms), key=lambda o: math.dist(place, places[o]))[1:7]:
            doors[room][other] = doors[other][room] = math.dist(place, places[other])
    return places, doors


def route(places, doors, start, goal):
    """The shortest way as (metres, rooms); A* with the straight line as its estimate. Infinity where there is none."""
    best, reached, queue = {start: 0.0}, set(), [(0.0, start, (start,))]
    while queue:
        _, room, way = heapq.heappop(queue)
        if room == goal:
            return best[room], way
        if room in reached:
            continue
        reached.add(room)
        for other, metres in doors[room].items():
            distance = best[room] + metres
            if distance < best.get(other, math.inf):
                best[other] = distance
                heapq.heappush(queue, (distance + math.dist(places[other], places[goal]), other, (*way, other)))
    return math.inf, ()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rooms", type=int, default=100)
    arguments = parser.parse_args()
    places, doors = building(arguments.rooms)
    chance = random.Random()

    def deliver(_worker):
        metres, _ = route(places, doors, chance.randrange(arguments.rooms), chance.randrange(arguments.rooms))
        return 0.0 if math.isinf(metres) else metres

    load.run(deliver, lambda orders, metres: f"planned {orders} orders, {metres / orders:.1f} m on average")


if __name__ == "__main__":
    main()
