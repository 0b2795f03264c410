"""A task agent: plans the quickest ways through the middle of London's Underground, or any network of that form.

    agent.py route FROM TO          one way, as a line of JSON
    agent.py orders                 orders {"from": …, "to": …} as lines of JSON on standard input, answers likewise
    agent.py drill                  plan between random stations without end (SIGUSR1 rests, SIGUSR2 works)

The network is two tables beside this file (or in --network DIR): stations.csv with positions, lines.csv with each
line's stations in order. Times are estimates: trains at 33 km/h along straight lines, 40 s for each stop, 4 minutes for
a change, walks at 4.5 km/h.
"""

import argparse
import csv
import heapq
import itertools
import json
import math
import random
import sys
from pathlib import Path

import work

TRAIN, WALK = 33 / 3.6, 4.5 / 3.6  # metres a second
STOP, CHANGE = 40.0, 240.0  # seconds


class Network:
    """Who is next to whom, by which line, and how many seconds it takes."""

    def __init__(self, directory):
        self.places, self.edges = {}, {}
        with open(directory / "stations.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                self.places[row["station"]] = (float(row["latitude"]), float(row["longitude"]))
        with open(directory / "lines.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                self._add_line(row["line"], row["stations"].split(";"))

    def _add_line(self, line, stations):
        for here, there in itertools.pairwise(stations):
            for one, other in ((here, there), (there, here)):
                if one not in self.places:
                    raise SystemExit(f"{line}: the station {one!r} has no position")
                metres = self.metres(one, other)
                seconds = metres / WALK if line == "Walk" else metres / TRAIN + STOP
                self.edges.setdefault(one, []).append((other, line, seconds))

    def metres(self, one, other):
        """Straight line; the earth is flat enough in one city."""
        (north, east), (north2, east2) = self.places[one], self.places[other]
        return math.hypot(north - north2, (east - east2) * math.cos(math.radians(north))) * 111_320

    def route(self, start, goal):
        """The quickest way: A* over (station, line), since a change takes time. None where there is none."""
        best, queue, came = {(start, ""): 0.0}, [(0.0, 0.0, start, "")], {}
        while queue:
            _, seconds, here, line = heapq.heappop(queue)
            if here == goal:
                return self._told(start, (here, line), came, seconds)
            if seconds > best[here, line]:
                continue
            for there, by, ride in self.edges.get(here, ()):
                total = seconds + ride + (CHANGE if line not in ("", by) else 0.0)
                if total < best.get((there, by), math.inf):
                    best[there, by], came[there, by] = total, (here, line)
                    heapq.heappush(queue, (total + self.metres(there, goal) / TRAIN, total, there, by))
        return None

    def _told(self, start, state, came, seconds):
        legs = []
        while state in came:
            (there, line), state = state, came[state]
            if legs and legs[-1]["line"] == line:
                legs[-1] |= {"from": state[0], "stops": legs[-1]["stops"] + 1}
            else:
                legs.append({"line": line, "from": state[0], "to": there, "stops": 1})
        legs.reverse()
        return {"from": start, "to": legs[-1]["to"] if legs else start, "minutes": round(seconds / 60, 1), "legs": legs}


def answer(network, order):
    """What is said to one order; a mistake in it is an answer too."""
    try:
        start, goal = order["from"], order["to"]
    except (TypeError, KeyError):
        return {"error": 'an order is {"from": STATION, "to": STATION}'}
    for station in (start, goal):
        if not isinstance(station, str) or station not in network.places:
            return {"error": f"no station {station!r}"}
    return network.route(start, goal) or {"error": f"no way from {start} to {goal}"}


def take_orders(network):
    for line in sys.stdin:
        try:
            order = json.loads(line)
        except ValueError:
            order = None
        print(json.dumps(answer(network, order)), flush=True)


def drill(network):
    stations = sorted(network.places)

    def start(_worker):
        chance = random.Random()

        def plan():
            found = [network.route(*chance.sample(stations, 2)) for _ in range(20)]
            return sum(way["minutes"] for way in found if way) / len(found)

        return plan

    work.run(start, lambda plans, minutes: f"planned {20 * plans} ways, {minutes / plans:.1f} minutes on average")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, default=Path(__file__).resolve().parent, metavar="DIR")
    modes = parser.add_subparsers(dest="mode", required=True)
    one = modes.add_parser("route")
    one.add_argument("start")
    one.add_argument("goal")
    modes.add_parser("orders")
    modes.add_parser("drill")
    arguments = parser.parse_args()
    network = Network(arguments.network)
    if arguments.mode == "orders":
        take_orders(network)
    elif arguments.mode == "drill":
        drill(network)
    else:
        found = answer(network, {"from": arguments.start, "to": arguments.goal})
        print(json.dumps(found))
        sys.exit("error" in found)


if __name__ == "__main__":
    main()
