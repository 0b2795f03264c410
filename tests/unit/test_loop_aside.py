"""Turns beside the tick: one at a time, none waited for, trouble told once, and the running one finished at the end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from agentos_native.supervisor.loop.aside import Aside


class Slow:
    """A controller whose turn lasts until it is let go."""

    resource = "memory"
    period = 2.0

    def __init__(self) -> None:
        self.turns: list[float] = []
        self.go = threading.Event()
        self.error: Exception | None = None
        self.closed_after = -1

    def turn(self, now: float) -> None:
        self.go.wait(10)
        self.turns.append(now)
        if self.error is not None:
            raise self.error

    def rows(self) -> dict[str, dict[str, Any]]:
        return {"a": {}}

    def close(self) -> None:
        self.closed_after = len(self.turns)


def wait_for(what: Any) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_turn_that_lasts_holds_nobody_up_and_the_next_is_left_out() -> None:
    slow = Slow()
    aside = Aside(slow)  # type: ignore[arg-type]
    began = time.monotonic()
    aside.turn(1.0)
    wait_for(lambda: aside._busy)
    aside.turn(2.0)
    assert aside.rows() == {"a": {}}
    assert time.monotonic() - began < 5
    slow.go.set()
    wait_for(lambda: slow.turns and not aside._busy)
    aside.turn(3.0)
    wait_for(lambda: len(slow.turns) == 2)
    assert slow.turns == [1.0, 3.0]
    aside.close()
    assert slow.closed_after == 2


def test_trouble_is_told_once_and_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()
    slow.go.set()
    slow.error = OSError(5, "broken")
    aside = Aside(slow)  # type: ignore[arg-type]
    for count in (1, 2, 3):
        aside.turn(float(count))
        wait_for(lambda count=count: len(slow.turns) == count and not aside._busy)
    assert len(caplog.records) == 1
    aside.close()
    assert slow.closed_after == 3


def test_closing_what_never_turned() -> None:
    slow = Slow()
    Aside(slow).close()  # type: ignore[arg-type]
    assert slow.closed_after == 0
