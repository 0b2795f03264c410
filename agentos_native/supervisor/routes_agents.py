"""The API of agents and documents."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from agentos_native.spec import agent_from_builtins, from_builtins
from agentos_native.supervisor import logs
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.applying import Applier
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.routes import Endpoint, Lines, body, count, flag, number, path_word, while_connected
from agentos_native.supervisor.views import agent_view
from agentos_native.wire import api


class AgentRoutes:
    """Handlers; one per supervisor."""

    def __init__(self, lifecycle: Lifecycle, applier: Applier) -> None:
        self._lifecycle = lifecycle
        self._host = lifecycle.host
        self._applier = applier

    def table(self) -> list[Endpoint]:
        """The rows of the API."""
        one = "/v1/agents/{ref}"
        ended = ("tenant", "all")
        log = ("follow", "tail", "since", "stream")
        return [
            Endpoint("POST", "/v1/apply", self.apply, "Make it so", api.ApplyRequest, api.ApplyResponse),
            Endpoint("POST", "/v1/delete", self.delete, "Remove these", api.ApplyRequest, api.ApplyResponse),
            Endpoint(
                *("PATCH", "/v1/tenants/{ref}", self.change_tenant, "Change a tenant"),
                *(api.ChangeRequest, api.ChangeResult),
            ),
            Endpoint("GET", "/v1/agents", self.list, "Agents", None, api.AgentList, query=ended),
            Endpoint("POST", "/v1/agents", self.run, "Make and start one", api.RunRequest, api.Agent, 201),
            Endpoint("GET", one, self.show, "Everything about one", None, api.Agent),
            Endpoint("PATCH", one, self.change, "Change it, running or not", api.ChangeRequest, api.ChangeResult),
            Endpoint("DELETE", one, self.remove, "Remove one", status=204, query=("force",)),
            Endpoint("POST", f"{one}/start", self.start, "Start", api.StartRequest, api.Agent),
            Endpoint("POST", f"{one}/stop", self.stop, "Signal, wait, kill", api.StopRequest, api.Agent),
            Endpoint("POST", f"{one}/kill", self.kill, "Signal", api.KillRequest, api.Agent),
            Endpoint("POST", f"{one}/restart", self.restart, "Stop and start", api.RestartRequest, api.Agent),
            Endpoint("POST", f"{one}/pause", self.pause, "Freeze", None, api.Agent),
            Endpoint("POST", f"{one}/resume", self.resume, "Thaw", None, api.Agent),
            Endpoint("GET", f"{one}/wait", self.wait, "Wait for the end", None, api.WaitResult),
            Endpoint("GET", f"{one}/logs", self.logs, "Output as JSON lines", None, api.LogLine, query=log),
        ]

    def _find(self, request: Request, *, buried: bool = False) -> Agent:
        return self._host.agents.find(path_word(request, "ref"), buried=buried)

    def _view(self, agent: Agent) -> api.Agent:
        return agent_view(self._host, agent)

    async def apply(self, request: Request) -> api.ApplyResponse:
        """All documents are checked before the first is applied."""
        wanted = await body(request, api.ApplyRequest)
        documents = [from_builtins(document.spec, document.kind) for document in wanted.documents]
        if not wanted.dry_run:
            return api.ApplyResponse(results=await self._applier.apply(documents, dry_run=False, wait=wanted.wait))
        return await self._applier.rehearse(documents, wait=wanted.wait)

    async def change(self, request: Request) -> api.ChangeResult:
        """A merge patch of the spec (RFC 7396): what is null goes back to its default; all of it or nothing."""
        wanted = await body(request, api.ChangeRequest)
        return await self._applier.changer.change_agent(self._find(request), wanted.spec, dry_run=wanted.dry_run)

    async def change_tenant(self, request: Request) -> api.ChangeResult:
        """The same for a tenant."""
        wanted = await body(request, api.ChangeRequest)
        name = path_word(request, "ref")
        return await self._applier.changer.change_tenant(name, wanted.spec, dry_run=wanted.dry_run)

    async def delete(self, request: Request) -> api.ApplyResponse:
        """Agents first, then tenants."""
        wanted = await body(request, api.ApplyRequest)
        documents = [from_builtins(document.spec, document.kind) for document in wanted.documents]
        return api.ApplyResponse(results=await self._applier.delete(documents, dry_run=wanted.dry_run))

    async def list(self, request: Request) -> api.AgentList:
        """Those that have not ended, or with ``all`` every one."""
        tenant = request.query_params.get("tenant")
        everyone = flag(request, "all")
        chosen = [
            agent
            for agent in self._host.agents
            if (tenant is None or agent.record.spec.tenant == tenant)
            and (everyone or agent.record.state not in {"exited", "failed"})
        ]
        return api.AgentList(agents=[self._view(agent) for agent in chosen])

    async def run(self, request: Request) -> api.Agent:
        """Returns when the program has been executed, or its start is queued; a failure leaves nothing."""
        wanted = await body(request, api.RunRequest)
        act = self._lifecycle.run if wanted.start else self._lifecycle.create
        return self._view(await act(agent_from_builtins(wanted.spec), wait=wanted.wait))

    async def show(self, request: Request) -> api.Agent:
        """With the figures of its cgroup while it runs."""
        agent = self._find(request, buried=True)
        usage: dict[str, Any] = {}
        if agent.run is not None and not agent.run.finished:
            usage = await self._host.workers.call(agent.run.group.stat)
        return agent_view(self._host, agent, usage=usage)

    async def remove(self, request: Request) -> None:
        """With ``force`` it is killed first."""
        await self._lifecycle.remove(self._find(request), force=flag(request, "force"))

    async def start(self, request: Request) -> api.Agent:
        """Returns when the program has been executed, or its start is queued."""
        agent = self._find(request)
        await self._lifecycle.start(agent, wait=(await body(request, api.StartRequest)).wait)
        return self._view(agent)

    async def stop(self, request: Request) -> api.Agent:
        """Returns when the agent is gone."""
        agent = self._find(request)
        wanted = await body(request, api.StopRequest)
        await self._lifecycle.stop(agent, grace=wanted.grace, signal=wanted.signal)
        return self._view(agent)

    async def kill(self, request: Request) -> api.Agent:
        """SIGKILL goes to the whole tree, other signals to the program."""
        agent = self._find(request)
        await self._lifecycle.kill(agent, (await body(request, api.KillRequest)).signal)
        return self._view(agent)

    async def restart(self, request: Request) -> api.Agent:
        """Stops it if it runs."""
        agent = self._find(request)
        wanted = await body(request, api.RestartRequest)
        await self._lifecycle.restart(agent, grace=wanted.grace, wait=wanted.wait)
        return self._view(agent)

    async def pause(self, request: Request) -> api.Agent:
        """Freezes every process."""
        agent = self._find(request)
        await self._lifecycle.pause(agent)
        return self._view(agent)

    async def resume(self, request: Request) -> api.Agent:
        """The inverse of pause."""
        agent = self._find(request)
        await self._lifecycle.resume(agent)
        return self._view(agent)

    async def wait(self, request: Request) -> api.WaitResult | None:
        """Long poll; also of an agent that was removed a moment ago (by id)."""
        record = await while_connected(request.receive, self._lifecycle.wait(self._find(request, buried=True)))
        if record is None:
            return None
        return api.WaitResult(exit_status=record.exit_status, reason=record.reason, oom_killed=record.oom_killed)

    async def logs(self, request: Request) -> Lines:
        """The kept lines, with ``follow`` also what comes until the agent ends."""
        agent = self._find(request)
        cursor = logs.LogCursor(self._host.options.agent_dir(agent.id))
        follow = flag(request, "follow")
        if agent.record.state == "queued" and agent.record.started_at is None and not follow:
            raise self._lifecycle.queue.error(agent)
        return Lines(
            logs.follow(
                cursor,
                (lambda: news(agent)) if follow else (lambda: None),
                tail=number(request, "tail", count),
                since=number(request, "since", float) or 0.0,
                stream=request.query_params.get("stream"),
            )
        )


def news(agent: Agent) -> Any:
    """What a follower of the log waits for: the log's next line, or the agent's next state; None at the end."""
    if agent.run is not None and agent.run.log is not None:
        return agent.run.log.news
    if agent.removed or agent.record.state in {"exited", "failed"}:
        return None
    return agent.changed
