"""Simulations: traces and what is wrong with them, known answers, and the same shares as the live loop's."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native import alloc
from agentos_native.alloc import TIERS, Weights
from agentos_native.errors import AgentosError
from agentos_native.simulation import plot
from agentos_native.simulation.__main__ import main
from agentos_native.simulation.crowd import Crowd
from agentos_native.simulation.fluid import fill
from agentos_native.simulation.options import Request
from agentos_native.simulation.results import Tally
from agentos_native.simulation.run import Machine, Moment, Simulation
from agentos_native.simulation.trace import CHANGE, LEAVE, Step, parse
from agentos_native.simulation.trace import load as load_trace
from agentos_native.spec import load
from agentos_native.supervisor.loop import meter as tick_meter
from tests.kernelmodel import Group
from tests.unit.test_tick_loop import CPUS, Kernel, Loop

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _numpy_again() -> Iterator[None]:
    yield
    alloc.use_numpy()


def simulated(
    text: str, machine: Machine, *, specs: str = "", **options: Any
) -> tuple[Tally, dict[str, dict[str, list[float]]]]:
    """Run a trace; its tally, and the series of each agent by its label."""
    crowd = Crowd(parse(text.splitlines()), load(specs) if specs else ())
    tally = Tally(crowd, machine)
    Simulation(crowd, machine, tally, **options).run()
    tally.settle()
    return tally, {tally.label(place): series for place, series in tally.agents.items()}


# -- traces -------------------------------------------------------------------------------------------------------

CSV = """
# a comment
time, agent, tenant, cpu, cpu_request, event, count

0,learner,lab,2,,,
1m,dialogue,home,max,500m,arrive,3
70s,dialogue,home,0.25,,,
90,dialogue,home,,,leave,
"""
JSON = """{"time": 0, "agent": "learner", "tenant": "lab", "cpu": 2}

