"""`Client`: one method for each thing that the API can do, typed by `wire.api`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from agentos_native.client import transport
from agentos_native.errors import AgentosError
from agentos_native.wire import api

if TYPE_CHECKING:
    from agentos_native.client.stream import Stream
    from agentos_native.spec.model import AgentSpec, Document

DEFAULT_SOCKET = "/run/agentos/agentos.sock"
_Body = TypeVar("_Body")
_PIECE = 1 << 18


class Client:
    """The supervisor behind one socket.

    Args:
        socket: its path; default: ``AGENTOS_SOCKET``, then ``/run/agentos/agentos.sock``.
        timeout: seconds for one answer; `wait` and the streams have none.

    Every method raises `AgentosError`: the supervisor's own, or ``no-supervisor``, ``connection-lost``, ``timeout``.
    An agent is named NAME, TENANT/NAME, by its id or by a beginning of it that fits no other.
    """

    def __init__(self, socket: str | None = None, timeout: float = 120.0) -> None:
        self.socket = socket or os.environ.get("AGENTOS_SOCKET") or DEFAULT_SOCKET
        self.timeout = timeout

    # -- the door ------------------------------------------------------------------------------------------------

    def request(self, method: str, target: str, body: Any = None, *, timeout: float | None = -1.0) -> Any:
        """One exchange of JSON; `target` is the path with its query. For what has no method here."""
        return msgspec.json.decode(self._exchange(method, target, body, timeout) or b"null")

    def _exchange(self, method: str, target: str, body: Any, timeout: float | None) -> bytes:
        encoded = None if body is None else msgspec.json.encode(body)
        seconds = self.timeout if timeout == -1.0 else timeout
        with transport.Exchange(self.socket, method, target, body=encoded, timeout=seconds) as exchange:
            return exchange.read()

    def _typed(
        self, kind: type[_Body], method: str, target: str, body: Any = None, timeout: float | None = -1.0
    ) -> _Body:
        return _decoded(self._exchange(method, target, body, timeout), kind, target)

    def _lines(self, target: str) -> Iterator[bytes]:
        with transport.Exchange(self.socket, "GET", target) as exchange:
            yield from exchange.lines()

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
        for line in self._lines(_agent(ref, "logs") + _query(fields)):
            yield msgspec.json.decode(line, type=api.LogLine)

    def events(self, *, follow: bool = False, since: float | None = None) -> Iterator[api.Event]:
        """What happened on this node."""
        for line in self._lines("/v1/events" + _query({"follow": "1" if follow else None, "since": since})):
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
        target = "/v1/alloc" + ("" if resource == "cpu" else _query({"resource": resource}))
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

    # -- images --------------------------------------------------------------------------------------------------

    def images(self) -> list[api.ImageBody]:
        return self._typed(api.ImageList, "GET", "/v1/images").images

    def image(self, ref: str) -> api.ImageBody:
        return self._typed(api.ImageBody, "GET", "/v1/images/" + quote(ref, safe=""))

    def remove_image(self, ref: str) -> None:
        self._exchange("DELETE", "/v1/images/" + quote(ref, safe=""), None, None)

    def import_image(self, name: str, source: str | IO[bytes]) -> api.ImageBody:
        """Unpack a root filesystem: a path that the supervisor reads, or an open tar stream that is sent to it."""
        if isinstance(source, str):
            target = "/v1/images" + _query({"name": name, "source": os.path.abspath(source)})
            return self._typed(api.ImageBody, "POST", target, None, None)
        target = "/v1/images" + _query({"name": name})
        pieces = iter(lambda: source.read(_PIECE), b"")
        with transport.Exchange(self.socket, "POST", target, body=pieces, content_type="application/x-tar") as exchange:
            return _decoded(exchange.read(), api.ImageBody, target)


def _decoded(answer: bytes, kind: type[_Body], target: str) -> _Body:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:
        raise AgentosError(
            "internal", f"an answer that is not understood ({error})", target, "are both of one version?"
        )


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


def _query(fields: dict[str, Any]) -> str:
    given = {name: value for name, value in fields.items() if value is not None}
    return "?" + urlencode(given) if given else ""
