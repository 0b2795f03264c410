"""What the kernel makes of weights, as a fluid: siblings divide by weight, and what one leaves goes to the others.

The same promise as that of CFS and EEVDF for many threads on many CPUs, without their noise: a thread that is moved
between CPUs, slices, wake-ups. Levels are those of the control groups: tenants below the node, tiers below a tenant,
agents below a tier. Dividing by weight with demands as caps is weighted max-min without floors, so the allocator's
kernel does it, all groups of a level at once.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agentos_native.alloc import TIERS, Weights, engines
from agentos_native.alloc.waterfill import Floats, Indices, sanitise, segment_sum

IDLE_WEIGHT: Final = 0.3
"""WEIGHT_IDLEPRIO is 3 where cpu.weight 100 is 1024 (kernel/sched/sched.h)."""


def _level(weights: Floats, wants: Floats, starts: Indices, budgets: Floats) -> Floats:
    clean, _, ceilings = sanitise(weights, np.zeros(len(weights)), wants)
    shares, _ = engines.waterfill(clean, np.zeros(len(weights)), ceilings, starts, budgets, np.zeros(len(budgets)))
    return shares


def fill(capacity: float, weights: Weights, starts: Indices, wants: Floats, limits: Floats) -> Floats:
    """What each agent gets, in CPUs, shape (n,).

    Args:
        capacity: CPUs that are there.
        starts: of the groups (tenant · TIERS + tier), and n: shape (T · TIERS + 1,).
        wants: CPUs that each agent would use, never more than its own limit, shape (n,).
        limits: of the tenants, shape (T,); ∞ for none.
    """
    tenants = len(limits)
    group = np.repeat(np.arange(tenants * TIERS), np.diff(starts))
    group_wants = segment_sum(np.minimum(wants, capacity), group, tenants * TIERS)
    tenant_wants = np.minimum(group_wants.reshape(tenants, TIERS).sum(axis=1), limits)
    tenant_weights = np.where(weights.tenant_idle == 1, IDLE_WEIGHT, weights.tenant)
    group_weights = np.where(weights.group_idle == 1, IDLE_WEIGHT, weights.group).ravel()
    all_of_them = np.array([0, tenants], dtype=np.int64)
    tenant_shares = _level(tenant_weights, tenant_wants, all_of_them, np.array([capacity]))
    below = np.arange(tenants + 1, dtype=np.int64) * TIERS
    group_shares = _level(group_weights, group_wants, below, tenant_shares)
    return _level(weights.agent.astype(np.float64), np.minimum(wants, capacity), starts, group_shares)
