"""Declarative use: documents in, and the agents and tenants made to agree with them.

An agent is known by (tenant, name); `replicas` of it are agents of their own, named ``<name>-0`` …. What the kernel can
change under a running agent (weight, limits and reservations, restart and stop policy) is changed in place; anything
else needs a new sandbox, so the agent is removed and made again, its files with it. All documents are checked together
before the first is applied, so one that can never be admitted (or queued) leaves everything as it was. An agent that
fails to start all the same does not keep the others from being applied: the first such error is raised after all have
been tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, Document, TenantSpec
from agentos_native.supervisor import admission, resources
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.changing import LIVE_FIELDS, Changer, changed_fields
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.rehearsing import Named, Plan
from agentos_native.wire.api import Action, ApplyResponse, ApplyResult, QueuePlace


def replicas(spec: AgentSpec) -> list[AgentSpec]:
    """The single agents that a document stands for."""
    if spec.replicas == 1:
        return [spec]
    return [msgspec.structs.replace(spec, name=f"{spec.name}-{n}", replicas=1) for n in range(spec.replicas)]


class Applier:
    """One per supervisor; requests are applied one after the other."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._host = lifecycle.host
        self._lock = asyncio.Lock()
        self.changer = Changer(lifecycle)

    async def apply(self, documents: Sequence[Document], *, dry_run: bool, wait: bool = True) -> list[ApplyResult]:
        """Tenants first, then agents (side by side). The error of the first document that failed is raised at the end.

        Args:
            dry_run: only say what would be done; checks everything that can be checked without doing it.
            wait: an agent that does not fit now is queued; otherwise nothing is applied.
        """
        async with self._lock:
            self._check(documents, wait)
            rehearsed = self._rehearsed(documents) if dry_run else None
            results = []
            for document in documents:
                if isinstance(document, TenantSpec):
                    async with self.changer.tenants:
                        results.append(await self._apply_tenant(document, dry_run))
            singles = [single for spec in documents if isinstance(spec, AgentSpec) for single in replicas(spec)]
            outcomes = await asyncio.gather(
                *(self._apply_agent(spec, rehearsed, wait) for spec in singles),
                return_exceptions=True,
            )
            outcomes += await self._remove_surplus(documents, dry_run)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            results.append(outcome)
        return results

    async def rehearse(self, documents: Sequence[Document], *, wait: bool = True) -> ApplyResponse:
        """What `apply` would do, and who would gain and lose by it."""
        results = await self.apply(documents, dry_run=True, wait=wait)
        waiting = [(result.tenant, result.name) for result in results if result.action == "queued"]
        singles: list[Document] = []
        for document in documents:
            singles += replicas(document) if isinstance(document, AgentSpec) else [document]
        gone = [result.id for result in results if result.action == "deleted"]
        return ApplyResponse(results=results, effects=await self.changer.effects_of(singles, waiting, gone))

    def _rehearsed(self, documents: Sequence[Document]) -> dict[Named, QueuePlace]:
        """Which of the documents' agents would be queued by applying them, and where."""
        queue, agents = self._lifecycle.queue, self._host.agents
        starts: list[AgentSpec] = []
        changed: dict[str, AgentSpec] = {}
        gone = {agent.id for agent in self._surplus(documents)}
        for single in [one for spec in documents if isinstance(spec, AgentSpec) for one in replicas(spec)]:
            agent = agents.named(single.tenant, single.name)
            if agent is None:
                starts.append(single)
                continue
            changes = changed_fields(agent.record.spec, self.changer.typed(agent, single))
            if changes - LIVE_FIELDS and not queue.keeps_room(agent, single):
                gone.add(agent.id)
                starts.append(single)
            else:
                changed[agent.id] = single
        tenants = {spec.name: spec for spec in documents if isinstance(spec, TenantSpec)}
        return queue.would_wait(Plan(starts, changed, gone, tenants))

    def _check(self, documents: Sequence[Document], wait: bool) -> None:
        """Raise for the first document that this node, as it will be with the others applied, could not take or queue.

        Never may one that runs have to wait: it is not ended for a place in the queue.
        """
        host = self._host
        singles = [single for spec in documents if isinstance(spec, AgentSpec) for single in replicas(spec)]
        replaced = {(single.tenant, single.name) for single in singles}
        beside = [spec for spec in self._lifecycle.promised_specs() if (spec.tenant, spec.name) not in replaced]
        tenants = dict(host.tenants)
        for tenant in documents:
            if isinstance(tenant, TenantSpec):
                admission.admit_tenant(tenant, beside, tenants, host.capacity)
                tenants[tenant.name] = tenant
        waiting: set[tuple[str, str]] = set()
        for single in sorted(singles, key=lambda single: not self._has_room(single)):
            host.images.get(single.image)
            settings = resources.group_settings(single, host.options.state_dir)
            resources.check_enforceable(single, settings, host.controllers)
            admission.admit(single, (), tenants, host.capacity)
            try:
                admission.admit(single, beside, tenants, host.capacity)
            except AgentosError as error:
                if not wait or self._has_room(single):
                    raise
                self._check_queue(single, tenants.get(single.tenant), waiting, replaced, error)
                waiting.add((single.tenant, single.name))
            else:
                beside.append(single)

    def _has_room(self, spec: AgentSpec) -> bool:
        agent = self._host.agents.named(spec.tenant, spec.name)
        return agent is not None and (agent.live or agent.record.state == "backoff")

    def _check_queue(
        self,
        spec: AgentSpec,
        tenant: TenantSpec | None,
        waiting: set[tuple[str, str]],
        replaced: set[tuple[str, str]],
        why: AgentosError,
    ) -> None:
        """Raise when one more could not wait beside those that do, and those of the same documents that will."""
        queued = [agent.record.spec for agent in self._host.agents if agent.record.state == "queued"]
        others = ({(other.tenant, other.name) for other in queued} - replaced) | waiting
        own = sum(name == spec.tenant for name, _ in others)
        self._lifecycle.queue.check_places(spec, tenant, own, len(others), why.what)

    async def delete(self, documents: Sequence[Document], *, dry_run: bool) -> list[ApplyResult]:
        """Remove the documents' agents (killing them), then the tenants; what is not there is said to be absent.

        Raises:
            AgentosError: ``tenant-in-use``: a tenant has agents that are not among the documents; nothing is removed.
        """
        async with self._lock:
            going = {
                (single.tenant, single.name)
                for spec in documents
                if isinstance(spec, AgentSpec)
                for single in replicas(spec)
            }
            for tenant in documents:
                if isinstance(tenant, TenantSpec):
                    self._check_unused(tenant.name, going)
            results = []
            for spec in documents:
                if isinstance(spec, AgentSpec):
                    for single in replicas(spec):
                        results.append(await self._delete_agent(single, dry_run))
            for tenant in documents:
                if isinstance(tenant, TenantSpec):
                    results.append(await self.delete_tenant(tenant.name, dry_run=dry_run))
            return results

    async def _apply_tenant(self, spec: TenantSpec, dry_run: bool) -> ApplyResult:
        host = self._host
        old = host.tenants.get(spec.name)
        admission.admit_tenant(spec, self._lifecycle.promised_specs(), host.tenants, host.capacity)
        action: Action = "created" if old is None else "unchanged" if old == spec else "updated"
        if not dry_run and old != spec:
            await self.changer.commit_tenant(spec)
            self._lifecycle.wake_queue()
        return ApplyResult(kind="Tenant", name=spec.name, tenant=spec.name, action=action)

    async def _apply_agent(
        self, spec: AgentSpec, rehearsed: Mapping[Named, QueuePlace] | None, wait: bool
    ) -> ApplyResult:
        """`rehearsed`: nothing is done; these would have to wait."""
        agent = self._host.agents.named(spec.tenant, spec.name)
        place = rehearsed.get((spec.tenant, spec.name)) if rehearsed is not None else None
        if agent is None:
            if rehearsed is not None:
                return self._result(spec, "queued" if place else "created", place=place)
            return self._result(spec, "created", await self._lifecycle.run(spec, wait=wait))
        spec = self.changer.typed(agent, spec)
        changes = changed_fields(agent.record.spec, spec)
        if not changes and (agent.live or not agent.record.wanted):
            return self._result(spec, "unchanged", agent)
        anew = bool(changes - LIVE_FIELDS)
        if rehearsed is not None:
            action: Action = "queued" if anew and place else "updated" if changes else "unchanged"
            return self._result(spec, action, agent, place if anew else None)
        if anew:
            with self._lifecycle.queue.keeping(agent):
                await self._lifecycle.remove(agent, force=True)
                return self._result(spec, "updated", await self._lifecycle.run(spec, wait=wait))
        return await self._change_in_place(agent, spec, wait)

    async def _change_in_place(self, agent: Agent, spec: AgentSpec, wait: bool) -> ApplyResult:
        async with agent.lock:
            if not agent.removed:
                changes = changed_fields(agent.record.spec, spec)
                await self.changer.commit(agent, spec)
                self._lifecycle.wake_queue()
                return self._result(spec, "updated" if changes else "unchanged", agent)
        # Removed while its lock was waited for: its record must not come back.
        return await self._apply_agent(spec, None, wait)

    def _surplus(self, documents: Sequence[Document]) -> list[Agent]:
        """Replicas that an earlier, larger number has left: ``<name>-<n>`` beyond the number that is asked for now."""
        found: list[Agent] = []
        for spec in documents:
            if not isinstance(spec, AgentSpec) or spec.replicas == 1:
                continue
            number = spec.replicas
            while agent := self._host.agents.named(spec.tenant, f"{spec.name}-{number}"):
                found.append(agent)
                number += 1
        return found

    async def _remove_surplus(self, documents: Sequence[Document], dry_run: bool) -> list[ApplyResult]:
        surplus = self._surplus(documents)
        for agent in surplus if not dry_run else ():
            await self._lifecycle.remove(agent, force=True)
        return [self._result(agent.record.spec, "deleted", agent) for agent in surplus]

    async def _delete_agent(self, spec: AgentSpec, dry_run: bool) -> ApplyResult:
        agent = self._host.agents.named(spec.tenant, spec.name)
        if agent is None:
            return self._result(spec, "absent")
        if not dry_run:
            await self._lifecycle.remove(agent, force=True)
        return self._result(spec, "deleted", agent)

    def _check_unused(self, name: str, going: Collection[tuple[str, str]] = ()) -> None:
        """Raise ``tenant-in-use`` while the tenant has agents that are not `going` (tenant, name)."""
        specs = [agent.record.spec for agent in self._host.agents if agent.record.spec.tenant == name]
        members = [spec.name for spec in specs if (spec.tenant, spec.name) not in going]
        if members and name in self._host.tenants:
            raise AgentosError(
                "tenant-in-use",
                f"tenant {name} still has {len(members)} agents ({', '.join(members[:5])})",
                f"tenant {name}",
                "Remove its agents first.",
            )

    async def delete_tenant(self, name: str, *, dry_run: bool = False) -> ApplyResult:
        """Forget a tenant's declaration.

        Raises:
            AgentosError: ``tenant-in-use`` while it has agents.
        """
        host = self._host
        if name not in host.tenants:
            return ApplyResult(kind="Tenant", name=name, tenant=name, action="absent")
        if dry_run:
            return ApplyResult(kind="Tenant", name=name, tenant=name, action="deleted")
        self._check_unused(name)
        host.registry.forget_tenant(name)
        del host.tenants[name]
        host.shares.remove_tenant(name)
        self._lifecycle.tenancy.sweep_soon()
        self._lifecycle.wake_queue()
        host.events.add("tenant-deleted", tenant=name)
        return ApplyResult(kind="Tenant", name=name, tenant=name, action="deleted")

    def _result(
        self, spec: AgentSpec, action: Action, agent: Agent | None = None, place: QueuePlace | None = None
    ) -> ApplyResult:
        """`action` was to make the agent, or make it anew: when it is in the queue now, that is what is to be said."""
        if action in {"created", "updated"} and agent is not None and agent.record.state == "queued":
            action, place = "queued", self._host.queue_place(agent)
        name, tenant, id_ = spec.name, spec.tenant, agent.id if agent else ""
        return ApplyResult(kind="Agent", name=name, tenant=tenant, action=action, id=id_, queue=place)
