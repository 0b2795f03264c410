"""The SDK against a real server on a unix socket."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.client import Client
from agentos_native.client.terminal import Pump
from agentos_native.errors import AgentosError
from agentos_native.spec import load
from tests.unit.apiserver import Socket, StubSupervisor, agent_body, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StubSupervisor]:
    with serving(str(tmp_path / "s")) as running:
        yield running


@pytest.fixture
def client(server: StubSupervisor) -> Client:
    return Client(str(server.server_address), timeout=10)


def code_of(action: Any) -> AgentosError:
    with pytest.raises(AgentosError) as caught:
        action()
    return caught.value


def test_typed_answers(server: StubSupervisor, client: Client) -> None:
    server.answers["GET", "/v1/agents"] = (200, {"agents": [agent_body(), agent_body(name="b", new_field=1)]})
    assert [agent.name for agent in client.agents(tenant="home", ended=True)] == ["a", "b"]
    assert server.asked[0].query == [("tenant", "home"), ("all", "1")]


def test_names_are_quoted(server: StubSupervisor, client: Client) -> None:
    server.answers["GET", "/v1/agents/home%2Fa"] = (200, agent_body())
    assert client.agent("home/a").name == "a"
    assert code_of(lambda: client.agent("../x?y#z")).what == "no /v1/agents/..%2Fx%3Fy%23z"
    assert code_of(lambda: client.agent("")).code == "invalid-name"


def test_the_servers_error_is_raised_as_it_is(server: StubSupervisor, client: Client) -> None:
    error = AgentosError("image-not-found", "no image x", "agent a", "import it", exit_status=127, details={"n": 1})
    server.answers["POST", "/v1/agents/a/start"] = (404, {"error": error.to_dict()})
    assert code_of(lambda: client.start("a")).to_dict() == error.to_dict()
    server.answers["POST", "/v1/agents/a/start"] = (500, b"<html>")
    assert code_of(lambda: client.start("a")).code == "internal"
    server.answers["POST", "/v1/agents/a/start"] = (200, {"id": 1})
    assert "not understood" in code_of(lambda: client.start("a")).what


def test_nobody_answers(tmp_path: Path) -> None:
    error = code_of(Client(str(tmp_path / "none")).version)
    assert (error.code, error.exit_status) == ("no-supervisor", 125)
    assert "agentos-native supervise" in error.hint
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))
    assert code_of(Client(str(stale)).version).code == "no-supervisor"
    assert code_of(Client("/" + "x" * 200).version).code == "invalid-path"


def test_a_server_that_goes_away_or_stays_silent(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert code_of(Client(path).version).code == "connection-lost"
        thread.join()
        assert code_of(Client(path, timeout=0.1).version).code == "timeout"


def test_documents_travel_as_quantities(server: StubSupervisor, client: Client) -> None:
    text = "apiVersion: agentos/v1\nkind: Agent\nmetadata: {name: a}\nspec: {image: i, resources: {requests: {cpu: 1}}}"
    result = {"kind": "Agent", "name": "a", "tenant": "default", "action": "created", "id": "x"}
    server.answers["POST", "/v1/apply"] = (200, {"results": [result]})
    (applied,) = client.apply(load(text), dry_run=True)
    assert applied.action == "created"
    body = server.asked[0].json
    assert body["dry_run"] is True
    assert body["documents"] == [
        {"kind": "Agent", "spec": {"name": "a", "image": "i", "resources": {"requests": {"cpu": "1"}}}}
    ]


def test_an_image_is_streamed(server: StubSupervisor, client: Client) -> None:
    image = {"digest": "sha256:1", "name": "i", "created": 1.0, "size": 2, "entries": 3}
    server.answers["POST", "/v1/images"] = (201, image)
    data = os.urandom(700_000)
    assert client.import_image("i", io.BytesIO(data)).entries == 3
    assert server.asked[0].body == data
    assert server.asked[0].query == [("name", "i")]
    client.import_image("i", "some/dir")
    assert server.asked[1].query == [("name", "i"), ("source", os.path.abspath("some/dir"))]


def test_a_refused_upload_says_why(server: StubSupervisor, client: Client) -> None:
    def refuse(handler: Any) -> None:
        handler.close_connection = True

    error = AgentosError("state-full", "no space left").to_dict()
    server.answers["POST", "/v1/images"] = (507, {"error": error})
    assert code_of(lambda: client.import_image("i", io.BytesIO(b"x"))).code == "state-full"
    server.answers["POST", "/v1/images"] = refuse
    assert code_of(lambda: client.import_image("i", io.BytesIO(b"x"))).code == "connection-lost"


def test_logs_arrive_line_by_line(server: StubSupervisor, client: Client) -> None:
    proceed = threading.Event()

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for number in range(2):
            line = b'{"ts": %d, "stream": "stdout", "log": "line %d"}\n' % (number, number)
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
            handler.wfile.flush()
            assert proceed.wait(10)
        handler.wfile.write(b"0\r\n\r\n")

    server.answers["GET", "/v1/agents/a/logs"] = answer
    lines = client.logs("a", follow=True, tail=5)
    assert next(lines).log == "line 0"  # the second is not sent yet
    proceed.set()
    assert [line.log for line in lines] == ["line 1"]
    assert server.asked[0].query == [("follow", "1"), ("tail", "5")]


def test_exec_carries_channels_and_status(server: StubSupervisor, client: Client) -> None:
    got: list[bytes | None] = []

    def serve(end: Socket) -> None:
        assert end.subprotocols == ["v5.channel.k8s.io"]
        got.extend((end.receive(), end.receive(), end.receive()))
        end.send(1, b"out")
        end.send(2, b"err")
        end.finish(exit_status=3, reason="exited")

    server.streams["/v1/agents/a/exec"] = serve
    with client.exec("a", ["sh", "-c", "x y"], stdin=True, tty=True, env=["A=b"]) as stream:
        stream.resize(80, 24)
        stream.send(0, b"in")
        stream.close_stdin()
        frames = [tuple(frame) for frame in stream if frame.channel != 3]
        assert frames == [(1, b"out"), (2, b"err")]
        assert stream.result().exit_status == 3
    assert got == [b'\x04{"Width":80,"Height":24}', b"\x00in", b"\xff\x00"]
    asked = server.asked[0].query
    assert [value for name, value in asked if name == "command"] == ["sh", "-c", "x y"]
    assert ("tty", "1") in asked
    assert ("env", "A=b") in asked


def test_a_refused_stream_is_its_error(client: Client) -> None:
    error = code_of(lambda: client.attach("nobody"))
    assert (error.code, error.hint) == ("not-found", "look elsewhere")


def test_a_stream_that_ends_without_a_word(server: StubSupervisor, client: Client) -> None:
    server.streams["/v1/agents/a/attach"] = lambda _: None
    with client.attach("a") as stream:
        assert list(stream) == []
        assert code_of(stream.result).code == "connection-lost"


def test_an_error_at_the_end_of_a_stream(server: StubSupervisor, client: Client) -> None:
    error = AgentosError("command-not-found", "no such command", exit_status=127).to_dict()
    server.streams["/v1/agents/a/attach"] = lambda end: end.finish(exit_status=None, error=error)
    with client.attach("a") as stream:
        list(stream)
        assert code_of(stream.result).exit_status == 127


def test_pump_echoes_more_than_any_buffer_holds(server: StubSupervisor, client: Client, tmp_path: Path) -> None:
    """The server echoes before it reads on: a client that only sent would never finish."""

    def echo(end: Socket) -> None:
        while (message := end.receive()) is not None and message != b"\xff\x00":
            end.send(1, message[1:])
        end.finish(exit_status=0, reason="exited")

    server.streams["/v1/agents/a/exec"] = echo
    data = os.urandom(8 << 20)
    (tmp_path / "in").write_bytes(data)
    back = bytearray()
    with (tmp_path / "in").open("rb") as file, client.exec("a", ["cat"], stdin=True) as stream:
        status = Pump(stream, stdin=file.fileno(), output=lambda _, piece: back.extend(piece)).run()
    assert status.exit_status == 0
    assert bytes(back) == data


def test_pump_hands_on_signals(server: StubSupervisor, client: Client) -> None:
    forwarded: list[int] = []
    ended = threading.Event()

    def serve(end: Socket) -> None:
        end.send(1, b"ready")
        assert ended.wait(10)
        end.finish(exit_status=143, reason="signal")

    def signalled(number: int) -> None:
        forwarded.append(number)
        ended.set()

    server.streams["/v1/agents/a/attach"] = serve
    with client.attach("a") as stream:
        pump = Pump(stream, output=lambda *_: os.kill(os.getpid(), 15), on_signal=signalled)
        assert pump.run().exit_status == 143
    assert forwarded == [15]
