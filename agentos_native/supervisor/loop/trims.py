"""What the tick remembers of the kernel's inexactness: the trims of agents by slot, of groups by name."""

from __future__ import annotations

from typing import Final

import numpy as np

from agentos_native.alloc import TIERS, Experience, Trims
from agentos_native.alloc.waterfill import Floats, Indices
from agentos_native.supervisor.loop.meter import Measured
from agentos_native.supervisor.loop.slots import Plan, Slots

SMOOTHING: Final = 4.0
"""Seconds over which use is averaged before it is compared with what was promised."""


class TrimState:
    """Trims that outlive a plan: agents and tenants come and go, the others keep theirs.

    Args:
        slots: how many to begin with.
    """

    def __init__(self, slots: int) -> None:
        self._used: Floats = np.zeros(slots)
        self._due: Floats = np.zeros(slots)
        self._agent: Floats = np.ones(slots)
        self._unknown = np.ones(slots, dtype=bool)  # not measured yet
        self._groups: dict[str, tuple[float, Floats]] = {}  # tenant's name -> its factor, its tiers' factors
        self._steady = False
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

    def used(self, slots: Indices, latest: Floats) -> Floats:
        """What the agents in `slots` used lately, averaged; `latest` for those that have no average yet."""
        return np.where(self._unknown[slots], latest, self._used[slots])

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

    def current(self, slots: Slots) -> Trims:
        """The trims so far, of the present plan."""
        plan = slots.plan()
        none = (1.0, np.ones(TIERS))
        groups = [self._groups.get(tenant.name, none) for tenant in plan.tenants]
        return Trims(
            self._agent[plan.slots],
            np.array([tiers for _, tiers in groups]).reshape(len(groups), TIERS),
            np.array([factor for factor, _ in groups]),
        )

    def experience(self, slots: Slots) -> Experience | None:
        """What the agents of the present plan had and were due; None while nothing can be concluded from it."""
        plan = slots.plan()
        if not self._steady or self._unknown[plan.slots].any():
            return None
        return Experience(self._used[plan.slots], self._due[plan.slots])

    def keep(self, slots: Slots, trims: Trims) -> None:
        """Take over what a turn has made of `current`."""
        plan = slots.plan()
        self._agent[plan.slots] = trims.agent
        factors = zip(plan.tenants, trims.tenant.tolist(), trims.group, strict=True)
        self._groups = {tenant.name: (factor, tiers) for tenant, factor, tiers in factors}
