"""The agents of all three types, built from their Dockerfiles and run by a real supervisor."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.spec import agent_from_builtins
from agentos_native.wire.images import BuildRequest
from tests.networks import require_outer_namespace
from tests.supervisors import Place, eventually, place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOTFS = Path(__file__).resolve().parents[2] / "rootfs"
TYPES = ("task", "dialogue", "learning")
CONVERSE = """
import json, urllib.request
def post(path, body):
    request = urllib.request.Request("http://127.0.0.1:8080" + path, json.dumps(body).encode())
    return json.loads(urllib.request.urlopen(request).read())
name = post("/v1/conversations", {})["id"]
print(post(f"/v1/conversations/{name}/messages", {"text": "what follows the weather forecast?"})["reply"])
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A supervisor with an image for each type."""
    require_outer_namespace()
    tar = subprocess.run([ROOTFS / "build", "python"], capture_output=True, text=True, check=True).stdout.strip()
    with place(tmp_path_factory.mktemp("types"), "types") as made:
        made.start()
        with open(tar, "rb") as file:
            made.client.import_image("python", file)
        for kind in TYPES:
            dockerfile = ROOTFS / f"{kind}-agent" / "Dockerfile"
            request = BuildRequest(context=str(ROOTFS), file=str(dockerfile), names=[f"{kind}-agent"])
            last = list(made.client.build_image(request))[-1]
            assert last.kind == "done", AgentosError.from_dict(last.error or {})
        yield made


def output(ground: Place, kind: str, *arguments: str) -> str:
    """What the agent says when it is run with these arguments to its end."""
    spec = {"name": f"{kind}-once", "image": f"{kind}-agent", "args": list(arguments)}
    agent = ground.client.run(agent_from_builtins(spec))
    assert agent.type == kind, "as the image says"
    ended = ground.client.wait(agent.id, 60)
    lines = [line.log for line in ground.client.logs(agent.id)]
    assert ended.exit_status == 0, lines
    ground.client.remove(agent.id)
    return "\n".join(lines)


def test_the_task_agent_plans(ground: Place) -> None:
    way = json.loads(output(ground, "task", "route", "Angel", "Pimlico"))
    assert [leg["line"] for leg in way["legs"]] == ["Northern (Bank)", "Victoria"]
    assert [ground.client.image(f"{kind}-agent").type for kind in TYPES] == list(TYPES)


def test_the_learning_agent_goes_on_from_what_it_learned_before_it_was_stopped(ground: Place) -> None:
    spec = {"name": "learner", "image": "learning-agent", "args": ["learn", "--episodes", "150"]}
    agent = ground.client.run(agent_from_builtins(spec))
    assert ground.client.wait(agent.id, 60).exit_status == 0
    ground.client.start(agent.id)
    assert ground.client.wait(agent.id, 60).exit_status == 0
    told = [json.loads(line.log)["episodes"] for line in ground.client.logs(agent.id)]
    assert told == [150, 300]
    ground.client.remove(agent.id)


def test_the_dialogue_agent_answers_over_http(ground: Place) -> None:
    spec = {"name": "talker", "image": "dialogue-agent"}
    agent = ground.client.run(agent_from_builtins(spec))
    try:
        eventually(lambda: any("answers on port" in line.log for line in ground.client.logs(agent.id)), "it listens")
        with ground.client.exec(agent.id, ["python3", "-c", CONVERSE]) as stream:
            said = b"".join(frame.data for frame in stream if frame.channel == 1)
        assert b"The heating starts at six" in said
        assert ground.client.agent(agent.id).state == "running"
    finally:
        ground.client.remove(agent.id, force=True)
