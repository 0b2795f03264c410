"""The agents that come with the project do what their types promise: plan, converse, learn."""

from __future__ import annotations

import http.client
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOTFS = Path(__file__).resolve().parents[2] / "rootfs"


def environment(kind: str, data: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOTFS / "common"), "AGENT_DATA": str(data), **more}


def command(kind: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOTFS / f"{kind}-agent/agent.py"), *arguments]


def run(kind: str, data: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(kind, *arguments), input=given, capture_output=True, text=True, check=False, env=environment(kind, data)
    )


# -- task


@pytest.fixture(scope="module")
def network() -> Any:
    sys.path[:0] = [str(ROOTFS / "task-agent"), str(ROOTFS / "common")]
    try:
        import agent  # type: ignore[import-not-found]

        return agent.Network(ROOTFS / "task-agent")
    finally:
        del sys.path[:2]
        sys.modules.pop("agent", None)


def quickest(network: Any, start: str, goal: str, change: float) -> float:
    """Bellman and Ford's answer, which has nothing in common with A*."""
    seconds: dict[tuple[str, str], float] = {(start, ""): 0.0}
    for _ in range(100):
        before = dict(seconds)
        for (here, line), reached in before.items():
            for there, by, ride in network.edges.get(here, ()):
                total = reached + ride + (change if line not in ("", by) else 0.0)
                seconds[there, by] = min(seconds.get((there, by), math.inf), total)
        if seconds == before:
            break
    return min(value for (station, _), value in seconds.items() if station == goal)


def test_the_planner_finds_the_quickest_ways(network: Any) -> None:
    stations = sorted(network.places)
    for start, goal in itertools.islice(itertools.combinations(stations, 2), 0, None, 97):
        found = network.route(start, goal)
        assert found["minutes"] == pytest.approx(quickest(network, start, goal, 240.0) / 60, abs=0.06)
        assert found["legs"][0]["from"] == start
        assert found["legs"][-1]["to"] == goal
        for one, other in itertools.pairwise(found["legs"]):
            assert one["to"] == other["from"]
            assert one["line"] != other["line"]


def test_the_planner_takes_orders_and_answers_mistakes(tmp_path: Path) -> None:
    orders = '{"from": "Angel", "to": "Pimlico"}\n{"from": "Angel", "to": "Atlantis"}\nnonsense\n'
    done = run("task", tmp_path, "orders", given=orders)
    good, unknown, bad = map(json.loads, done.stdout.splitlines())
    assert [leg["line"] for leg in good["legs"]] == ["Northern (Bank)", "Victoria"]
    assert unknown == {"error": "no station 'Atlantis'"}
    assert "an order is" in bad["error"]
    assert run("task", tmp_path, "route", "Bank", "Nowhere").returncode == 1


# -- learning


def test_the_learner_learns_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def steps(*arguments: str) -> tuple[int, float]:
        told = json.loads(run("learning", tmp_path, "--seed", "1", *arguments).stdout)
        return told["episodes"], told["mean_steps"]

    _, knowing_nothing = steps("evaluate")
    assert knowing_nothing < 60
    assert steps("learn", "--episodes", "100")[0] == 100
    assert steps("learn", "--episodes", "200")[0] == 300
    _, learned = steps("evaluate")
    assert learned > 150
    Path(tmp_path, "checkpoint.json").write_text("{}")
    spoilt = run("learning", tmp_path, "evaluate")
    assert spoilt.returncode == 1
    assert "cannot be read" in spoilt.stderr


# -- dialogue


class Served:
    """A dialogue agent and a client of it."""

    def __init__(self, data: Path, **more: str) -> None:
        self.process = subprocess.Popen(
            command("dialogue", "serve", "--port", "0"),
            stdout=subprocess.PIPE,
            text=True,
            env=environment("dialogue", data, **more),
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline().split("port ")[1].split(",")[0])

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


@contextmanager
def served(data: Path, **more: str) -> Iterator[Served]:
    agent = Served(data, **more)
    try:
        yield agent
    finally:
        agent.process.kill()
        agent.process.communicate()


def test_a_conversation_is_kept_over_a_kill(tmp_path: Path) -> None:
    with served(tmp_path) as agent:
        _, begun = agent.call("POST", "/v1/conversations")
        place = f"/v1/conversations/{begun['id']}"
        status, said = agent.call("POST", f"{place}/messages", {"text": "What follows the weather forecast?"})
        assert (status, said["reply"]) == (200, "The heating starts at six and follows the weather forecast.")
        agent.process.send_signal(signal.SIGKILL)
    with served(tmp_path) as agent:
        _, kept = agent.call("GET", place)
        assert [message["role"] for message in kept["messages"]] == ["user", "assistant"]
        agent.call("POST", f"{place}/messages", {"text": "And the lamp?"})
        assert len(agent.call("GET", place)[1]["messages"]) == 4
        assert agent.call("GET", "/healthz")[1] == {"model": "Corpus", "conversations": 1}
        agent.process.terminate()
        assert agent.process.wait(60) == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/conversations/../../etc/passwd", None, 404),
        ("GET", "/v1/conversations/0123456789abcdef", None, 404),
        ("POST", "/v1/conversations/0123456789abcdef/messages", {"text": "who is there?"}, 404),
        ("POST", "/v1/conversations/0123456789abcdef/messages", {"txt": 1}, 400),
        ("POST", "/v1/conversations", "x" * 70000, 413),
    ],
)
def test_a_bad_request_is_answered(tmp_path: Path, method: str, path: str, body: Any, status: int) -> None:
    with served(tmp_path) as agent:
        answered, said = agent.call(method, path, body)
        assert answered == status
        assert said["error"]
        assert agent.call("GET", "/healthz")[0] == 200


class Model(BaseHTTPRequestHandler):
    """A model's endpoint: repeats how many messages it got, and fails when it is told to."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.server.seen.append((self.path, self.headers["Authorization"], body["model"]))  # type: ignore[attr-defined]
        answer = {"choices": [{"message": {"content": f"{len(body['messages'])} messages"}}]}
        data = b"what?" if text == "babble" else json.dumps(answer).encode()
        self.send_response(500 if text == "fail" else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_the_model_behind_an_endpoint_answers_with_the_conversation_before_it(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    with HTTPServer(("127.0.0.1", 0), Model) as model:
        model.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=model.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{model.server_address[1]}/v1/"
        more = {"MODEL_ENDPOINT": url, "MODEL_NAME": "small", "MODEL_KEY_FILE": str(key)}
        with served(tmp_path / "data", **more) as agent:
            place = f"/v1/conversations/{agent.call('POST', '/v1/conversations')[1]['id']}"
            assert agent.call("POST", f"{place}/messages", {"text": "one"}) == (200, {"reply": "1 messages"})
            assert agent.call("POST", f"{place}/messages", {"text": "two"}) == (200, {"reply": "3 messages"})
            assert agent.call("POST", f"{place}/messages", {"text": "fail"})[0] == 502
            assert agent.call("POST", f"{place}/messages", {"text": "babble"})[0] == 502
            assert len(agent.call("GET", place)[1]["messages"]) == 4  # neither failure was kept
        model.shutdown()
        assert model.seen[0] == ("/v1/chat/completions", "Bearer secret", "small")  # type: ignore[attr-defined]
