"""The network in the closed loop: one rate for each wire and direction, from the water-fill over the uplink's.

Theory of operation. Each turn reads the bytes that every wire carried (one request to the kernel) and the buckets of
those that have one: how much waits and was lost there, and whether the rate is what was written. From that follow
demands, from these the shares (by the same tree of tenants, tiers and agents as CPU), and from the shares the rates of
the buckets; `rates` has the arithmetic, `network.shaping` the kernel's side. Egress and ingress are two resources that
know nothing of each other.

Without ``networkRate`` there is nothing to divide: limits are kept and use is measured. Only agents of mode egress
share: the others exchange nothing with anybody beyond this host, and their limits stand as they were written.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np

from agentos_native import alloc
from agentos_native.alloc import Solution, Warm
from agentos_native.alloc.hierarchy import HUNGRY
from agentos_native.alloc.waterfill import LARGE, Floats, Truths
from agentos_native.errors import AgentosError
from agentos_native.network import DIRECTIONS, Direction, Queue
from agentos_native.spec.model import POLICIES, AgentSpec, NetworkRates, Policy, Resource, TenantSpec
from agentos_native.supervisor.loop import rates
from agentos_native.supervisor.loop.controllers import Member, Notify
from agentos_native.supervisor.loop.slots import FIRST, Agent, Slots, Tenant
from agentos_native.supervisor.loop.whatif import Solved, agent_of, copied, solved_of, tenant_of

PERIOD: Final = 2.0
"""Seconds: TCP needs some round trips to follow a change of its rate before it is measured again."""
REFRESH: Final = 60.0
SHORTEST: Final = 0.5
"""Seconds: less is too short to measure a rate."""
STUCK: Final = 1.0
"""Mbit: more than any bucket takes to fill for one packet."""
MEGA: Final = 1e6
NONE: Final = NetworkRates()


class Wires(Protocol):
    """The kernel's side (`agentos_native.network.NodeNetwork`); bits per second."""

    def set_rate(self, slot: int, direction: Direction, rate: int | None) -> None: ...
    def queues(self, direction: Direction, slots: Iterable[int]) -> dict[int, Queue]: ...
    def counters(self) -> dict[int, tuple[int, int]]: ...


def _asked(rates_: NetworkRates | None, direction: Direction) -> int | None:
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
        limit = _asked(spec.resources.limits.network, self.direction)
        request = _asked(spec.resources.requests.network, self.direction)
        return replace(
            agent_of(agent_id, spec, slot),
            request=(request or 0) / MEGA,
            limit=math.inf if limit is None else limit / MEGA,
        )

    def tenant(self, spec: TenantSpec, old: Tenant | None = None) -> Tenant:
        request = (_asked(spec.requests.network, self.direction) or 0) / MEGA
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


