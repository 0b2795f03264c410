"""Which waiting start comes next: start-time fair queueing of admissions over tenants. Figures in, a choice out.

Theory of operation
    Every tenant has a queue (priority tier first, then arrival). A start of tenant f has the price of its dominant
    share, the largest part of the node that it asks of any resource, divided by f's weight. Goyal, Vin and Cheng,
    "Start-time Fair Queuing" (SIGCOMM 1996): the virtual time v is the start tag of the last start served, a tenant's
    next start has the tag max(v, F_f), F_f = tag + price being the finish tag of its last one; the lowest tag is served
    first, of equal ones that of the tenant served longer ago. Since tags belong to tenants and not to their starts,
    cancelling a start costs nothing and a tenant may order its own queue as it likes. When nothing waits, tags are
    forgotten, as at the end of the paper's busy period.

    A server of packets always serves the lowest tag. Here the lowest one may not fit. Who then may go on?
    (1) What is blocked by a limit of its own tenant holds back only starts behind it in its own queue.
    (2) Of each resource of the node, the first start in the order that lacks it, and no other, *holds* it: whoever
        comes behind and needs any of that resource waits, and of everything else that the holder asks for it leaves as
        much. So a holder can be overtaken only by what cannot delay it. Held back are those whose tenants run at least
        as much as the holder's (dominant share by weight, now), so nobody stands in the way of those who have less:
        among these, the first that lacks the resource holds it against its own likes. (Inside its own tenant, whatever
        comes first to lack a resource holds it, too.)
    (3) A holder has patience: until as much as its own cost has gone past it, starts behind it that fit now go on, if
        their tenant has no more with them than the holder's would have with it. So neither do many equal tenants that
        wait for much keep out a small start for which there is room, nor do small starts starve a large one.

    What follows from it:
    - A tenant that was passed over is owed nothing later (its tag is at least v, as if it had come just now). So for
      tenants f and m whose heads wait all through an interval in which no later tag passes either of them, the paper's
      theorem 1 holds whatever the server does: |W_f/w_f - W_m/w_m| <= l_f/w_f + l_m/w_m, with W the cost served and l
      the largest cost of one start.
    - What goes past one holder by its patience costs less than the holder itself and one start more.
    - A start that fits, is the first in the order of those that do, and with which its tenant has no more than the
      holders' would have with theirs, waits for at most one holder of each resource to be served, however many tenants
      wait ahead of it: the next holder has not been passed yet.
    - A tenant that comes late and runs nothing has the tag v. Once it is the first that lacks a resource, nobody who
      runs something takes any of it but by its patience. Before that, each holder ahead of it is of another tenant,
      with a lower tag, and once served has a tag beyond v: at most one for each other tenant.

    What it costs: of a tenant's starts that ask for the same set of resources, only the first can go on (the others
    lack what it lacks). These firsts are kept in a search tree (`ordered`) for each set, in the order above, with the
    least that any of them below a node holds and asks for, so the next one that might go on, or might become a holder,
    is found in O(log tenants). A tenant is put at its new place when its queue, its sums or its terms have changed;
    one whose limit is reached waits outside of the trees until then. Two things are not logarithmic: room that is made
    anew (`Room`) is compared with the last one tenant by tenant; and where one part of the tenants lacks one resource
    only and the rest another one of the same set, the least figures tell less and more is looked at. Places and reasons
    are worked out when somebody asks.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from agentos_native.alloc.ordered import Figures, Key, Ordered
from agentos_native.alloc.room import NOTHING, RESOURCES, Amounts, Obstacle, Room, add

_ROUNDING: Final = 1e-6
"""Amounts that are not whole numbers (of a simulation) are compared with so much of doubt before they are computed."""


@dataclass(slots=True)
class Entry:
    """A waiting start. `tier`: 0 is served first; `ticket` grows with each arrival."""

    key: str
    tenant: str
    tier: int
    ticket: int
    asked: Amounts


def _order(entry: Entry) -> tuple[int, int]:
    return entry.tier, entry.ticket


class _Holder(NamedTuple):
    """A start that holds a resource. `reach`: what its tenant would run with it; `more`: of the node, what it needs;
    `patience`: the cost of what may still go past it.
    """

    key: Key
    entry: Entry
    resource: int
    holding: float
    reach: float
    more: Amounts
    patience: float

    def lets(self, reach: float) -> bool:
        """Whether it is patient with a start that takes its tenant to `reach`."""
        return self.patience > 0 and reach <= self.reach


class _Look(NamedTuple):
    """What was found of one tenant: who may go on (past whom), or its new holders and, by class, why they wait."""

    chosen: Entry | None
    passed: tuple[_Holder, ...]
    holders: tuple[_Holder, ...]
    obstacles: dict[int, Obstacle]


class _Flow:
    """One tenant's queue: all of it, and by the set of resources that are asked for."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.classes: dict[int, list[Entry]] = {}
        self.leaves: dict[int, Key] = {}
        self.weight = 0.0
        self._paid = [0.0]

    def put(self, entry: Entry) -> None:
        """One more."""
        del self._paid[bisect_left(self.entries, _order(entry), key=_order) + 1 :]
        insort(self.entries, entry, key=_order)
        insort(self.classes.setdefault(kind(entry), []), entry, key=_order)

    def remove(self, entry: Entry) -> None:
        """One less."""
        place = self.place(entry)
        del self.entries[place]
        if place:
            del self._paid[place + 1 :]
        else:
            del self._paid[:1]
        same = self.classes[kind(entry)]
        del same[bisect_left(same, _order(entry), key=_order)]
        if not same:
            del self.classes[kind(entry)]

    def place(self, entry: Entry) -> int:
        """How many come before it."""
        return bisect_left(self.entries, _order(entry), key=_order)

    def heads(self) -> list[Entry]:
        """The first of each class, in order."""
        return sorted((entries[0] for entries in self.classes.values()), key=_order)

    def reweigh(self, weight: float) -> None:
        """Prices are others when the tenant's weight is."""
        if weight != self.weight:
            self.weight, self._paid = weight, [0.0]

    def paid(self, place: int, room: Room) -> float:
        """The price of all that come before `place`."""
        known = self._paid
        if not known:
            known.append(0.0)
        while len(known) <= place:
            entry = self.entries[len(known) - 1]
            known.append(known[-1] + room.price(entry.tenant, entry.asked))
        return known[place] - known[0]


