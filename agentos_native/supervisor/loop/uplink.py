"""One direction of the uplink: who is there, what was measured, what their buckets hold, and what they shall hold.

`network` says how the turns go, `rates` has the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np

from agentos_native import alloc
from agentos_native.alloc import Solution, Warm
from agentos_native.alloc.hierarchy import HUNGRY
from agentos_native.alloc.waterfill import LARGE, Floats, Truths
from agentos_native.errors import AgentosError
from agentos_native.network import Direction, Queue
from agentos_native.spec.model import AgentSpec, NetworkRates, TenantSpec
from agentos_native.supervisor.loop import rates
from agentos_native.supervisor.loop.controllers import Member
from agentos_native.supervisor.loop.slots import FIRST, Agent, Slots, Tenant
from agentos_native.supervisor.loop.whatif import Solved, agent_of, copied, solved_of, tenant_of

STUCK: Final = 1.0
"""Mbit: more than any bucket takes to fill for one packet."""
MEGA: Final = 1e6
NONE: Final = NetworkRates()


class Wires(Protocol):
    """The kernel's side (`agentos_native.network.NodeNetwork`); bits per second."""

    def set_rate(self, slot: int, direction: Direction, rate: int | None) -> None: ...
    def queues(self, direction: Direction, slots: Iterable[int]) -> dict[int, Queue]: ...
    def counters(self) -> dict[int, tuple[int, int]]: ...


def asked(rates_: NetworkRates | None, direction: Direction) -> int | None:
    """Bits per second of one direction."""
    return getattr(rates_ or NONE, direction)  # type: ignore[no-any-return]


def _finite(value: float) -> float | None:
    """Bits per second; None: no bound."""
    return float(value) * MEGA if math.isfinite(value) and value < LARGE else None


