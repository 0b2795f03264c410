"""Live change of agents and tenants: a merge patch in, checked by the decoder of documents, and all of it or nothing.

A patch holds what is to be different, as users write it; null takes away what was written, so the default holds again
(no limit, no reservation). What a sandbox is made of (image, command, priority, …) cannot be changed under an agent:
`apply` of an edited document makes it anew. An agent that does not run is changed for its next start.

Theory of operation
    Admission and the record that it counts from change together, without a wait in between, so that no start can slip
    past (what was checked before effects were computed is checked again). Then the kernel is told and the registry
    written; if either refuses, the record, the group's files and the registry are put back. Only then the allocator
    hears of it, and its next tick comes soon. Changes of one agent wait for each other at its lock, those of tenants at
    `Changer.tenants`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.spec import agent_from_builtins, from_builtins, to_builtins
from agentos_native.spec.decode import fields_of
from agentos_native.spec.model import DEFAULT_TYPE, AgentSpec, Document, TenantSpec
from agentos_native.spec.quantities import format_cpu, format_memory
from agentos_native.supervisor import admission, imagetypes, resources
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.lifecycle import Lifecycle, write_spec
from agentos_native.supervisor.loop.whatif import Change, Moved
from agentos_native.supervisor.rehearsing import Plan
from agentos_native.supervisor.views import tenant_names
from agentos_native.wire import api

LIVE_FIELDS: Final = frozenset(
    {"weight", "resources", "restart", "stop", "labels", "type", "allow_unenforced", "auto_remove"}
    | {"timeout", "wait_timeout"}
)
"""Fields of `AgentSpec` that a running agent can be given."""
_PROMISED: Final = frozenset({"backoff"})
"""States besides the live ones in which an agent's reservation counts."""


def changed_fields(old: AgentSpec, new: AgentSpec) -> set[str]:
    """The names of the fields in which they differ."""
    return {field for field in old.__struct_fields__ if getattr(old, field) != getattr(new, field)}


