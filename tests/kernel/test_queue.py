"""Starts that wait, on a real supervisor: served, called off, bounded, fair under a flood, and there after a crash."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agentos_native.errors import AgentosError
from agentos_native.spec import agent_from_builtins, from_builtins
from agentos_native.wire import api
from tests.networks import require_outer_namespace
from tests.supervisors import PATIENCE, Place, _alive, eventually, place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PROGRAM = [sys.executable, "-c", "import sys; from agentos_native.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_outer_namespace()
    with place(tmp_path_factory.mktemp("queue"), "queue") as made:
        yield made


@pytest.fixture
def launcher(ground: Place) -> Iterator[int]:
    """A launcher; whatever runs or waits at the end goes, and so do the tenants."""
    ground.start()
    yield ground.running[-1].pid
    # What waits first: it would start in the room of what goes.
    for agent in sorted(ground.client.agents(ended=True), key=lambda agent: agent.state != "queued"):
        ground.client.remove(agent.id, force=True)
    ground.client.delete([from_builtins({"name": name}, "Tenant") for name in ("a", "b")])
    for process in list(ground.running):
        assert ground.stop(process.pid) == 0


def half(ground: Place) -> str:
    """More than a half of the node's CPUs: two do not fit."""
    return f"{ground.client.node().cpu.capacity // 2 + 1}m"


def spec(ground: Place, name: str, tenant: str = "a", *command: str, **fields: Any) -> Any:
    """An agent that takes more than half of the node unless `fields` say something else."""
    fields.setdefault("resources", {"requests": {"cpu": half(ground)}})
    written = {"name": name, "tenant": tenant, "image": ground.image, "command": list(command or ("sleep", "1000"))}
    return agent_from_builtins({**written, "allowUnenforced": ["cpu"], "network": "none", **fields})


def limit(ground: Place, tenant: str, **limits: int) -> None:
    ground.client.apply([from_builtins({"name": tenant, "limits": limits}, "Tenant")])


def state(ground: Place, agent: api.Agent) -> str:
    return ground.client.agent(agent.id).state


def started(ground: Place) -> list[str]:
    return [event.name for event in ground.client.events() if event.type == "started"]


def commanded(ground: Place, *words: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "AGENTOS_SOCKET": str(ground.directory / "s.sock")}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*PROGRAM, *words], env=environment, **{**pipes, **options})


def said(ground: Place, *words: str) -> tuple[int, str, str]:
    running = commanded(ground, *words)
    out, err = running.communicate(timeout=PATIENCE)
    return running.returncode, out.decode(), err.decode()


def told_to_wait(running: subprocess.Popen[bytes]) -> None:
    """Wait until a command says that its start waits."""
    assert running.stderr is not None
    assert b"is queued at place 1" in running.stderr.readline()


def run_words(ground: Place, *options: str) -> list[str]:
    words = ["--tenant", "a", "--cpu-request", half(ground), "--allow-unenforced", "cpu", "--network", "none"]
    return ["run", *words, *options]


def test_a_start_waits_and_is_served_when_there_is_room(ground: Place, launcher: int) -> None:
    first = ground.client.run(spec(ground, "first"))
    before = ground.inventory(launcher)
    second = ground.client.run(spec(ground, "second"))
    assert (second.state, second.pid, second.cgroup) == ("queued", None, "")
    assert second.queue is not None
    assert (second.queue.place, second.queue.resource) == (1, "cpu")
    after = ground.inventory(launcher)
    for kind in ("cgroups", "processes", "mounts", "links", "network namespaces", "open files of the launcher"):
        assert after[kind] == before[kind], kind
    for work in (ground.client.start, ground.client.pause):
        with pytest.raises(AgentosError) as caught:
            work(second.id)
        assert caught.value.code == "agent-queued"
    with pytest.raises(AgentosError, match="agent-queued"):
        list(ground.client.logs(second.id))
    with pytest.raises(AgentosError, match="the agent is queued"):
        ground.client.exec(second.id, ["true"])
    ground.client.stop(first.id, grace=1)
    eventually(lambda: state(ground, second) == "running", "the second one has its room")
    kinds = [event.type for event in ground.client.events() if event.agent_id == second.id]
    assert kinds == ["created", "queued", "dequeued", "started"]