class Side:
    """One direction: its agents, what was measured of them, what their buckets hold. Arrays by slot, in Mbit/s.

    Args:
        capacity: of the uplink (None: nothing is divided).
        policy: of the node, an index into `POLICIES`.
    """

    def __init__(self, direction: Direction, capacity: float | None, policy: int) -> None:
        self.direction = direction
        self.capacity = capacity
        self.slots = Slots(policy)
        self.wire = np.zeros(FIRST, dtype=np.int64)
        self.bytes: Floats = np.zeros(FIRST)
        self.rate: Floats = np.zeros(FIRST)
        self.demand: Floats = np.zeros(FIRST)
        self.share: Floats = np.zeros(FIRST)
        self.held: Floats = np.zeros(FIRST)
        self.backlog: Floats = np.zeros(FIRST)
        self.drops: Floats = np.zeros(FIRST)
        self.lost: Floats = np.zeros(FIRST)
        self.waited: Truths = np.zeros(FIRST, dtype=np.bool_)
        self.stuck: Truths = np.zeros(FIRST, dtype=np.bool_)
        self.taking_part: Truths = np.zeros(FIRST, dtype=np.bool_)
        self.contention = rates.Contention()
        self.solution: Solution | None = None
        self._warm = Warm()

    # -- who is there --

    def agent(self, agent_id: str, spec: AgentSpec, slot: int = -1) -> Agent:
        """A spec as this side's slots hold it."""
        limit = asked(spec.resources.limits.network, self.direction)
        request = asked(spec.resources.requests.network, self.direction)
        return replace(
            agent_of(agent_id, spec, slot),
            request=(request or 0) / MEGA,
            limit=math.inf if limit is None else limit / MEGA,
        )

    def tenant(self, spec: TenantSpec, old: Tenant | None = None) -> Tenant:
        request = (asked(spec.requests.network, self.direction) or 0) / MEGA
        return replace(tenant_of(spec, old), request=request, limit=math.inf, policy=None)  # policies divide CPU

    def add(self, member: Member) -> None:
        slot = self.slots.add(self.agent(member.agent_id, member.spec)).slot
        self._grow()
        self.wire[slot] = member.slot
        for array in (self.rate, self.demand, self.share, self.backlog, self.lost):
            array[slot] = 0.0
        self.waited[slot] = self.stuck[slot] = self.taking_part[slot] = False
        for array in (self.bytes, self.held, self.drops):
            array[slot] = np.nan  # not read yet

    def _grow(self) -> None:
        more = self.slots.capacity - len(self.wire)
        if more > 0:
            for name, value in vars(self).items():
                if isinstance(value, np.ndarray):
                    setattr(self, name, np.append(value, np.zeros(more, dtype=value.dtype)))

    # -- one turn --

    def measure(self, carried: Mapping[int, int], elapsed: float) -> None:
        """`carried`: bytes by wire, since it was made."""
        order = self.slots.plan().slots
        now = np.array([carried.get(wire, -1) for wire in self.wire[order].tolist()], dtype=np.float64)
        before = self.bytes[order]
        rate = (now - before) * 8 / MEGA / elapsed
        self.rate[order] = np.where(np.isnan(rate) | (now < before), 0.0, rate)
        self.bytes[order] = np.where(now >= 0, now, np.nan)

    def read(self, wires: Wires, *, everything: bool) -> list[tuple[str, str, str]]:
        """Look at the buckets; returns (agent id, expected, found) where somebody else has been at them."""
        order = self.slots.plan().slots
        held = self.held[order]
        wanted = order if everything else order[~np.isposinf(held)]
        found = wires.queues(self.direction, self.wire[wanted].tolist())
        foreign = []
        for slot in wanted.tolist():
            queue = found.get(int(self.wire[slot]))
            rate = math.inf if queue is None else math.nan if queue.rate is None else queue.rate / MEGA
            expected = float(self.held[slot])
            if not math.isnan(expected) and not _same(rate, expected):
                foreign.append((self.slots.at(slot).agent_id, _words(expected), _words(rate)))
            self.held[slot] = rate if math.isnan(expected) or not _same(rate, expected) else expected
            self._note(slot, queue)
        return foreign

    def _note(self, slot: int, queue: Queue | None) -> None:
        """What waits at a bucket, and what was lost there since the last look."""
        if queue is None:
            self.waited[slot], self.backlog[slot], self.drops[slot] = False, 0.0, 0.0
            return
        before = float(self.drops[slot])
        lost = 0.0 if math.isnan(before) else float((queue.drops - int(before)) % 2**32)
        self.backlog[slot], self.lost[slot], self.drops[slot] = queue.backlog, lost, queue.drops
        self.waited[slot] = queue.backlog > 0 or lost > 0

    def find_stuck(self, elapsed: float) -> None:
        """Whose bucket holds packets and let none through, though it had time for some: it is made anew.

        It happens when a rate falls while a packet waits that is larger than the smaller bucket (BIG TCP).
        """
        order = self.slots.plan().slots
        had_time = np.where(np.isfinite(self.held[order]), self.held[order], 0.0) * elapsed >= STUCK
        self.stuck[order] = (self.backlog[order] > 0) & (self.rate[order] == 0.0) & had_time

    def divide(self, elapsed: float) -> None:
        """New demands (when `elapsed` is long enough to have measured) and shares."""
        order = self.slots.plan().slots
        if elapsed > 0:
            least = rates.starter(self.capacity or 0.0, len(order))
            held = np.where(np.isnan(self.held[order]), np.inf, self.held[order])
            seen = rates.Seen(self.rate[order], held, self.waited[order])
            before = np.minimum(self.demand[order], self.share[order])
            self.demand[order] = rates.demands(seen, before, elapsed, least)
        self.solution = self.solve(self.slots, self.demand)
        self.share[order] = self.solution.share

    def solve(self, slots: Slots, demand: Floats) -> Solution:
        """Divide the uplink among `slots` with this `demand` by slot."""
        order = slots.plan().slots
        return alloc.solve(slots.problem(self._divided, demand[order]), self._warm)

    @property
    def _divided(self) -> float:
        return LARGE if self.capacity is None else self.capacity

    def wanted_caps(self) -> Floats:
        """By slot: what each bucket shall have, ∞ for none."""
        order = self.slots.plan().slots
        limits = self.slots.limit[order]
        caps = np.full(len(self.wire), np.inf)
        caps[order] = limits
        if self.capacity is None:
            return caps
        demand = self.demand[order]
        awake = demand > 0
        if not self.contention.see(float(np.minimum(demand, limits).sum()), self.capacity):
            self.taking_part[order] = False
            return caps
        self.taking_part[order] |= awake
        full = self.solve(self.slots, np.full(len(self.wire), np.inf)).share
        floors = np.minimum(self.slots.request[order], limits)
        capped = rates.caps(self.share[order], awake, full, floors, limits, self.capacity)
        caps[order] = np.where(self.taking_part[order], capped, limits)
        return caps

    def write(self, wires: Wires) -> AgentosError | None:
        """Write what is due; the first refusal is returned, and its bucket looked at again next time."""
        order = self.slots.plan().slots
        caps = self.wanted_caps()
        trouble = None
        differs = rates.due(caps[order], self.held[order], self.slots.limit[order])
        differs |= self.stuck[order]
        for slot in order[differs & ~np.isnan(self.bytes[order])].tolist():
            cap = float(caps[slot])
            rate = max(int(cap * MEGA), 8) if math.isfinite(cap) else None
            try:
                if self.stuck[slot]:
                    wires.set_rate(int(self.wire[slot]), self.direction, None)
                    self.stuck[slot] = False
                wires.set_rate(int(self.wire[slot]), self.direction, rate)
                self.held[slot] = cap
            except AgentosError as error:
                trouble = trouble or error
                self.held[slot] = np.nan
        return trouble

    # -- what others are told --

    def row(self, index: int, slot: int, solution: Solution) -> dict[str, Any]:
        """Of the agent with this place in the plan; bits per second."""
        agent = self.slots.at(slot)
        group = int(self.slots.plan().group[index])
        share, wanted = float(solution.share[index]), float(solution.wanted[index])
        level = float(solution.group_level[group])
        bound = "demand"
        if share < wanted - HUNGRY:
            bound = "request" if agent.request > agent.weight * level + HUNGRY else "share"
        elif wanted >= agent.limit - HUNGRY:
            bound = "limit"
        return {
            "request": agent.request * MEGA,
            "limit": _finite(agent.limit),
            "demand": min(wanted, self._divided) * MEGA,
            "entitled": share * MEGA,
            "measured": float(self.rate[slot]) * MEGA,
            "bound": bound,
            "kernel_rate": _finite(float(self.held[slot])),
            "backlog": int(self.backlog[slot]),
            "lost": int(self.lost[slot]),
            "level": _finite(level * 100),
            "capacity": None if self.capacity is None else self.capacity * MEGA,
            "contended": self.contention.contended,
        }

    def rows(self) -> dict[str, dict[str, Any]]:
        """By agent id, as of the last turn."""
        order = self.slots.plan().slots
        solution = self.solution
        if solution is None or len(solution.share) != len(order):
            solution = self.solve(self.slots, self.demand)
        return {
            self.slots.at(slot).agent_id: self.row(index, slot, solution) for index, slot in enumerate(order.tolist())
        }

    def entitled(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> dict[str, float]:
        """By agent id, bits per second, with other specs and tenants; demands stay."""
        slots = copied(self.slots)
        for name, tenant in tenants.items():
            slots.set_tenant(self.tenant(tenant, slots.tenants.get(name)))
        for agent_id, spec in specs.items():
            if (old := slots.agents.get(agent_id)) is not None:
                slots.change(self.agent(agent_id, spec, old.slot))
        return {agent_id: share * MEGA for agent_id, share in self.solved(slots).entitled().items()}

    def solved(self, slots: Slots) -> Solved:
        """The problem of these slots and its solution."""
        return solved_of(slots, self._divided, dict(enumerate(self.demand.tolist())))


def _same(found: float, held: float) -> bool:
    return found == held or abs(found - held) <= rates.GRAIN


def _words(rate: float) -> str:
    """Of what a bucket holds, in Mbit/s."""
    if math.isnan(rate):
        return "another discipline"
    return f"tbf {rate * MEGA:.0f} bit/s" if math.isfinite(rate) else "none"
