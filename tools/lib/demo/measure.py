"""What the kernel says each agent has used, and what the policy says it should have had."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agentos_native.alloc.hierarchy import TIERS, Problem, solve
from agentos_native.cgroup.sensors import Machine
from agentos_native.spec.model import PRIORITIES, AgentSpec, TenantSpec


def usage(group: Path) -> float:
    """CPU seconds that the group and all below it have used so far (cpu.stat, cgroup-v2.rst)."""
    for line in (group / "cpu.stat").read_text().splitlines():
        key, value = line.split()
        if key == "usage_usec":
            return int(value) / 1e6
    raise ValueError(f"no usage_usec in {group}/cpu.stat")


@dataclass(frozen=True)
class Sample:
    """A window: the CPUs (CPU seconds per second) that each agent used, and those that were there for all agents.

    There for agents is what they used and what was idle. The rest went to the supervisor, to the kernel's own work and,
    in a virtual machine, to the host: no weight among agents can give it back.
    """

    seconds: float
    agents: dict[str, float]
    available: float


def window(seconds: float, node: Path, groups: Mapping[str, Path]) -> Sample:
    """Measure for `seconds`; `node` is the group that holds all agents."""
    machine = Machine(str(node))

    def read() -> tuple[float, int, dict[str, float]]:
        return time.monotonic(), sum(machine.read()), {name: usage(path) for name, path in groups.items()}

    try:
        began, available_before, before = read()
        time.sleep(seconds)
        ended, available_after, after = read()
    finally:
        machine.close()
    length = ended - began
    used = {name: (after[name] - before[name]) / length for name in groups}
    return Sample(length, used, (available_after - available_before) / 1e6 / length)


def entitlements(
    tenants: Sequence[TenantSpec], agents: Sequence[AgentSpec], demand: Mapping[str, float], capacity: float
) -> dict[str, float]:
    """CPUs that each agent ("tenant/name") should get of `capacity`, when each wants `demand`."""
    by_tenant = {tenant.name: number for number, tenant in enumerate(tenants)}
    ordered = sorted(agents, key=lambda a: by_tenant[a.tenant] * TIERS + PRIORITIES.index(a.priority))
    group = [by_tenant[a.tenant] * TIERS + PRIORITIES.index(a.priority) for a in ordered]
    solution = solve(
        Problem(
            capacity=capacity,
            tenant_weight=np.array([float(t.weight) for t in tenants]),
            tenant_tier=np.array([PRIORITIES.index(t.priority) for t in tenants], dtype=np.int64),
            tenant_floor=np.array([t.requests.cpu / 1000 for t in tenants]),
            tenant_ceiling=np.array([_limit(t.limits.cpu) for t in tenants]),
            starts=np.searchsorted(group, np.arange(len(tenants) * TIERS + 1)).astype(np.int64),
            weight=np.array([float(a.weight) for a in ordered]),
            floor=np.array([a.resources.requests.cpu / 1000 for a in ordered]),
            ceiling=np.array([_limit(a.resources.limits.cpu) for a in ordered]),
            demand=np.array([demand[key(a)] for a in ordered]),
        )
    )
    return {key(agent): float(share) for agent, share in zip(ordered, solution.share, strict=True)}


def key(agent: AgentSpec) -> str:
    return f"{agent.tenant}/{agent.name}"


def _limit(millis: int | None) -> float:
    return float("inf") if millis is None else millis / 1000
