"""The ring on disk and its replay: bounded, whole after any death of its writer, and bit for bit."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agentos_native import alloc
from agentos_native.alloc import TIERS, Experience, Inputs, Problem, Trims, Warm
from agentos_native.errors import AgentosError
from agentos_native.recording import batch, fields, frames, reader, ring
from agentos_native.recording.__main__ import main
from agentos_native.recording.model import Entry, Happening, Member, Roster, Rows, Tick
from agentos_native.recording.options import Replay
from agentos_native.recording.replay import last, replay
from agentos_native.recording.writer import QUEUE, Writer
from agentos_native.supervisor.loop import meter as tick_meter
from agentos_native.supervisor.loop.recorder import Recorder
from agentos_native.wire.api import Event
from tests.unit.test_tick_loop import Kernel, Loop

WARNINGS: list[str] = []


@pytest.fixture(autouse=True)
def _numpy_again() -> Iterator[None]:
    WARNINGS.clear()
    yield
    alloc.use_numpy()


def roster_of(agents: int, tenants: int = 2) -> Roster:
    members = (Member(f"{i:012x}", f"agent-{i}", f"t{i * tenants // agents}", "normal", "task") for i in range(agents))
    return Roster(tuple(members), tuple(f"t{i}" for i in range(tenants)))


class Source:
    """Turns of a made-up machine, by every policy: each goes on from the one before, as the tick's do."""

    def __init__(self, seed: int, agents: int = 7, tenants: int = 2) -> None:
        self.random = np.random.default_rng(seed)
        self.roster = roster_of(agents, tenants)
        self.warm = Warm()
        self.trims = Trims(np.ones(agents), np.ones((tenants, TIERS)), np.ones(tenants))
        self.clock = 100.0
        group = np.sort(self.random.integers(0, tenants * TIERS, agents))
        self.starts = np.searchsorted(group, np.arange(tenants * TIERS + 1)).astype(np.int64)

    def _floats(self, high: float) -> NDArray[np.float64]:
        return self.random.random(len(self.roster.agents)) * high

    def tick(self) -> Tick:
        n, tenants = len(self.roster.agents), len(self.roster.tenants)
        demand = np.where(self.random.random(n) < 0.1, np.inf, self._floats(1.0))
        problem = Problem(
            capacity=2.0 + float(self.random.normal()) / 50,
            tenant_weight=np.full(tenants, 100.0),
            tenant_tier=np.full(tenants, 2, dtype=np.int64),
            tenant_floor=np.zeros(tenants),
            tenant_ceiling=np.full(tenants, np.inf),
            starts=self.starts,
            weight=np.full(n, 100.0),
            floor=np.full(n, 0.1),
            ceiling=np.full(n, np.inf),
            demand=demand,
            policy=int(self.random.integers(0, 4)),
            tenant_policy=self.random.integers(0, 4, tenants),
            profile=self.random.random((n, 2)) if self.random.random() < 0.9 else None,
        )
        seen = Experience(self._floats(0.5), self._floats(0.5)) if self.random.random() < 0.8 else None
        lately = self._floats(0.3) if self.random.random() < 0.8 else None
        inputs = Inputs(problem, self.warm, self.trims, seen, 2.0, 1.0, lately)
        outcome = alloc.turn(inputs)
        assert outcome.trims is not None
        self.warm, self.trims = outcome.warm, outcome.trims
        self.clock += 1.0
        return Tick(
            monotonic=self.clock,
            wall=1e9 + self.clock,
            roster=self.roster,
            engine=alloc.engine(),
            inputs=inputs,
            share=outcome.solution.share,
            weights=outcome.weights,
            used=self._floats(0.5).astype(np.float32),
            stalled=np.where(self.random.random(n) < 0.2, np.nan, self._floats(1.0)).astype(np.float32),
            writes=int(self.random.integers(0, 5)),
            failures=0,
            duration=0.001,
        )


def writer_to(directory: Path, limit: int = 1 << 20, **options: Any) -> Writer:
    return Writer(str(directory), limit, WARNINGS.append, **options)


