"""The network in the closed loop: one rate for each wire and direction, from the water-fill over the uplink's.

Theory of operation. Each turn reads the bytes that every wire carried (one request to the kernel) and the buckets of
those that have one: how much waits and was lost there, and whether the rate is what was written. From that follow
demands, from these the shares (by the same tree of tenants, tiers and agents as CPU), and from the shares the rates of
the buckets. `uplink` is one direction, `rates` has the arithmetic, `agentos_native.network.shaping` the kernel's side.
Egress and ingress are two resources that know nothing of each other.

Without ``networkRate`` there is nothing to divide: limits are kept and use is measured. Only agents of mode egress
share: the others exchange nothing with anybody beyond this host, and their limits stand as they were written.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any, Final

from agentos_native.network import DIRECTIONS
from agentos_native.spec.model import POLICIES, AgentSpec, Policy, Resource, TenantSpec
from agentos_native.supervisor.loop.controllers import Member, Notify
from agentos_native.supervisor.loop.uplink import MEGA, Side, Wires, asked
from agentos_native.supervisor.loop.whatif import Solved, copied

PERIOD: Final = 2.0
"""Seconds: TCP needs some round trips to follow a change of its rate before it is measured again."""
REFRESH: Final = 60.0
SHORTEST: Final = 0.5
"""Seconds: less is too short to measure a rate."""


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
                limit = asked(member.spec.resources.limits.network, direction)
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
    together = {**sums, "limit": None if None in limits else sum(limits), "bound": bound, "capacity": capacity}
    if capacity is not None:
        together["note"] = f"{_in_words('Egress', egress)} {_in_words('Ingress', ingress)}"
    return together


def _in_words(name: str, row: Mapping[str, Any]) -> str:
    """Of one direction; all figures in Mbit/s."""
    entitled, capacity, limit = (row[word] and row[word] / MEGA for word in ("entitled", "capacity", "limit"))
    text = f"{name}: {entitled:.4g} of {capacity:.4g} Mbit/s"
    if limit:
        text += f", limit {limit:.4g}"
    return f"{text}, bound by its {row['bound']}."
