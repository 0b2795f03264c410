"""The HTTP API on a real unix socket, with fakes below: who may, how errors look, streams that end, the description."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentos_native.client import Client
from agentos_native.errors import AgentosError
from agentos_native.spec import agent_from_builtins
from agentos_native.supervisor import peers
from agentos_native.supervisor.applying import Applier
from agentos_native.supervisor.check import report
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.routes_agents import AgentRoutes
from agentos_native.supervisor.routes_node import NodeRoutes
from agentos_native.supervisor.routes_streams import StreamRoutes
from agentos_native.supervisor.server import Server, application, bind
from agentos_native.wire import api
from tests.fakehost import FakeLink, World, lifecycle_of

Story = Callable[[Client, Lifecycle, World, FakeLink], Awaitable[None]]


class NoShares:
    """The allocator knows nobody."""

    def rows(self, window: float | None = None, resources: Sequence[str] = ()) -> list[dict[str, Any]]:
        return []

    def explain(self, agent_id: str, name: Callable[[str], str]) -> dict[str, Any]:
        return {"limit": float("inf"), "words": f"window of {agent_id}"}


def serve(directory: Path, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a story against the API; the tester is the administrator."""
    monkeypatch.setattr(peers, "ADMINISTRATOR", os.getuid())

    async def work() -> None:
        async with lifecycle_of(directory) as (lifecycle, world, link):
            extra = {"cgroup_root": "/c", "cgroup_layout": "unified", "started_at": 1.0}
            node = NodeRoutes(lifecycle.host, NoShares(), lambda: extra)  # type: ignore[arg-type]
            rows = [*node.table(), *AgentRoutes(lifecycle, Applier(lifecycle)).table()]
            node.everything = rows
            path = str(directory / "s.sock")
            server = Server(application(rows, StreamRoutes(lifecycle.host)), bind(path))
            await server.start()
            try:
                await asyncio.wait_for(story(Client(path, timeout=20), lifecycle, world, link), 30)
            finally:
                await server.close()
            assert not os.path.exists(path)

    asyncio.run(work())


