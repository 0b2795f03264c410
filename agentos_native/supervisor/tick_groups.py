"""The weights of the groups above agents: tenants and their tiers. They are few, so Python loops over them."""

from __future__ import annotations

import os

import numpy as np

from agentos_native.alloc import BASE, TIERS, Weights
from agentos_native.alloc.waterfill import Indices, Truths
from agentos_native.cgroup import Tree
from agentos_native.cgroup.actuators import UNKNOWN, WeightFiles
from agentos_native.spec.model import PRIORITIES
from agentos_native.supervisor.tick_slots import Plan

RISE, FALL = 1.02, 0.95
"""Hysteresis: a weight is written when it leaves this range around what the file holds."""
_ROOM = 64


def differs(wanted: Indices, held: Indices, plain: Indices) -> Truths:
    """Which weights are to be written: those far enough from what the file holds, or whose file's content is unknown.

    A weight that is nothing but its owner's own (`plain`) does not wander with the load, so it is written exactly.
    """
    return (wanted > held * RISE) | (wanted < held * FALL) | (held == UNKNOWN) | ((wanted == plain) & (wanted != held))


class GroupFiles:
    """``cpu.weight`` and ``cpu.idle`` of every tenant's and tier's group that has agents, by path."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._weights = WeightFiles(_ROOM)
        self._idle = WeightFiles(_ROOM, "cpu.idle")
        self._slots: dict[str, int] = {}
        self._free = list(range(_ROOM - 1, -1, -1))

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

    def write(self, plan: Plan, weights: Weights) -> tuple[int, int]:
        """Write what differs; returns how many were written and how many the kernel refused."""
        wanted: dict[str, tuple[int, int, int]] = {}
        for group in plan.present.tolist():
            tenant, tier = divmod(group, TIERS)
            name, plain = plan.tenants[tenant].name, plan.tenants[tenant].weight
            wanted[self._tree.tenant_path(name)] = (
                int(weights.tenant[tenant]),
                int(weights.tenant_idle[tenant]),
                plain,
            )
            wanted[self._tree.tier_path(name, PRIORITIES[tier])] = (
                int(weights.group[tenant, tier]),
                int(weights.group_idle[tenant, tier]),
                BASE,
            )
        for path in self._slots.keys() - wanted.keys():
            self._drop(path)
        results = [self._write_one(path, *values) for path, values in wanted.items()]
        return sum(written for written, _ in results), sum(failed for _, failed in results)

    def _write_one(self, path: str, weight: int, idle: int, plain: int) -> tuple[int, int]:
        slot = self._slot(path)
        writes = failures = 0
        if self._idle.written[slot] != idle:  # before the weight, which an idle group does not take (EINVAL)
            done = bool(self._idle.write(np.array([slot]), np.array([idle]))[0])
            writes, failures = int(done), int(not done)
        if idle:
            return writes, failures
        if differs(np.array([weight]), self._weights.written[[slot]], np.array([plain]))[0]:
            done = bool(self._weights.write(np.array([slot]), np.array([weight]))[0])
            writes, failures = writes + int(done), failures + int(not done)
            if not done and not os.path.isdir(path):  # removed with its last agent, and perhaps made anew
                self._drop(path)
        return writes, failures

    def refresh(self) -> None:
        """Read every file again."""
        for slot in self._slots.values():
            self._weights.refresh(slot)
            self._idle.refresh(slot)

    def close(self) -> None:
        self._weights.close_all()
        self._idle.close_all()
        self._slots.clear()
