"""The page: whole, self-contained, with every name escaped, and with figures that can be computed again."""

from __future__ import annotations

import re
import xml.dom.minidom
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native import alloc
from agentos_native.errors import AgentosError
from agentos_native.recording import page, reader, svg
from agentos_native.recording.__main__ import main
from agentos_native.recording.history import BUCKETS, History
from agentos_native.recording.model import Entry, Happening, Member, Roster, Rows, Tick
from agentos_native.recording.options import Report
from agentos_native.recording.writer import Writer
from tests.unit.test_recording import Source

EVIL = '<script>alert("1")</script>&\'"><img src=x onerror=alert(1)>\x00\x1b'
VOID = {"meta", "br", "img", "link", "input", "hr"}


@pytest.fixture(autouse=True)
def _numpy_again() -> Iterator[None]:
    yield
    alloc.use_numpy()


def entries_of(count: int = 30, agents: int = 5, seed: int = 1) -> list[Entry]:
    """Ticks of a made-up machine, whose use is what each agent was entitled to in the tick before."""
    source = Source(seed, agents)
    found: list[Entry] = []
    share = np.zeros(agents)
    for number in range(count):
        tick = source.tick()
        inputs = replace(tick.inputs, elapsed=1.0 if number else 0.0)
        seen = np.full(agents, 0.999, dtype=np.float32)
        found.append(replace(tick, inputs=inputs, used=share.astype(np.float32), stalled=seen, session="s"))
        share = tick.share
    return found


def drawn(entries: list[Entry], **options: object) -> str:
    history = History().gather(entries)
    agents = sorted(history.agents.values(), key=lambda agent: -agent.worst)
    return page.page(history, agents, **options)  # type: ignore[arg-type]


