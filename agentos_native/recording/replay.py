"""Computing recorded turns anew: the same inputs on the same engine must give the same bits.

It proves that a record is whole and that the allocator is a pure function of it; with a changed allocator it shows the
first turn in which the change matters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np

from agentos_native import alloc
from agentos_native.alloc import engines
from agentos_native.errors import AgentosError
from agentos_native.recording.fields import Array, flatten
from agentos_native.recording.model import Tick


@dataclass(frozen=True)
class Difference:
    """The first place in which a turn came out otherwise."""

    tick: int
    wall: float
    what: str
    recorded: float
    computed: float


@dataclass
class Replayed:
    """What a replay did; `agents` is the sum over all ticks."""

    ticks: int = 0
    agents: int = 0
    differing: int = 0
    first: Difference | None = None
    engines: set[str] | None = None


def last(ticks: Iterable[Tick], count: int | None) -> Iterator[Tick]:
    """The last `count` of `ticks`; all of them where it is None."""
    return iter(ticks) if count is None else iter(deque(ticks, maxlen=count))


def use(engine: str) -> None:
    """Compute by this engine. Raises ``no-engine``."""
    if not engines.use(engine):
        hint = (
            "" if engine not in get_args(engines.Engine) else "install numba: a large node's ticks were computed by it"
        )
        raise AgentosError("no-engine", f"the recorded engine {engine} is not here", hint=hint)


def replay(ticks: Iterable[Tick]) -> Replayed:
    """Compute every tick anew and compare."""
    done = Replayed(engines=set())
    engine = None
    for number, tick in enumerate(ticks, 1):
        if tick.engine != engine:
            engine = tick.engine
            use(engine)
        assert done.engines is not None
        done.engines.add(tick.engine)
        outcome = alloc.turn(tick.inputs)
        difference = _compare(number, tick, outcome)
        done.ticks += 1
        done.agents += len(tick.share)
        done.differing += difference is not None
        done.first = done.first or difference
    return done


def _compare(number: int, tick: Tick, outcome: alloc.Outcome) -> Difference | None:
    recorded = {"share": tick.share, **flatten(tick.weights, "weights")}
    computed = {"share": outcome.solution.share, **flatten(outcome.weights, "weights")}
    for name, before in recorded.items():
        after = computed.get(name)
        if before is None or after is None:
            if before is not after:
                return Difference(number, tick.wall, name, float("nan"), float("nan"))
            continue
        place = _first_difference(before, after)
        if place is not None:
            return Difference(number, tick.wall, _where(name, place, tick), *_at(place, before, after))
    return None


def _first_difference(before: Array, after: Array) -> int | None:
    """The flat index of the first entry whose bits differ; -1 where the shapes do."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return -1
    bits = np.dtype(f"u{before.dtype.itemsize}")
    unequal = np.ascontiguousarray(before).view(bits) != np.ascontiguousarray(after).view(bits)
    places = np.flatnonzero(unequal)
    return int(places[0]) if len(places) else None


def _at(place: int, before: Array, after: Array) -> tuple[float, float]:
    if place < 0:
        return float(before.size), float(after.size)
    return float(before.ravel()[place]), float(after.ravel()[place])


def _where(name: str, place: int, tick: Tick) -> str:
    """In words."""
    if place < 0:
        return f"the number of {name}"
    if name in ("share", "weights.agent"):
        return f"{name} of agent {tick.roster.agents[place].label}"
    if name.startswith("weights.group"):
        tenant, tier = divmod(place, alloc.TIERS)
        return f"{name} of tenant {tick.roster.tenants[tenant]}, tier {tier}"
    if name.startswith("weights.tenant"):
        return f"{name} of tenant {tick.roster.tenants[place]}"
    return f"{name}[{place}]"
