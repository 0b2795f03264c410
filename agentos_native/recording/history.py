"""Recorded entries as figures over time: however long and however many, in bounded memory.

Time is cut into at most `BUCKETS` equal parts, which become twice as long whenever the record outgrows them; of each
agent and part the sums are kept. The axis follows the monotonic clock within a session of the recorder, so that a step
of the wall clock does not fold it.

What an agent is *due* in a tick is what it was entitled to since the tick before, or what it could use if that is less;
what it could use is estimated from its use and its waiting, as the allocator does. Shortfalls are averages over some
seconds: within a second or two the kernel owes nothing to anybody.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agentos_native.alloc import demand
from agentos_native.alloc.waterfill import Floats
from agentos_native.recording.model import Happening, Member, Roster, Rows, Tick

BUCKETS: Final = 360
SMOOTHING: Final = 4.0
"""Seconds over which use and due are averaged before they are compared."""
MARKS: Final = 2000
"""Events kept, the last ones."""
Sums = NDArray[np.float64]


@dataclass
class Agent:
    """One agent's totals. CPUs; `error` is the mean distance of use and due, `worst` the largest shortfall."""

    member: Member
    row: int
    ticks: int = 0
    entitled: float = 0.0
    used: float = 0.0
    error: float = 0.0
    worst: float = 0.0
    stalled: float = 0.0
    floor: float = 0.0
    limit: float = float("inf")
    weight: float = 0.0


class Axis:
    """Seconds since the first tick, and which part of the time that is.

    Attributes:
        begin: wall-clock time of the first tick; `width`: seconds of a part; `used`: parts so far.
    """

    def __init__(self) -> None:
        self.begin = 0.0
        self.width = 1.0
        self.used = 0
        self._session = ""
        self._offset = 0.0
        self._last = -1.0

    def place(self, tick: Tick) -> float:
        """Seconds since the first tick."""
        if self._last < 0:
            self.begin, self._last = tick.wall, 0.0
        if tick.session != self._session:
            self._session = tick.session
            self._offset = max(tick.wall - self.begin, self._last) - tick.monotonic
        self._last = max(tick.monotonic + self._offset, self._last)
        return self._last

    def of_wall(self, wall: float) -> float:
        """The same for a time of the wall clock."""
        return max(wall - self.begin, 0.0)

    @property
    def end(self) -> float:
        return self.used * self.width


