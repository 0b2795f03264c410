"""The door to the loop: rows, effects and explanations over every resource, and changes that hurry the next tick."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from agentos_native.cgroup import GroupRef
from agentos_native.spec.model import AgentSpec, Limits, Requests, Resource, Resources, TenantSpec
from agentos_native.supervisor.loop.controllers import Member, Solvable
from agentos_native.supervisor.loop.others import amount
from agentos_native.supervisor.loop.shares import Shares
from agentos_native.supervisor.loop.slots import Slots
from agentos_native.supervisor.loop.whatif import Change, Solved, agent_of, solved_of, tenant_of

GIGA = 1 << 30
CAPACITY = 4 * GIGA


class FakeTicker:
    """Knows nobody; counts its turns."""

    profiled = False

    def __init__(self) -> None:
        self.turns: list[float] = []
        self.added: list[object] = []
        self.ticked = threading.Event()

    def tick(self, now: float) -> None:
        self.turns.append(now)
        self.ticked.set()

    def entitled(self, change: Change | None = None) -> dict[str, float]:
        return {"a": 1.0 if change is None else 2.0}

    def explain(self, agent_id: str, name: Any) -> dict[str, Any]:
        return {"words": [f"cpu of {name(agent_id)}"], "equations": ["cpu"]}

    def add(self, agent_id: str, *_: object) -> None:
        self.added.append(agent_id)

    def change(self, *_: object) -> None: ...
    def remove(self, *_: object) -> None: ...
    def set_tenant(self, *_: object) -> None: ...
    def close(self) -> None: ...


@dataclass
class FakeMemory:
    """Divides memory by the same tree as CPU: everybody wants all there is."""

    resource: Resource = "memory"
    period: float = 1.0
    note: str = ""

    def __post_init__(self) -> None:
        self.specs: dict[str, AgentSpec] = {}
        self.turns = 0

    def add(self, member: Member) -> None:
        self.specs[member.agent_id] = member.spec

    change = add

    def remove(self, agent_id: str) -> None:
        self.specs.pop(agent_id, None)

    def set_tenant(self, spec: TenantSpec) -> None: ...
    def remove_tenant(self, name: str) -> None: ...
    def close(self) -> None: ...
    def turn(self, now: float) -> None:
        self.turns += 1

    def _solve(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> Solved:
        slots = Slots()
        for tenant in tenants.values():
            slots.set_tenant(tenant_of(tenant))
        for agent_id, own in {**self.specs, **specs}.items():
            limit = own.resources.limits.memory
            agent = agent_of(agent_id, own)
            request = own.resources.requests.memory / GIGA
            slots.add(replace(agent, request=request, limit=float("inf") if limit is None else limit / GIGA))
        return solved_of(slots, CAPACITY / GIGA, dict.fromkeys(range(slots.capacity), CAPACITY / GIGA))

    def solved(self) -> Mapping[str, tuple[Solved, str]]:
        return {"memory": (self._solve({}, {}), "GiB")}

    def entitled(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> dict[str, float]:
        return {agent_id: share * GIGA for agent_id, share in self._solve(specs, tenants).entitled().items()}

    def fractions(self) -> Mapping[str, float]:
        return {}

    def rows(self) -> dict[str, dict[str, Any]]:
        return {
            agent_id: {
                "request": self.specs[agent_id].resources.requests.memory,
                "limit": self.specs[agent_id].resources.limits.memory,
                "demand": CAPACITY,
                "entitled": share,
                "measured": GIGA,
                "bound": "share",
                "capacity": CAPACITY,
                "note": self.note,
            }
            for agent_id, share in self.entitled({}, {}).items()
        }


def spec(weight: int = 100, memory: int = 0, limit: int | None = None) -> AgentSpec:
    resources = Resources(requests=Requests(memory=memory), limits=Limits(memory=limit))
    return AgentSpec(name="x", image="", tenant="home", weight=weight, resources=resources)


IDS = {name: f"{number:012x}" for number, name in enumerate("abc", 1)}
NAMES = {agent_id: name for name, agent_id in IDS.items()}


def member(name: str, own: AgentSpec) -> Member:
    return Member(IDS[name], 0, GroupRef("home", "normal", IDS[name]), "/", own)


def made(memory: FakeMemory, period: float = 60.0) -> tuple[Shares, FakeTicker]:
    ticker = FakeTicker()
    shares = Shares(ticker, period)  # type: ignore[arg-type]
    shares.join([memory], lambda: None)
    shares.settle()
    shares.add(member("a", spec()))
    shares.add(member("b", spec()))
    return shares, ticker


def test_cpu_is_divided_before_the_recovery_and_the_rest_after_it() -> None:
    ticker, memory = FakeTicker(), FakeMemory()
    shares = Shares(ticker, 0.01)  # type: ignore[arg-type]
    chores: list[None] = []
    try:
        shares.add(member("a", spec()))
        shares.start()
        assert ticker.ticked.wait(10)
        shares.join([memory], lambda: chores.append(None))
        for _ in range(3):
            ticker.ticked.clear()
            assert ticker.ticked.wait(10)
        assert memory.turns == len(chores) == 0
        shares.settle()
        deadline = time.monotonic() + 10
        while not memory.turns or not chores:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        shares.close()
        shares.close()


def test_who_was_known_before_the_recovery_is_measured_on() -> None:
    ticker, memory = FakeTicker(), FakeMemory()
    shares = Shares(ticker, 60.0)  # type: ignore[arg-type]
    shares.add(member("a", spec()))
    shares.join([memory], lambda: None)
    assert memory.specs == {}
    shares.add(member("a", spec()))
    assert list(memory.specs) == [IDS["a"]]
    assert ticker.added == [IDS["a"]]
    shares.remove(IDS["a"])
    shares.add(member("a", spec()))
    shares.add(member("a", spec(weight=7)))
    assert ticker.added == [IDS["a"]] * 3


def test_rows_of_each_resource() -> None:
    shares, _ = made(FakeMemory())
    rows = shares.rows(None, ("memory", "io"))
    assert {(row["resource"], row["tier"], row["weight"], row["entitled"]) for row in rows} == {
        ("memory", "normal", 100, 2 * GIGA)
    }
    shares.remove(IDS["b"])
    assert [row["entitled"] for row in shares.rows(None, ("memory",))] == [4 * GIGA]


def test_effects_are_those_of_every_resource() -> None:
    memory = FakeMemory()
    shares, _ = made(memory)
    found = shares.effects(Change({IDS["a"]: spec(weight=300), IDS["c"]: spec()}))
    assert [(row.resource, row.agent_id, row.after) for row in found] == [
        ("cpu", "a", 2.0),
        ("memory", IDS["a"], 3 * GIGA),
        ("memory", IDS["b"], GIGA),
    ]
    memory.note = "not enforced: there is no controller"  # then nothing is promised either
    assert {row.resource for row in shares.effects(Change({IDS["a"]: spec(weight=300)}))} == {"cpu"}


def test_memory_explains_itself_by_the_same_tree() -> None:
    memory = FakeMemory()
    assert isinstance(memory, Solvable)
    shares, _ = made(memory)
    shares.change(member("a", spec(limit=GIGA)))
    said = shares.explain(IDS["b"], lambda agent_id: NAMES[agent_id])
    other = said["others"]["memory"]
    assert said["words"][0] == "cpu of b"
    assert said["words"][1].startswith("Memory: entitled to 3Gi of 4Gi: ")
    level = other["derivations"]["memory"]["agents"]
    assert level["state"] == "level"
    assert sum(one["share"] for one in level["members"]) == pytest.approx(level["budget"])
    assert any(line.startswith("memory, in GiB") for line in said["equations"])
    limited = shares.explain(IDS["a"], lambda agent_id: NAMES[agent_id])["others"]["memory"]
    lifted = next(remedy for remedy in limited["remedies"] if remedy["words"] == "no limit instead of 1Gi")
    assert lifted["patch"] == {"resources": {"limits": {"memory": None}}}
    assert (lifted["before"], lifted["after"]) == (pytest.approx(GIGA), pytest.approx(2 * GIGA))
    assert [NAMES[loser["agent_id"]] for loser in lifted["at_cost_of"]] == ["b"]


def test_what_is_not_moved_here_says_only_that() -> None:
    shares, _ = made(FakeMemory(note="not moved: memory is not among the resources to control"))
    said = shares.explain(IDS["a"], str)["others"]["memory"]
    assert said["words"] == ["Memory: not moved: memory is not among the resources to control; it uses 1Gi."]
    assert said["derivations"] == {}


@pytest.mark.parametrize(
    ("resource", "value", "shown"),
    [
        ("memory", 3 << 29, "1.5Gi"),
        ("memory", 5000.0, "4.883Ki"),
        ("network", 1.5e6, "1.5Mbit/s"),
        ("network", 0.0, "0bit/s"),
        ("io", 0.25, "25.0 %"),
        ("memory", None, "none"),
    ],
)
def test_amounts_for_people(resource: Resource, value: float | None, shown: str) -> None:
    assert amount(resource, value) == shown


def test_a_change_hurries_the_next_tick_but_not_too_much() -> None:
    memory = FakeMemory(period=60.0)
    shares, ticker = made(memory, period=2.0)
    shares.start()
    try:
        assert ticker.ticked.wait(10)  # the first is at once
        ticker.ticked.clear()
        asked = time.monotonic()
        for _ in range(5):
            shares.change(member("a", spec(weight=7)))
        assert ticker.ticked.wait(10)
        assert time.monotonic() - asked < 1.9
        assert ticker.turns[1] - ticker.turns[0] > 0.4  # less is too short to measure in
        time.sleep(0.3)
        assert len(ticker.turns) == 2
        assert memory.turns == 2
    finally:
        shares.close()
