"""What is promised on a node and to its tenants, and what a start would need beside that. Figures only."""

from __future__ import annotations

import operator
from collections.abc import Mapping
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
_GRAIN: Final = 2.0**40
"""Parts of a unit of virtual time. Prices are whole numbers of them, so that sums of prices do not depend on the order
in which they are added (up to 8192 nodes' worth), and equal tags are equal."""


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
        self.moved: set[str] = set()
        """Tenants whose sums have changed since a queue looked (`queueing.FairQueue` clears it)."""
        for name in accounts:
            self.take(name, NOTHING)

    def account(self, tenant: str) -> Account:
        """Its terms."""
        return self._accounts.get(tenant, _DEFAULT)

    def take(self, tenant: str, asked: Amounts) -> None:
        """One more agent of `tenant` runs. (For a declared tenant with nothing: its reservation counts from now on.)"""
        floor = self.account(tenant).floor
        before = self._sums.get(tenant)
        after = add(before or NOTHING, asked)
        part = most(floor, before) if before is not None else NOTHING
        self.promised = add(self.promised, minus(most(floor, after), part))
        self._sums[tenant] = after
        self.moved.add(tenant)

    def differing(self, other: Room) -> set[str]:
        """The tenants that have other terms or run other amounts there."""
        found: set[str] = set()
        for mine, theirs in ((self._sums, other._sums), (self._accounts, other._accounts)):
            found |= {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}
        return found

    def cost(self, asked: Amounts) -> float:
        """The dominant share: the largest part of the node that is asked for, every agent being one slot of it."""
        parts = [asked[j] / self.capacity[j] for j in _DIVIDED[: len(asked) - 2] if asked[j]]
        return max([*parts, asked[AGENTS] / self.capacity[SLOTS]])

    def price(self, tenant: str, asked: Amounts) -> float:
        """What a start of the tenant costs in virtual time: its dominant share by the weight, never nothing."""
        return max(round(self.cost(asked) / self.account(tenant).weight * _GRAIN), 1) / _GRAIN

    def holding(self, tenant: str) -> float:
        """What the tenant runs: its dominant share by its weight."""
        return self.cost(self._sums.get(tenant, NOTHING)) / self.account(tenant).weight

    def excess(self, tenant: str, asked: Amounts, own: Amounts = NOTHING) -> Amounts:
        """By how much the node's promises grow with `asked`, when the tenant has `own` more than it runs."""
        floor = self.account(tenant).floor
        before = add(self._sums.get(tenant, NOTHING), own)
        return minus(most(floor, add(before, asked)), most(floor, before))

    @property
    def free(self) -> Amounts:
        """What of the node is promised to nobody."""
        return minus(self.capacity, self.promised)

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
                return self.held(tenant, asked, j)
        return None

    def held(self, tenant: str, asked: Amounts, j: int) -> Obstacle:
        """The obstacle of one that is to have nothing of the node's resource `j`."""
        unused = max(self.account(tenant).floor[j] - self._sums.get(tenant, NOTHING)[j], 0)  # promised to this tenant
        free = self.capacity[j] - self.promised[j] + unused
        return Obstacle(RESOURCES[j], "node", asked[j], free, self.capacity[j], asked[j] <= free)


def add(one: Amounts, other: Amounts) -> Amounts:
    return tuple(map(operator.add, one, other))


def minus(one: Amounts, other: Amounts) -> Amounts:
    return tuple(map(operator.sub, one, other))


def most(one: Amounts, other: Amounts) -> Amounts:
    return tuple(map(max, one, other))