class Table:
    """Sums by row and part of the time: shape (rows, BUCKETS) for each name."""

    def __init__(self, *names: str) -> None:
        self.sums: dict[str, Sums] = {name: np.zeros((16, BUCKETS)) for name in names}

    def grow(self, rows: int) -> None:
        for name, sums in self.sums.items():
            if rows > len(sums):
                more = max(len(sums), rows - len(sums))
                self.sums[name] = np.concatenate([sums, np.zeros((more, BUCKETS))])

    def halve(self) -> None:
        """Parts become twice as long."""
        for name, sums in self.sums.items():
            merged = np.zeros_like(sums)
            merged[:, : BUCKETS // 2] = sums[:, 0::2] + sums[:, 1::2]
            self.sums[name] = merged

    def add(self, name: str, rows: Any, part: int, values: Any) -> None:
        """`rows` are distinct."""
        self.sums[name][rows, part] += values

    def mean(self, name: str, row: int, count: str = "count") -> Floats:
        """The means of a row, NaN where nothing is known."""
        sums, counts = self.sums[name][row], self.sums[count][row]
        means = np.full(BUCKETS, np.nan)
        means[counts > 0] = sums[counts > 0] / counts[counts > 0]
        return means


@dataclass
class History:
    """Everything that a page shows.

    Attributes:
        since: ticks before this time of the wall clock are left out.
        agents: by id, in the order of their appearance.
        by_agent: sums of used, entitled, due, floor, limit (0: none), stalled; `node`: of the whole, in row 0.
        resources: of each other resource: entitled and measured by agent's row.
    """

    since: float = 0.0
    axis: Axis = field(default_factory=Axis)
    agents: dict[str, Agent] = field(default_factory=dict)
    by_agent: Table = field(
        default_factory=lambda: Table("count", "used", "entitled", "due", "floor", "limit", "stalled", "waited")
    )
    node: Table = field(
        default_factory=lambda: Table("count", "writes", "failures", "duration", "capacity", "agents", "used")
    )
    resources: dict[str, Table] = field(default_factory=dict)
    happenings: deque[Happening] = field(default_factory=lambda: deque(maxlen=MARKS))
    kinds: Counter[str] = field(default_factory=Counter)
    ticks: int = 0
    writes: int = 0
    failures: int = 0
    _roster: Roster | None = None
    _rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _share: Floats = field(default_factory=lambda: np.full(16, np.nan))  # of the tick before, by row; NaN: not there
    _smooth: Floats = field(default_factory=lambda: np.full((2, 16), np.nan))  # use and due, by row
    _totals: Floats = field(default_factory=lambda: np.zeros((6, 16)))
    _before: float = -1.0
    _last: Tick | None = None

    def gather(self, entries: Iterable[Tick | Rows | Happening]) -> History:
        """Take everything in."""
        for entry in entries:
            if isinstance(entry, Tick):
                if entry.wall >= self.since:
                    self._tick(entry)
            elif entry.wall >= self.since and self.ticks:
                if isinstance(entry, Rows):
                    self._resource(entry)
                else:
                    self.kinds[entry.kind] += 1
                    self.happenings.append(entry)
        self._finish()
        return self

    # -- taking in ----------------------------------------------------------------------------------------------

    def _part(self, seconds: float) -> int:
        while seconds >= BUCKETS * self.axis.width:
            for table in (self.by_agent, self.node, *self.resources.values()):
                table.halve()
            self.axis.width *= 2
            self.axis.used = (self.axis.used + 1) // 2
        part = int(seconds / self.axis.width)
        self.axis.used = max(self.axis.used, part + 1)
        return part

    def _follow(self, roster: Roster) -> None:
        """Rows for those who are there now."""
        for member in roster.agents:
            known = self.agents.get(member.agent_id)
            if known is None:
                self.agents[member.agent_id] = Agent(member, len(self.agents))
            elif known.member.tier != member.tier or known.member.name == member.agent_id:
                known.member = member
        self._rows = np.array([self.agents[member.agent_id].row for member in roster.agents], dtype=np.int64)
        count = len(self.agents)
        self.by_agent.grow(count)
        for table in self.resources.values():
            table.grow(count)
        more = len(self.by_agent.sums["count"]) - len(self._share)
        self._share = np.append(self._share, np.full(more, np.nan))
        self._smooth = np.concatenate([self._smooth, np.full((2, more), np.nan)], axis=1)
        self._totals = np.concatenate([self._totals, np.zeros((6, more))], axis=1)
        known_share = np.full(len(self._share), np.nan)
        known_share[self._rows] = self._share[self._rows]
        self._share = known_share  # whoever is not there now begins afresh when it comes again
        self._roster = roster

    def _tick(self, tick: Tick) -> None:
        if self._last is not None and tick.session != self._last.session:
            self._share[:] = np.nan  # nobody knows what was between two supervisors
        seconds = self.axis.place(tick)
        part = self._part(seconds)
        if tick.roster is not self._roster:
            if self._roster is None or tick.roster != self._roster:
                self._follow(tick.roster)
            self._roster = tick.roster
        elapsed, self._before = seconds - self._before, seconds
        rows, problem = self._rows, tick.inputs.problem
        if self._last is not None and tick.roster is not self._last.roster:
            self._weigh()  # some of its agents may not be there any more
        self._last = tick
        self.ticks += 1
        self.writes += tick.writes
        self.failures += tick.failures
        if tick.inputs.elapsed <= 0:  # a session's first tick: nobody was measured
            self._share[rows] = tick.share
            return
        used = tick.used.astype(np.float64)
        stalled = tick.stalled.astype(np.float64)
        due = self._due(used, stalled, tick)
        limit = np.where(np.isfinite(problem.ceiling), problem.ceiling, 0.0)
        for name, values in (
            ("count", 1.0),
            ("used", used),
            ("entitled", tick.share),
            ("due", due),
            ("floor", problem.floor),
            ("limit", limit),
            ("stalled", np.nan_to_num(stalled)),
            ("waited", (~np.isnan(stalled)).astype(np.float64)),
        ):
            self.by_agent.add(name, rows, part, values)
        self._sum_up(rows, used, due, np.nan_to_num(stalled), tick.share, elapsed)
        self._share[rows] = tick.share
        for name, value in (
            ("count", 1.0),
            ("writes", tick.writes),
            ("failures", tick.failures),
            ("duration", tick.duration),
            ("capacity", problem.capacity),
            ("agents", len(rows)),
            ("used", float(used.sum())),
        ):
            self.node.add(name, 0, part, value)

    def _due(self, used: Floats, stalled: Floats, tick: Tick) -> Floats:
        """What each was due since the tick before; what it used where that is not known."""
        before = self._share[self._rows]
        wants = np.where(np.isnan(stalled), tick.inputs.problem.demand, demand.estimate(used, stalled))
        wants = np.minimum(wants, tick.inputs.problem.ceiling)
        return np.where(np.isnan(before), used, np.minimum(before, np.maximum(wants, used)))

    def _sum_up(
        self, rows: NDArray[np.int64], used: Floats, due: Floats, stalled: Floats, share: Floats, elapsed: float
    ) -> None:
        keep = float(np.exp(-max(elapsed, 0.0) / SMOOTHING))
        for index, latest in enumerate((used, due)):
            before = self._smooth[index, rows]
            self._smooth[index, rows] = np.where(np.isnan(before), latest, keep * before + (1.0 - keep) * latest)
        missing = np.maximum(self._smooth[1, rows] - self._smooth[0, rows], 0.0)
        for index, values in enumerate((1.0, share, used, np.abs(used - due), stalled)):
            self._totals[index, rows] += values
        self._totals[5, rows] = np.maximum(self._totals[5, rows], missing)

    def _resource(self, entry: Rows) -> None:
        table = self.resources.setdefault(entry.resource, Table("count", "measured", "known", "entitled"))
        table.grow(len(self.by_agent.sums["count"]))
        seconds = min(self.axis.of_wall(entry.wall), max(self._before, 0.0))
        part = self._part(seconds)
        for agent_id, row in entry.agents.items():
            agent = self.agents.get(agent_id)
            if agent is not None and "measured" in row:
                table.add("count", agent.row, part, 1.0)
                table.add("measured", agent.row, part, row["measured"])
                if "entitled" in row:
                    table.add("known", agent.row, part, 1.0)
                    table.add("entitled", agent.row, part, row["entitled"])

    def _finish(self) -> None:
        for agent in self.agents.values():
            ticks, entitled, used, error, stalled, worst = self._totals[:, agent.row].tolist()
            agent.ticks, agent.worst = int(ticks), worst
            count = max(ticks, 1.0)
            agent.entitled, agent.used = entitled / count, used / count
            agent.error, agent.stalled = error / count, stalled / count
            counts = self.by_agent.sums["count"][agent.row]
            parts = np.flatnonzero(counts)
            if len(parts):
                agent.floor = float(self.by_agent.mean("floor", agent.row)[parts[-1]])
                agent.limit = float(self.by_agent.mean("limit", agent.row)[parts[-1]]) or float("inf")
        self._weigh()

    def _weigh(self) -> None:
        """The weights that the agents of the last tick had in it."""
        if self._last is not None:
            for member, weight in zip(self._last.roster.agents, self._last.inputs.problem.weight, strict=True):
                self.agents[member.agent_id].weight = float(weight)
