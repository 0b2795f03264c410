"""From a spec to what its cgroup shall say, and whether this host can hold to it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from agentos_native.cgroup import GroupRef, GroupSettings, IoMax, unenforceable
from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, IoLimits, TenantSpec
from agentos_native.supervisor.loop.controllers import Member
from agentos_native.supervisor.registry import Record

if TYPE_CHECKING:
    from agentos_native.network import Rates
    from agentos_native.supervisor.doors import Group


def group_ref(agent_id: str, spec: AgentSpec) -> GroupRef:
    """Which group is the agent's."""
    return GroupRef(spec.tenant, spec.priority, agent_id)


def member(record: Record, group: Group) -> Member:
    """The running agent as the closed loop sees it."""
    return Member(record.id, record.slot, group_ref(record.id, record.spec), group.path, record.spec)


def group_settings(spec: AgentSpec, state_dir: str, tenant: TenantSpec | None = None) -> GroupSettings:
    """The group's files; `state_dir` is on the disk that ``limits.io`` are about.

    A reservation of memory is ``memory.low``, which the kernel still takes from when nothing else is left. Only an
    agent of priority system whose `tenant` has that priority, too, gets ``memory.min``, for which the kernel would
    rather kill somebody: an agent's priority is its owner's choice, a tenant's is the administrator's.
    """
    requests, limits = spec.resources.requests, spec.resources.limits
    vital = spec.priority == "system" and tenant is not None and tenant.priority == "system"
    return GroupSettings(
        cpu_weight=spec.weight,
        cpu_max_millis=limits.cpu,
        cpu_min_millis=requests.cpu,
        memory_max=limits.memory,
        memory_low=requests.memory or None,
        memory_min=(requests.memory or None) if vital else None,
        pids_max=limits.pids,
        io_weight=spec.resources.io_weight,
        io_max=(_io_max(limits.io, state_dir),) if limits.io else (),
    )


def network_rates(spec: AgentSpec) -> Rates:
    """The limits of its wire."""
    # Not at the top: netlink's library takes longer to import than all that the first tick needs (see `foundation`).
    from agentos_native.network import NO_RATES, Rates

    limits = spec.resources.limits.network
    return Rates(limits.egress, limits.ingress) if limits else NO_RATES


def oom_figures(stat: Mapping[str, Any], spec: AgentSpec) -> dict[str, int | None]:
    """An ended agent's figures (`Group.stat`) if the OOM killer was there, else nothing.

    Its memory is free by now; the peak is what it had when it was killed.
    """
    kills = stat.get("memory.events", {}).get("oom_kill", 0)
    if not kills:
        return {}
    limit = spec.resources.limits.memory
    return {"oom_kills": kills, "peak": stat.get("memory.peak"), "current": stat.get("memory.current"), "limit": limit}


def _io_max(limits: IoLimits, state_dir: str) -> IoMax:
    device = os.stat(state_dir).st_dev
    return IoMax(
        device=f"{os.major(device)}:{os.minor(device)}",
        rbps=limits.read_bps,
        wbps=limits.write_bps,
        riops=limits.read_iops,
        wiops=limits.write_iops,
    )


def check_enforceable(spec: AgentSpec, settings: GroupSettings, controllers: Collection[str]) -> list[str]:
    """The controllers that `spec` asks for, explicitly does without, and will not get.

    Raises:
        AgentosError: ``unenforceable``: it asks for some that this host lacks, without allowing for that.
    """
    missing = unenforceable(settings, controllers)
    refused = sorted(missing - set(spec.allow_unenforced))
    if refused:
        listing = ",".join(refused)
        raise AgentosError(
            "unenforceable",
            f"this host cannot enforce {listing}: cgroup v2 does not offer the controller here",
            f"agent {spec.tenant}/{spec.name}",
            f"--allow-unenforced {listing} (allowUnenforced in the spec) starts it all the same;\n"
            "`agentos-native check` says how to give the controllers to cgroup v2.",
            details={"controllers": refused},
        )
    return sorted(missing)


def warnings(spec: AgentSpec, controllers: Collection[str]) -> list[str]:
    """What the spec wishes for and this host will ignore; wishes are not refused."""
    found = []
    if "cpu" not in controllers and (spec.weight != AgentSpec(name="x", image="x").weight or spec.priority != "normal"):
        found.append("weight and priority have no effect on CPU: cgroup v2 has no cpu controller on this host")
    return found
