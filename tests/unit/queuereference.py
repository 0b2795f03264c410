"""The rules of `alloc.queueing`, one start after the other and without any memory: what the queue must agree with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentos_native.alloc.queueing import Entry
from agentos_native.alloc.room import NOTHING, RESOURCES, Amounts, Obstacle, Room, add


@dataclass
class Holds:
    entry: Entry
    resource: int
    holding: float
    reach: float
    more: Amounts
    patience: float


@dataclass
class Verdict:
    chosen: Entry | None
    passed: list[Holds]
    obstacles: dict[str, Obstacle | None]


def queue_order(waiting: Iterable[Entry]) -> list[Entry]:
    return sorted(waiting, key=lambda entry: (entry.tier, entry.ticket))


def verdict(waiting: list[Entry], finish: dict[str, float], passed: dict[str, float], room: Room) -> Verdict:
    """Who is next, past whom, and why each one that was looked at waits."""
    flows = {tenant: queue_order(e for e in waiting if e.tenant == tenant) for tenant in {e.tenant for e in waiting}}
    holds: list[Holds] = []
    obstacles: dict[str, Obstacle | None] = {}
    for tenant in sorted(flows, key=lambda name: (finish.get(name, 0.0), flows[name][0].ticket)):
        ahead = [one for one in holds if one.holding <= room.holding(tenant)]
        in_tenant = own = NOTHING
        short: dict[int, Obstacle] = {}
        for entry in flows[tenant]:
            asked = entry.asked
            lacking = [j for j in short if asked[j]]
            if lacking:
                known = short[lacking[0]]
                obstacles[entry.key] = known._replace(asked=asked[lacking[0]], ahead=asked[lacking[0]] <= known.free)
                continue
            more = room.excess(tenant, asked, own)
            reach = room.holding(tenant) + room.price(tenant, asked)
            others = NOTHING
            for one in ahead:
                others = add(others, one.more)
            obstacle = room.obstacle(tenant, asked, in_tenant, own, others)
            held = [one for one in ahead if more[one.resource] > 0]
            if held and not (obstacle and obstacle.scope == "tenant"):
                obstacle = room.held(tenant, asked, held[0].resource)
            if obstacle is None:
                return Verdict(entry, [], obstacles)
            past = [one for one in ahead if any(a > 0 and b > 0 for a, b in zip(more, one.more, strict=True))]
            patient = past and all(
                one.patience - passed.get(one.entry.key, 0.0) > 0 and reach <= one.reach for one in past
            )
            if patient and room.obstacle(tenant, asked, in_tenant, own) is None:
                return Verdict(entry, past, obstacles)
            obstacles[entry.key] = obstacle
            resource = RESOURCES.index(obstacle.resource)
            short[resource] = obstacle
            in_tenant = add(in_tenant, asked)
            if obstacle.scope == "node":
                if not held:
                    holds.append(Holds(entry, resource, room.holding(tenant), reach, more, room.cost(asked)))
                own = add(own, asked)
    return Verdict(None, [], obstacles)


class Reference:
    """Waits, chooses and counts like `FairQueue`."""

    def __init__(self) -> None:
        self.waiting: dict[str, Entry] = {}
        self.virtual = 0.0
        self.finish: dict[str, float] = {}
        self.passed: dict[str, float] = {}

    def choose(self, room: Room) -> Entry | None:
        found = verdict(list(self.waiting.values()), self.finish, self.passed, room)
        entry = found.chosen
        if entry is None:
            return None
        for one in found.passed:
            self.passed[one.entry.key] = self.passed.get(one.entry.key, 0.0) + room.cost(entry.asked)
        self.virtual = max(self.virtual, self.finish.get(entry.tenant, 0.0))
        self.finish[entry.tenant] = self.virtual + room.price(entry.tenant, entry.asked)
        self.remove(entry.key)
        return entry

    def remove(self, key: str) -> None:
        self.waiting.pop(key, None)
        if not self.waiting:
            self.virtual, self.finish = 0.0, {}

    def obstacles(self, room: Room) -> dict[str, Obstacle | None]:
        return verdict(list(self.waiting.values()), self.finish, self.passed, room).obstacles

    def order(self, room: Room) -> list[str]:
        """By serving them one after the other, each from the lowest tag."""
        waiting, finish, places = dict(self.waiting), dict(self.finish), []
        virtual = self.virtual
        while waiting:
            flows: dict[str, Entry] = {}
            for entry in queue_order(waiting.values()):
                flows.setdefault(entry.tenant, entry)
            entry = min(flows.values(), key=lambda one: (finish.get(one.tenant, 0.0), one.ticket))
            virtual = max(virtual, finish.get(entry.tenant, 0.0))
            finish[entry.tenant] = virtual + room.price(entry.tenant, entry.asked)
            places.append(entry.key)
            del waiting[entry.key]
        return places
