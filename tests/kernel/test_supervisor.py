"""Real supervisors: several on one machine, files that stay, output that is bounded, streams, many agents at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.spec import agent_from_builtins, from_builtins
from agentos_native.supervisor import admission
from agentos_native.wire import api
from tests.networks import require_outer_namespace
from tests.supervisors import Place, eventually, place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_outer_namespace()
    with place(tmp_path_factory.mktemp("supervisor"), "super") as made:
        made.start()
        yield made


@pytest.fixture(autouse=True)
def no_agents(ground: Place) -> Iterator[None]:
    yield
    for agent in ground.client.agents(ended=True):
        ground.client.remove(agent.id, force=True)


def said(ground: Place, agent: api.Agent, *command: str, data: bytes | None = None, **options: object) -> bytes:
    """The output of a further process in the agent."""
    output = b""
    with contextlib.closing(ground.client.exec(agent.id, command, stdin=data is not None, **options)) as stream:  # type: ignore[arg-type]
        if data is not None:
            stream.send(api.CHANNEL_STDIN, data)
            stream.close_stdin()
        for frame in stream:
            output += frame.data if frame.channel == api.CHANNEL_STDOUT else b""
    return output


def test_a_restart_keeps_the_agents_files(ground: Place) -> None:
    agent = ground.run("files", "sh", "-c", "echo run >> /count; sleep 1000")
    eventually(lambda: said(ground, agent, "cat", "/count") == b"run\n", "it has written its file")
    ground.client.restart(agent.id, grace=0)
    eventually(lambda: said(ground, agent, "cat", "/count") == b"run\nrun\n", "it has written there again")


def test_two_supervisors_do_not_meet(ground: Place, tmp_path: Path) -> None:
    first = ground.run("same", "sleep", "1000")
    with place(tmp_path / "other", "other") as other:
        launcher = other.start()
        second = other.run("same", "sleep", "1000")
        assert other.client.node().block != ground.client.node().block
        assert first.addresses.ipv4 != second.addresses.ipv4
        assert [agent.id for agent in other.client.agents()] == [second.id]
        assert other.stop(launcher) == 0
    assert ground.client.agent(first.id).state == "running"
    assert said(ground, first, "echo", "here") == b"here\n"


def test_ended_agents_follow_their_supervisor_into_another_block(ground: Place, tmp_path: Path) -> None:
    with place(tmp_path / "moving", "moving") as moving:
        launcher = moving.start()
        agent = moving.run("files", "sh", "-c", "echo mine > /file; sleep 1000")
        eventually(lambda: said(moving, agent, "cat", "/file") == b"mine\n", "it has written its file")
        old = moving.client.node().block
        assert moving.stop(launcher) == 0
        with Path("/run/agentos-native/blocks", str(old)).open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)  # as another supervisor would that has taken it meanwhile
            launcher = moving.start()
            block = moving.client.node().block
        assert block != old
        moving.client.start(agent.id)
        assert said(moving, agent, "stat", "-c", "%u", "/file") == b"0\n"
        upper = moving.directory / "state" / "agents" / agent.id / "upper" / "file"
        assert upper.stat().st_uid == admission.id_base(block, agent.slot)
        assert moving.stop(launcher) == 0


def test_output_of_any_length_comes_to_an_attached_client(ground: Place) -> None:
    agent = ground.run("talk", "sh", "-c", "head -c 3000000 /dev/zero; echo end >&2", start=False)
    received = {api.CHANNEL_STDOUT: 0, api.CHANNEL_STDERR: 0}
    with contextlib.closing(ground.client.attach(agent.id)) as stream:
        ground.client.start(agent.id)
        for frame in stream:
            if frame.channel in received:
                received[frame.channel] += len(frame.data)
        assert stream.status is not None
        assert stream.status.exit_status == 0
    assert received == {api.CHANNEL_STDOUT: 3_000_000, api.CHANNEL_STDERR: 4}


def test_input_comes_back_from_a_further_process(ground: Place) -> None:
    agent = ground.run("host", "sleep", "1000")
    data = os.urandom(1_000_000)
    assert said(ground, agent, "cat", data=data) == data
    assert said(ground, agent, "id", "-u", user="1000") == b"1000\n"
    assert said(ground, agent, "sh", "-c", "pwd; echo $A", workdir="/tmp", env=["A=b"]) == b"/tmp\nb\n"
    with pytest.raises(AgentosError) as caught:
        said(ground, agent, "/no/such/program")
    assert caught.value.exit_status == 127
    leaves = Path(ground.client.agent(agent.id).cgroup)
    eventually(lambda: not list(leaves.glob("exec-*")), "no leaf is left")


def test_a_client_that_goes_takes_its_process_with_it(ground: Place) -> None:
    agent = ground.run("host", "sleep", "1000")
    leaves = Path(agent.cgroup)
    with contextlib.closing(ground.client.exec(agent.id, ["sleep", "1000"])):
        eventually(lambda: list(leaves.glob("exec-*")), "it runs")
    eventually(lambda: not list(leaves.glob("exec-*")), "it has gone")
    assert ground.client.agent(agent.id).state == "running"


def test_a_flooding_agent_does_not_keep_others_waiting(ground: Place) -> None:
    flood = ground.run("flood", "yes", "a line of output that is not very long")
    time.sleep(1.0)
    began = time.monotonic()
    for _ in range(20):
        ground.client.version()
    assert time.monotonic() - began < 5.0
    directory = ground.directory / "state" / "agents" / flood.id
    files = [path for path in directory.iterdir() if path.name.startswith("output")]
    assert sum(path.stat().st_size for path in files) <= 3 * (10 << 20)


def test_many_at_once(ground: Place) -> None:
    def start(number: int) -> str:
        return ground.run(f"many-{number}", "sleep", "1000").id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(start, range(40)))
        assert len({ground.client.agent(ref).addresses.ipv4 for ref in ids}) == 40
        list(pool.map(lambda ref: ground.client.remove(ref, force=True), ids))
    assert ground.client.agents(ended=True) == []


def test_documents_are_applied_and_deleted(ground: Place) -> None:
    tenant = from_builtins({"name": "home", "weight": 300}, "Tenant")
    agent = agent_from_builtins(
        {"name": "w", "tenant": "home", "image": "box", "command": ["sleep", "1000"], "replicas": 2}
    )
    assert [result.action for result in ground.client.apply([tenant, agent])] == ["created"] * 3
    assert {result.action for result in ground.client.apply([tenant, agent])} == {"unchanged"}
    assert ground.client.tenant("home").running == 2
    assert {row["tenant"] for row in ground.client.alloc()} == {"home"}
    assert {result.action for result in ground.client.delete([tenant, agent])} == {"deleted"}
    assert ground.client.tenants() == []


def test_a_volume_is_the_hosts_directory(ground: Place, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    volumes = [{"source": str(shared), "target": "/mnt/shared"}]
    agent = ground.run("writer", "sh", "-c", "echo hello > /mnt/shared/file; sleep 1000", volumes=volumes)
    eventually((shared / "file").exists, "the file is there")
    assert (shared / "file").stat().st_uid == 0  # the agent's root is the directory's owner in it, and nowhere else
    assert ground.client.agent(agent.id).spec["volumes"][0]["source"] == str(shared)


def test_a_stopping_supervisor_tells_attached_clients_how_it_ended(ground: Place, tmp_path: Path) -> None:
    with place(tmp_path / "stopping", "stopp") as stopping:
        launcher = stopping.start()
        script = "trap 'echo bye; exit 5' TERM; while :; do echo up; sleep 0.1; done"
        agent = stopping.run("service", "sh", "-c", script)
        with contextlib.closing(stopping.client.attach(agent.id)) as stream:
            said = (frame.data for frame in stream if frame.channel == api.CHANNEL_STDOUT)
            output = next(said)  # "up": its trap is set
            stopping.running[0].terminate()
            output += b"".join(said)
            assert stream.status is not None
            assert (stream.status.exit_status, stream.status.reason) == (5, "supervisor-stopped")
        assert output.endswith(b"bye\n")
        assert stopping.stop(launcher) == 0
