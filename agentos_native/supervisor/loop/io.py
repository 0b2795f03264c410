"""The slow loop of I/O: what agents do on the disk → fair parts of its time → weights of agents, tiers and tenants.

The kernel shares a disk by weight itself, where iocost or BFQ runs on it (`cgroup.io_files`); as with CPU, the weights
only say who goes before whom. An agent's is its ``ioWeight``, else its weight; a tenant's is its own; those of tiers
are computed anew at each turn, since no fixed ladder holds five of them. Elsewhere nothing is written: limits
(``io.max``) hold, and rows say that the rest does not. There are no reservations of I/O: a disk promises nothing.

The unit is the disk's time, 1 for all of it. What a group used of it follows from its part of the disk's work
(`io_files.cost`); what it wants, from that and from the time in which it waited (PSI), as with CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from agentos_native.alloc import TIERS, demand, kernel_weights, solve
from agentos_native.alloc.hierarchy import HUNGRY, Solution
from agentos_native.alloc.hysteresis import FALL, RISE
from agentos_native.cgroup import GroupRef, Tree, io_files
from agentos_native.cgroup.io_files import IoSample, IoWeights
from agentos_native.spec.model import PRIORITIES, AgentSpec, IoLimits, Resource, TenantSpec
from agentos_native.supervisor.loop.controllers import Member, Notify
from agentos_native.supervisor.loop.slots import Agent, Plan, Slots, Tenant
from agentos_native.supervisor.loop.whatif import Solved, solved_of

PERIOD: Final = 5.0
"""Seconds between two turns."""
REFRESH: Final = 60.0
"""Seconds in which every weight is read again once."""
_RATES: Final = ("read_bps", "write_bps", "read_iops", "write_iops")


@dataclass(frozen=True)
class Seen:
    """One agent between two turns: rates by device (as `io_files.Counts`), stalled fraction (NaN: no PSI), part of the
    disk's time (NaN: not known)."""

    rates: dict[str, tuple[float, ...]]
    stalled: float
    part: float


