"""What users see of a start that waits: a line that says where and why, and the wait of a foreground ``run``."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Final

import click
from msgspec.structs import replace

from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from agentos_native.client import Client
    from agentos_native.wire import api

_PERIOD: Final = 0.2
"""Seconds between two looks at the queue."""
_STARTING: Final = 0.02
"""The same when its turn has come."""
_AWAY: Final = 20.0
"""Seconds that a supervisor may be away."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

no_wait = click.option(
    "--no-wait", "wait", is_flag=True, flag_value=False, default=True, help="Refuse what does not fit now."
)
"""Adds ``--no-wait``; the command gets ``wait``."""


def note(agent: api.Agent) -> str:
    """``2 (1 of home): cpu 500m: 200m of the node's 2000m free``; empty for an agent that does not wait."""
    return place_words(agent.queue, agent.tenant) if agent.queue else ""


def place_words(place: api.QueuePlace, tenant: str) -> str:
    """The same of any place."""
    return f"{place.place} ({place.tenant_place} of {tenant}): {place.waiting_for}"


def tell(agent: api.Agent) -> None:
    """On standard error, when the agent waits: where and for what."""
    if agent.state == "queued":
        print(_line(agent), file=sys.stderr)


def _line(agent: api.Agent) -> str:
    where = f" at place {note(agent)}" if agent.queue else ""
    return f"{agent.tenant}/{agent.name} is queued{where}"


def await_turn(client: Client, agent: api.Agent, attach_again: Callable[[], None]) -> api.Agent:
    """Wait until a queued agent has been started, or has not; a signal ends the wait (and the command, as it would).

    Args:
        attach_again: called when the supervisor was away and is back, since streams to it are broken.
    """
    away = False
    line = _Line()
    last_seen = time.monotonic()
    with _signals_end_it(), line:
        while agent.state in ("queued", "starting"):
            if agent.state == "queued":
                line.show(_line(agent))
            time.sleep(_PERIOD if agent.state == "queued" else _STARTING)
            try:
                if away:
                    attach_again()
                agent, away = client.agent(agent.id), False
                last_seen = time.monotonic()
            except AgentosError as error:
                if error.code == "agent-not-found":  # removed as it ended, or in the queue: the stream says what became
                    return replace(agent, state="exited")
                gone = error.code in ("no-supervisor", "connection-lost")
                if not gone or time.monotonic() - last_seen > _AWAY:
                    raise
                away = True
    return agent


class _Line:
    """One line on standard error: on a terminal the newest in place of the last, elsewhere only the first."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._shown:
            print(file=sys.stderr)

    def show(self, text: str) -> None:
        """Show it, if it is new and can replace the last one."""
        if self._terminal and text != self._shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif not self._shown:
            print(text, file=sys.stderr, flush=True)
        self._shown = text


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    def leave(number: int, _frame: FrameType | None) -> None:
        raise click.exceptions.Exit(128 + number)

    former = {number: signal.signal(number, leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