def record(directory: Path, entries: list[Entry], limit: int = 1 << 20, every: int = 10) -> None:
    """Write the entries, some at a time."""
    writer = writer_to(directory, limit)
    for begin in range(0, len(entries), every):
        for entry in entries[begin : begin + every]:
            writer.put(partial(_same, entry))
        writer.flush()
    assert not WARNINGS


def _same(entry: Entry) -> Entry:
    return entry


def read_all(directory: Path) -> tuple[list[Entry], reader.Found]:
    found = reader.Found()
    return list(reader.read(str(directory), found)), found


def ticks_of(directory: Path) -> list[Tick]:
    return [entry for entry in read_all(directory)[0] if isinstance(entry, Tick)]


def assert_same_bits(one: Tick, other: Tick) -> None:
    before, after = batch.table_of(one), batch.table_of(other)
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        twin = after[name]
        if leaf is None or twin is None:
            assert leaf is twin, name
        else:
            assert (leaf.dtype, leaf.shape, leaf.tobytes()) == (twin.dtype, twin.shape, twin.tobytes()), name
    assert (one.engine, one.roster) == (other.engine, other.roster)


# -- what goes in comes out ---------------------------------------------------------------------------------------


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    source = Source(1)
    ticks = [source.tick() for _ in range(25)]
    record(tmp_path, list(ticks))
    entries, found = read_all(tmp_path)
    assert not found.damaged and not found.torn and not found.dropped
    assert len(entries) == 25
    for written, read in zip(ticks, entries, strict=True):
        assert isinstance(read, Tick)
        assert_same_bits(written, read)


_DOUBLES = st.integers(0, 2**64 - 1)


@settings(max_examples=40)
@given(st.lists(st.lists(_DOUBLES, min_size=3, max_size=3), min_size=1, max_size=6), st.integers(0, 3))
def test_any_doubles_at_all_come_back(rows: list[list[int]], repeats: int) -> None:
    """Every bit pattern: NaN with a payload, infinities, subnormal numbers, negative zero."""
    source = Source(2, agents=3)
    tick = source.tick()
    ticks = []
    for row in [*rows, *[rows[0]] * repeats]:
        bits = np.array(row, dtype=np.uint64).view(np.float64)
        problem = replace(tick.inputs.problem, demand=bits, weight=bits[::-1].copy())
        ticks.append(replace(tick, inputs=replace(tick.inputs, problem=problem), share=bits))
    tables = [(item, batch.table_of(item)) for item in ticks]
    body = batch.pack(tables, 4, session="s", with_roster=True)
    one = batch.open_body(body)
    roster = batch.roster_of(one)
    assert roster == source.roster
    for written, read in zip(ticks, batch.unpack(one, {4: roster}), strict=True):
        assert isinstance(read, Tick)
        assert_same_bits(replace(written, session="s"), read)


def test_rows_and_events_come_back_beside_ticks(tmp_path: Path) -> None:
    rows = Rows(5.0, "memory", {"0" * 12: {"entitled": 1.5, "measured": 2.0}})
    event = Happening(6.0, "oom-killed", "0" * 12, "naïve <b>", "t0", '{"a":1}')
    record(tmp_path, [Source(3).tick(), rows, event])
    entries, _ = read_all(tmp_path)
    assert entries[1:] == [rows, event]


def test_a_new_roster_begins_a_new_batch(tmp_path: Path) -> None:
    ticks = [Source(seed, agents=3 + seed).tick() for seed in range(6)]
    record(tmp_path, list(ticks))
    read = ticks_of(tmp_path)
    assert [tick.roster for tick in read] == [tick.roster for tick in ticks]
    for written, back in zip(ticks, read, strict=True):
        assert_same_bits(written, back)


def test_a_part_that_is_not_there_stays_away() -> None:
    inputs = Source(4).tick().inputs
    bare = replace(inputs, trims=None, experience=None)
    assert fields.restore(Inputs, "i", fields.flatten(bare, "i")).trims is None
    with pytest.raises(TypeError, match=r"i\.warm"):
        fields.flatten(replace(inputs, warm="words"), "i")  # type: ignore[arg-type]


def test_a_field_that_a_record_does_not_have_is_told() -> None:
    table = fields.flatten(Source(5).tick().inputs, "inputs")
    del table["inputs.problem.demand"]
    with pytest.raises(AgentosError) as caught:
        fields.restore(Inputs, "inputs", table)
    assert caught.value.code == "record-version"


