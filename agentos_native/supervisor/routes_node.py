"""The API of the node itself: version, capacity, check, tenants, events, and what the allocator gives."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request

from agentos_native import __version__
from agentos_native.errors import AgentosError
from agentos_native.spec.model import DEFAULT_TYPE, RESOURCES, Resource
from agentos_native.supervisor import waiting
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.loop.others import moved_here
from agentos_native.supervisor.loop.shares import Shares
from agentos_native.supervisor.openapi import describe
from agentos_native.supervisor.routes import Endpoint, Lines, flag, number, path_word
from agentos_native.supervisor.views import agent_view, node_view, tenant_names, tenant_view
from agentos_native.wire import api


class NodeRoutes:
    """Handlers; one per supervisor. `extra` gives what only the composition root knows of the node."""

    def __init__(self, host: Host, shares: Shares, extra: Callable[[], dict[str, Any]]) -> None:
        self._host = host
        self._shares = shares
        self._extra = extra
        self.everything: list[Endpoint] = []

    def table(self) -> list[Endpoint]:
        """The rows of the API."""
        events = ("follow", "since")
        rows = ("window", "resource")
        return [
            Endpoint("GET", "/v1/version", self.version, "Who answers", None, api.Version),
            Endpoint("GET", "/openapi.json", self.openapi, "This description"),
            Endpoint("GET", "/v1/node", self.node, "Capacity, promises, controllers", None, api.Node),
            Endpoint("GET", "/v1/check", self.check, "What this host can do", None, api.CheckReport),
            Endpoint("GET", "/v1/tenants", self.tenants, "Tenants", None, api.TenantList),
            Endpoint("GET", "/v1/tenants/{ref}", self.tenant, "One tenant", None, api.Tenant),
            Endpoint("GET", "/v1/alloc", self.alloc, "The allocator's rows", None, api.AllocList, query=rows),
            Endpoint("GET", "/v1/alloc/{ref}", self.explain, "Why an agent has what it has"),
            Endpoint("GET", "/v1/top", self.top, "Use and share of what runs"),
            Endpoint("GET", "/v1/events", self.events, "What happened, as JSON lines", None, api.Event, query=events),
        ]

    async def version(self, _request: Request) -> api.Version:
        """Answers whatever the state of the rest."""
        return api.Version(name="agentos-native", version=__version__)

    async def openapi(self, _request: Request) -> dict[str, Any]:
        """OpenAPI 3.1."""
        return describe(self.everything)

    async def node(self, _request: Request) -> api.Node:
        """The machine as this supervisor sees it."""
        return node_view(self._host, self._extra())

    async def check(self, _request: Request) -> msgspec.Raw:
        """In a process of its own: probing namespaces is nothing for a process with threads."""
        command = [sys.executable, "-m", "agentos_native.supervisor.check", "-o", "json"]
        environment = {**os.environ, "AGENTOS_STATE_DIR": self._host.options.state_dir}
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
        output, _ = await process.communicate()
        if not output:
            raise AgentosError("internal", f"the check ended with status {process.returncode} and said nothing")
        return msgspec.Raw(output)

    async def tenants(self, _request: Request) -> api.TenantList:
        """Declared ones and those that agents name."""
        return api.TenantList(tenants=[tenant_view(self._host, name) for name in tenant_names(self._host)])

    async def tenant(self, request: Request) -> api.Tenant:
        """One of them."""
        name = path_word(request, "ref")
        if name not in tenant_names(self._host):
            raise AgentosError("tenant-not-found", "no such tenant", name[:300], "`agentos-native tenant ls`")
        return tenant_view(self._host, name)

    async def alloc(self, request: Request) -> api.AllocList:
        """One row for each running agent and ``resource`` (cpu; all: each that is moved here).

        ``window``: CPU averaged over so many seconds.
        """
        resources = _resources(request)
        rows = await self._rows(number(request, "window", float), resources)
        return api.AllocList(rows=[row for row in rows if len(resources) == 1 or moved_here(row)])

    async def _rows(
        self, window: float | None = None, resources: Sequence[Resource] = ("cpu",)
    ) -> list[dict[str, Any]]:
        rows = []
        for row in await self._host.workers.call(self._shares.rows, window, resources):
            agent = self._host.agents.by_id(row["agent_id"])
            if agent is not None:
                spec = agent.record.spec
                rows.append(_finite({**row, "name": spec.name, "type": spec.type or DEFAULT_TYPE}))
        return rows

    async def explain(self, request: Request) -> dict[str, Any]:
        """In words and numbers; of an agent that waits for its start, what it waits for."""
        agent = self._host.agents.find(path_word(request, "ref"))
        spec = agent.record.spec
        who = {"name": spec.name, "state": agent.record.state}
        if agent.record.state == "queued":
            return {**who, **waiting.explain(self._host, agent, agent_view(self._host, agent).queue)}
        if not agent.live:
            raise AgentosError(
                "agent-not-running", f"the agent is {agent.record.state}", agent.where, "Start it first."
            )

        def name(agent_id: str) -> str:
            other = self._host.agents.by_id(agent_id)
            if other is None:
                return agent_id
            named = other.record.spec
            return named.name if named.tenant == spec.tenant else f"{named.tenant}/{named.name}"

        found: dict[str, Any] = _finite(await self._host.workers.call(self._shares.explain, agent.id, name))
        return {**who, **found}

    async def top(self, _request: Request) -> dict[str, Any]:
        """The allocator's rows with each cgroup's figures."""
        by_id: dict[str, dict[str, Any]] = {}
        for row in await self._rows(None, RESOURCES):
            if row["resource"] == "cpu":
                by_id.setdefault(row["agent_id"], {}).update(row)
            else:
                by_id.setdefault(row["agent_id"], {})[f"{row['resource']}_entitled"] = row.get("entitled")
        rows = []
        for agent in self._host.agents:
            run = agent.run
            if run is None or run.finished:
                continue
            try:
                usage = await self._host.workers.call(run.group.stat)
            except (AgentosError, OSError):
                continue  # it has just ended
            view = agent_view(self._host, agent, usage=usage)
            rows.append({**by_id.get(agent.id, {}), **_top_row(view)})
        return {"node": node_view(self._host, self._extra()), "rows": rows}

    async def events(self, request: Request) -> Lines:
        """Kept ones, and with ``follow`` those to come."""
        since = number(request, "since", float) or 0.0
        source = self._host.events.follow(since) if flag(request, "follow") else self._kept(since)
        return Lines(_encoded(source))

    async def _kept(self, since: float) -> AsyncIterator[api.Event]:
        for event in self._host.events.since(since):
            yield event


def _top_row(view: api.Agent) -> dict[str, Any]:
    return {
        "agent_id": view.id,
        "name": view.name,
        "tenant": view.tenant,
        "type": view.type,
        "state": view.state,
        "tier": view.priority,
        "weight": view.weight,
        "resources": view.resources,
        "unenforced": view.unenforced,
        "memory_current": view.usage.get("memory.current"),
        "pids_current": view.usage.get("pids.current"),
        "usage_usec": view.usage.get("cpu.stat", {}).get("usage_usec"),
        "pressure": {
            name: view.usage.get(f"{name}.pressure", {}).get("some", {}).get("avg10")
            for name in ("cpu", "memory", "io")
        },
    }


def _resources(request: Request) -> tuple[Resource, ...]:
    """Those that are asked about; CPU where nothing is said."""
    word = request.query_params.get("resource", "cpu")
    if word == "all":
        return RESOURCES
    for resource in RESOURCES:
        if word == resource:
            return (resource,)
    raise AgentosError("invalid-request", f"no such resource: {word[:40]!r}", "query parameter resource")


def _finite(value: Any) -> Any:
    """JSON knows no infinity: None stands for "no bound"."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


async def _encoded(events: AsyncIterator[api.Event]) -> AsyncIterator[bytes]:
    async for event in events:
        yield msgspec.json.encode(event)
