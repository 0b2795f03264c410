"""What the tick remembers of the kernel's inexactness: the trims of agents by slot, of groups by name."""

from __future__ import annotations

from typing import Final

import numpy as np

from agentos_native.alloc import TIERS, Problem, Solution, Trims, trim
from agentos_native.alloc.waterfill import Floats
from agentos_native.supervisor.tick_meter import Measured
from agentos_native.supervisor.tick_slots import Plan, Slots

SMOOTHING: Final = 4.0
"""Seconds over which use is averaged before it is compared with what was promised."""


class TrimState:
    """Trims that outlive a plan: agents and tenants come and go, the others keep theirs.

    Args:
        slots: how many to begin with.
        cpus: of the machine.
    """

    def __init__(self, slots: int, cpus: float) -> None:
        self._cpus = cpus
        self._used: Floats = np.zeros(slots)
        self._due: Floats = np.zeros(slots)
        self._agent: Floats = np.ones(slots)
        self._unknown = np.ones(slots, dtype=bool)  # not measured yet
        self._groups: dict[str, tuple[float, Floats]] = {}  # tenant's name -> its factor, its tiers' factors
        self._steady = False
        self._last: float | None = None
        self._plan: Plan | None = None

    def grow(self, more: int) -> None:
        self._used = np.append(self._used, np.zeros(more))
        self._due = np.append(self._due, np.zeros(more))
        self._agent = np.append(self._agent, np.ones(more))
        self._unknown = np.append(self._unknown, np.ones(more, dtype=bool))

    def add(self, slot: int) -> None:
        """A new agent has the slot."""
        self._agent[slot] = 1.0
        self._unknown[slot] = True

    def measured(self, plan: Plan, measured: Measured, due: Floats, steady: bool) -> None:
        """Take in what the agents of `plan` used in a tick and what they were due: entitled to, and wanting.

        While the machine is not `steady`, nothing is concluded from it. When somebody has come or gone, averages begin
        afresh with the next tick, the first in which everybody used what the new shares give.
        """
        slots = plan.slots
        part = 1.0 - float(np.exp(-measured.window / SMOOTHING))
        for kept, latest in ((self._used, measured.used), (self._due, due)):
            kept[slots] = np.where(self._unknown[slots], latest, kept[slots] + part * (latest - kept[slots]))
        self._unknown[slots] = measured.new | (plan is not self._plan)
        self._plan = plan
        self._steady = steady

    def step(self, slots: Slots, problem: Problem, solution: Solution, now: float) -> Trims:
        """The trims to write with, carried on by what has been measured."""
        plan = slots.plan()
        none = (1.0, np.ones(TIERS))
        groups = [self._groups.get(tenant.name, none) for tenant in plan.tenants]
        trims = Trims(
            self._agent[plan.slots],
            np.array([tiers for _, tiers in groups]).reshape(len(groups), TIERS),
            np.array([factor for factor, _ in groups]),
        )
        elapsed, self._last = now - (self._last if self._last is not None else now), now
        if self._steady and not self._unknown[plan.slots].any():
            seen = trim.Experience(self._used[plan.slots], self._due[plan.slots])
            trims = trim.step(trims, problem, solution, seen, self._cpus, elapsed)
            self._agent[plan.slots] = trims.agent
        factors = zip(plan.tenants, trims.tenant.tolist(), trims.group, strict=True)
        self._groups = {tenant.name: (factor, tiers) for tenant, factor, tiers in factors}
        return trims