class NetworkController:
    """Implements `controllers.Controller` for the network; see the module.

    Args:
        wires: the node's network.
        rate: bits per second of the uplink in each direction; None: limits only.
        notify: told ``foreign-change``.
        policy: by which the node divides.
    """

    resource: Resource = "network"
    period = PERIOD

    def __init__(self, wires: Wires, rate: int | None, notify: Notify, policy: Policy = POLICIES[0]) -> None:
        self._wires = wires
        self._notify = notify
        capacity = None if rate is None else rate / MEGA
        self._sides = {direction: Side(direction, capacity, POLICIES.index(policy)) for direction in DIRECTIONS}
        self._members: dict[str, Member] = {}
        self._measured = self._refreshed = -math.inf
        self._lock = threading.Lock()

    def add(self, member: Member) -> None:
        """See `Controller`; an agent that cannot reach the outside is none of ours."""
        if member.spec.network != "egress":
            return
        with self._lock:
            self._members[member.agent_id] = member
            for side in self._sides.values():
                side.add(member)

    def change(self, member: Member) -> None:
        """See `Controller`."""
        if member.spec.network == "isolated":
            for direction in DIRECTIONS:
                limit = _asked(member.spec.resources.limits.network, direction)
                self._wires.set_rate(member.slot, direction, limit)
        with self._lock:
            if member.agent_id not in self._members:
                return
            self._members[member.agent_id] = member
            for side in self._sides.values():
                old = side.slots.agents[member.agent_id]
                side.slots.change(side.agent(member.agent_id, member.spec, old.slot))

    def remove(self, agent_id: str) -> None:
        """See `Controller`."""
        with self._lock:
            if self._members.pop(agent_id, None) is not None:
                for side in self._sides.values():
                    side.slots.remove(agent_id)

    def set_tenant(self, spec: TenantSpec) -> None:
        """See `Controller`."""
        with self._lock:
            for side in self._sides.values():
                side.slots.set_tenant(side.tenant(spec, side.slots.tenants.get(spec.name)))

    def remove_tenant(self, name: str) -> None:
        """See `Controller`."""
        with self._lock:
            for side in self._sides.values():
                side.slots.remove_tenant(name)

    def turn(self, now: float) -> None:
        """See `Controller`.

        Raises:
            AgentosError: the kernel refused something; everything else has been done.
        """
        with self._lock:
            if self._members:
                self._turn(now)

    def _turn(self, now: float) -> None:
        elapsed = now - self._measured
        everything = now - self._refreshed >= REFRESH
        if everything:
            self._refreshed = now
        measured = elapsed >= SHORTEST
        if measured:
            counters = self._wires.counters()
            self._measured = now
        troubles = []
        for number, side in enumerate(self._sides.values()):
            if measured:
                carried = {slot: counted[number] for slot, counted in counters.items()}
                side.measure(carried, min(elapsed, 1e9))
            for agent_id, expected, found in side.read(self._wires, everything=everything):
                file = f"tc qdisc ({side.direction})"
                self._notify("foreign-change", agent_id, file=file, expected=expected, found=found)
            if measured:
                side.find_stuck(min(elapsed, REFRESH))
            side.divide(min(elapsed, REFRESH) if measured else 0.0)
            troubles.append(side.write(self._wires))
        for trouble in filter(None, troubles):
            raise trouble

    def rows(self) -> dict[str, dict[str, Any]]:
        """See `Controller`: both directions together, and each under its name."""
        with self._lock:
            sides = {direction: side.rows() for direction, side in self._sides.items()}
        return {
            agent_id: {
                **_together(sides["egress"][agent_id], sides["ingress"][agent_id]),
                "egress": sides["egress"][agent_id],
                "ingress": sides["ingress"][agent_id],
            }
            for agent_id in sides["egress"]
        }

    def fractions(self) -> Mapping[str, float]:
        """See `Controller`: of the direction that it wants more of."""
        found: dict[str, float] = {}
        with self._lock:
            for side in self._sides.values():
                if side.capacity is not None:
                    for agent in side.slots.agents.values():
                        wanted = min(float(side.demand[agent.slot]), agent.limit) / side.capacity
                        found[agent.agent_id] = max(found.get(agent.agent_id, 0.0), min(wanted, 1.0))
        return found

    def entitled(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> dict[str, float]:
        """See `Controller`: bits per second, both directions added."""
        with self._lock:
            egress, ingress = (side.entitled(specs, tenants) for side in self._sides.values())
        return {agent_id: share + ingress[agent_id] for agent_id, share in egress.items()}

    def solved(self) -> Mapping[str, tuple[Solved, str]]:
        """See `others.Solvable`."""
        with self._lock:
            divided = {name: side for name, side in self._sides.items() if side.capacity is not None}
            return {name: (side.solved(copied(side.slots)), "Mbit/s") for name, side in divided.items()}

    def close(self) -> None:
        """See `Controller`; the network package owns the sockets."""


def _together(egress: dict[str, Any], ingress: dict[str, Any]) -> dict[str, Any]:
    sums = {word: egress[word] + ingress[word] for word in ("request", "demand", "entitled", "measured")}
    limits = (egress["limit"], ingress["limit"])
    bound = egress["bound"] if egress["bound"] != "demand" else ingress["bound"]
    capacity = None if egress["capacity"] is None else egress["capacity"] + ingress["capacity"]
    return {**sums, "limit": None if None in limits else sum(limits), "bound": bound, "capacity": capacity}
