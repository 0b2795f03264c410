"""Which waiting start comes next: start-time fair queueing of admissions over tenants. Figures in, a choice out.

Theory of operation
    Every tenant has a queue (priority tier first, then arrival). A start of tenant f costs its dominant share, the
    largest part of the node that it asks of any resource, divided by f's weight. Goyal, Vin and Cheng, "Start-time
    Fair Queuing" (SIGCOMM 1996): the virtual time v is the start tag of the last start served, a tenant's next start
    has the tag max(v, F_f), F_f = tag + cost being the finish tag of its last one; the lowest tag is served first.
    Since tags belong to tenants and not to their starts, cancelling a start costs nothing and a tenant may order its
    own queue as it likes. When nothing waits, tags are forgotten, as at the end of the paper's busy period.

    A server of packets always serves the lowest tag. Here the lowest one may not fit, and three rules say who may go
    on all the same. (1) What is blocked by a limit of its own tenant holds back only starts behind it in its own queue.
    (2) A tenant whose head does not fit on the node holds back, of the tenants behind it, those that run at least as
    much as it does (dominant share by weight, now), so neither can a stream of small starts starve it, nor does it
    stand in the way of those who have less. (3) Held back means: what the waiting start asks for is set aside, so
    whoever needs nothing of what is short, and leaves enough of the rest, goes on.

    A tenant that was passed over is owed nothing later (its tag is at least v, as if it had come just now). So for
    tenants f and m whose heads wait all through an interval in which no later tag passes either of them, the paper's
    theorem 1 holds whatever the server does: |W_f/w_f - W_m/w_m| <= l_f/w_f + l_m/w_m, with W the cost served and l
    the largest cost of one start. And a tenant that runs nothing, has been served nothing since others wait, and comes
    late has the tag v: before its first start each other tenant has at most one that could delay it, for once served,
    the other's tag is beyond v, and having at least as much it is held back by rule 2.
"""

from __future__ import annotations

import heapq
import operator
from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, Literal, NamedTuple

RESOURCES: Final = ("cpu", "memory", "slots", "agents", "egress", "ingress")
"""The places of `Amounts`: CPU and memory in the caller's units, slots of the node (0 for an agent that has one), the
number of agents that run, and the network's two directions. A caller without a network leaves those out everywhere."""
CPU, MEMORY, SLOTS, AGENTS, EGRESS, INGRESS = range(6)
Amounts = tuple[float, ...]
NOTHING: Final[Amounts] = (0, 0, 0, 0, 0, 0)
NO_LIMIT: Final[Amounts] = (inf, inf, inf, inf, inf, inf)
_TENANT_ORDER: Final = (AGENTS, CPU, MEMORY, SLOTS, EGRESS, INGRESS)
_NODE_ORDER: Final = (CPU, MEMORY, SLOTS, AGENTS, EGRESS, INGRESS)
_DIVIDED: Final = (CPU, MEMORY, EGRESS, INGRESS)


class Account(NamedTuple):
    """A tenant's terms: its weight, its own reservation on the node, and its limits."""

    weight: float = 100
    floor: Amounts = NOTHING
    limit: Amounts = NO_LIMIT


class Obstacle(NamedTuple):
    """Why a start waits: of `resource` it asks for more than what is `free` of `capacity`, the tenant's or the node's.

    `ahead`: it would fit but for what is set aside for starts that come before it.
    """

    resource: str
    scope: Literal["node", "tenant"]
    asked: float
    free: float
    capacity: float
    ahead: bool


_DEFAULT: Final = Account()


