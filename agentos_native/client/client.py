"""`Client`: one method for each thing that the API can do, typed by `wire.api`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import msgspec

from agentos_native.client.door import query
from agentos_native.client.images import ImageCalls
from agentos_native.errors import AgentosError
from agentos_native.wire import api

if TYPE_CHECKING:
    from agentos_native.client.stream import Stream
    from agentos_native.spec.model import AgentSpec, Document


class Client(ImageCalls):
    """The supervisor behind one socket.

    Args:
        socket: its path; default: ``AGENTOS_SOCKET``, then ``/run/agentos/agentos.sock``.
        timeout: seconds for one answer; `wait` and the streams have none.

    Every method raises `AgentosError`: the supervisor's own, or ``no-supervisor``, ``connection-lost``, ``timeout``.
    An agent is named NAME, TENANT/NAME, by its id or by a beginning of it that fits no other.
    """

    # -- the node ------------------------------------------------------------------------------------------------

    def version(self) -> api.Version:
        """Who answers."""
        return self._typed(api.Version, "GET", "/v1/version")

    def node(self) -> api.Node:
        """Capacity, what is promised, controllers, layout."""
        return self._typed(api.Node, "GET", "/v1/node")

    def check(self) -> api.CheckReport:
        """What the host can do, probed now."""
        return self._typed(api.CheckReport, "GET", "/v1/check")

    # -- documents -----------------------------------------------------------------------------------------------

    def apply(
        self, documents: Iterable[Document], *, dry_run: bool = False, wait: bool = True
    ) -> list[api.ApplyResult]:
        """Make it so: create, update or leave each document's agent or tenant. What does not fit now is queued, or
        without `wait` refused with everything else.
        """
        body = api.ApplyRequest(documents=_bodies(documents), dry_run=dry_run, wait=wait)
        return self._typed(api.ApplyResponse, "POST", "/v1/apply", body).results

    def rehearse(self, documents: Iterable[Document], *, wait: bool = True) -> api.ApplyResponse:
        """What `apply` would do, and who would gain and lose by it; nothing is done."""
        body = api.ApplyRequest(documents=_bodies(documents), dry_run=True, wait=wait)
        return self._typed(api.ApplyResponse, "POST", "/v1/apply", body)

    def delete(self, documents: Iterable[Document], *, dry_run: bool = False) -> list[api.ApplyResult]:
        """Remove what these documents describe."""
        body = api.ApplyRequest(documents=_bodies(documents), dry_run=dry_run)
        return self._typed(api.ApplyResponse, "POST", "/v1/delete", body).results

    # -- agents --------------------------------------------------------------------------------------------------

    def run(self, spec: AgentSpec, *, start: bool = True, wait: bool = True) -> api.Agent:
        """Make an agent and, unless told otherwise, start it; returns when it runs.

        If it does not fit now it is queued (`Agent.queue` says where and why), or without `wait` refused.
        """
        from agentos_native.spec import to_builtins

        body = api.RunRequest(spec=to_builtins(spec), start=start, wait=wait)
        return self._typed(api.Agent, "POST", "/v1/agents", body)

    def agents(self, *, tenant: str | None = None, ended: bool = False) -> list[api.Agent]:
        """Agents that are not ended, or with `ended` all of them."""
        query = urlencode({**({"tenant": tenant} if tenant else {}), **({"all": "1"} if ended else {})})
        return self._typed(api.AgentList, "GET", "/v1/agents" + (f"?{query}" if query else "")).agents

    def agent(self, ref: str) -> api.Agent:
        """Everything about one agent."""
        return self._typed(api.Agent, "GET", _agent(ref))

    def change(self, ref: str, patch: dict[str, Any], *, dry_run: bool = False) -> api.ChangeResult:
        """Give it other weights, limits, … while it runs: `patch` is part of a spec, None takes a value away."""
        return self._typed(api.ChangeResult, "PATCH", _agent(ref), api.ChangeRequest(spec=patch, dry_run=dry_run))

    def start(self, ref: str, *, wait: bool = True) -> api.Agent:
        """Start one that has ended; `wait` as in `run`."""
        return self._typed(api.Agent, "POST", _agent(ref, "start"), api.StartRequest(wait=wait))

    def stop(self, ref: str, *, grace: float | None = None, signal: str | None = None) -> api.Agent:
        """Signal it, and kill its whole tree when it is still there after `grace` seconds (its spec's by default)."""
        body = api.StopRequest(grace=grace, signal=signal)
        return self._typed(api.Agent, "POST", _agent(ref, "stop"), body, None)

    def kill(self, ref: str, signal: str = "SIGKILL") -> api.Agent:
        """Send a signal to the program."""
        return self._typed(api.Agent, "POST", _agent(ref, "kill"), api.KillRequest(signal=signal))

    def restart(self, ref: str, *, grace: float | None = None, wait: bool = True) -> api.Agent:
        """Stop it, if it runs, and start it in the room that it had; if it had none, `wait` as in `run`."""
        body = api.RestartRequest(grace=grace, wait=wait)
        return self._typed(api.Agent, "POST", _agent(ref, "restart"), body, None)

    def pause(self, ref: str) -> api.Agent:
        """Freeze all of its processes."""
        return self._typed(api.Agent, "POST", _agent(ref, "pause"))

    def resume(self, ref: str) -> api.Agent:
        return self._typed(api.Agent, "POST", _agent(ref, "resume"))

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Forget an ended agent and its files; `force` kills it first."""
        self._exchange("DELETE", _agent(ref) + ("?force=1" if force else ""), None, None)

    def wait(self, ref: str, timeout: float | None = None) -> api.WaitResult:
        """Returns when the agent has ended. Raises ``timeout`` after `timeout` seconds."""
        return self._typed(api.WaitResult, "GET", _agent(ref, "wait"), None, timeout)

    # -- streams -------------------------------------------------------------------------------------------------

    def logs(
        self,
        ref: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        stream: str | None = None,
    ) -> Iterator[api.LogLine]:
        """What the agent wrote; with `follow` until it ends."""
        fields = {"follow": "1" if follow else None, "tail": tail, "since": since, "stream": stream}
        for line in self._lines(_agent(ref, "logs") + query(fields)):
            yield msgspec.json.decode(line, type=api.LogLine)

    def events(self, *, follow: bool = False, since: float | None = None) -> Iterator[api.Event]:
        """What happened on this node."""
        for line in self._lines("/v1/events" + query({"follow": "1" if follow else None, "since": since})):
            yield msgspec.json.decode(line, type=api.Event)

    def exec(
        self,
        ref: str,
        command: Sequence[str],
        *,
        tty: bool = False,
        stdin: bool = False,
        user: str | None = None,
        workdir: str | None = None,
        env: Sequence[str] = (),
    ) -> Stream:
        """Start a further process inside; `env` are ``NAME=value``."""
        from agentos_native.client.stream import Stream

        fields: list[tuple[str, str]] = [("command", word) for word in command] + [("env", pair) for pair in env]
        fields += [(name, "1") for name, wanted in (("tty", tty), ("stdin", stdin)) if wanted]
        fields += [(name, value) for name, value in (("user", user), ("workdir", workdir)) if value]
        return Stream(self.socket, _agent(ref, "exec") + "?" + urlencode(fields))

    def attach(self, ref: str, *, stdin: bool = False) -> Stream:
        """Join the streams of the agent's own program; before its start, from the first byte on."""
        from agentos_native.client.stream import Stream

        return Stream(self.socket, _agent(ref, "attach") + ("?stdin=1" if stdin else "?stdin=0"))

    # -- shares, tenants -----------------------------------------------------------------------------------------

    def alloc(self, resource: str = "cpu") -> list[dict[str, Any]]:
        """What the allocator gives each agent, in the resource's unit; `resource` "all": a row for each."""
        target = "/v1/alloc" + ("" if resource == "cpu" else query({"resource": resource}))
        rows: list[dict[str, Any]] = self.request("GET", target)["rows"]
        return rows

    def explain(self, ref: str) -> dict[str, Any]:
        """Why an agent has what it has."""
        explanation: dict[str, Any] = self.request("GET", "/v1/alloc/" + quote(ref, safe=""))
        return explanation

    def top(self) -> dict[str, Any]:
        """Use, share and pressure of each running agent."""
        answer: dict[str, Any] = self.request("GET", "/v1/top")
        return answer

    def tenants(self) -> list[api.Tenant]:
        return self._typed(api.TenantList, "GET", "/v1/tenants").tenants

    def tenant(self, name: str) -> api.Tenant:
        return self._typed(api.Tenant, "GET", "/v1/tenants/" + quote(name, safe=""))

    def change_tenant(self, name: str, patch: dict[str, Any], *, dry_run: bool = False) -> api.ChangeResult:
        """As `change`, of a tenant."""
        body = api.ChangeRequest(spec=patch, dry_run=dry_run)
        return self._typed(api.ChangeResult, "PATCH", "/v1/tenants/" + quote(name, safe=""), body)


def _bodies(documents: Iterable[Document]) -> list[api.DocumentBody]:
    from agentos_native.spec import to_builtins
    from agentos_native.spec.model import AgentSpec

    return [
        api.DocumentBody(kind="Agent" if isinstance(document, AgentSpec) else "Tenant", spec=to_builtins(document))
        for document in documents
    ]


def _agent(ref: str, verb: str = "") -> str:
    if not ref:
        raise AgentosError("invalid-name", "the agent's name is empty")
    return f"/v1/agents/{quote(ref, safe='')}" + (f"/{verb}" if verb else "")