class Checker(HTMLParser):
    """Every element closed in its turn; what would load or run anything."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.suspicious: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        names = {name for name, _ in attrs}
        if tag in ("script", "img", "link", "iframe", "object", "embed", "base", "form") or names & {"src", "href"}:
            self.suspicious.append(tag)
        self.suspicious += [name for name in names if name.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    assert not checker.suspicious
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:", text, re.IGNORECASE)
    for chart in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        xml.dom.minidom.parseString(chart)
    return checker


def test_the_page_is_whole_and_needs_nothing_from_elsewhere() -> None:
    text = drawn(entries_of())
    checker = checked(text)
    assert text.startswith("<!DOCTYPE html>")
    assert 'lang="en"' in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
    assert checker.tags.count("svg") == 4 + 2 + 5  # the node, its tenants, its agents


def test_every_chart_has_words_for_those_who_do_not_see_it() -> None:
    text = drawn(entries_of())
    charts = re.findall(r"<svg[^>]*>", text)
    assert charts and all('role="img"' in chart and "aria-labelledby=" in chart for chart in charts)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for named in re.findall(r'aria-labelledby="([^"]+)"', text):
        assert set(named.split()) <= set(ids)


def test_names_cannot_become_markup() -> None:
    entries = entries_of(10)
    member = Member("f" * 12, EVIL, EVIL, EVIL, EVIL)
    ticks = [entry for entry in entries if isinstance(entry, Tick)]
    roster = Roster((member, *ticks[0].roster.agents[1:]), ticks[0].roster.tenants)
    evil: list[Entry] = [replace(tick, roster=roster) for tick in ticks]
    evil.append(Happening(ticks[5].wall, EVIL, "f" * 12, EVIL, EVIL, EVIL))
    evil.append(Rows(ticks[5].wall, EVIL, {"f" * 12: {"measured": 1.0, "entitled": 2.0}}))
    text = drawn(evil, remarks=[EVIL])
    checker = checked(text)
    assert any("<img src=x" in words for words in checker.words)  # it is there as text
    assert "\x00" not in text
    assert "\x1b" not in text


@settings(max_examples=200)
@given(st.text())
def test_escaped_text_is_text_and_nothing_else(text: str) -> None:
    checker = Checker()
    checker.feed(f"<p title=\"{svg.escape(text)}\" lang='{svg.escape(text)}'>{svg.escape(text)}</p>")
    checker.close()
    assert checker.tags == ["p"]
    assert not checker.suspicious
    xml.dom.minidom.parseString(f"<p>{svg.escape(text)}</p>")


def test_an_agent_that_has_what_it_is_due_is_not_short() -> None:
    history = History().gather(entries_of(40))
    for agent in history.agents.values():
        assert agent.ticks == 39  # nobody is measured in the first
        assert agent.worst < 1e-6
        assert agent.error < 1e-6


def test_a_shortfall_is_what_was_due_and_not_had() -> None:
    entries = entries_of(60)
    ticks = [entry for entry in entries if isinstance(entry, Tick)]
    held = [replace(tick, used=np.where(np.arange(5) == 2, tick.used / 2, tick.used)) for tick in ticks]
    history = History().gather(held)
    agents = list(history.agents.values())
    due = np.array([tick.used[2] for tick in ticks[1:]], dtype=np.float64)
    assert agents[2].error == pytest.approx(float((due / 2).mean()), rel=1e-5)
    assert 0.5 * agents[2].error < agents[2].worst <= due.max() / 2 + 1e-6
    assert max(agent.worst for agent in agents if agent is not agents[2]) < 1e-6
    text = drawn(list(held))
    assert text.index("agent-2</b>") < text.index("agent-0</b>")  # the worst comes first


def test_a_long_record_is_kept_in_the_same_room() -> None:
    ticks = [entry for entry in entries_of(20) if isinstance(entry, Tick)]
    long: list[Entry] = [
        replace(ticks[number % 20], monotonic=float(number), wall=1e9 + number) for number in range(5 * BUCKETS)
    ]
    history = History().gather(long)
    assert history.axis.width == 8.0
    assert history.axis.used <= BUCKETS
    assert history.node.sums["count"][0].sum() == 5 * BUCKETS * 19 / 20  # all but the copies of the first tick
    checked(drawn(long))


def test_a_step_of_the_wall_clock_does_not_fold_the_axis() -> None:
    ticks = [entry for entry in entries_of(30) if isinstance(entry, Tick)]
    stepped: list[Entry] = [replace(tick, wall=tick.wall - 5000 * (number > 10)) for number, tick in enumerate(ticks)]
    history = History().gather(stepped)
    assert history.axis.used == 30


def test_hundreds_of_agents_are_tenants_the_worst_and_a_table() -> None:
    text = drawn(entries_of(8, agents=300))
    checker = checked(text)
    assert checker.tags.count("svg") == 4 + 2 + page.DRAWN
    assert f"The {page.DRAWN} agents of 300" in text
    assert text.count('<th scope="row">') == 300


def test_events_and_other_resources_are_drawn() -> None:
    entries = entries_of(20)
    first = entries[0]
    assert isinstance(first, Tick)
    ids = [member.agent_id for member in first.roster.agents]
    for second in range(5, 15, 5):
        rows = {agent_id: {"measured": 2.0**20 * 3, "entitled": 2.0**20 * 5} for agent_id in ids}
        entries.append(Rows(first.wall + second, "memory", rows))
    entries.append(Happening(first.wall + 7, "oom-killed", ids[0], "agent-0", "t0", '{"limit":1}'))
    entries.append(Happening(first.wall + 8, "queued", ids[1], "agent-1", "t0"))
    text = drawn(entries)
    checked(text)
    assert "<h2>Memory</h2>" in text
    assert "had 3.00 MiB, entitled to 5.00" in text
    assert "1 oom-killed, 1 queued" in text
    assert text.count('class="mark bad"') == 2  # with the node, and with the agent


# -- the program --------------------------------------------------------------------------------------------------


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    directory = tmp_path / "state" / "recording"
    directory.parent.mkdir()
    writer = Writer(str(directory), 1 << 20, pytest.fail)
    for entry in entries_of(30):
        writer.put(partial(lambda one: one, entry))
    writer.flush()
    return directory


def run(**fields: object) -> int:
    return main([msgspec.json.encode(Report(**fields)).decode()])  # type: ignore[arg-type]


def test_the_program_writes_the_page(ring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.html"
    assert run(directory=str(ring.parent), output=str(target)) == 0
    assert capsys.readouterr().out == f"{target}: 30 ticks, 5 agents, 30 s\n"
    checked(target.read_text())
    assert run(directory=str(ring), output="-", since=10.0, agents=("agent-1", "t0/agent-0")) == 0
    text = capsys.readouterr().out
    checked(text)
    assert "11 ticks" in text
    assert text.count('<th scope="row">') == 2


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"output": "/nowhere/page.html"}, "cannot-write"),
        ({"output": "-", "agents": ("nobody",)}, "no-such-agent"),
        ({"output": "-", "directory": "/nowhere"}, "no-recording"),
    ],
)
def test_what_cannot_be_drawn_is_told(
    fields: dict[str, object], code: str, ring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(**{"directory": str(ring), **fields}) == 125
    assert f"error[{code}]" in capsys.readouterr().err


def test_a_damaged_ring_is_drawn_and_said_to_be_so(
    ring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(ring.iterdir())
    path.write_bytes(path.read_bytes() + b"garbage that is no frame at all")
    target = tmp_path / "page.html"
    assert run(directory=str(ring), output=str(target)) == 0
    assert "damaged" in target.read_text()
    found = reader.Found()
    assert len(list(reader.read(str(ring), found))) == 30
    assert len(found.damaged) == 1
    with pytest.raises(AgentosError, match="no recorded ticks"):
        reader.find(str(tmp_path))