{"time": "1m", "agent": "dialogue", "tenant": "home", "cpu": "max", "cpu_request": "500m", "count": 3}
{"time": 70, "agent": "dialogue", "tenant": "home", "cpu": 0.25, "cpu_request": null}
{"time": 90.0, "agent": "dialogue", "tenant": "home", "event": "leave"}
"""


@pytest.mark.parametrize("text", [CSV, JSON], ids=["csv", "json lines"])
def test_both_forms_say_the_same(text: str) -> None:
    steps = parse(text.splitlines(keepends=True))
    assert [(s.time, s.kind, s.tenant, s.agent, s.count) for s in steps] == [
        (0.0, "arrive", "lab", "learner", 1),
        (60.0, "arrive", "home", "dialogue", 3),
        (70.0, "change", "home", "dialogue", 1),
        (90.0, "leave", "home", "dialogue", 1),
    ]
    assert [dict(step.amounts) for step in steps] == [
        {"cpu": 2.0},
        {"cpu": float("inf"), "cpu_request": 0.5},
        {"cpu": 0.25},
        {},
    ]


def test_lines_are_put_in_order_and_agents_may_come_again() -> None:
    text = "time,agent,event\n5,a,\n7,a,leave\n9,a,\n1,b,\n"
    assert [(s.time, s.agent, s.kind) for s in parse(text.splitlines())] == [
        (1.0, "b", "arrive"),
        (5.0, "a", "arrive"),
        (7.0, "a", LEAVE),
        (9.0, "a", "arrive"),
    ]


@pytest.mark.parametrize(
    ("lines", "place", "what"),
    [
        (["time,agent", "0,a", "x,b"], "t:3", "'x' is not a time"),
        (["time,agent", "-1,a"], "t:2", "is negative"),
        (["time,agent", "nan,a"], "t:2", "'nan' is not a time"),
        (["time,agent,cpu", "0,a,two"], "t:2", "'two' is not a quantity"),
        (["time,agent,cpu", "0,a,inf"], "t:2", "'inf' is not a quantity"),
        (["time,agent,cpu_request", "0,a,1e308"], "t:2", "is too large"),
        (["time,agent,duration", "0,a,1e19"], "t:2", "is too large"),
        (["time,agent,cpus", "0,a,1"], "t:1", "no column"),
        (["time,agent,time", "0,a,1"], "t:1", "named twice"),
        (["time,agent", "0,a,5"], "t:2", "3 fields where the header has 2"),
        (["time,agent", "0,"], "t:2", "agent is missing"),
        (["agent", "a"], "t:2", "time is missing"),
        (["time,agent", "0,A b"], "t:2", "is not allowed"),
        (["time,agent,event", "0,a,arive"], "t:2", "no event"),
        (["time,agent,event", "0,a,leave"], "t:2", "default/a is not there"),
        (["time,agent,event", "0,a,", "1,a,arrive"], "t:3", "has arrived already"),
        (["time,agent,event", "5,a,", "1,a,"], "t:3", "arrives later"),
        (["time,agent,count", "0,a,0"], "t:2", "is no count"),
        (["time,agent,weight", "0,a,10001"], "t:2", "is no weight"),
        (["time,agent,priority", "0,a,urgent"], "t:2", "no priority"),
        (["time,agent,cpu_request,cpu_limit", "0,a,2,1"], "t:2", "cpu_request is above cpu_limit"),
        (["time,agent,cpu_request", "0,a,max"], "t:2", "max is a demand or a limit"),
        (['time,agent', '0,"a'], "t:2", "unexpected end of data"),
        (['{"time": 0, "agent": "a"}', "{"], "t:2", "not a JSON object"),
        (['{"time": 0, "agent": ["a"]}'], "t:1", "not a JSON object"),
        (['{"time": 0, "agent": "a"}', "", '{"time": 1, "agent": "a", "cqu": 1}'], "t:3", "no column"),
        (["time,agent"], "t", "a header only"),
        ([""], "t", "the trace is empty"),
    ],
)
def test_what_is_wrong_with_a_line_is_told_with_its_number(lines: list[str], place: str, what: str) -> None:
    with pytest.raises(AgentosError) as caught:
        parse([line + "\n" for line in lines], "t")
    assert caught.value.where == place
    assert what in caught.value.what
    assert caught.value.code in ("invalid-trace", "invalid-quantity", "invalid-name")


# -- the fluid kernel ---------------------------------------------------------------------------------------------

_GROUPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # tenant
        st.integers(0, TIERS - 1),
        st.integers(1, 10_000),
        st.floats(0, 3),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=150)
@given(_GROUPS, st.integers(0, 2**32 - 1), st.floats(0.1, 8))
def test_the_fluid_is_that_of_the_kernel_model(
    agents: list[tuple[int, int, int, float]], seed: int, capacity: float
) -> None:
    """Against an implementation by sorting, one group at a time."""
    random = np.random.default_rng(seed)
    agents.sort(key=lambda agent: agent[:2])
    group = np.array([tenant * TIERS + tier for tenant, tier, _, _ in agents])
    weights = Weights(
        agent=np.array([weight for _, _, weight, _ in agents]),
        group=random.integers(1, 10_001, (4, TIERS)),
        group_idle=np.array([[0, 0, 0, 0, 1]] * 4),
        tenant=random.integers(1, 10_001, 4),
        tenant_idle=np.array([0, 0, 0, 1]),
    )
    limits = np.array([np.inf, 1.0, np.inf, 0.5])
    root = Group()
    leaves = []
    for tenant, tier, weight, want in agents:
        above = root.children.setdefault(
            str(tenant),
            Group(float(weights.tenant[tenant]), idle=tenant == 3, limit=float(limits[tenant])),
        )
        between = above.children.setdefault(str(tier), Group(float(weights.group[tenant, tier]), idle=tier == 4))
        leaves.append(Group(weight, min(want, capacity)))
        between.children[str(len(leaves))] = leaves[-1]
    root.fill(capacity)
    starts = np.searchsorted(group, np.arange(4 * TIERS + 1)).astype(np.int64)
    had = fill(capacity, weights, starts, np.array([want for *_, want in agents]), limits)
    assert had == pytest.approx([leaf.share for leaf in leaves], abs=1e-8 * capacity, rel=1e-6)


# -- known answers ------------------------------------------------------------------------------------------------


def test_a_trace_whose_answer_is_known() -> None:
    """Two tenants of equal weight: alone, beside a small demand, and then half each."""
    text = "time,agent,tenant,cpu,duration\n0,learner,lab,2,\n10,dialogue,home,0.2,1m\n15,dialogue,home,1.5,\n"
    tally, agents = simulated(text, Machine(2.0), until=75.0)
    learner = dict(zip(agents["lab/learner"]["time"], agents["lab/learner"]["had"], strict=True))
    assert [learner[t] for t in (1, 10, 11, 15, 16, 70, 71, 75)] == pytest.approx([2, 2, 1.8, 1.8, 1, 1, 2, 2])
    dialogue = tally.agent_total(1)
    assert dialogue.ran == 60
    assert dialogue.had == pytest.approx((5 * 0.2 + 55 * 1.0) / 60)
    assert dialogue.wanted == pytest.approx((5 * 0.2 + 55 * 1.5) / 60)


def test_a_reservation_against_heavy_hogs_holds_from_the_first_tick() -> None:
    """allocator.md's measured case: 0.5 reserved against five hogs of weight 500."""
    hogs = "".join(f"0,hog-{i},500,,\n" for i in range(5))
    text = f"time,agent,weight,cpu_request,cpu\n0,reserved,50,0.5,0\n{hogs}20,reserved,,,2\n"
    tally, agents = simulated(text, Machine(2.0), until=30.0)
    had = dict(zip(agents["default/reserved"]["time"], agents["default/reserved"]["had"], strict=True))
    assert had[20] == 0
    assert [had[t] for t in (21, 22, 30)] == pytest.approx([0.5] * 3, rel=0.02)
    assert tally.agent_total(0).worst_short < 0.01


