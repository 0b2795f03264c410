"""What is recorded, as whoever hands it over and whoever reads it sees it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentos_native import alloc
from agentos_native.alloc.waterfill import Floats


@dataclass(frozen=True)
class Member:
    """An agent as people know it."""

    agent_id: str
    name: str
    tenant: str
    tier: str
    type: str = ""

    @property
    def label(self) -> str:
        return f"{self.tenant}/{self.name}"


@dataclass(frozen=True)
class Roster:
    """Who took part, in the order of the problem's arrays. The same object for as long as nothing changes."""

    agents: tuple[Member, ...]
    tenants: tuple[str, ...]


@dataclass(frozen=True)
class Tick:
    """One turn.

    Attributes:
        monotonic, wall: seconds of the two clocks.
        inputs, share, weights: what went in and what came out; the rest of the outcome follows from them.
        used, stalled: CPUs that each agent used since the tick before, and the fraction of that time in which it waited
            (NaN: unknown); single precision, shape (n,).
        writes, failures: weights written, and those the kernel refused.
        duration: seconds that the tick took.
        session: of the process that recorded it.
    """

    monotonic: float
    wall: float
    roster: Roster
    engine: str
    inputs: alloc.Inputs
    share: Floats
    weights: alloc.Weights
    used: np.ndarray[Any, np.dtype[np.float32]]
    stalled: np.ndarray[Any, np.dtype[np.float32]]
    writes: int
    failures: int
    duration: float
    session: str = ""


@dataclass(frozen=True)
class Rows:
    """What another controller gave at one time, in its resource's unit: by agent id, then by word."""

    wall: float
    resource: str
    agents: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Happening:
    """An event of the supervisor."""

    wall: float
    kind: str
    agent_id: str
    name: str
    tenant: str
    detail: str = ""

    @property
    def label(self) -> str:
        return f"{self.tenant}/{self.name}" if self.name else self.tenant


Entry = Tick | Rows | Happening


def this_session() -> str:
    """A name for this process, different from every other's on the machine."""
    return f"{os.getpid()}-{time.monotonic_ns():x}"


@dataclass
class Opening:
    """What a segment begins with: by whom it was written, since bits depend on it."""

    session: str = field(default_factory=this_session)
    version: int = 1
    numpy: str = np.__version__
    numba: str = ""
    machine: str = field(default_factory=lambda: os.uname().machine)
