"""The weights of the groups above agents: tenants and their tiers, as slots of kept files like the agents'."""

from __future__ import annotations

import numpy as np

from agentos_native.alloc import BASE, TIERS, Weights, hysteresis
from agentos_native.alloc.waterfill import Indices
from agentos_native.cgroup import Tree
from agentos_native.cgroup.actuators import WeightFiles
from agentos_native.spec.model import PRIORITIES
from agentos_native.supervisor.loop.slots import Plan

_ROOM = 64


class GroupFiles:
    """``cpu.weight`` and ``cpu.idle`` of every tenant's and tier's group that has agents."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._weights = WeightFiles(_ROOM)
        self._idle = WeightFiles(_ROOM, "cpu.idle")
        self._slots: dict[str, int] = {}
        self._free = list(range(_ROOM - 1, -1, -1))
        self._plan: Plan | None = None
        self._tenants: Indices = np.zeros(0, dtype=np.int64)  # those with agents: index, and slot
        self._tenant_slots: Indices = np.zeros(0, dtype=np.int64)
        self._group_slots: Indices = np.zeros(0, dtype=np.int64)
        self._parents: Indices = np.zeros(0, dtype=np.int64)  # of both: tenants are siblings of each other

    def _slot(self, path: str) -> int:
        slot = self._slots.get(path)
        if slot is None:
            if not self._free:
                size = len(self._weights.written)
                self._weights.grow(2 * size)
                self._idle.grow(2 * size)
                self._free = list(range(2 * size - 1, size - 1, -1))
            slot = self._slots[path] = self._free.pop()
            self._weights.open(slot, path)
            self._idle.open(slot, path)
        return slot

    def _drop(self, path: str) -> None:
        slot = self._slots.pop(path)
        self._weights.close(slot)
        self._idle.close(slot)
        self._free.append(slot)

    def _follow(self, plan: Plan) -> None:
        """Open the files of groups that are new, close those of groups that nobody is in any more."""
        self._plan = plan
        self._tenants = np.unique(plan.present // TIERS)
        names = [plan.tenants[index].name for index in self._tenants.tolist()]
        tenant_paths = [self._tree.tenant_path(name) for name in names]
        group_paths = [
            self._tree.tier_path(plan.tenants[group // TIERS].name, PRIORITIES[group % TIERS])
            for group in plan.present.tolist()
        ]
        for path in self._slots.keys() - {*tenant_paths, *group_paths}:
            self._drop(path)
        self._tenant_slots = np.array([self._slot(path) for path in tenant_paths], dtype=np.int64)
        self._group_slots = np.array([self._slot(path) for path in group_paths], dtype=np.int64)
        self._parents = np.concatenate([np.full(len(tenant_paths), -1), plan.present // TIERS])

    def write(self, plan: Plan, weights: Weights) -> tuple[int, int]:
        """Write what differs; returns how many were written and how many the kernel refused."""
        if plan is not self._plan:
            self._follow(plan)
        own = np.array([plan.tenants[index].weight for index in self._tenants.tolist()], dtype=np.int64)
        slots = np.concatenate([self._tenant_slots, self._group_slots])
        weight = np.concatenate([weights.tenant[self._tenants], weights.group.ravel()[plan.present]])
        idle = np.concatenate([weights.tenant_idle[self._tenants], weights.group_idle.ravel()[plan.present]])
        plain = np.concatenate([own, np.full(len(self._group_slots), BASE)])

        turned = self._idle.written[slots] != idle  # first, since an idle group does not take a weight (EINVAL)
        done = self._idle.write(slots[turned], idle[turned])
        for slot in slots[turned].tolist():
            self._weights.refresh(slot)  # the kernel sets it with cpu.idle (sched_group_set_idle)
        told = np.flatnonzero(idle == 0)
        slots, parent = slots[told], self._parents[told]
        everybody = np.ones(len(told), dtype=np.bool_)  # each may hold reservations, and wants more as its agents do
        target, due = hysteresis.due(
            weight[told], self._weights.written[slots], plain[told], parent, everybody, ~everybody
        )
        done = np.concatenate([done, self._weights.write(slots[due], target[due])])
        if not done.all():  # a group may have been removed and made anew at the same path: open it afresh next time
            self._reopen()
        return int(done.sum()), int((~done).sum())

    def _reopen(self) -> None:
        for path in list(self._slots):
            self._drop(path)
        self._plan = None

    def refresh(self) -> None:
        """Read every file again."""
        for slot in self._slots.values():
            self._weights.refresh(slot)
            self._idle.refresh(slot)

    def close(self) -> None:
        self._reopen()