def test_work_ends_when_it_is_done_and_room_is_handed_on() -> None:
    text = "time,agent,cpu,work\n0,first,1,10\n0,second,1,\n"
    tally, agents = simulated(text, Machine(1.0))
    first = tally.agent_total(0)
    assert first.ran == 20
    assert first.had * first.ran == pytest.approx(10)
    assert agents["default/second"]["had"][-1] == pytest.approx(1.0)


def test_starts_that_do_not_fit_wait_in_order() -> None:
    """Three that reserve 0.8 of 2 CPUs and take 10 s: two at once, the third when one has gone."""
    text = "time,agent,cpu_request,duration\n0,a,0.8,10\n0,b,0.8,12\n1,c,0.8,5\n1,small,0.3,5\n"
    tally, _ = simulated(text, Machine(2.0))
    waited = {total.agent: total.waited for total in map(tally.agent_total, range(4))}
    assert waited == {"a": 0, "b": 0, "c": 9, "small": 9}  # what c asks for is set aside, and then nothing is left
    assert max(tally.waiting) >= 1
    total = tally.tenant_totals()[0]
    assert total.worst_wait == 9
    assert total.still_waiting == 0


def test_without_waiting_they_are_refused_and_what_never_fits_is_refused_anyway() -> None:
    text = "time,agent,cpu_request,duration\n0,a,1.5,10\n0,b,1.5,10\n0,giant,3,10\n"
    for wait, refused in ((True, ["giant"]), (False, ["b", "giant"])):
        tally, _ = simulated(text, Machine(2.0), wait=wait)
        totals = list(map(tally.agent_total, range(3)))
        assert [total.agent for total in totals if total.refused] == refused
        assert next(total for total in totals if total.agent == "b").waited == (10 if wait else None)


@pytest.mark.parametrize(
    ("machine", "waits"),
    [(Machine(4.0, memory=1024.0), [0, 5, 0]), (Machine(4.0, slots=2), [0, 0, 5])],
    ids=["memory", "slots"],
)
def test_memory_and_slots_keep_agents_waiting_too(machine: Machine, waits: list[float]) -> None:
    text = "time,agent,memory_request,duration\n0,a,600Mi,5\n0,b,600Mi,5\n0,c,,5\n"
    tally, _ = simulated(text, machine)
    assert [tally.agent_total(i).waited for i in range(3)] == waits


def test_who_leaves_while_it_waits_never_ran() -> None:
    text = "time,agent,event,cpu_request,duration\n0,a,,1,10\n1,b,,1,10\n5,b,leave,,\n6,c,,1,1\n"
    tally, _ = simulated(text, Machine(1.0))
    totals = {total.agent: total for total in map(tally.agent_total, range(3))}
    assert totals["b"].waited is None
    assert totals["b"].ran == 0
    assert totals["c"].waited == 4