# -- the ring -----------------------------------------------------------------------------------------------------


def test_the_ring_is_bounded_and_keeps_the_latest(tmp_path: Path) -> None:
    limit = 64 << 10
    source = Source(6, agents=40)
    writer = writer_to(tmp_path, limit)
    for _ in range(120):
        for _ in range(3):
            writer.put(partial(_same, source.tick()))
        writer.flush()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    ticks = ticks_of(tmp_path)
    assert 10 < len(ticks) < 360
    times = [tick.monotonic for tick in ticks]
    assert times == [source.clock - back for back in range(len(times) - 1, -1, -1)]  # the last ones, without a gap
    assert replay(ticks).first is None


def test_what_the_whole_ring_cannot_hold_is_dropped_and_counted(tmp_path: Path) -> None:
    small, large = Source(7, agents=2), Source(8, agents=3000)
    writer = writer_to(tmp_path, 8 << 10)
    for source in (small, large, small):
        writer.put(partial(_same, source.tick()))
        writer.flush()
    entries, found = read_all(tmp_path)
    assert len(entries) == 2
    assert found.dropped == 1


def test_a_second_supervisor_goes_on_in_the_same_ring(tmp_path: Path) -> None:
    first, second = Source(9), Source(10, agents=4)
    record(tmp_path, [first.tick()], limit=1 << 20)
    record(tmp_path, [second.tick()], limit=1 << 20)
    ticks = ticks_of(tmp_path)
    assert [len(tick.share) for tick in ticks] == [7, 4]
    assert len(ring.segments(str(tmp_path))) == 2
    assert ticks[0].session != ticks[1].session


@pytest.mark.parametrize("cut", range(1, 60, 4))
def test_a_frame_that_was_being_written_is_skipped(tmp_path: Path, cut: int) -> None:
    source = Source(11)
    record(tmp_path, [source.tick() for _ in range(30)])
    path = ring.segments(str(tmp_path))[-1]
    os.truncate(path, os.path.getsize(path) - cut)
    entries, found = read_all(tmp_path)
    assert 20 <= len(entries) < 30
    assert found.torn == 1
    assert not found.damaged
    assert run_replay(tmp_path) == 0


@settings(max_examples=60)
@given(data=st.data())
def test_wherever_a_segment_ends_its_beginning_is_whole(data: st.DataObject) -> None:
    whole = b"".join(frames.pack(frames.BATCH, body) for body in (b"first", b"", b"x" * 100))
    end = data.draw(st.integers(0, len(whole)))
    found = list(frames.scan(whole[:end]))
    bodies = [item.body for item in found if isinstance(item, frames.Frame)]
    assert bodies == [b"first", b"", b"x" * 100][: len(bodies)]
    assert all(item.torn for item in found if isinstance(item, frames.Damage))
    assert sum(frames.HEADER + len(body) for body in bodies) == end or isinstance(found[-1], frames.Damage)


@settings(max_examples=80)
@given(data=st.data())
def test_a_flipped_bit_is_found_and_the_other_frames_are_read(data: st.DataObject) -> None:
    bodies = [b"first" * 3, b"second" * 5, b"third" * 2]
    whole = bytearray(b"".join(frames.pack(frames.BATCH, body) for body in bodies))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    found = list(frames.scan(bytes(whole)))
    damaged = [item for item in found if isinstance(item, frames.Damage)]
    assert damaged and not any(item.torn for item in damaged)
    assert len([item for item in found if isinstance(item, frames.Frame) and item.body in bodies]) == 2


def test_a_damaged_ring_is_no_clean_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source(12)
    record(tmp_path, [source.tick() for _ in range(30)])
    assert run_replay(tmp_path) == 0
    assert "30 ticks of 210 shares" in capsys.readouterr().out
    path = Path(ring.segments(str(tmp_path))[0])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    assert run_replay(tmp_path) == 1
    assert "damaged: 0000000001.ticks at byte" in capsys.readouterr().out


def run_replay(directory: Path, last_ticks: int | None = None) -> int:
    return main([msgspec.json.encode(Replay(directory=str(directory), last=last_ticks)).decode()])


