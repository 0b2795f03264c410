"""``set``: what is sent for which option, what is printed; what the supervisor makes of it, all of it or nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.cli import entry as top
from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, Limits, Requests, Resources, TenantLimits, TenantSpec
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.applying import Applier
from agentos_native.supervisor.changing import Changer, differences, merged
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.wire import api
from tests.fakehost import FakeGroup, FakeLink, World, lifecycle_of
from tests.unit.apiserver import StubSupervisor, serving

Story = Callable[[Changer, Lifecycle, World, FakeLink], Awaitable[None]]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubSupervisor]:
    with serving(str(tmp_path / "s")) as running:
        monkeypatch.setenv("AGENTOS_SOCKET", str(running.server_address))
        yield running


def cli(*argv: str) -> int:
    return top.run(list(argv))


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "patch"),
    [
        (["--weight", "200"], {"weight": 200}),
        (["--cpu-request", "500m"], {"resources": {"requests": {"cpu": "500m"}}}),
        (["--cpu-limit", "none", "--memory-limit", "1Gi"], {"resources": {"limits": {"cpu": None, "memory": "1Gi"}}}),
        (["--memory-request", "64Mi"], {"resources": {"requests": {"memory": "64Mi"}}}),
        (["--pids-limit", "64", "--io-weight", "7"], {"resources": {"limits": {"pids": 64}, "ioWeight": 7}}),
        (["--restart", "always"], {"restart": {"policy": "always", "max": None}}),
        (["--restart", "on-failure:3"], {"restart": {"policy": "on-failure", "max": 3}}),
        (["--timeout", "5m", "--stop-grace", "3s"], {"timeout": "5m", "stop": {"grace": "3s"}}),
        (["--timeout", "none", "--stop-signal", "TERM"], {"timeout": None, "stop": {"signal": "TERM"}}),
        (["-l", "a=b", "-l", "c-"], {"labels": {"a": "b", "c": None}}),
        (["--allow-unenforced", "cpu,io"], {"allowUnenforced": ["cpu", "io"]}),
        (["--no-rm", "--type", "dialogue"], {"type": "dialogue", "autoRemove": False}),
        (["--priority", "high"], {"priority": "high"}),  # the supervisor says what is to be done instead
    ],
)
def test_options_are_a_patch(server: StubSupervisor, argv: list[str], patch: dict[str, Any]) -> None:
    server.answers["PATCH", "/v1/agents/home%2Fa"] = (200, {"action": "unchanged"})
    assert cli("set", "home/a", *argv) == 0
    assert server.asked[0].json == {"spec": patch, "dry_run": False}


def test_every_tenant_option(server: StubSupervisor) -> None:
    server.answers["PATCH", "/v1/tenants/home"] = (200, {"action": "unchanged"})
    words = ["--weight", "5", "--priority", "low", "--policy", "drf", "--cpu-request", "1", "--cpu-limit", "2"]
    words += ["--memory-request", "1Mi", "--memory-limit", "none", "--agents-limit", "3", "--queued-limit", "0"]
    assert cli("tenant", "set", "home", *words, "--dry-run") == 0
    limits = {"cpu": "2", "memory": None, "agents": 3, "queued": 0}
    requests = {"cpu": "1", "memory": "1Mi"}
    patch = {"weight": 5, "priority": "low", "policy": "drf", "requests": requests, "limits": limits}
    assert server.asked[0].json == {"spec": patch, "dry_run": True}


@pytest.mark.parametrize(
    ("argv", "code", "where"),
    [
        (["set", "a", "--weight", "0"], "out-of-range", "--weight"),
        (["set", "a", "--cpu-limit", "12Q"], "invalid-quantity", "--cpu-limit"),
        (["set", "a", "--cpu-request", "2", "--cpu-limit", "1"], "request-above-limit", "--cpu-request"),
        (["set", "a", "--restart", "maybe"], "invalid-value", "--restart"),
        (["set", "a", "--restart", "always:x"], "invalid-value", "--restart"),
        (["set", "a", "--timeout", "0"], "invalid-quantity", "--timeout"),
        (["set", "a", "--label", "-"], "invalid-", "label"),
        (["set", "a"], "usage", "nothing to set"),
        (["set", "--weight", "1"], "usage", ""),
        (["tenant", "set", "t", "--policy", "mine"], "invalid-value", "--policy"),
        (["tenant", "set", "t", "--agents-limit", "x"], "invalid-value", "--agents-limit"),
        (["tenant", "set", "t", "--memory-request", "2Mi", "--memory-limit", "1Mi"], "request-above", "--memory"),
    ],
)
def test_a_bad_value_names_its_option(
    server: StubSupervisor, argv: list[str], code: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers["PATCH", "/v1/agents/a"] = (400, {"error": {"code": "invalid-name", "what": "label"}})
    assert cli(*argv) == 125
    err = capsys.readouterr().err
    assert err.startswith(f"error[{code}")
    assert where in err


def effect(name: str, before: float, after: float) -> dict[str, Any]:
    return {"tenant": "home", "name": name, "agent_id": name, "resource": "cpu", "before": before, "after": after}


RESULT = {
    "action": "updated",
    "changed": {"weight": [100, 200], "resources.limits.memory": [2**28, None]},
    "effects": [effect("a", 0.5, 0.75), effect("b", 0.5, 0.25)],
    "warnings": ["it uses more"],
}


def test_what_changed_is_printed(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["PATCH", "/v1/agents/a"] = (200, RESULT)
    assert cli("set", "a", "--weight", "200") == 0
    assert capsys.readouterr().out.splitlines() == [
        "a updated",
        "  weight: 100 → 200",
        "  resources.limits.memory: 256Mi → none",
        "  warning: it uses more",
    ]


def test_a_dry_run_tells_who_gains_and_who_loses(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["PATCH", "/v1/agents/a"] = (200, RESULT)
    assert cli("set", "a", "--weight", "200", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a updated (dry run)"
    assert [line.split() for line in lines[5:7]] == [
        ["home", "a", "cpu", "0.500", "0.750", "+0.250"],
        ["home", "b", "cpu", "0.500", "0.250", "-0.250"],
    ]
    assert "demand measured lately" in lines[7]
    server.answers["PATCH", "/v1/agents/a"] = (200, {**RESULT, "effects": []})
    assert cli("set", "a", "--weight", "200", "--dry-run") == 0
    assert "Nobody gains or loses" in capsys.readouterr().out


def test_several_names_and_json(server: StubSupervisor, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["PATCH", "/v1/agents/a"] = (404, {"error": {"code": "agent-not-found", "what": "no"}})
    server.answers["PATCH", "/v1/agents/b"] = (200, RESULT)
    assert cli("set", "a", "b", "--weight", "200", "-o", "json") == 125
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["ok"]) for row in rows] == [("a", False), ("b", True)]
    assert rows[1]["result"]["effects"][0]["after"] == 0.75


# -- the supervisor ------------------------------------------------------------------------------------------------


def play(directory: Path, story: Story, **capacity: int) -> None:
    async def work() -> None:
        async with lifecycle_of(directory, **capacity) as (lifecycle, world, link):
            await asyncio.wait_for(story(Applier(lifecycle).changer, lifecycle, world, link), 20)

    asyncio.run(work())


def made(name: str = "a", **fields: Any) -> AgentSpec:
    return AgentSpec(name=name, image="box", **fields)


async def refused(code: str, work: Awaitable[Any]) -> AgentosError:
    with pytest.raises(AgentosError) as caught:
        await work
    assert caught.value.code == code, str(caught.value)
    return caught.value


LIVE: list[tuple[dict[str, Any], dict[str, list[Any]]]] = [
    ({"weight": 200}, {"weight": [100, 200]}),
    ({"resources": {"requests": {"cpu": "500m"}}}, {"resources.requests.cpu": ["200m", "500m"]}),
    ({"resources": {"requests": {"cpu": None}}}, {"resources.requests.cpu": ["200m", "0"]}),
    ({"resources": {"limits": {"cpu": None}}}, {"resources.limits.cpu": ["1", None]}),
    ({"resources": {"requests": {"memory": "1Mi"}}}, {"resources.requests.memory": [0, 2**20]}),
    ({"resources": {"limits": {"memory": "64Mi"}}}, {"resources.limits.memory": [None, 2**26]}),
    ({"resources": {"limits": {"pids": 9}}}, {"resources.limits.pids": [None, 9]}),
    ({"restart": {"policy": "always"}}, {"restart.policy": ["never", "always"]}),
    ({"stop": {"grace": "3s"}}, {"stop.grace": [10.0, 3.0]}),
    ({"labels": {"a": "b"}}, {"labels": [{}, {"a": "b"}]}),
    ({"type": "learning"}, {"type": ["task", "learning"]}),
    ({"autoRemove": True}, {"autoRemove": [False, True]}),
    ({"timeout": "1h"}, {"timeout": [None, 3600.0]}),
    ({"allowUnenforced": ["io"]}, {"allowUnenforced": [[], ["io"]]}),
]
OURS = Resources(requests=Requests(cpu=200), limits=Limits(cpu=1000))


@pytest.mark.parametrize(("patch", "changed"), LIVE, ids="-".join)
def test_each_live_field(tmp_path: Path, patch: dict[str, Any], changed: dict[str, list[Any]]) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(made(resources=OURS))
        before = (agent.record.spec, list(world.done))
        rehearsed = await changer.change_agent(agent, patch, dry_run=True)
        assert rehearsed.changed == changed
        assert [(row.name, row.agent_id, row.after) for row in rehearsed.effects] == [("a", agent.id, 0.2)]
        assert (agent.record.spec, world.done) == before
        result = await changer.change_agent(agent, patch, dry_run=False)
        assert (result.action, result.changed) == ("updated", changed)
        assert differences(before[0], agent.record.spec) == changed
        assert lifecycle.host.registry.agents() == [agent.record]
        assert f"share weight {agent.record.spec.weight}" in world.done
        again = await changer.change_agent(agent, patch, dry_run=False)
        assert (again.action, again.effects) == ("unchanged", [])

    play(tmp_path, story)


@pytest.mark.parametrize(
    "patch", [{"priority": "high"}, {"image": "other"}, {"command": ["x"]}, {"name": "b"}, {"tenant": "t"}]
)
def test_what_cannot_be_changed_under_an_agent(tmp_path: Path, patch: dict[str, Any]) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(made())
        error = await refused("not-live", changer.change_agent(agent, {"weight": 5, **patch}, dry_run=False))
        assert next(iter(patch)) in error.what
        assert "apply" in error.hint
        assert agent.record.spec == made()

    play(tmp_path, story)


def test_a_patch_is_decoded_like_a_document(tmp_path: Path) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(made())
        wrong: list[tuple[str, dict[str, Any]]] = [
            ("unknown-field", {"wieght": 5}),
            ("out-of-range", {"weight": 0}),
            ("missing-field", {"image": None}),
            ("request-above-limit", {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
        ]
        for code, patch in wrong:
            await refused(code, changer.change_agent(agent, patch, dry_run=False))
        assert agent.record.spec == made()

    play(tmp_path, story)


def test_admission_is_asked(tmp_path: Path) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.run(made("big", resources=Resources(requests=Requests(cpu=1500))))
        agent = await lifecycle.run(made())
        patch = {"resources": {"requests": {"cpu": "600m"}}}
        error = await refused("reservation-too-large", changer.change_agent(agent, patch, dry_run=True))
        assert error.details["free"] == 500
        stopped = await lifecycle.create(made("later"))
        await changer.change_agent(stopped, patch, dry_run=False)  # it does not run: that is for its start to see
        await refused(
            "reservation-too-large",
            changer.change_agent(stopped, {"resources": {"requests": {"cpu": "3"}}}, dry_run=False),
        )
        assert stopped.record.spec.resources.requests.cpu == 600

    play(tmp_path, story)


def refusing(monkeypatch: pytest.MonkeyPatch, weight: int) -> list[int | None]:
    """A kernel that refuses one weight; gives what was written."""
    written: list[int | None] = []

    def update(self: FakeGroup, wanted: Any, allow: Any = ()) -> None:
        written.append(wanted.cpu_weight)
        if wanted.cpu_weight == weight:
            raise AgentosError("cgroup-write", "the kernel refuses")

    monkeypatch.setattr(FakeGroup, "update", update)
    return written


def test_what_the_kernel_refuses_leaves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = refusing(monkeypatch, 13)

    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(made())
        shared = world.done.count("share weight 100")
        await refused("cgroup-write", changer.change_agent(agent, {"weight": 13}, dry_run=False))
        assert written == [13, 100]
        assert agent.record.spec == made()
        assert lifecycle.host.registry.agents()[0].spec == made()
        assert world.done.count("share weight 13") == 0
        assert world.done.count("share weight 100") == shared

    play(tmp_path, story)


def test_what_the_registry_refuses_leaves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = refusing(monkeypatch, -1)

    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(made())
        save = lifecycle.host.registry.save

        def full(record: Any) -> None:
            if record.spec.weight == 13:
                raise AgentosError("registry", "the disk is full")
            save(record)

        monkeypatch.setattr(lifecycle.host.registry, "save", full)
        await refused("registry", changer.change_agent(agent, {"weight": 13}, dry_run=False))
        assert written == [13, 100]
        assert lifecycle.host.registry.agents()[0].spec == agent.record.spec == made()

    play(tmp_path, story)


def test_what_does_not_concern_the_kernel_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = refusing(monkeypatch, -1)

    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(made())
        await changer.change_agent(agent, {"labels": {"a": "b"}}, dry_run=False)
        assert written == []

    play(tmp_path, story)


def test_a_new_timeout_counts_from_the_start(tmp_path: Path) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(made(timeout=3600.0))
        await changer.change_agent(agent, {"timeout": "10ms", "stop": {"grace": "0"}}, dry_run=False)
        await asyncio.wait_for(lifecycle.wait(agent), 10)
        assert (agent.record.exit_status, agent.record.reason) == (124, "timeout")

    play(tmp_path, story)


def test_a_limit_below_the_use_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeGroup, "stat", lambda self: {"memory.current": 100 << 20, "memory.events": {}})

    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        agent = await lifecycle.run(made())
        for limit, warned in (("64Mi", True), ("128Mi", False)):
            result = await changer.change_agent(agent, {"resources": {"limits": {"memory": limit}}}, dry_run=True)
            assert bool(result.warnings) == warned
        assert "100Mi" in (await changer.change_agent(
            agent, {"resources": {"limits": {"memory": "64Mi"}}}, dry_run=True)).warnings[0]  # fmt: skip

    play(tmp_path, story)


def test_tenants(tmp_path: Path) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        host = lifecycle.host
        await lifecycle.run(made(tenant="home", resources=Resources(requests=Requests(cpu=700))))
        await refused("tenant-not-found", changer.change_tenant("nobody", {"weight": 5}, dry_run=False))
        await refused("not-live", changer.change_tenant("home", {"name": "other"}, dry_run=False))
        await refused("reservation-too-large", changer.change_tenant("home", {"requests": {"cpu": "9"}}, dry_run=False))
        error = await refused(
            "reservation-too-large", changer.change_tenant("home", {"limits": {"cpu": "500m"}}, dry_run=False)
        )
        assert "700m" in error.what
        await changer.change_tenant("home", {"weight": 5}, dry_run=True)
        assert host.tenants == {}
        result = await changer.change_tenant("home", {"weight": 5, "limits": {"agents": 3}}, dry_run=False)
        assert result.changed == {"weight": [100, 5], "limits.agents": [None, 3]}
        assert host.tenants["home"] == TenantSpec(name="home", weight=5, limits=TenantLimits(agents=3))
        assert host.registry.tenants() == [host.tenants["home"]]
        world.fail = {"tenant home"}
        await refused("tenant home-failed", changer.change_tenant("home", {"limits": {"cpu": "1"}}, dry_run=False))
        assert host.tenants["home"].limits == TenantLimits(agents=3)
        assert host.registry.tenants() == [host.tenants["home"]]
        world.fail = set()
        assert (await changer.change_tenant("home", {"limits": None}, dry_run=False)).changed == {
            "limits.agents": [3, None]
        }

    play(tmp_path, story)


def test_a_rehearsal_of_apply_counts_new_and_removed(tmp_path: Path) -> None:
    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        applier = Applier(lifecycle)
        await applier.apply([made(replicas=3)], dry_run=False)
        seen: list[Any] = []
        shares: Any = lifecycle.host.shares

        def note(change: Any) -> list[Any]:
            seen.append(change)
            return []

        shares.effects = note
        response = await applier.rehearse([made(replicas=2), made("new", weight=7), TenantSpec(name="t")])
        assert {result.name: result.action for result in response.results} == {
            "t": "created", "a-0": "unchanged", "a-1": "unchanged", "new": "created", "a-2": "deleted",
        }  # fmt: skip
        (change,) = seen
        assert change.tenants.keys() == {"t"}
        gone = lifecycle.host.agents.named("default", "a-2")
        assert gone is not None
        assert list(change.removed) == [gone.id]
        assert {one.name for one in change.specs.values()} == {"a-0", "a-1", "new"}
        assert isinstance(gone, Agent)
        assert gone.live

    play(tmp_path, story)


def test_a_queued_agent_says_what_would_let_it_in(tmp_path: Path) -> None:
    from agentos_native.supervisor import waiting

    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        await lifecycle.run(made("big", resources=Resources(requests=Requests(cpu=1500))))
        agent = await lifecycle.run(made("late", resources=Resources(requests=Requests(cpu=800))))
        assert agent.record.state == "queued"
        place = lifecycle.queue.place(agent)
        said = waiting.explain(lifecycle.host, agent, place)
        assert (said["enough"], said["room_makers"]) == (500, ["default/big"])
        assert isinstance(place, api.QueuePlace)
        assert said["queue"]["place"] == 1
        assert any("agentos-native set default/late --cpu-request 500m" in line for line in said["words"])
        await changer.change_agent(agent, {"resources": {"requests": {"cpu": "500m"}}}, dry_run=False)
        while not agent.live:
            await asyncio.wait_for(agent.changed.wait(), 10)

    play(tmp_path, story)


def test_a_rehearsal_says_who_of_those_that_wait_would_start(tmp_path: Path) -> None:
    def cpu(amount: str) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": amount}}}

    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        lifecycle.host.tenants["idle"] = TenantSpec(name="idle", requests=Requests(cpu=300))
        big = await lifecycle.run(made("big", resources=Resources(requests=Requests(cpu=1500))))
        waits = [
            await lifecycle.run(made(name, resources=Resources(requests=Requests(cpu=500))))
            for name in ("first", "second")
        ]
        assert [agent.record.state for agent in waits] == ["queued"] * 2

        async def lets_in(work: Awaitable[api.ChangeResult]) -> list[str]:
            return (await work).starts

        for amount, expected in (("1400m", []), ("1200m", ["first"]), ("700m", ["first", "second"])):
            found = await lets_in(changer.change_agent(big, cpu(amount), dry_run=True))
            assert found == [f"default/{name}" for name in expected]
        rehearsed = changer.change_tenant("idle", {"requests": {"cpu": None}}, dry_run=True)
        assert await lets_in(rehearsed) == ["default/first"]
        assert await lets_in(changer.change_agent(waits[0], cpu("200m"), dry_run=True)) == ["default/first"]
        assert [agent.record.state for agent in waits] == ["queued"] * 2
        await changer.change_agent(big, cpu("700m"), dry_run=False)
        for agent in waits:
            while not agent.live:
                await asyncio.wait_for(agent.changed.wait(), 10)

    play(tmp_path, story)


def test_room_that_an_idle_tenant_reserves_is_named(tmp_path: Path) -> None:
    from agentos_native.supervisor import waiting

    async def story(changer: Changer, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        lifecycle.host.tenants["idle"] = TenantSpec(name="idle", requests=Requests(cpu=700))
        await lifecycle.run(made("big", resources=Resources(requests=Requests(cpu=1000))))
        agent = await lifecycle.run(made("late", resources=Resources(requests=Requests(cpu=800))))
        words = waiting.explain(lifecycle.host, agent, lifecycle.queue.place(agent))["words"]
        assert [line for line in words if "tenant set idle --cpu-request" in line]
        lifecycle.host.tenants["idle"] = TenantSpec(name="idle", requests=Requests(memory=1))
        await lifecycle.run(made("more", resources=Resources(requests=Requests(cpu=500))))
        words = waiting.explain(lifecycle.host, agent, lifecycle.queue.place(agent))["words"]
        assert not [line for line in words if "own reservation" in line]

    play(tmp_path, story)


def test_patches_merge_like_rfc_7396() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": None, "e": 3}, "d": [2]}) == {
        "a": {"c": 2, "e": 3},
        "d": [2],
    }
    assert merged({"a": 1}, {"a": {"b": None, "c": {"d": 1}}}) == {"a": {"c": {"d": 1}}}