class Room:
    """What is promised on a node, by tenant. A tenant's part is ``max(its own reservation, sum of its agents')``.

    Args:
        capacity: of the node.
        accounts: the declared tenants; any other has the default account.
    """

    def __init__(self, capacity: Amounts, accounts: Mapping[str, Account]) -> None:
        self.capacity = capacity
        self._accounts = accounts
        self._sums: dict[str, Amounts] = {}
        self.promised: Amounts = NOTHING
        for name in accounts:
            self.take(name, NOTHING)

    def account(self, tenant: str) -> Account:
        """Its terms."""
        return self._accounts.get(tenant, _DEFAULT)

    def take(self, tenant: str, asked: Amounts) -> None:
        """One more agent of `tenant` runs. (For a declared tenant with nothing: its reservation counts from now on.)"""
        floor = self.account(tenant).floor
        before = self._sums.get(tenant)
        after = _add(before or NOTHING, asked)
        part = _most(floor, before) if before is not None else NOTHING
        self.promised = _add(self.promised, _minus(_most(floor, after), part))
        self._sums[tenant] = after

    def cost(self, asked: Amounts) -> float:
        """The dominant share: the largest part of the node that is asked for, every agent being one slot of it."""
        parts = [asked[j] / self.capacity[j] for j in _DIVIDED[: len(asked) - 2] if asked[j]]
        return max([*parts, asked[AGENTS] / self.capacity[SLOTS]])

    def holding(self, tenant: str) -> float:
        """What the tenant runs: its dominant share by its weight."""
        return self.cost(self._sums.get(tenant, NOTHING)) / self.account(tenant).weight

    def excess(self, tenant: str, asked: Amounts, own: Amounts = NOTHING) -> Amounts:
        """By how much the node's promises grow with `asked`, when the tenant has `own` more than it runs."""
        floor = self.account(tenant).floor
        before = _add(self._sums.get(tenant, NOTHING), own)
        return _minus(_most(floor, _add(before, asked)), _most(floor, before))

    def obstacle(
        self,
        tenant: str,
        asked: Amounts,
        in_tenant: Amounts = NOTHING,
        own: Amounts = NOTHING,
        others: Amounts = NOTHING,
    ) -> Obstacle | None:
        """What keeps `asked` from being taken, beside what is set aside; None: it fits.

        Args:
            in_tenant: set aside within the tenant's limits.
            own: set aside on the node for starts of the same tenant.
            others: set aside on the node for other tenants' starts (what they exceed their reservations by).
        """
        account, sums = self.account(tenant), self._sums.get(tenant, NOTHING)
        for j in _TENANT_ORDER[: len(asked)]:
            free = account.limit[j] - sums[j]
            if asked[j] and in_tenant[j] + asked[j] > free:
                return Obstacle(RESOURCES[j], "tenant", asked[j], free, account.limit[j], asked[j] <= free)
        more = self.excess(tenant, asked, own)
        if not any(more):
            return None
        reserved = self.excess(tenant, own)
        for j in _NODE_ORDER[: len(more)]:
            if more[j] > 0 and self.promised[j] + reserved[j] + others[j] + more[j] > self.capacity[j]:
                unused = max(account.floor[j] - sums[j], 0)  # promised to this very tenant
                free = self.capacity[j] - self.promised[j] + unused
                return Obstacle(RESOURCES[j], "node", asked[j], free, self.capacity[j], asked[j] <= free)
        return None


@dataclass(slots=True)
class Entry:
    """A waiting start. `tier`: 0 is served first; `ticket` grows with each arrival; `obstacle` as last seen."""

    key: str
    tenant: str
    tier: int
    ticket: int
    asked: Amounts
    obstacle: Obstacle | None = field(default=None, compare=False)


def _order(entry: Entry) -> tuple[int, int]:
    return entry.tier, entry.ticket


