"""Logs: bounded, whole lines, nothing lost to followers; drains: every byte once, slow listeners waited for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.supervisor import logs, stdio
from agentos_native.supervisor.drain import Drain, Pace
from agentos_native.supervisor.logs import LogCursor, LogWriter, Stream
from agentos_native.supervisor.streams import Listener


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def texts(lines: list[bytes]) -> list[str]:
    return [json.loads(line)["log"] for line in lines]


def write(directory: Path, *chunks: tuple[Stream, bytes], max_bytes: int = 1 << 20, files: int = 3) -> None:
    async def work() -> None:
        log = LogWriter(str(directory), max_bytes, files, clock=lambda: 7.5)
        for stream, data in chunks:
            log.write(stream, data)
        log.close()

    run(work())


def read(directory: Path, **options: Any) -> list[bytes]:
    cursor = LogCursor(str(directory))
    try:
        return logs.read(cursor, **options)
    finally:
        cursor.close()


def test_lines_are_put_together_by_stream(tmp_path: Path) -> None:
    write(tmp_path, ("stdout", b"on"), ("stderr", b"er\n"), ("stdout", b"e\ntwo\n\nlast"))
    found = [json.loads(line) for line in read(tmp_path)]
    assert [(entry["stream"], entry["log"]) for entry in found] == [
        ("stderr", "er"), ("stdout", "one"), ("stdout", "two"), ("stdout", ""), ("stdout", "last")
    ]  # fmt: skip
    assert [entry["partial"] for entry in found] == [False, False, False, False, True]
    assert {entry["ts"] for entry in found} == {7.5}


def test_long_lines_come_in_pieces_and_bad_bytes_are_marked(tmp_path: Path) -> None:
    write(tmp_path, ("stdout", b"x" * (2 * logs.MAX_LINE + 5) + b"\n\xff\xfe\n"))
    found = [json.loads(line) for line in read(tmp_path)]
    assert "".join(entry["log"] for entry in found[:3]) == "x" * (2 * logs.MAX_LINE + 5)
    assert [entry["partial"] for entry in found] == [True, True, False, False]
    assert found[3]["log"] == "\ufffd\ufffd"


def test_a_line_without_an_end_is_not_kept_for_ever(tmp_path: Path) -> None:
    async def work() -> None:
        log = LogWriter(str(tmp_path), 1 << 20, 3)
        for _ in range(10):
            log.write("stdout", b"y" * 4096)
        assert max(map(len, log._open_lines.values())) < logs.MAX_LINE + 4096
        log.close()

    run(work())
    assert "".join(texts(read(tmp_path))) == "y" * 40960


@pytest.mark.parametrize("files", [1, 2, 4])
def test_the_disk_that_a_log_takes_is_bounded(tmp_path: Path, files: int) -> None:
    write(tmp_path, *[("stdout", b"%05d " % n + b"z" * 90 + b"\n") for n in range(2000)], max_bytes=5000, files=files)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) <= files
    assert all(size <= 5000 for size in sizes)
    numbers = [int(text.split()[0]) for text in texts(read(tmp_path))]
    assert numbers == list(range(numbers[0], 2000))  # the newest, without a gap


def test_tail_since_and_stream(tmp_path: Path) -> None:
    write(tmp_path, ("stdout", b"a\nb\nc\n"), ("stderr", b"d\n"))
    assert texts(read(tmp_path, tail=2)) == ["c", "d"]
    assert texts(read(tmp_path, tail=0)) == []
    assert texts(read(tmp_path, stream="stderr")) == ["d"]
    assert texts(read(tmp_path, since=8.0)) == []
    assert texts(read(tmp_path / "nothing")) == []


def test_a_follower_misses_nothing_across_rotations(tmp_path: Path) -> None:
    async def work() -> list[bytes]:
        log = LogWriter(str(tmp_path), 4000, 3)
        over = False
        found: list[bytes] = []

        async def reader() -> None:
            async for some in logs.follow(LogCursor(str(tmp_path)), lambda: None if over else log.news):
                found.extend(some.split(b"\n"))

        task = asyncio.create_task(reader())
        for number in range(300):
            log.write("stdout", b"%d %s\n" % (number, b"." * 50))
            if number % 10 == 0:
                seen = len(found)
                while len(found) == seen:  # the reader keeps up, so that no file goes that it has not seen
                    await asyncio.sleep(0.001)
        over = True
        log.close()
        await task
        return found

    assert [int(text.split()[0]) for text in texts(run(work()))] == list(range(300))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=300)), max_size=20))
def test_whatever_is_written_comes_back(chunks: list[tuple[Stream, bytes]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), *chunks)
        found = [json.loads(line) for line in read(Path(directory))]
    for stream in ("stdout", "stderr"):
        lines = b"".join(data for name, data in chunks if name == stream).split(b"\n")
        expected = [line.decode("utf-8", "replace") for line in lines]
        if expected[-1] == "":
            expected.pop()
        assert [entry["log"] for entry in found if entry["stream"] == stream] == expected


def test_a_drain_takes_everything_and_survives_its_reader(tmp_path: Path) -> None:
    async def work(text: bytes) -> None:
        pipes = stdio.make(str(tmp_path), os.getuid(), stdin=False)
        log = LogWriter(str(tmp_path), 1 << 20, 3)
        drain = Drain(log, [])
        for fd, stream in pipes.take_readers().items():
            drain.add(fd, stream)
        os.write(pipes.agent[1], text)
        await asyncio.sleep(0.05)
        os.write(pipes.agent[2], b"err " + text)
        for fd in pipes.agent:
            os.close(fd)
        pipes.agent = []
        drain.finish()

    run(work(b"first\n"))
    run(work(b"second\n"))
    assert sorted(texts(read(tmp_path))) == ["err first", "err second", "first", "second"]


def test_the_agents_pipes_hold_what_nobody_reads(tmp_path: Path) -> None:
    pipes = stdio.make(str(tmp_path), os.getuid(), stdin=True)
    for fd in pipes.take_readers():
        os.close(fd)  # the supervisor is dead …
    os.write(pipes.agent[1], b"kept")  # … which is no SIGPIPE
    later = stdio.reopen(str(tmp_path), stdin=True)
    kept = {stream: fd for fd, stream in later.readers.items()}
    assert os.read(kept["stdout"], 100) == b"kept"
    os.write(later.input, b"line\n")
    assert os.read(pipes.agent[0], 100) == b"line\n"
    pipes.close()
    later.close()


def test_a_slow_listener_makes_the_drain_wait_and_loses_nothing(tmp_path: Path) -> None:
    class SlowChannels:
        gone = False
        received = bytearray()

        async def send(self, channel: int, data: bytes) -> None:
            await asyncio.sleep(0.002)
            self.received += data

    async def work() -> None:
        channels = SlowChannels()
        log = LogWriter(str(tmp_path), 100 << 20, 2)
        drain = Drain(log, listeners := [])
        listener = Listener(drain.resume)
        listeners.append(listener)
        reader, writer = os.pipe()
        drain.add(reader, "stdout")
        os.set_blocking(writer, False)
        pump = asyncio.create_task(listener.pump(channels))  # type: ignore[arg-type]
        written, most, blocked = 0, 0, 0
        while written < 3 << 20:
            try:
                written += os.write(writer, b"q" * 65536)
            except BlockingIOError:
                blocked += 1
            most = max(most, listener._size)
            await asyncio.sleep(0)
        os.close(writer)
        while drain._sources:
            await asyncio.sleep(0.01)
        listener.end()
        await pump
        drain.abandon()
        assert len(channels.received) == written
        assert blocked
        assert most <= (1 << 18) + (1 << 16)

    run(work())


def test_a_flood_gets_its_part_of_the_loop_and_no_more(tmp_path: Path) -> None:
    async def work() -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        drain = Drain(LogWriter(str(tmp_path), 1 << 20, 2), [])
        drain.add(reader, "stdout")
        loop = asyncio.get_running_loop()

        def more() -> None:
            with contextlib.suppress(BlockingIOError):
                os.write(writer, b"short line\n" * 5000)
            if loop.time() < end:
                loop.call_later(0.002, more)

        end = loop.time() + 1.5
        spent = time.thread_time()
        more()
        await asyncio.sleep(1.5)
        assert time.thread_time() - spent < 0.6  # about a fifth for the drain, and something for the flood itself
        os.close(writer)
        drain.finish()
        assert Pace.resting == 0

    run(work())
    assert read(tmp_path, tail=1)