def test_memory_and_network_are_divided_by_the_same_allocator() -> None:
    text = (
        "time,agent,memory,memory_request,network,network_limit\n"
        "0,a,8Gi,1Gi,1G,100M\n0,b,8Gi,3Gi,1G,\n0,c,512Mi,,50M,\n"
    )
    tally, _ = simulated(text, Machine(4.0, memory=4096.0, network=1000.0), until=3.0)
    series = tally.tenants["default"]
    assert series.memory[-1] == pytest.approx(4096.0)
    assert series.network[-1] == pytest.approx(1000.0)


def test_documents_give_settings_and_silent_agents_are_there_all_the_time() -> None:
    specs = """
apiVersion: agentos/v1
kind: Tenant
metadata: {name: home}
spec: {weight: 300, limits: {agents: 2}}
---
apiVersion: agentos/v1
kind: Agent
metadata: {name: known, tenant: home}
spec: {image: x, weight: 50, resources: {requests: {cpu: 500m}, limits: {cpu: "1"}}}
---
apiVersion: agentos/v1
kind: Agent
metadata: {name: silent, tenant: home}
spec: {image: x, replicas: 2}
"""
    text = "time,agent,tenant\n2,known,home\n0,other,lab\n"
    tally, agents = simulated(text, Machine(4.0), specs=specs, until=10.0)
    assert agents["home/silent-0"]["had"][1] == pytest.approx(1.5)  # 3 of 4 CPUs for the heavier tenant
    assert agents["lab/other"]["had"][1] == pytest.approx(1.0)
    assert "home/known" not in agents  # the tenant may run two agents only
    assert tally.tenant_totals()[0].still_waiting == 1


@pytest.mark.parametrize(
    ("policy", "shares"),
    [("maxmin", [0.8, 0.6, 0.6]), ("priority", [0.0, 1.0, 1.0]), ("utility", [0.8, 1.0, 0.2])],
)
def test_each_policy_divides_in_its_own_way(policy: Any, shares: list[float]) -> None:
    """A low one that reserves 0.8, and two above it that want a CPU each, one of them a little heavier."""
    text = (
        "time,agent,priority,weight,cpu,cpu_request\n0,low,low,100,2,0.8\n0,heavy,normal,101,1,\n0,light,normal,100,1,\n"
    )
    _, agents = simulated(text, Machine(2.0), policy=policy, until=40.0)
    entitled = [agents[f"default/{name}"]["entitled"][-1] for name in ("low", "heavy", "light")]
    assert entitled == pytest.approx(shares, abs=0.01)


def test_dominant_fairness_sees_the_memory_that_agents_want() -> None:
    """The paper's example: 9 CPUs and 18 GiB, one wants (1, 4) for each task, the other (3, 1): 3 and 6 CPUs."""
    text = "time,agent,cpu,memory\n0,memory,4.5,18Gi\n0,cpu,9,3Gi\n"
    machine = Machine(9.0, memory=18.0 * 1024)
    by_policy = {}
    for policy in ("maxmin", "drf"):
        _, agents = simulated(text, machine, policy=policy, until=30.0)
        by_policy[policy] = [agents[f"default/{name}"]["entitled"][-1] for name in ("memory", "cpu")]
    assert by_policy["maxmin"] == pytest.approx([4.5, 4.5], abs=0.01)
    assert by_policy["drf"] == pytest.approx([3.0, 6.0], abs=0.01)


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_many_agents_of_one_line_get_the_same(engine: str) -> None:
    if engine == "numba":
        assert alloc.load_compiled()
    text = "time,agent,count,cpu\n0,crowd,20000,0.5\n3,crowd,,0.01\n"
    tally, _ = simulated(text, Machine(100.0), until=40.0)
    assert np.ptp(tally.had) < 1e-9
    assert tally.had.sum() == pytest.approx(4 * 100 + 36 * 100, rel=1e-6)
    assert tally.agents == {}  # so many are kept as totals only
    assert tally.agent_total(19_999).agent == "crowd-19999"