def test_called_off(ground: Place, launcher: int) -> None:
    ground.client.run(spec(ground, "first"))
    agents = [ground.client.run(spec(ground, f"w{n}")) for n in range(3)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ground.client.wait, agents[0].id)
        time.sleep(0.3)
        assert not waiting.done()
        assert ground.client.stop(agents[0].id).reason == "cancelled"
        assert waiting.result(PATIENCE).exit_status is None
    ground.client.kill(agents[1].id)
    ground.client.remove(agents[2].id)
    assert [agent.state for agent in ground.client.agents(ended=True)] == ["running", "exited", "exited"]


def test_limits_priorities_and_no_waiting(ground: Place, launcher: int) -> None:
    limit(ground, "a", agents=1, queued=3)
    free: dict[str, Any] = {"resources": {}}
    first = ground.client.run(spec(ground, "first", **free))
    low, normal, high = [
        ground.client.run(spec(ground, tier, priority=tier, **free)) for tier in ("low", "normal", "high")
    ]
    places = {agent.name: agent.queue.tenant_place for agent in ground.client.agents() if agent.queue}
    assert places == {"high": 1, "normal": 2, "low": 3}
    for how, code in (({}, "queue-full"), ({"wait": False}, "tenant-full")):
        with pytest.raises(AgentosError) as caught:
            ground.client.run(spec(ground, "more", **free), **how)
        assert caught.value.code == code
    with pytest.raises(AgentosError) as caught:
        ground.client.run(spec(ground, "giant", resources={"requests": {"cpu": "1000"}}))
    assert caught.value.code == "reservation-too-large"
    other = ground.client.run(spec(ground, "other", "b"))
    assert other.state == "running"  # what only its own tenant's limit blocks is in nobody else's way
    for running, following in ((first, high), (high, normal), (normal, low)):
        ground.client.remove(running.id, force=True)
        eventually(lambda agent=following: state(ground, agent) == "running", following.name)  # type: ignore[misc]
    assert started(ground) == ["first", "other", "high", "normal", "low"]
    assert ground.client.tenant("a").queued == 0


def test_a_flood_delays_only_itself(ground: Place, launcher: int) -> None:
    """30 starts of one tenant wait; the single start of another waits for at most one of them (start-time fair
    queueing: its tag is the virtual time, and after one more start every other tenant's tag is beyond that)."""
    first = ground.client.run(spec(ground, "a"))  # nobody is served before everybody waits
    flood = [ground.client.run(spec(ground, f"a{n}", "a", "sleep", "0.1")) for n in range(30)]
    assert {agent.state for agent in flood} == {"queued"}
    ahead = len(started(ground))
    late = ground.client.run(spec(ground, "late", "b", "true"))
    assert late.state == "queued"
    assert late.queue is not None
    assert late.queue.place <= 2
    ground.client.remove(first.id, force=True)
    assert ground.client.wait(late.id, timeout=PATIENCE).exit_status == 0
    names = started(ground)
    assert names.index("late") - ahead <= 1
    assert {name[0] for name in names[ahead : names.index("late")]} <= {"a"}


def test_a_failing_start_gives_its_room_on(ground: Place, launcher: int) -> None:
    first = ground.client.run(spec(ground, "first"))
    bad = ground.client.run(spec(ground, "bad", "a", "/no/such/program"))
    good = ground.client.run(spec(ground, "good"))
    ground.client.remove(first.id, force=True)
    eventually(lambda: state(ground, good) == "running", "the one behind it runs")
    failed = ground.client.agent(bad.id)
    assert (failed.state, failed.exit_status) == ("failed", 127)


def test_starts_at_once_are_never_let_in_together(ground: Place, launcher: int) -> None:
    seen: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(ground.client.node().cpu.promised)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(6) as pool:
            make = [spec(ground, f"r{n}", "ab"[n % 2], "sleep", "0.1") for n in range(12)]
            agents = list(pool.map(ground.client.run, make))
            assert {ground.client.wait(agent.id, timeout=PATIENCE).exit_status for agent in agents} == {0}
    finally:
        over.set()
        watcher.join()
    assert max(seen) <= ground.client.node().cpu.capacity