class IoController:
    """Implements `controllers.Controller`.

    Args:
        tree: where it lacks the io controller, nothing is known.
        directory: of the agents' files, whose disk is the one that weights are about.
        enforce: False: weights are left alone.
        weights: what heeds weights; None: find out at each turn (an administrator may switch schedulers).
    """

    resource: Resource = "io"
    period = PERIOD

    def __init__(
        self,
        tree: Tree,
        directory: str,
        notify: Notify,
        *,
        enforce: bool = True,
        weights: IoWeights | None = None,
    ) -> None:
        self._tree = tree
        self._notify = notify
        self._enforce = enforce
        self._present = "io" in tree.controllers
        self._given = weights
        self._disk: str | None = None  # without the controller nothing is known of its use
        if self._present:
            self._disk = weights.device if weights is not None else io_files.disk_of(directory)
        self._lock = threading.RLock()
        self._slots = Slots()
        self._specs: dict[str, AgentSpec] = {}
        self._weights: IoWeights | None = None
        self._written: dict[str, int | None] = {}
        self._last: dict[str, IoSample] = {}
        self._demand: dict[str, float] = {}
        self._before: tuple[float, tuple[int, int] | None] = (float("nan"), None)
        self._view: tuple[list[Agent], dict[str, Seen], Solution] | None = None  # of the last turn
        self._refreshed = 0.0
        self.writes = 0

    # -- members ------------------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        with self._lock:
            self.remove(member.agent_id)
            self._slots.add(_agent(Agent(member.agent_id, member.ref, -1, 0, 0.0, np.inf), member.spec))
            self._specs[member.agent_id] = member.spec
            self._demand[member.agent_id] = 1.0

    def change(self, member: Member) -> None:
        with self._lock:
            agent = self._slots.agents.get(member.agent_id)
            if agent is None or agent.ref != member.ref:
                self.add(member)
                return
            self._slots.change(_agent(agent, member.spec))
            self._specs[member.agent_id] = member.spec
            self._written.pop(member.path, None)  # an update of the group's settings may have written it

    def remove(self, agent_id: str) -> None:
        with self._lock:
            agent = self._slots.remove(agent_id)
            if agent is not None:
                self._written.pop(self._tree.get(agent.ref).path, None)
                for known in (self._specs, self._last, self._demand):
                    known.pop(agent_id, None)

    def set_tenant(self, spec: TenantSpec) -> None:
        with self._lock:
            self._slots.set_tenant(_tenant(spec))

    def remove_tenant(self, name: str) -> None:
        with self._lock:
            self._slots.remove_tenant(name)

    def close(self) -> None:
        """Nothing is open; weights stay, since without this loop they are still the agents' own."""

    # -- the turn -----------------------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        with self._lock:
            agents = list(self._slots.agents.values())
        if not agents:
            return
        samples = {agent.agent_id: io_files.read_io(self._tree.get(agent.ref).path) for agent in agents}
        disk = io_files.busy_time(self._disk) if self._disk is not None else None
        with self._lock:
            self._weights = self._given or io_files.find_weights(self._tree.mount.mount_point, self._disk)
            window = max(now - self._before[0], 1e-3) if np.isfinite(self._before[0]) else 1.0
            seen = self._measure(samples, disk, window)
            self._before = (now, disk)
            plan = self._slots.plan()
            solution = self._divide(plan, seen, window)
            if self._enforce and self._weights is not None:
                self._write(plan, solution, now)
            self._view = ([self._slots.at(slot) for slot in plan.slots.tolist()], seen, solution)

    def _measure(
        self, samples: Mapping[str, IoSample | None], disk: tuple[int, int] | None, window: float
    ) -> dict[str, Seen]:
        """Rates since the last turn of those that were there then; counters that went back count as 0."""
        busy, work = 0.0, 0.0
        if disk is not None and self._before[1] is not None:
            busy = min(max(disk[0] - self._before[1][0], 0) / 1e3 / window, 1.0)
            work = max(disk[1] - self._before[1][1], 0) / window
        seen = {}
        for agent_id, after in samples.items():
            before = self._last.get(agent_id)
            if after is None:
                self._last.pop(agent_id, None)
                continue
            self._last[agent_id] = after
            if before is None:
                continue
            rates = {
                device: tuple(
                    max(new - old, 0) / window
                    for new, old in zip(counts, before.devices.get(device, (0, 0, 0, 0)), strict=True)
                )
                for device, counts in after.devices.items()
            }
            stalled = (after.some - before.some) / 1e6 / window if min(after.some, before.some) >= 0 else np.nan
            mine = rates.get(self._disk or "", (0.0,) * 4)
            done = mine[0] + mine[1] + io_files.OPERATION * (mine[2] + mine[3])
            part = busy * min(done / work, 1.0) if work else 0.0
            seen[agent_id] = Seen(rates, float(np.clip(stalled, 0.0, 1.0)), part if disk is not None else np.nan)
        return seen

    def _divide(self, plan: Plan, seen: Mapping[str, Seen], window: float) -> Solution:
        """The disk's time by weighted max-min over demands, which rise at once and fall slowly."""
        names = [self._slots.at(slot).agent_id for slot in plan.slots.tolist()]
        measured = [seen.get(name, Seen({}, np.nan, np.nan)) for name in names]
        parts = np.array([one.part for one in measured])
        wanted = np.minimum(demand.estimate(parts, np.array([one.stalled for one in measured])), 1.0)
        before = np.array([self._demand[name] for name in names])
        wanted = np.where(np.isnan(parts), before, demand.smooth(before, np.nan_to_num(wanted, nan=1.0), window))
        self._demand.update(zip(names, wanted.tolist(), strict=True))
        return solve(self._slots.problem(1.0, wanted))

    def _write(self, plan: Plan, solution: Solution, now: float) -> None:
        """Write the weights that differ, and see what the kernel keeps."""
        due = now - self._refreshed >= REFRESH
        self._refreshed = now if due else self._refreshed
        for path, (wanted, exact) in self._wanted(plan, solution).items():
            self._write_one(path, wanted, exact=exact, look=due)

    def _wanted(self, plan: Plan, solution: Solution) -> dict[str, tuple[int, bool]]:
        """Path → weight, and whether it is somebody's own (written exactly) or computed (with hysteresis)."""
        assert self._weights is not None
        problem = self._slots.problem(1.0, solution.wanted)
        weights = kernel_weights(problem, solution)
        bound = self._weights.highest
        scale = bound / 10_000  # of computed ones; those of BFQ end at a tenth
        wanted: dict[str, tuple[int, bool]] = {}
        for group in plan.present.tolist():
            tenant, tier = divmod(group, TIERS)
            name = plan.tenants[tenant].name
            wanted[self._tree.tenant_path(name)] = (_clip(weights.tenant[tenant] * scale, bound), False)
            path = self._tree.tier_path(name, PRIORITIES[tier])
            wanted[path] = (_clip(weights.group[tenant, tier] * scale, bound), False)
        for slot in plan.slots.tolist():
            agent = self._slots.at(slot)
            wanted[self._tree.get(agent.ref).path] = (_clip(agent.weight, bound), True)
        return wanted

    def _write_one(self, path: str, wanted: int, *, exact: bool, look: bool) -> None:
        assert self._weights is not None
        file = self._weights.file
        held = self._written.get(path)
        if held is None or look:
            found = io_files.read_weight(path, file)
            if held is not None and found is not None and found != held:
                self._foreign(path, held, found)
            held = self._written[path] = found
        if held is None or held == wanted or (not exact and held * FALL <= wanted <= held * RISE):
            return
        kept = self._written[path] = io_files.write_weight(path, file, wanted)
        self.writes += kept is not None
        if kept is not None and kept != wanted:
            self._foreign(path, wanted, kept)

    def _foreign(self, path: str, expected: int, found: int) -> None:
        assert self._weights is not None
        file = f"{path}/{self._weights.file}"
        for agent in self._slots.agents.values():  # of the agents below: it is their share that is meant
            if f"{self._tree.get(agent.ref).path}/".startswith(f"{path}/"):
                self._notify("foreign-change", agent.agent_id, file=file, expected=str(expected), found=str(found))
                return

    # -- telling ------------------------------------------------------------------------------------------------

    def _row(self, index: int, agent: Agent, seen: Mapping[str, Seen], solution: Solution) -> dict[str, Any]:
        one = seen.get(agent.agent_id, Seen({}, np.nan, np.nan))
        known = self._disk is not None
        total = [sum(rates[kind] for rates in one.rates.values()) for kind in range(4)]
        share, wanted = float(solution.share[index]), float(solution.wanted[index])
        return {
            "request": 0.0,  # there are none
            "limit": None,  # io.max is not in the disk's time; see limits
            "limits": _limits(self._specs[agent.agent_id].resources.limits.io),
            "demand": wanted if known else None,
            "entitled": share if known else None,
            "measured": one.part if np.isfinite(one.part) else None,
            "bound": ("demand" if share >= wanted - HUNGRY else "share") if known else None,
            "stalled": one.stalled if np.isfinite(one.stalled) else None,
            "weight": agent.weight,
            "kernel_weight": self._written.get(self._tree.get(agent.ref).path) if self._weights else None,
            **{name: round(rate, 1) for name, rate in zip(_RATES, total, strict=True)},
            "devices": {
                device: {name: round(rate, 1) for name, rate in zip(_RATES, rates, strict=True)}
                for device, rates in one.rates.items()
            },
            "capacity": 1.0,
            "enforced": self._weights.kind if self._enforce and self._weights is not None else None,
            "note": self._note(),
        }

    def _note(self) -> str:
        if not self._present:
            return "not enforced: cgroup v2 has no io controller on this host"
        if not self._enforce:
            return "not moved: io is not among the resources to control"
        if self._weights is None:
            where = f"disk {self._disk}" if self._disk is not None else "the agents' disk"
            return f"weights not enforced: neither iocost nor BFQ runs on {where}; limits hold"
        return ""

    def rows(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            agents, seen, solution = self._view or ([], {}, None)
            if solution is None:
                return {}
            return {
                agent.agent_id: self._row(index, agent, seen, solution)
                for index, agent in enumerate(agents)
                if agent.agent_id in self._slots.agents
            }

    def fractions(self) -> Mapping[str, float]:
        with self._lock:
            return dict(self._demand) if self._view is not None and self._disk is not None else {}

    def entitled(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> dict[str, float]:
        with self._lock:
            solved = self._solved(specs, tenants)
            return solved.entitled() if solved else {}

    def solved(self) -> Mapping[str, tuple[Solved, str]]:
        """See `others.Solvable`."""
        with self._lock:
            solved = self._solved({}, {})
            return {"io": (solved, "parts of the disk's time")} if solved else {}

    def _solved(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> Solved | None:
        if self._view is None or self._disk is None:
            return None
        other, wants = Slots(), {}
        for tenant in (*self._slots.tenants.values(), *(_tenant(spec) for spec in tenants.values())):
            other.set_tenant(tenant)
        for agent_id, agent in self._slots.agents.items():
            taken = other.add(_agent(agent, specs.get(agent_id, self._specs[agent_id])))
            wants[taken.slot] = self._demand[agent_id]
        return solved_of(other, 1.0, wants)


def _agent(agent: Agent, spec: AgentSpec) -> Agent:
    ref = GroupRef(agent.ref.tenant, spec.priority, agent.agent_id)
    return replace(agent, ref=ref, weight=spec.resources.io_weight or spec.weight)


def _tenant(spec: TenantSpec) -> Tenant:
    return Tenant(spec.name, spec.weight, PRIORITIES.index(spec.priority))


def _clip(weight: float, highest: int) -> int:
    return int(np.clip(np.nan_to_num(np.ceil(weight), nan=1.0), 1, highest))


def _limits(limits: IoLimits | None) -> dict[str, int | None] | None:
    if limits is None:
        return None
    return {name: getattr(limits, name) for name in ("read_bps", "write_bps", "read_iops", "write_iops")}