def test_a_trace_that_is_too_long_is_told_at_once() -> None:
    for steps, until in ((["0,a", "1e17,b"], None), (["0,a"], 1e7)):
        with pytest.raises(AgentosError, match="does not end within 1000000 ticks"):
            Simulation(Crowd(parse([f"{line}\n" for line in ("time,agent", *steps)])), Machine(1), print, until=until)


def test_a_spreadsheet_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufefftime,agent\n0,a\n")
    assert [step.agent for step in load_trace(str(path))] == ["a"]


def test_work_that_is_never_done_ends_the_simulation_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tally, _ = simulated("time,agent,cpu,work\n0,asleep,0,5\n0,done,1,2\n", Machine(1.0))
    assert len(tally.times) == 12
    monkeypatch.setattr("agentos_native.simulation.run.LONGEST", 50)
    with pytest.raises(AgentosError, match="does not end within 50 ticks"):
        simulated("time,agent,cpu,duration\n0,a,1,1000\n", Machine(1.0))


# -- the same as the live loop ------------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    kernel = Kernel(tmp_path)
    monkeypatch.setattr(tick_meter, "Machine", lambda path: kernel)
    one = Loop(kernel)
    yield one
    one.ticker.close()


def test_the_simulation_gives_the_shares_of_the_live_loop(loop: Loop) -> None:
    """The same agents through the real Ticker over a simulated kernel: settled, both give the same."""
    loop.agent("hog", weight=300)
    loop.agent("reserved", weight=50, request=400)
    loop.agent("limited", tenant="lab", limit=250)
    loop.agent("sleepy", tenant="lab", duty=0.3)
    loop.agent("low", tenant="lab", tier="low")
    loop.agent("high", tenant="shop", tier="high", duty=0.1)
    rows = loop.settled(10)
    text = (
        "time,agent,tenant,priority,weight,cpu,cpu_request,cpu_limit\n"
        "0,hog,home,,300,1,,\n0,reserved,home,,50,1,0.4,\n0,limited,lab,,,1,,0.25\n0,sleepy,lab,,,0.3,,\n"
        "0,low,lab,low,,1,,\n0,high,shop,high,,0.1,,\n"
    )
    _, agents = simulated(text, Machine(CPUS), until=60.0)
    for label, series in agents.items():
        row = rows[label.partition("/")[2]]
        assert series["entitled"][-1] == pytest.approx(row.entitled, abs=0.01), label
        assert series["had"][-1] == pytest.approx(row.measured, abs=0.03), label


# -- the program --------------------------------------------------------------------------------------------------


def run(**fields: Any) -> int:
    return main([msgspec.json.encode(Request(**fields)).decode()])


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text("time,agent,tenant,cpu,cpu_request,duration\n0,a,x,2,1,10\n0,b,y,2,1,10\n2,c,y,1,1,10\n")
    return str(path)


def test_text_json_and_csv_tell_the_same(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trace=trace, cpus=2.0) == 0
    text = capsys.readouterr().out
    assert "3 agents (at most 2 at once) on 2 CPUs" in text
    assert run(trace=trace, cpus=2.0, output="json", csv=str(tmp_path / "out.csv")) == 0
    result = json.loads(capsys.readouterr().out)
    waits = {agent["agent"]: agent["waited"] for agent in result["agents"]}
    assert waits == {"a": 0.0, "b": 0.0, "c": 8.0}
    assert result["summary"]["worst_wait"] == 8.0
    assert "8.0s" in text
    with (tmp_path / "out.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["agent"] == "b"]
    assert [float(row["had_cpus"]) for row in rows] == result["series"]["agents"]["y/b"]["had"]


def test_the_smallest_machine_is_found(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    for wait, cpus in ((0.0, 3.0), (8.0, 2.0), (20.0, 1.0)):
        assert run(trace=trace, find_cpus=wait, output="json") == 0
        summary = json.loads(capsys.readouterr().out)["summary"]
        assert summary["cpus"] == cpus
        assert summary["worst_wait"] <= wait


def test_a_machine_that_can_never_be_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,agent,memory_request\n0,a,2Gi\n")
    assert run(trace=str(path), find_cpus=1.0, memory=1 << 30) == 125
    assert "error[never-enough]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plot.svg", "plot.png"])