def merged(written: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`written` with `patch` in it, by RFC 7396: mappings are merged, null removes, anything else replaces."""
    result = dict(written)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result


def differences(old: msgspec.Struct, new: msgspec.Struct, path: str = "") -> dict[str, list[Any]]:
    """The fields that differ, by their written path: [before, after], CPU as a quantity."""
    found: dict[str, list[Any]] = {}
    for written, (attribute, _, _) in fields_of(type(old)).items():
        before, after = getattr(old, attribute), getattr(new, attribute)
        if before == after:
            continue
        kind = next((type(value) for value in (before, after) if isinstance(value, msgspec.Struct)), None)
        if kind is not None:
            found |= differences(before or kind(), after or kind(), f"{path}{written}.")
        else:
            found[path + written] = [_shown(attribute, value) for value in (before, after)]
    return found


def _shown(attribute: str, value: Any) -> Any:
    if attribute == "cpu" and value is not None:
        return format_cpu(value)
    if attribute == "type":
        return value or DEFAULT_TYPE
    return list(value) if isinstance(value, tuple) else value


class Changer:
    """One per supervisor."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._host = lifecycle.host
        self.tenants = asyncio.Lock()
        """Held from reading a tenant's spec to having written another, or one change would undo the other."""

    # -- agents --------------------------------------------------------------------------------------------------

    async def change_agent(self, agent: Agent, patch: Mapping[str, Any], *, dry_run: bool) -> api.ChangeResult:
        """Give an agent what `patch` says.

        Raises:
            AgentosError: of the decoder; ``not-live``; of admission; of whatever the kernel refuses. Nothing is
                changed then.
        """
        return await self._lifecycle.tasks.unbroken(self._change_agent(agent, patch, dry_run))

    async def _change_agent(self, agent: Agent, patch: Mapping[str, Any], dry_run: bool) -> api.ChangeResult:
        async with agent.lock:
            if agent.removed:
                raise AgentosError("agent-not-found", "the agent has been removed", agent.where)
            old = agent.record.spec
            new = self.typed(agent, agent_from_builtins(merged(to_builtins(old), patch)))
            changes = changed_fields(old, new)
            _refuse_what_is_fixed(agent, changes)
            if not changes:
                return api.ChangeResult(action="unchanged")
            self._check(agent, new)
            result = api.ChangeResult(action="updated", changed=differences(old, new))
            result.starts = self._starts(Change(specs={agent.id: new}))
            if agent.run is not None:
                result.effects = await self.effects(Change(specs={agent.id: new}))
                result.warnings = await self._warnings(agent, new)
            if not dry_run:
                await self.commit(agent, new)
                self._lifecycle.wake_queue()  # what was given up may be what a waiting start needs
        return result

    def typed(self, agent: Agent, spec: AgentSpec) -> AgentSpec:
        """`spec` with the type that its image says, unless it says one; where the image is gone, with the agent's."""
        if spec.type is not None:
            return spec
        try:
            return imagetypes.typed(spec, self._host.images.get(spec.image).config)
        except AgentosError:
            return msgspec.structs.replace(spec, type=agent.record.spec.type)

    def _check(self, agent: Agent, spec: AgentSpec) -> list[str]:
        """The controllers that `spec` does without; raises where it cannot be enforced or does not fit."""
        host = self._host
        settings = resources.group_settings(spec, host.options.state_dir)
        missing = resources.check_enforceable(spec, settings, host.controllers)
        promised = agent.live or agent.record.state in _PROMISED
        beside = self._lifecycle.promised_specs(without=agent) if promised else []  # else: whether it can ever fit
        admission.admit(spec, beside, host.tenants, host.capacity)
        return missing

    async def commit(self, agent: Agent, spec: AgentSpec) -> None:
        """Make `spec`, of which only live fields differ, the agent's; its lock is held."""
        host, record = self._host, agent.record
        missing = self._check(agent, spec)
        before = (record.spec, record.unenforced, record.warnings)
        record.spec, record.unenforced = spec, missing
        record.warnings = resources.warnings(spec, host.controllers)
        try:
            await self._write(agent, before[0])
            host.registry.save(record)
            write_spec(host.options.agent_dir(agent.id), record)
        except BaseException:
            record.spec, record.unenforced, record.warnings = before
            with contextlib.suppress(AgentosError, OSError):
                await self._write(agent, spec)
            with contextlib.suppress(Exception):  # the first failure is the one to be told
                host.registry.save(record)
            raise
        if agent.run is not None:
            host.shares.change(resources.member(record, agent.run.group))
            if spec.timeout != before[0].timeout:
                self._lifecycle.runner.arm_timeout(agent, agent.run)
        self._lifecycle.runner.event(agent, "updated", changed=differences(before[0], spec))

    async def _write(self, agent: Agent, other: AgentSpec) -> None:
        """Make a running agent's group say what its record does, if that differs from what `other` says."""
        spec, directory = agent.record.spec, self._host.options.state_dir
        tenant = self._host.tenants.get(spec.tenant)
        settings = resources.group_settings(spec, directory, tenant)
        if agent.run is not None and settings != resources.group_settings(other, directory, tenant):
            await self._host.workers.call(agent.run.group.update, settings, spec.allow_unenforced)

    async def _warnings(self, agent: Agent, spec: AgentSpec) -> list[str]:
        """What the kernel may do to a running agent by this change."""
        limit = spec.resources.limits.memory
        if limit is None or limit == agent.record.spec.resources.limits.memory or agent.run is None:
            return []
        used = (await self._host.workers.call(agent.run.group.stat)).get("memory.current")
        if used is None or used <= limit:
            return []
        return [
            f"it uses {format_memory(used >> 20 << 20)} of memory now, more than the new limit: the kernel takes back"
            " what it can, and kills the agent if that is not enough"
        ]

    # -- tenants -------------------------------------------------------------------------------------------------

    async def change_tenant(self, name: str, patch: Mapping[str, Any], *, dry_run: bool) -> api.ChangeResult:
        """Give a tenant, declared or only named by its agents, what `patch` says; it is declared from then on.

        Raises:
            AgentosError: ``tenant-not-found``; of the decoder; of admission; of whatever the kernel refuses.
        """

        async def alone() -> api.ChangeResult:
            async with self.tenants:
                return await self._change_tenant(name, patch, dry_run)

        return await self._lifecycle.tasks.unbroken(alone())

    async def _change_tenant(self, name: str, patch: Mapping[str, Any], dry_run: bool) -> api.ChangeResult:
        host = self._host
        if name not in tenant_names(host):
            hint = "`agentos-native tenant ls` lists them; a document of kind Tenant declares a new one (apply)."
            raise AgentosError("tenant-not-found", "no such tenant", name[:300], hint)
        old = host.tenants.get(name, TenantSpec(name=name))
        new = from_builtins(merged(to_builtins(old), patch), "Tenant")
        assert isinstance(new, TenantSpec)
        if new.name != old.name:
            raise AgentosError("not-live", "a tenant's name cannot be changed", f"tenant {name}")
        if new == old:
            return api.ChangeResult(action="unchanged")
        self._check_tenant(new)
        result = api.ChangeResult(action="updated", changed=differences(old, new))
        result.starts = self._starts(Change(tenants={name: new}))
        result.effects = await self.effects(Change(tenants={name: new}))
        if not dry_run:
            self._check_tenant(new)  # starts may have been let in while effects were computed
            await self.commit_tenant(new)
            self._lifecycle.wake_queue()
        return result

    def _check_tenant(self, spec: TenantSpec) -> None:
        """Raise where the tenant's reservation does not fit, or its limits are below what its agents were promised."""
        host = self._host
        promised = self._lifecycle.promised_specs()
        admission.admit_tenant(spec, promised, host.tenants, host.capacity)
        members = [other for other in promised if other.tenant == spec.name]
        for resource in ("cpu", "memory"):
            limit: int | None = getattr(spec.limits, resource)
            total = sum(getattr(member.resources.requests, resource) for member in members)
            if limit is not None and total > limit:
                show = format_cpu if resource == "cpu" else format_memory
                raise AgentosError(
                    "reservation-too-large",
                    f"its running agents have {show(total)} of {resource} reserved, more than a limit of {show(limit)}",
                    f"tenant {spec.name}",
                    f"Raise limits.{resource}, or lower the agents' reservations first.",
                    details={"resource": resource, "asked": total, "free": limit, "capacity": limit},
                )

    async def commit_tenant(self, spec: TenantSpec) -> None:
        """Make `spec` the tenant's, all of it or nothing; `tenants` is held."""
        host = self._host
        old = host.tenants.get(spec.name)
        host.tenants[spec.name] = spec
        try:
            await self._lifecycle.tenancy.enforce(spec)
            host.registry.save_tenant(spec)
        except BaseException:
            if old is None:
                del host.tenants[spec.name]
            else:
                host.tenants[spec.name] = old
            with contextlib.suppress(AgentosError, OSError):
                await self._lifecycle.tenancy.enforce(old or TenantSpec(name=spec.name))
            raise
        host.shares.set_tenant(spec)
        host.events.add("tenant-created" if old is None else "tenant-updated", tenant=spec.name)

    # -- who gains and who loses ---------------------------------------------------------------------------------

    async def effects(self, change: Change) -> list[api.Effect]:
        """Whose entitlement moves, gainers first; of agents that would be new, the names are in `change`."""
        found = await self._host.workers.call(self._host.shares.effects, change)
        return [effect for row in found if (effect := self._effect(row, change)) is not None]

    def _starts(self, change: Change) -> list[str]:
        """Who waits for a start and would be let in."""
        specs = self._lifecycle.queue.would_start(Plan((), change.specs, (), change.tenants))
        return [f"{spec.tenant}/{spec.name}" for spec in specs]

    def _effect(self, row: Moved, change: Change) -> api.Effect | None:
        agent = self._host.agents.by_id(row.agent_id)
        spec = agent.record.spec if agent is not None else change.specs.get(row.agent_id)
        if spec is None:
            return None  # it has just been removed
        return api.Effect(
            tenant=spec.tenant,
            name=spec.name,
            agent_id=row.agent_id if agent is not None else "",
            resource=row.resource,
            before=row.before,
            after=row.after,
        )

    async def effects_of(
        self, documents: Sequence[Document], waiting: Collection[tuple[str, str]], gone: Iterable[str]
    ) -> list[api.Effect]:
        """What applying `documents` would do to entitlements.

        Args:
            waiting: those (tenant, name) that would only be queued; gone: ids of agents that would be removed.
        """
        specs: dict[str, AgentSpec] = {}
        removed = list(gone)
        for number, spec in enumerate(document for document in documents if isinstance(document, AgentSpec)):
            agent = self._host.agents.named(spec.tenant, spec.name)
            if (spec.tenant, spec.name) not in waiting:
                specs[agent.id if agent is not None else f"{number:012x}"] = spec
            elif agent is not None:
                removed.append(agent.id)
        tenants = {document.name: document for document in documents if isinstance(document, TenantSpec)}
        return await self.effects(Change(specs, tenants, removed))


def _refuse_what_is_fixed(agent: Agent, changes: set[str]) -> None:
    fixed = sorted(changes - LIVE_FIELDS)
    if fixed:
        written = {attribute: name for name, (attribute, _, _) in fields_of(AgentSpec).items()}
        raise AgentosError(
            "not-live",
            f"{', '.join(written[name] for name in fixed)} cannot be changed under an agent",
            agent.where,
            "Edit its document and `agentos-native apply` it: that removes the agent and makes it anew.",
        )