class FairQueue:
    """All that wait; see the module. `virtual` and `finish` (by tenant) are the tags, to be kept across a restart."""

    def __init__(self) -> None:
        self.virtual = 0.0
        self.finish: dict[str, float] = {}
        self._flows: dict[str, list[Entry]] = {}
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def get(self, key: str) -> Entry | None:
        """The entry of this key."""
        return self._entries.get(key)

    def length(self, tenant: str) -> int:
        """How many starts of the tenant wait."""
        return len(self._flows.get(tenant, ()))

    def put(self, entry: Entry) -> None:
        """Wait (again, with other figures, when the key is known)."""
        if entry.key in self._entries:
            self._take_out(entry.key)
        self._entries[entry.key] = entry
        insort(self._flows.setdefault(entry.tenant, []), entry, key=_order)

    def remove(self, key: str) -> bool:
        """Wait no more; whether it did."""
        if key not in self._entries:
            return False
        self._take_out(key)
        if not self._entries:
            self.virtual = 0.0
            self.finish.clear()
        return True

    def _take_out(self, key: str) -> None:
        entry = self._entries.pop(key)
        flow = self._flows[entry.tenant]
        flow.remove(entry)
        if not flow:
            del self._flows[entry.tenant]

    def _tag(self, tenant: str) -> tuple[float, float, int]:
        """The start tag of the tenant's head. Equal ones: who was served longer ago, then whose head came first."""
        finish = self.finish.get(tenant, 0.0)
        return max(self.virtual, finish), finish, self._flows[tenant][0].ticket

    def choose(self, room: Room) -> Entry | None:
        """The start to be served now, which is taken out and paid for; None: nothing that waits may go on.

        The caller takes its amounts from `room` before the next call.
        """
        ahead: dict[float, Amounts] = {}
        for tenant in sorted(self._flows, key=self._tag):
            chosen = self._look_through(tenant, room, ahead)
            if chosen is not None:
                self.virtual = self._tag(tenant)[0]
                self.finish[tenant] = self.virtual + room.cost(chosen.asked) / room.account(tenant).weight
                self.remove(chosen.key)
                return chosen
        return None

    def _look_through(self, tenant: str, room: Room, ahead: dict[float, Amounts]) -> Entry | None:
        """The tenant's first start that may go on.

        Args:
            ahead: what the heads ahead that wait for the node ask for, by what their tenants run: who is behind and
                runs as much leaves them that. When nothing may go on, this tenant's own head is added.
        """
        holding = room.holding(tenant)
        others = NOTHING
        for theirs, asked in ahead.items():
            if theirs <= holding:
                others = _add(others, asked)
        in_tenant = own = NOTHING
        waits: Amounts | None = None
        short: dict[int, Obstacle] = {}
        for entry in self._flows[tenant]:
            j = next((j for j in short if entry.asked[j]), None)
            if j is None:
                entry.obstacle = room.obstacle(tenant, entry.asked, in_tenant, own, others)
                if entry.obstacle is None:
                    return entry
                short[RESOURCES.index(entry.obstacle.resource)] = entry.obstacle
            else:  # it needs what is short for one ahead of it: there is nothing to be computed
                wanted = entry.asked[j]
                entry.obstacle = short[j]._replace(asked=wanted, ahead=wanted <= short[j].free)
            in_tenant = _add(in_tenant, entry.asked)
            if entry.obstacle.scope == "node":
                waits = waits or room.excess(tenant, entry.asked)
                own = _add(own, entry.asked)
        if waits is not None:
            ahead[holding] = _add(ahead.get(holding, NOTHING), waits)
        return None

    def order(self, room: Room) -> list[Entry]:
        """Everything that waits, as it will be served if all fit from now on."""
        places: list[Entry] = []
        heads = [(*self._tag(tenant), tenant, 0) for tenant in self._flows]
        heapq.heapify(heads)
        while heads:
            tag, _, _, tenant, index = heapq.heappop(heads)
            flow = self._flows[tenant]
            places.append(flow[index])
            if index + 1 < len(flow):
                tag += room.cost(flow[index].asked) / room.account(tenant).weight
                heapq.heappush(heads, (tag, tag, flow[index + 1].ticket, tenant, index + 1))
        return places


def _add(one: Amounts, other: Amounts) -> Amounts:
    return tuple(map(operator.add, one, other))


def _minus(one: Amounts, other: Amounts) -> Amounts:
    return tuple(map(operator.sub, one, other))


def _most(one: Amounts, other: Amounts) -> Amounts:
    return tuple(map(max, one, other))
