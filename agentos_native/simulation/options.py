"""What a simulation is asked to do, as the command line passes it on to the process that simulates."""

from __future__ import annotations

from typing import Literal

import msgspec

from agentos_native.spec.model import Policy


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation. CPU in CPUs, memory in bytes, network in bits per second, times in seconds.

    Attributes:
        trace: path of the trace, ``-`` for standard input.
        specs: documents of agents and tenants.
        cpus: None: as many as this machine has.
        memory, network_rate: None: the machine has enough of it, and it is not divided.
        slots: agents that run at once at most; None: no bound.
        wait: starts that do not fit wait for room; else they are refused.
        until: where the simulation ends; None: with the last line of the trace, and when nobody waits any more.
        engine: None: numba from some hundred agents on.
        find_cpus: look for the smallest number of CPUs with which no reservation is short and nobody waits longer than
            this many seconds; None: do not.
        top: agents shown.
    """

    trace: str
    specs: tuple[str, ...] = ()
    cpus: float | None = None
    memory: int | None = None
    network_rate: int | None = None
    slots: int | None = None
    policy: Policy = "maxmin"
    wait: bool = True
    period: float = 1.0
    until: float | None = None
    engine: Literal["numpy", "numba"] | None = None
    find_cpus: float | None = None
    output: Literal["text", "json"] = "text"
    plot: str | None = None
    csv: str | None = None
    top: int = 10