def kind(entry: Entry) -> int:
    """The set of resources that it asks for, as bits."""
    return sum(1 << j for j, amount in enumerate(entry.asked) if amount)


class FairQueue:
    """All that wait; see the module.

    Attributes:
        virtual, finish: the tags, the latter by tenant, and
        passed: the cost of what has gone past holders, by their keys: all three to be kept across a restart.
    """

    def __init__(self) -> None:
        self.virtual = 0.0
        self.finish: dict[str, float] = {}
        self.passed: dict[str, float] = {}
        self._flows: dict[str, _Flow] = {}
        self._entries: dict[str, Entry] = {}
        self._trees: dict[int, Ordered[str]] = {}
        self._stale: set[str] = set()
        self._room: Room | None = None
        self._holders: list[_Holder] | None = None
        self._reasons: dict[str, dict[int, Obstacle]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def copy(self) -> FairQueue:
        """Another one, in which the same starts wait."""
        other = FairQueue()
        other.virtual, other.finish, other.passed = self.virtual, dict(self.finish), dict(self.passed)
        for entry in self:
            other.put(entry)
        return other

    def get(self, key: str) -> Entry | None:
        """The entry of this key."""
        return self._entries.get(key)

    def length(self, tenant: str) -> int:
        """How many starts of the tenant wait."""
        return len(self._flows[tenant].entries) if tenant in self._flows else 0

    def lengths(self) -> dict[str, int]:
        """The same of all tenants that have any."""
        return {tenant: len(flow.entries) for tenant, flow in self._flows.items()}

    def last(self, tenant: str) -> Entry:
        """The last of the tenant's queue."""
        return self._flows[tenant].entries[-1]

    def put(self, entry: Entry) -> None:
        """Wait (again, with other figures, when the key is known)."""
        known = self._entries.get(entry.key)
        if known is not None:
            self._take_out(known)
        self._entries[entry.key] = entry
        self._flows.setdefault(entry.tenant, _Flow()).put(entry)
        self._touched(entry.tenant)

    def remove(self, key: str) -> bool:
        """Wait no more; whether it did."""
        if key not in self._entries:
            return False
        self._take_out(self._entries[key])
        self.passed.pop(key, None)
        if not self._entries:
            self.virtual = 0.0
            self.finish.clear()
        return True

    def _take_out(self, entry: Entry) -> None:
        del self._entries[entry.key]
        flow = self._flows[entry.tenant]
        flow.remove(entry)
        if not flow.entries:
            self._uproot(flow)
            del self._flows[entry.tenant]
        self._touched(entry.tenant)

    # -- the trees -----------------------------------------------------------------------------------------------

    def _touched(self, tenant: str) -> None:
        self._stale.add(tenant)
        self._holders = None

    def _uproot(self, flow: _Flow) -> None:
        for of, key in flow.leaves.items():
            self._trees[of].remove(key)
            if not self._trees[of]:
                del self._trees[of]
        flow.leaves.clear()

    def _follow(self, room: Room) -> None:
        """Put tenants whose queue, sums or terms are others than at the last look where they belong now."""
        if self._room is room:
            moved = room.moved
        else:
            known = self._room is not None and self._room.capacity == room.capacity
            moved = room.differing(self._room) if known and self._room is not None else set(self._flows)
            self._holders = None
        if moved:
            self._holders = None
        for tenant in self._stale | moved:
            if tenant in self._flows:
                self._plant(tenant, room)
        self._stale.clear()
        room.moved.clear()
        self._room = room

    def _plant(self, tenant: str, room: Room) -> None:
        flow = self._flows[tenant]
        self._uproot(flow)
        flow.reweigh(room.account(tenant).weight)
        key, holding = self._key(tenant), room.holding(tenant)
        for of, entries in flow.classes.items():
            asked = entries[0].asked
            figures = (holding, holding + room.price(tenant, asked), *room.excess(tenant, asked))
            self._trees.setdefault(of, Ordered()).insert(key, tenant, figures)
            flow.leaves[of] = key

    def _key(self, tenant: str) -> Key:
        """The order of tenants: max(v, F) grows with F, and of equal tags the one with the lower F is first."""
        return self.finish.get(tenant, 0.0), self._flows[tenant].entries[0].ticket, tenant

    def _next(self, after: Key | None, holders: list[_Holder], room: Room) -> tuple[Key, str] | None:
        """The next tenant in the order that may have a start that goes on, or a new holder."""
        free = room.free

        def may(least: Figures) -> bool:
            for holder in holders:
                if least[2 + holder.resource] <= 0 or least[0] < holder.holding:
                    continue
                if not holder.lets(least[1]) or any(map(_exceeds, least[2:], free)):
                    return False
            return True

        found = [tree.first(after, may) for tree in self._trees.values()]
        return min((one for one in found if one is not None), default=None)

    # -- the choice ----------------------------------------------------------------------------------------------

    def choose(self, room: Room) -> Entry | None:
        """The start to be served now, which is taken out and paid for; None: nothing that waits may go on.

        The caller takes its amounts from `room` before the next call.
        """
        look, self._holders = self._search(room)
        self._reasons = {}
        if look is None or look.chosen is None:
            return None
        entry = look.chosen
        for holder in look.passed:
            key = holder.entry.key
            self.passed[key] = self.passed.get(key, 0.0) + room.cost(entry.asked)
        self.virtual = max(self.virtual, self.finish.get(entry.tenant, 0.0))
        self.finish[entry.tenant] = self.virtual + room.price(entry.tenant, entry.asked)
        self.remove(entry.key)
        return entry

    def _search(self, room: Room) -> tuple[_Look | None, list[_Holder]]:
        """Who may go on, and the holders up to there."""
        self._follow(room)
        holders: list[_Holder] = []
        after: Key | None = None
        while (found := self._next(after, holders, room)) is not None:
            after, tenant = found
            flow = self._flows[tenant]
            look = self._look_through(flow, after, room, holders)
            if look.chosen is not None:
                return look, holders
            holders += look.holders
            for of, obstacle in look.obstacles.items():
                if obstacle.scope == "tenant" and of in flow.leaves:  # until something of the tenant has changed
                    self._trees[of].remove(flow.leaves.pop(of))
                    if not self._trees[of]:
                        del self._trees[of]
        return None, holders

    def _look_through(self, flow: _Flow, key: Key, room: Room, holders: list[_Holder]) -> _Look:
        """One tenant's starts, in its own order; see the module."""
        tenant = key[2]
        holding = room.holding(tenant)
        ahead = [holder for holder in holders if holder.holding <= holding]
        others = NOTHING
        for holder in ahead:
            others = add(others, holder.more)
        in_tenant = own = NOTHING
        mine: list[_Holder] = []
        short: dict[int, Obstacle] = {}
        obstacles: dict[int, Obstacle] = {}
        for entry in flow.heads():
            asked = entry.asked
            lacks = next((j for j in short if asked[j]), None)
            if lacks is not None:  # what is short for one ahead of it in its own queue
                obstacles[kind(entry)] = _likewise(short[lacks], asked[lacks])
                continue
            more, reach = room.excess(tenant, asked, own), holding + room.price(tenant, asked)
            held = next((holder.resource for holder in ahead if more[holder.resource] > 0), None)
            obstacle = room.obstacle(tenant, asked, in_tenant, own, others)
            if held is not None and (obstacle is None or obstacle.scope == "node"):
                obstacle = room.held(tenant, asked, held)
            if obstacle is None:
                return _Look(entry, (), (), obstacles)
            passed = tuple(holder for holder in ahead if _both(more, holder.more))
            patient = bool(passed) and all(holder.lets(reach) for holder in passed)
            if patient and room.obstacle(tenant, asked, in_tenant, own) is None:
                return _Look(entry, passed, (), obstacles)
            resource = RESOURCES.index(obstacle.resource)
            short[resource] = obstacles[kind(entry)] = obstacle
            in_tenant = add(in_tenant, asked)
            if obstacle.scope == "node":
                if held is None:
                    patience = room.cost(asked) - self.passed.get(entry.key, 0.0)
                    mine.append(_Holder(key, entry, resource, holding, reach, more, patience))
                own = add(own, asked)
        return _Look(None, (), tuple(mine), obstacles)

    # -- showing -------------------------------------------------------------------------------------------------

    def obstacle(self, key: str) -> Obstacle | None:
        """Why the start of this key waits, as of the last room that was looked at; None: it is about to go on."""
        entry, room = self._entries[key], self._room
        if room is None:
            return None
        if self._holders is None:
            self._reasons = {}
            _, self._holders = self._search(room)
        flow = self._flows[entry.tenant]
        if entry.tenant not in self._reasons:
            own = self._key(entry.tenant)
            holders = [holder for holder in self._holders if holder.key < own]
            self._reasons[entry.tenant] = self._look_through(flow, own, room, holders).obstacles
        obstacle = self._reasons[entry.tenant].get(kind(entry))
        if obstacle is None or entry is flow.classes[kind(entry)][0]:
            return obstacle
        return _likewise(obstacle, entry.asked[RESOURCES.index(obstacle.resource)])

    def place(self, key: str, room: Room) -> tuple[int, int]:
        """How the start of this key comes in `order`, and in its tenant's queue, both from 1: O(tenants log n)."""
        entry = self._entries[key]
        flow = self._flows[entry.tenant]
        own = flow.place(entry)
        bound = self._tags(entry.tenant, own, room)
        before = sum(self._before(tenant, bound, room) for tenant in self._flows if tenant != entry.tenant)
        return before + own + 1, own + 1

    def _tags(self, tenant: str, place: int, room: Room) -> tuple[float, float, int]:
        """By what the tenant's start at `place` is ordered: start tag, finish tag of the one before, arrival."""
        flow, finish = self._flows[tenant], self.finish.get(tenant, 0.0)
        flow.reweigh(room.account(tenant).weight)
        tag = max(self.virtual, finish) + flow.paid(place, room)
        return tag, finish if not place else tag, flow.entries[place].ticket

    def _before(self, tenant: str, bound: tuple[float, float, int], room: Room) -> int:
        places = range(len(self._flows[tenant].entries))
        return bisect_left(places, bound, key=lambda place: self._tags(tenant, place, room))

    def order(self, room: Room) -> list[Entry]:
        """Everything that waits, as it will be served if all fit from now on."""
        places: list[Entry] = []
        heads = [(*self._tags(tenant, 0, room), tenant, 0) for tenant in self._flows]
        heapq.heapify(heads)
        while heads:
            _, _, _, tenant, place = heapq.heappop(heads)
            entries = self._flows[tenant].entries
            places.append(entries[place])
            if place + 1 < len(entries):
                heapq.heappush(heads, (*self._tags(tenant, place + 1, room), tenant, place + 1))
        return places


def _likewise(obstacle: Obstacle, asked: float) -> Obstacle:
    return obstacle._replace(asked=asked, ahead=asked <= obstacle.free)


def _both(one: Amounts, other: Amounts) -> bool:
    """Whether there is something that both ask for."""
    return any(a > 0 and b > 0 for a, b in zip(one, other, strict=True))


def _exceeds(least: float, free: float) -> bool:
    """Nothing is too little, even where more is promised than there is: a machine may have become smaller."""
    return least > max(free, 0.0) + _ROUNDING