async def ask(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The blocking client in a thread."""
    return await asyncio.to_thread(lambda: call(*arguments, **options))


def refusal(code: str, call: Callable[..., Any], *arguments: Any) -> Awaitable[AgentosError]:
    async def work() -> AgentosError:
        with pytest.raises(AgentosError) as caught:
            await ask(call, *arguments)
        assert caught.value.code == code, str(caught.value)
        return caught.value

    return work()


SPEC = agent_from_builtins({"name": "web", "tenant": "home", "image": "box", "command": ["serve"]})


def test_an_agent_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        made = await ask(client.run, SPEC)
        assert (made.state, made.tenant, made.addresses.ipv4) == ("running", "home", "100.65.0.0")
        assert made.spec["command"] == ["serve"]
        for ref in ("web", "home/web", made.id, made.id[:6]):
            assert (await ask(client.agent, ref)).id == made.id
        assert [agent.name for agent in await ask(client.agents, tenant="home")] == ["web"]
        assert await ask(client.agents, tenant="work") == []
        assert (await ask(client.stop, "home/web", grace=5.0)).reason == "stopped"
        assert await ask(client.agents) == []
        assert [agent.state for agent in await ask(client.agents, ended=True)] == ["exited"]
        assert (await ask(client.wait, made.id)).exit_status == 143
        assert (await ask(client.restart, made.id)).state == "running"
        await refusal("agent-running", client.remove, made.id)
        await ask(client.remove, made.id, force=True)
        await refusal("agent-not-found", client.agent, made.id[:5])
        assert (await ask(client.wait, made.id)).reason == "stopped"  # a moment ago is still answered

    serve(tmp_path, story, monkeypatch)


def test_all_resources_are_those_that_are_moved_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await ask(client.run, SPEC)
        notes = {"cpu": None, "memory": "not moved: memory is not among the resources to control", "io": ""}

        def rows(self: NoShares, window: float | None = None, resources: Sequence[str] = ()) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = [
                {"agent_id": agent.id, "resource": name, **({} if note is None else {"note": note})}
                for name, note in notes.items()
                if name in resources
            ]
            return found

        monkeypatch.setattr(NoShares, "rows", rows)
        assert [row["resource"] for row in await ask(client.alloc, "all")] == ["cpu", "io"]
        assert [row["resource"] for row in await ask(client.alloc, "memory")] == ["memory"]

    serve(tmp_path, story, monkeypatch)


def test_errors_are_words_with_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await refusal("agent-not-found", client.agent, "nope")
        await refusal("not-found", client.request, "GET", "/v1/nope")
        await refusal("not-found", client.request, "GET", "/")
        await refusal("method-not-allowed", client.request, "DELETE", "/v1/version")
        await refusal("tenant-not-found", client.tenant, "nope")
        await refusal("invalid-request", client.request, "POST", "/v1/agents", {"spec": 5})
        await refusal("invalid-request", client.request, "POST", "/v1/agents", [1])
        await refusal("unknown-field", client.request, "POST", "/v1/agents", {"spec": {"name": "a", "imagee": "b"}})
        await refusal("invalid-request", client.request, "GET", "/v1/events?since=soon")
        failed = await refusal("image-not-found", client.run, agent_from_builtins({"name": "a", "image": "none"}))
        assert failed.exit_status == 125
        world.fail = {"clone"}
        assert (await refusal("command-not-found", client.run, SPEC)).exit_status == 127
        assert await ask(client.agents, ended=True) == []

    serve(tmp_path, story, monkeypatch)


def test_a_body_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await refusal("too-large", client.request, "POST", "/v1/apply", {"documents": [], "x": "y" * (9 << 20)})

    serve(tmp_path, story, monkeypatch)


def test_a_client_that_leaves_in_the_middle_is_no_failure_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(client: Client, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        _, writer = await asyncio.open_unix_connection(client.socket)
        writer.write(b"POST /v1/agents HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        await writer.drain()
        await asyncio.sleep(0.05)  # the handler is reading the body by now
        writer.close()
        await ask(client.version)
        await asyncio.sleep(0.05)

    serve(tmp_path, story, monkeypatch)
    assert caplog.records == []


def test_only_the_administrator_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        assert os.stat(client.socket).st_mode & 0o777 == 0o600
        monkeypatch.setattr(peers, "ADMINISTRATOR", os.getuid() + 1)
        await refusal("permission", client.version)
        await refusal("permission", client.attach, "web")

    serve(tmp_path, story, monkeypatch)


def test_the_kernel_says_who_it_is() -> None:
    class Transport(asyncio.BaseTransport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return ours if name == "socket" else default

    ours, theirs = socket.socketpair()
    assert peers.peer_of(Transport()) == (f"pid:{os.getpid()}", os.getuid())
    assert peers.is_administrator({"client": ("pid:1", 0)})
    for client in (None, ("pid:1", 1000), ("pid:0", -1)):
        assert not peers.is_administrator({"client": client})
    ours.close()
    theirs.close()


def test_attached_from_the_first_byte_to_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.create(SPEC)
        stream = await ask(client.attach, agent.id)
        await ask(client.start, agent.id)
        for name in ("stdout", "stderr"):
            fd = os.open(tmp_path / "agents" / agent.id / name, os.O_WRONLY)
            os.write(fd, name.encode())
            os.close(fd)
        await asyncio.sleep(0.1)
        link.exit(agent.id, 3)
        frames = await ask(list, stream)
        said = {frame.channel: frame.data for frame in frames}
        assert said[api.CHANNEL_STDOUT] == b"stdout"
        assert said[api.CHANNEL_STDERR] == b"stderr"
        assert (stream.status.exit_status, stream.status.reason) == (3, "exited")
        stream.close()
        assert agent.listeners == []
        lines = await ask(lambda: list(client.logs(agent.id)))
        assert sorted(line.log for line in lines) == ["stderr", "stdout"]

    serve(tmp_path, story, monkeypatch)


def test_followers_end_with_the_agent_or_with_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(SPEC)
        followed = asyncio.create_task(ask(lambda: list(client.logs(agent.id, follow=True))))
        fd = os.open(tmp_path / "agents" / agent.id / "stdout", os.O_WRONLY)
        for number in range(3):
            os.write(fd, b"line %d\n" % number)
            await asyncio.sleep(0.05)
        os.close(fd)
        link.exit(agent.id, 0)
        assert [line.log for line in await followed] == ["line 0", "line 1", "line 2"]

        def first_event() -> api.Event:
            events = client.events(follow=True)
            first = next(events)
            events.close()  # type: ignore[attr-defined]
            return first

        assert (await ask(first_event)).type == "created"
        await asyncio.sleep(0.1)

    serve(tmp_path, story, monkeypatch)


def test_the_node_and_its_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await ask(client.run, SPEC)
        node = await ask(client.node)
        assert (node.running, node.cpu.capacity, node.block) == (1, 2000, 0)
        assert [tenant.name for tenant in await ask(client.tenants)] == ["home"]
        assert await ask(client.alloc) == []
        assert (await ask(client.explain, "web"))["limit"] is None  # JSON has no infinity
        top = await ask(client.top)
        assert [(row["name"], row["state"]) for row in top["rows"]] == [("web", "running")]

    serve(tmp_path, story, monkeypatch)


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in references(value)]
    return [ref for value in node for ref in references(value)] if isinstance(node, list) else []


def test_the_description_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Client, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        document = await ask(client.request, "GET", "/openapi.json")
        assert document["openapi"].startswith("3.1")
        schemas = document["components"]["schemas"]
        for ref in references(document):
            assert ref.removeprefix("#/components/schemas/") in schemas
        operations = [operation for path in document["paths"].values() for operation in path.values()]
        assert len({operation["operationId"] for operation in operations}) == len(operations)
        assert {"/v1/agents/{ref}/exec", "/v1/apply", "/v1/check"} <= document["paths"].keys()
        json.dumps(document)

    serve(tmp_path, story, monkeypatch)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "s.sock")
    first = bind(path)
    with pytest.raises(AgentosError, match="socket-in-use"):
        bind(path)
    first.close()
    second = bind(path)
    second.close()
    os.unlink(path)
    Path(path).write_text("mine")
    with pytest.raises(AgentosError, match="no socket"):
        bind(path)
    assert Path(path).read_text() == "mine"


def test_the_check_answers_without_privilege() -> None:
    found = report("/nonexistent/state")
    assert {feature.group for feature in found.features} >= {"namespaces", "mounts", "cgroup", "network", "security"}
    assert len({feature.name for feature in found.features}) == len(found.features)
    assert all(feature.state == "ok" or feature.detail for feature in found.features)
    assert found.ok == all(feature.state == "ok" for feature in found.features if feature.required)