@pytest.mark.parametrize("crash", ["supervisor", "all"])
def test_the_queue_survives_a_crash(ground: Place, launcher: int, crash: str) -> None:
    first = ground.client.run(spec(ground, "first"))
    for number in range(3):
        ground.client.run(spec(ground, f"a{number}"))
    ground.client.run(spec(ground, "b0", "b"))
    ground.client.run(spec(ground, "a3", priority="high"))

    def order() -> list[str]:
        waiting = [(agent.queue.place, agent.name) for agent in ground.client.agents() if agent.queue]
        return [name for _, name in sorted(waiting)]

    before = order()
    assert before == ["b0", "a3", "a0", "a1", "a2"]
    if crash == "all":
        ground.kill(launcher)
        ground.start()
    else:
        supervisor = ground.supervisor(launcher)
        os.kill(supervisor, signal.SIGKILL)
        eventually(lambda: not _alive(supervisor), "it is dead")
        ground.wait_ready(ground.running[-1])
    assert order() == before
    assert state(ground, first) == "running"
    ground.client.remove(first.id, force=True)
    eventually(lambda: ground.client.agent("b0").state == "running", "the first of the queue runs")
    assert order() == before[1:]


@pytest.mark.parametrize("point", ["cgroup.made", "launch.running"])
def test_a_start_from_the_queue_that_a_crash_interrupts_is_made_again(ground: Place, point: str) -> None:
    launcher = ground.start()
    first = ground.client.run(spec(ground, "first"))
    waits = ground.client.run(spec(ground, "waits"))
    assert ground.stop(launcher) == 0
    launcher = ground.start(point, once=True)  # the first one ended with its supervisor: the queue is served, and dies
    try:
        eventually(lambda: state_or_none(ground, waits) == "running", "it runs after all")
        assert state(ground, first) == "exited"
        assert ground.client.agent(waits.id).queue is None
        told = [event.detail["what"] for event in ground.client.events() if event.type == "recovered"]
        assert any("its start from the queue was interrupted" in what for what in told)
    finally:
        for agent in ground.client.agents(ended=True):
            ground.client.remove(agent.id, force=True)
        assert ground.stop(launcher) == 0


def state_or_none(ground: Place, agent: api.Agent) -> str | None:
    try:
        return state(ground, agent)
    except AgentosError:
        return None


def test_the_command_line_says_where_and_why(ground: Place, launcher: int) -> None:
    first = ground.client.run(spec(ground, "first"))
    status, out, err = said(ground, *run_words(ground, "-d", "--name", "second", ground.image, "sleep", "1000"))
    assert (status, len(out.strip())) == (0, 12)
    assert err.startswith("a/second is queued at place 1 (1 of a): cpu ")
    status, out, _ = said(ground, "ps")
    assert "queued" in out
    assert "WAITS AT" in out.splitlines()[0]
    shown = json.loads(said(ground, "ps", "-o", "json")[1])
    assert [agent["queue"]["place"] for agent in shown if agent["state"] == "queued"] == [1]
    status, _, err = said(ground, "start", "second")
    assert (status, err.splitlines()[0][:21]) == (125, "error[agent-queued]: ")
    status, _, err = said(ground, *run_words(ground, "--no-wait", "--name", "third", ground.image, "true"))
    assert (status, err.splitlines()[0][:28]) == (125, "error[reservation-too-large]")
    assert json.loads(said(ground, "tenant", "inspect", "a", "-o", "json")[1])["queued"] == 1
    assert said(ground, "stop", "second")[0] == 0
    assert said(ground, "restart", "first")[0] == 0
    assert state(ground, first) == "running"


def test_a_foreground_run_waits_and_then_it_runs(ground: Place, launcher: int) -> None:
    first = ground.client.run(spec(ground, "first"))
    words = run_words(ground, "--rm", "--name", "fore", ground.image, "sh", "-c", "echo here; exit 7")
    running = commanded(ground, *words)
    eventually(lambda: any(agent.name == "fore" and agent.queue for agent in ground.client.agents()), "it waits")
    ground.client.remove(first.id, force=True)
    out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (7, b"here\n")
    assert err.decode().startswith("a/fore is queued at place 1")


