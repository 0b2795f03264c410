"""What a simulation says: figures of each tick by tenant (by agent, while they are few), and totals of each agent."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from agentos_native.alloc.waterfill import Floats, Indices
from agentos_native.errors import AgentosError
from agentos_native.simulation.crowd import REFUSED, UNIT, WAITING, Crowd
from agentos_native.simulation.run import Machine, Moment, Simulation

FEW: Final = 1000
"""Agents whose shares are kept tick by tick; of more, only their totals are."""
SHORT: Final = 0.01
"""Of a reservation: less than this is the rounding of weights, and no shortfall."""


@dataclass(frozen=True)
class Series:
    """One tenant, or the agents of a small trace, over time: lists with an entry for each tick, in CPUs."""

    wanted: list[float] = field(default_factory=list)
    entitled: list[float] = field(default_factory=list)
    had: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    network: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class AgentTotal:
    """One agent. CPUs on average over the time it ran; `short` is reserved, wanted and not had (CPU-seconds).

    Attributes:
        waited: seconds from its arrival to its start; None when it never started.
    """

    tenant: str
    agent: str
    ran: float
    waited: float | None
    refused: bool
    wanted: float
    entitled: float
    had: float
    short: float
    worst_short: float


@dataclass(frozen=True)
class TenantTotal:
    """One tenant: CPUs on average over the whole time, and what its agents met."""

    tenant: str
    agents: int
    wanted: float
    entitled: float
    had: float
    short: float
    waits: int
    mean_wait: float
    worst_wait: float
    refused: int
    still_waiting: int


class Tally:
    """Gathers moments: `Simulation` calls it with each; `settle` comes before totals are read."""

    def __init__(self, crowd: Crowd, machine: Machine) -> None:
        self._crowd = crowd
        self.machine = machine
        count = len(crowd)
        self.ran, self.wanted, self.entitled, self.had, self.short, self.worst = (np.zeros(count) for _ in range(6))
        self.times: list[float] = []
        self.running: list[int] = []
        self.waiting: list[int] = []
        self.short_now: list[float] = []
        self.tenants = {name: Series() for name in crowd.tenants}
        self.agents: dict[int, dict[str, list[float]]] = {}
        self._each = count <= FEW
        self._order: Indices = np.zeros(0, dtype=np.int64)
        self._sums = np.zeros((5, 0))
        self._ticks = 0
        self._period = 1.0

    def __call__(self, moment: Moment) -> None:
        if moment.order is not self._order:
            self.settle()
            self._order = moment.order
            self._sums = np.zeros((5, len(moment.order)))
        short = np.minimum(moment.floor, moment.wanted) - moment.had
        short[short <= SHORT * moment.floor] = 0.0
        for index, values in enumerate((moment.wanted, moment.entitled, moment.had, short)):
            self._sums[index] += values
        np.maximum(self._sums[4], short, out=self._sums[4])
        self._ticks += 1
        self._period = moment.period
        self.times.append(moment.time)
        self.running.append(len(moment.order))
        self.waiting.append(sum(moment.waiting))
        self.short_now.append(float(short.sum()))
        self._by_tenant(moment)
        if self._each:
            self._by_agent(moment)

    def settle(self) -> None:
        """Bring the totals up to date: while nobody comes or goes, sums are kept in the order of those who run."""
        order, seconds = self._order, self._period
        for total, sums in zip((self.wanted, self.entitled, self.had, self.short), self._sums, strict=False):
            total[order] += sums * seconds
        self.worst[order] = np.maximum(self.worst[order], self._sums[4])
        self.ran[order] += self._ticks * seconds
        self._order, self._sums, self._ticks = np.zeros(0, dtype=np.int64), np.zeros((5, 0)), 0

    def _by_tenant(self, moment: Moment) -> None:
        count = len(self.tenants)
        tenant = self._crowd.tenant[moment.order]
        columns = {
            name: np.bincount(tenant, values, minlength=count)
            for name, values in (("wanted", moment.wanted), ("entitled", moment.entitled), ("had", moment.had))
        }
        now = self._crowd.tenant[self._crowd.order]
        for name, share in moment.shares.items():
            columns[name] = np.bincount(now, share, minlength=count)
        for index, series in enumerate(self.tenants.values()):
            for name, values in columns.items():
                getattr(series, name).append(float(values[index]))

    def _by_agent(self, moment: Moment) -> None:
        for place, entitled, had in zip(
            moment.order.tolist(), moment.entitled.tolist(), moment.had.tolist(), strict=True
        ):
            series = self.agents.setdefault(place, {"time": [], "entitled": [], "had": []})
            series["time"].append(moment.time)
            series["entitled"].append(entitled)
            series["had"].append(had)

    def label(self, index: int) -> str:
        """Tenant and name of one agent."""
        return "/".join(self._crowd.label(index))

    # -- what it comes to ---------------------------------------------------------------------------------------

    def waits(self) -> Floats:
        """Seconds from arrival to start of those that started."""
        waited: Floats = self._crowd.started - self._crowd.arrived
        return np.clip(waited[~np.isnan(waited)], 0.0, None)

    def agent_total(self, index: int) -> AgentTotal:
        """What one agent had."""
        crowd = self._crowd
        tenant, name = crowd.label(index)
        ran = float(self.ran[index])
        started = float(crowd.started[index])
        wanted, entitled, had = (
            float(total[index]) / ran if ran else 0.0 for total in (self.wanted, self.entitled, self.had)
        )
        return AgentTotal(
            tenant=tenant,
            agent=name,
            ran=ran,
            waited=None if np.isnan(started) else max(started - float(crowd.arrived[index]), 0.0),
            refused=bool(crowd.state[index] == REFUSED),
            wanted=wanted,
            entitled=entitled,
            had=had,
            short=float(self.short[index]),
            worst_short=float(self.worst[index]),
        )

    def worst_agents(self, count: int) -> list[AgentTotal]:
        """Those with the largest shortfall of their reservation, then those that got the least of what they wanted."""
        lacking = np.divide(self.wanted - self.had, self.wanted, out=np.zeros_like(self.had), where=self.wanted > 0)
        first = np.lexsort((-lacking, -self.short))[:count]
        return [self.agent_total(int(index)) for index in first]

    def tenant_totals(self) -> list[TenantTotal]:
        """Every tenant."""
        crowd, time = self._crowd, self.times[-1] if self.times else 1.0
        waited = np.maximum(crowd.started - crowd.arrived, 0.0)
        totals = []
        for name, index in crowd.tenants.items():
            mine = np.flatnonzero(crowd.tenant == index)
            mine = mine[~np.isnan(crowd.arrived[mine])]
            waits = waited[mine]
            waits = waits[waits > 0]  # NaN compares false
            totals.append(
                TenantTotal(
                    tenant=name,
                    agents=len(mine),
                    wanted=float(self.wanted[mine].sum()) / time,
                    entitled=float(self.entitled[mine].sum()) / time,
                    had=float(self.had[mine].sum()) / time,
                    short=float(self.short[mine].sum()),
                    waits=len(waits),
                    mean_wait=float(waits.mean()) if len(waits) else 0.0,
                    worst_wait=float(waits.max()) if len(waits) else 0.0,
                    refused=int((crowd.state[mine] == REFUSED).sum()),
                    still_waiting=int((crowd.state[mine] == WAITING).sum()),
                )
            )
        return totals

    def summary(self, simulation: Simulation, seconds: float) -> dict[str, Any]:
        """The whole in a few figures."""
        machine, waits = self.machine, self.waits()
        time = self.times[-1] if self.times else 0.0
        used = float(self.had.sum())
        return {
            "cpus": machine.cpus,
            "memory": None if machine.memory is None else machine.memory * UNIT["memory"],
            "network_rate": None if machine.network is None else machine.network * UNIT["network"],
            "agents": len(self._crowd),
            "most_at_once": max(self.running, default=0),
            "time": time,
            "ticks": simulation.ticks,
            "ticks_computed": simulation.computed,
            "seconds": seconds,
            "utilisation": used / (machine.cpus * time) if time else 0.0,
            "short_cpu_seconds": float(self.short.sum()),
            "agents_short": int((self.short > 0).sum()),
            "waited": int((waits > 0).sum()),
            "worst_wait": float(waits.max(initial=0.0)),
            "mean_wait": float(waits[waits > 0].mean()) if (waits > 0).any() else 0.0,
            "refused": int((self._crowd.state == REFUSED).sum()),
            "still_waiting": int((self._crowd.state == WAITING).sum()),
        }

    def to_json(self, simulation: Simulation, seconds: float, top: int) -> dict[str, Any]:
        """Everything as builtins."""
        labels = {place: self.label(place) for place in self.agents}
        return {
            "summary": self.summary(simulation, seconds),
            "tenants": [asdict(total) for total in self.tenant_totals()],
            "agents": [asdict(total) for total in self.worst_agents(top)],
            "series": {
                "time": self.times,
                "running": self.running,
                "waiting": self.waiting,
                "short": self.short_now,
                "tenants": {name: _filled(asdict(series)) for name, series in self.tenants.items()},
                "agents": {labels[place]: series for place, series in self.agents.items()},
            },
        }

    def write_csv(self, path: str) -> None:
        """One row for each tick and tenant, and each tick and agent of a small trace. Raises ``cannot-write``."""
        try:
            with open(path, "w", encoding="utf-8", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(("time", "tenant", "agent", "wanted_cpus", "entitled_cpus", "had_cpus"))
                for name, series in self.tenants.items():
                    columns = (self.times, series.wanted, series.entitled, series.had)
                    rows.writerows((time, name, "", *_rounded(values)) for time, *values in zip(*columns, strict=True))
                for place, one in self.agents.items():
                    tenant, agent = self._crowd.label(place)
                    for time, entitled, had in zip(one["time"], one["entitled"], one["had"], strict=True):
                        rows.writerow((time, tenant, agent, "", *_rounded((entitled, had))))
        except OSError as error:
            raise AgentosError("cannot-write", error.strerror or str(error), path)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]


def _filled(series: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: values for name, values in series.items() if values}
