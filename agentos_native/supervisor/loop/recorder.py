"""What the loop hands to the recording: its turns, the rows of the other controllers, and events worth drawing.

Everything here costs its caller microseconds, unless agents have come or gone: entries are made in the recording's own
thread.
`agentos_native.recording` has the rest.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np

from agentos_native import alloc
from agentos_native.recording.model import Happening, Member, Roster, Rows, Tick
from agentos_native.recording.ring import DIRECTORY
from agentos_native.recording.writer import Writer
from agentos_native.supervisor.loop.controllers import Controller
from agentos_native.supervisor.loop.slots import Agent
from agentos_native.supervisor.loop.ticker import Turn
from agentos_native.wire.api import Event

_log = logging.getLogger("agentos_native.supervisor")
QUIET: Final = frozenset(("created", "signalled", "stopping", "removed"))
"""Kinds of events about agents that say nothing beside the shares."""
WORDS: Final = ("request", "limit", "demand", "entitled", "measured")
"""Of another controller's rows."""
DETAIL: Final = 300
"""Characters of an event's detail."""


class Recorder:
    """Between the loop and the recording's writer.

    Args:
        state_dir: the ring is below it.
        limit: bytes of the ring.
        name: an agent's name by its id; called from the tick's thread.
        warn: told once when nothing can be recorded any more.
    """

    def __init__(
        self, state_dir: str, limit: int, name: Callable[[str], str | None], warn: Callable[[str], None]
    ) -> None:
        self._name = name
        self._controllers: Sequence[Controller] = ()
        self._members: dict[str, Member] = {}
        self._agents: tuple[Agent, ...] | None = None
        self._roster = Roster((), ())
        self._told: set[str] = set()
        self.writer = Writer(os.path.join(state_dir, DIRECTORY), limit, warn, self._sample)

    def start(self, controllers: Sequence[Controller] = ()) -> None:
        """Begin; `controllers` are asked for their rows before each write."""
        self._controllers = controllers
        self.writer.start()

    def close(self) -> None:
        """Write what waits, and end."""
        self.writer.close()

    def turn(self, turn: Turn) -> None:
        """For `Ticker.on_turn`."""
        if turn.agents is not self._agents:  # now, while all of them have their names
            self._agents, before = turn.agents, self._members
            self._members = {agent.agent_id: self._member(agent, before.get(agent.agent_id)) for agent in turn.agents}
            self._roster = Roster(tuple(self._members.values()), turn.tenants)
        if turn.engine == alloc.engine():  # else the engine was changed within the turn, which nobody could replay
            self.writer.put(partial(_tick, turn, self._roster, time.time()))

    def event(self, event: Event) -> None:
        """For `Events.on_event`."""
        if event.name and event.type not in QUIET:  # a refused start has a name and no id
            self.writer.put(partial(_happening, event))

    def _member(self, agent: Agent, known: Member | None) -> Member:
        if known is not None and known.tier == agent.ref.tier and known.name != agent.agent_id:
            return known
        name = self._name(agent.agent_id) or agent.agent_id
        return Member(agent.agent_id, name, agent.ref.tenant, agent.ref.tier, agent.agent_type)

    # -- in the recording's thread ------------------------------------------------------------------------------

    def _sample(self) -> Iterator[Rows]:
        """What each of the other controllers gives now."""
        for controller in self._controllers:
            try:
                rows = controller.rows()
                known = {agent_id: _numbers(row) for agent_id, row in rows.items() if row.get("measured") is not None}
            except Exception as error:  # whatever is wrong with one resource, the others are recorded
                if controller.resource not in self._told:
                    self._told.add(controller.resource)
                    _log.warning("%s is not recorded: %s: %s", controller.resource, type(error).__name__, error)
                continue
            if known:
                yield Rows(time.time(), controller.resource, known)


def _tick(turn: Turn, roster: Roster, wall: float) -> Tick:
    return Tick(
        monotonic=turn.time,
        wall=wall,
        roster=roster,
        engine=turn.engine,
        inputs=turn.inputs,
        share=turn.outcome.solution.share,
        weights=turn.outcome.weights,
        used=turn.used.astype(np.float32),
        stalled=turn.stalled.astype(np.float32),
        writes=turn.writes,
        failures=turn.failures,
        duration=turn.duration,
    )


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {word: float(row[word]) for word in WORDS if isinstance(row.get(word), int | float)}


def _happening(event: Event) -> Happening:
    detail = msgspec.json.encode(event.detail).decode()[:DETAIL] if event.detail else ""
    return Happening(event.ts, event.type, event.agent_id, event.name, event.tenant, detail)