def test_a_foreground_run_that_waits_is_called_off_by_a_signal(ground: Place, launcher: int) -> None:
    ground.client.run(spec(ground, "first"))
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        leader, terminal = pty.openpty()
        running = commanded(ground, *run_words(ground, "--name", "fore", ground.image, "true"), stderr=terminal)
        os.close(terminal)
        told = b""
        while b"a/fore is queued at place 1" not in told:  # from then on a signal ends its wait
            told += os.read(leader, 4096)
        running.send_signal(number)
        running.communicate(timeout=PATIENCE)
        assert running.returncode == status
        os.close(leader)
        assert [agent.name for agent in ground.client.agents(ended=True)] == ["first"]


def test_a_foreground_run_sees_a_crash_through(ground: Place, launcher: int) -> None:
    first = ground.client.run(spec(ground, "first"))
    running = commanded(ground, *run_words(ground, "--rm", "--name", "fore", ground.image, "sh", "-c", "echo here"))
    told_to_wait(running)
    supervisor = ground.supervisor(launcher)
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not _alive(supervisor), "it is dead")
    ground.wait_ready(ground.running[-1])
    time.sleep(0.5)
    ground.client.remove(first.id, force=True)
    out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (0, b"here\n"), err


def test_what_could_not_start_when_its_turn_came_says_so(ground: Place, launcher: int) -> None:
    first = ground.client.run(spec(ground, "first"))
    running = commanded(ground, *run_words(ground, "--name", "fore", ground.image, "/no/such/program"))
    eventually(lambda: any(agent.queue for agent in ground.client.agents()), "it waits")
    ground.client.remove(first.id, force=True)
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 127
    assert b"error[command-not-found]" in err
    assert ground.client.agents(ended=True) == []


@pytest.mark.parametrize("options", [[], ["--rm"]])
def test_a_start_waits_no_longer_than_it_may(ground: Place, launcher: int, options: list[str]) -> None:
    ground.client.run(spec(ground, "first"))
    words = run_words(ground, *options, "--name", "fore", "--wait-timeout", "500ms", ground.image, "true")
    status, out, err = said(ground, *words)
    assert (status, out) == (124, "")
    assert "is queued at place 1" in err
    assert "error[wait-timeout]: it has waited 0.5 s for its start" in err
    assert [agent.name for agent in ground.client.agents(ended=True)] == ["first"]
    told = [event for event in ground.client.events() if event.type == "refused"][-1]
    assert (told.name, told.detail["code"]) == ("fore", "wait-timeout")


def test_a_detached_start_waits_no_longer_than_it_may(ground: Place, launcher: int) -> None:
    ground.client.run(spec(ground, "first"))
    agent = ground.client.run(spec(ground, "late", waitTimeout="500ms"))
    assert agent.state == "queued"
    assert ground.client.wait(agent.id).exit_status == 124
    late = ground.client.agent(agent.id)
    assert (late.state, late.pid) == ("failed", None)
    assert late.reason.startswith("wait-timeout")


def test_without_a_supervisor_of_its_own_it_waits_too(tmp_path: Path, ground: Place) -> None:
    """Two commands share an embedded supervisor; the second one waits for the first one's room."""
    launcher = ground.start()
    share = half(ground)
    assert ground.stop(launcher) == 0
    environment = {
        **os.environ,
        "AGENTOS_STATE_DIR": str(ground.directory / "state"),
        "AGENTOS_SOCKET": str(tmp_path / "embedded.sock"),
    }
    options = ["--cpu-request", share, "--allow-unenforced", "cpu", "--network", "none", "--rm"]
    words = [*PROGRAM, "run", *options, ground.image]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    waits_for_a_line = [*words[:-1], "-i", words[-1], "sh", "-c", "echo up; read line"]
    first = subprocess.Popen(waits_for_a_line, env=environment, **pipes)
    assert first.stdout is not None
    assert first.stdout.readline() == b"up\n"
    second = subprocess.Popen([*words, "echo", "second"], env=environment, **pipes)
    told_to_wait(second)
    first.communicate(b"go on\n", timeout=PATIENCE)
    out, _ = second.communicate(timeout=PATIENCE)
    assert (second.returncode, out) == (0, b"second\n")
    assert first.returncode == 0