def test_a_plot_is_drawn(trace: str, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / name
    assert run(trace=trace, cpus=2.0, plot=str(target)) == 0
    head = target.read_bytes()[:400]
    assert head.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in head or b"<?xml" in head


def test_a_plot_without_matplotlib_is_refused_before_anything_is_simulated(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(trace=trace, plot="x.svg") == 125
    assert "agentos-native[plot]" in capsys.readouterr().err
    with pytest.raises(AgentosError, match="SVG or a PNG"):
        plot.check("x.pdf")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"trace": "/nowhere/t.csv"}, "cannot-read"),
        ({"trace": "{t}", "specs": ("/nowhere/s.yaml",)}, "cannot-read"),
        ({"trace": "{t}", "csv": "/nowhere/out.csv"}, "cannot-write"),
    ],
)
def test_files_that_cannot_be_used(
    fields: dict[str, Any], code: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {**fields, "trace": fields["trace"].replace("{t}", trace)}
    assert run(**fields) == 125
    assert f"error[{code}]" in capsys.readouterr().err


def test_the_command_line_passes_everything_on(trace: str) -> None:
    program = [sys.executable, "-c", "import sys; from agentos_native.cli import main; sys.exit(main())"]
    options = ("--cpus", "2500m", "--memory", "1Gi", "-o", "json", "--tick", "2")
    command = [*program, "alloc", "simulate", "-f", "-", *options]
    done = subprocess.run(command, input=Path(trace).read_text(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert (summary["cpus"], summary["memory"]) == (2.5, 1 << 30)
    bad = [*program, "alloc", "simulate", "-f", trace, "--cpus", "many"]
    done = subprocess.run(bad, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "error[invalid-quantity]" in done.stderr
    assert "--cpus" in done.stderr


def test_the_example_needs_the_machine_that_it_says() -> None:
    steps = parse((ROOT / "policies/traces/day.csv").read_text().splitlines(keepends=True))
    crowd, machine = Crowd(steps), Machine(8.0)
    tally = Tally(crowd, machine)
    Simulation(crowd, machine, tally, period=60.0).run()
    tally.settle()
    assert {total.tenant: total.waits for total in tally.tenant_totals()} == {"city": 2, "factory": 0, "home": 0}
    assert tally.short.sum() == 0
    assert tally.had.sum() <= 8.0 * tally.times[-1]


@settings(max_examples=40)
@given(st.data())
def test_whatever_happens_nothing_is_given_twice(data: st.DataObject) -> None:
    """Random lives: never more than the machine, a demand or a limit; reservations of those that want them are kept."""
    draw: Callable[..., Any] = data.draw
    cpus = draw(st.sampled_from([1.0, 2.0, 5.5]))
    steps = []
    for index in range(draw(st.integers(1, 8))):
        begin = draw(st.integers(0, 10))
        amounts = {"cpu": draw(st.floats(0, 3)), "cpu_request": draw(st.sampled_from([0, 0.1, 0.5]))}
        limit = draw(st.sampled_from([None, 0.6, 2.0]))
        tenant = draw(st.sampled_from(["x", "y"]))
        arrival = Step(begin, "arrive", tenant, f"a{index}", amounts=amounts | ({"cpu_limit": limit} if limit else {}))
        steps.append(arrival)
        for later in draw(st.lists(st.integers(1, 10), max_size=3)):
            steps.append(Step(begin + later, CHANGE, tenant, f"a{index}", amounts={"cpu": draw(st.floats(0, 3))}))
    crowd = Crowd(sorted(steps, key=lambda step: step.time))
    moments: list[Moment] = []
    simulation = Simulation(crowd, Machine(cpus), moments.append, until=30.0)
    simulation.run()
    assert len(moments) == 30
    for moment in moments:
        assert moment.had.sum() <= cpus * (1 + 1e-9)
        assert (moment.had <= moment.wanted * (1 + 1e-9) + 1e-9).all()
        hungry = moment.wanted.sum() >= cpus
        assert moment.had.sum() == pytest.approx(cpus if hungry else moment.wanted.sum(), rel=1e-6, abs=1e-9)
    settled = moments[-1]  # 10 s after the last line nothing changes any more
    if (settled.wanted >= settled.floor).all():
        assert (settled.had >= settled.floor * 0.97 - 1e-9).all()
