"""A build's events: order, lines out of pieces, and a client that is slow."""

from __future__ import annotations

import asyncio

import msgspec

from agentos_native.supervisor.building.feed import KEPT_LINES, Feed, Output
from agentos_native.wire.images import ImageEvent


def collect(*pieces: tuple[str, bytes]) -> tuple[list[tuple[str, str]], list[str]]:
    """What the pieces of output become: (stream, line) each, and the kept ones."""

    async def work() -> tuple[list[tuple[str, str]], list[str]]:
        feed = Feed()
        output = Output(feed, 3)
        for stream, data in pieces:
            output.feed(stream, data)  # type: ignore[arg-type]
        output.finish()
        feed.end()
        events = [msgspec.json.decode(line, type=ImageEvent) async for line in feed.lines()]
        assert {(event.kind, event.step) for event in events} <= {("log", 3)}
        return [(event.stream, event.text) for event in events], list(output.last)

    return asyncio.run(work())


def test_lines_are_put_together_from_pieces() -> None:
    lines, last = collect(
        ("stdout", b"one\ntw"), ("stderr", b"error "), ("stdout", b"o\r\n\n"), ("stderr", b"here\n"), ("stdout", b"end")
    )
    assert lines == [
        ("stdout", "one"), ("stdout", "two"), ("stdout", ""), ("stderr", "error here"), ("stdout", "end")
    ]  # fmt: skip
    assert last == ["one", "two", "", "error here", "end"]


def test_a_character_may_come_in_two_pieces_and_what_is_none_is_shown() -> None:
    lines, _ = collect(("stdout", b"caf\xc3"), ("stdout", b"\xa9\n\xff\n"))
    assert lines == [("stdout", "café"), ("stdout", "\ufffd")]


def test_a_line_without_an_end_is_cut() -> None:
    lines, last = collect(*[("stdout", b"x" * 10_000)] * 10)
    assert sum(len(line) for _, line in lines) == 100_000
    assert max(len(line) for _, line in lines) <= 16 << 10
    lines, last = collect(("stdout", b"y\n" * 1000))
    assert (len(lines), len(last)) == (1000, KEPT_LINES)


def test_a_slow_client_holds_the_output_back_until_it_has_caught_up() -> None:
    async def work() -> None:
        feed = Feed()
        called = []
        feed.on_room = lambda: called.append(feed.behind)
        for _ in range(200):
            feed.put(ImageEvent(kind="log", text="x" * 8000))
        assert feed.behind
        feed.end()
        assert len([line async for line in feed.lines()]) == 200
        assert called == [False]

    asyncio.run(work())