def test_no_recording_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_replay(tmp_path) == 125
    assert "error[no-recording]" in capsys.readouterr().err


# -- the writer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_interrupts_the_recording_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source, writer = Source(13), writer_to(tmp_path)
    writer.put(partial(_same, source.tick()))
    writer.flush()

    def refuse(fd: int, data: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("agentos_native.recording.ring.os.write", refuse)
        for _ in range(3):
            writer.put(partial(_same, source.tick()))
            writer.flush()
    assert len(WARNINGS) == 1
    assert os.strerror(number) in WARNINGS[0]
    assert writer.failed
    assert len(ticks_of(tmp_path)) == 1


def test_a_disk_that_has_room_again_is_recorded_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, writer, write = Source(18), writer_to(tmp_path, retry=0.0), os.write
    writer.put(partial(_same, source.tick()))
    writer.flush()

    def half(fd: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr("agentos_native.recording.ring.os.write", half)
        for _ in range(4):
            writer.put(partial(_same, source.tick()))
            writer.flush()
    assert len(WARNINGS) == 1
    assert len(ring.segments(str(tmp_path))) == 1  # none that holds nothing
    writer.put(partial(_same, source.tick()))
    writer.flush()
    entries, found = read_all(tmp_path)
    assert len(entries) == 2
    assert (found.torn, found.dropped) == (1, 4)
    assert run_replay(tmp_path) == 0
    assert not writer.failed
    assert len(WARNINGS) == 1


def test_a_full_disk_in_the_middle_of_a_frame_leaves_a_readable_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, writer, write = Source(14), writer_to(tmp_path), os.write
    writer.put(partial(_same, source.tick()))
    writer.flush()
    calls = []

    def half(fd: int, data: memoryview) -> int:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr("agentos_native.recording.ring.os.write", half)
        writer.put(partial(_same, source.tick()))
        writer.flush()
    entries, found = read_all(tmp_path)
    assert len(entries) == 1
    assert found.torn == 1


def test_entries_beyond_the_queue_are_dropped_and_counted(tmp_path: Path) -> None:
    tick = Source(15).tick()
    writer = writer_to(tmp_path)
    for _ in range(QUEUE + 5):
        writer.put(partial(_same, tick))
    writer.flush()
    entries, found = read_all(tmp_path)
    assert len(entries) == QUEUE
    assert found.dropped == 5


def test_the_thread_writes_in_its_time_and_at_the_end(tmp_path: Path) -> None:
    source = Source(16)
    writer = writer_to(tmp_path, period=0.05)
    writer.start()
    writer.put(partial(_same, source.tick()))
    deadline = time.monotonic() + 20
    while not ring.segments(str(tmp_path)) or not ticks_of(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    writer.put(partial(_same, source.tick()))
    writer.close()
    assert len(ticks_of(tmp_path)) == 2


# -- replay -------------------------------------------------------------------------------------------------------


def test_turns_of_both_engines_are_replayed_bit_for_bit(tmp_path: Path) -> None:
    source = Source(17, agents=50, tenants=3)
    ticks = [source.tick() for _ in range(20)]
    assert alloc.load_compiled()
    ticks += [source.tick() for _ in range(20)]
    record(tmp_path, list(ticks))
    done = replay(ticks_of(tmp_path))
    assert (done.ticks, done.agents, done.differing, done.first) == (40, 2000, 0, None)
    assert done.engines == {"numpy", "numba"}


def _share(tick: Tick) -> Tick:
    share = tick.share.copy()
    share.view(np.uint64)[3] ^= 1  # the last bit there is
    return replace(tick, share=share)


def _weight(tick: Tick) -> Tick:
    agent = tick.weights.agent.copy()
    agent[2] += 1
    return replace(tick, weights=replace(tick.weights, agent=agent))


def _input(tick: Tick) -> Tick:
    problem = tick.inputs.problem
    return replace(tick, inputs=replace(tick.inputs, problem=replace(problem, floor=problem.floor + 0.05)))


@pytest.mark.parametrize(
    ("change", "what"),
    [(_share, "share of agent t0/agent-3"), (_weight, "weights.agent of agent t0/agent-2"), (_input, "")],
)
def test_the_first_difference_is_found(change: Callable[[Tick], Tick], what: str) -> None:
    source = Source(18)
    ticks = [source.tick() for _ in range(9)]
    ticks[5], ticks[7] = change(ticks[5]), change(ticks[7])
    done = replay(ticks)
    assert done.differing == 2
    assert done.first is not None
    assert done.first.tick == 6
    assert what in done.first.what


def test_only_the_last_ticks_are_replayed_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source(19)
    record(tmp_path, [source.tick() for _ in range(12)])
    assert [tick.monotonic for tick in last(ticks_of(tmp_path), 2)] == [111.0, 112.0]
    assert run_replay(tmp_path, 5) == 0
    assert capsys.readouterr().out.startswith("5 ticks of 35 shares")
    assert main([msgspec.json.encode(Replay(directory=str(tmp_path), output="json")).decode()]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ticks"], told["differing"], told["first"], told["engines"]) == (12, 0, None, ["numpy"])


# -- the loop's own recorder --------------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    kernel = Kernel(tmp_path / "kernel")
    monkeypatch.setattr(tick_meter, "Machine", lambda path: kernel)
    one = Loop(kernel)
    yield one
    one.ticker.close()


def test_the_live_loop_is_recorded_and_replayed(loop: Loop, tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path), 1 << 20, loop.names.get, WARNINGS.append)
    loop.ticker.on_turn = recorder.turn
    loop.agent("reserved", weight=50, request=500, threads=2)
    loop.agent("limited", tenant="lab", limit=300)
    for index in range(4):
        loop.agent(f"hog-{index}", weight=300, tier="low" if index % 2 else "normal")
    loop.run(6)
    loop.agent("late", tenant="lab", duty=0.4)
    loop.run(6)
    loop.ticker.remove(next(iter(loop.names)))
    loop.run(6)
    recorder.event(Event(seq=1, ts=1.0, type="started", agent_id="0" * 12, name="reserved", tenant="home", detail={}))
    recorder.event(Event(seq=2, ts=2.0, type="image-imported", agent_id="", name="", tenant="", detail={}))
    recorder.writer.flush()
    entries, found = read_all(tmp_path / "recording")
    ticks = [entry for entry in entries if isinstance(entry, Tick)]
    assert not found.damaged and not WARNINGS
    assert [len(tick.share) for tick in ticks] == [6] * 6 + [7] * 6 + [6] * 6
    done = replay(ticks)
    assert (done.ticks, done.first) == (18, None)
    names = {member.label for member in ticks[8].roster.agents}
    assert {"home/reserved", "lab/late"} <= names
    assert [entry.kind for entry in entries if isinstance(entry, Happening)] == ["started"]
    place = [member.name for member in ticks[5].roster.agents].index("reserved")
    assert ticks[5].used[place] == pytest.approx(loop.kernel.programs["0" * 12].group.share, rel=0.3)


def test_handing_over_is_a_matter_of_microseconds(loop: Loop, tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path), 1 << 20, lambda agent_id: None, WARNINGS.append)
    turns: list[Any] = []
    loop.ticker.on_turn = turns.append
    for index in range(60):
        loop.agent(f"agent-{index}")
    loop.run(2)
    took = []
    for _ in range(200):
        began = time.perf_counter()
        recorder.turn(turns[-1])
        took.append(time.perf_counter() - began)
    assert sorted(took)[100] < 50e-6


def test_controllers_are_asked_for_their_rows(tmp_path: Path) -> None:
    class Memory:
        resource = "memory"

        def rows(self) -> dict[str, dict[str, Any]]:
            return {"a" * 12: {"entitled": 10, "measured": 5.5, "bound": "share", "limit": None, "other": 3}}

    class Broken:
        resource = "io"

        def rows(self) -> dict[str, dict[str, Any]]:
            raise KeyError("a defect")

    recorder = Recorder(str(tmp_path), 1 << 20, lambda agent_id: None, WARNINGS.append)
    recorder._controllers = [Broken(), Memory()]  # type: ignore[list-item]
    recorder.writer.flush()
    entries, _ = read_all(tmp_path / "recording")
    assert [(entry.resource, entry.agents) for entry in entries if isinstance(entry, Rows)] == [
        ("memory", {"a" * 12: {"entitled": 10.0, "measured": 5.5}})
    ]
