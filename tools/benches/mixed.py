"""The mixed load of ``tools/bench loop``: who runs, what each wants, and what became of it.

Three dialogue agents with reservations answer turns that arrive by themselves; batch hogs of two other tenants, one of
which runs many, compute without end; two learners grow until, together with everybody else, they need more memory than
there is. The programs (agent.c) report by themselves, and their CPU time is read from their processes, so nothing here
depends on how a regime groups them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from agentos_native.spec.model import AgentSpec, Limits, Requests, Resources, TenantSpec

MIB: Final = 1 << 20
MEMORY: Final = 72 * MIB
"""Of the group that everything runs in, whatever the regime."""
CORPUS: Final = 6 * MIB
DATASET: Final = 24 * MIB
TURN_SECONDS: Final = 0.17
THINK_MS: Final = 700
STEP_SECONDS: Final = 0.015
"""CPU time of a learner for each megabyte."""
PEAK_MIB: Final = 34
BACKOFF: Final = 1.0
TENANTS: Final = (TenantSpec(name="home", weight=200), TenantSpec(name="research"), TenantSpec(name="guests"))
_TURNS: Final = 1024
_REPORT: Final = np.dtype([("work", "u8", 8), ("turn", "f8", (_TURNS, 5))])


def _agent(name: str, tenant: str, weight: int, resources: Resources, *command: str) -> AgentSpec:
    return AgentSpec(name=name, tenant=tenant, image="none", weight=weight, resources=resources, command=command)


def _resources(cpu: int, cpu_limit: int, memory: int, memory_limit: int) -> Resources:
    """CPU in millicores, memory in MiB."""
    return Resources(
        requests=Requests(cpu=cpu, memory=memory * MIB), limits=Limits(cpu=cpu_limit, memory=memory_limit * MIB)
    )


_TALKS: Final = _resources(400, 1000, 8, 24)
_HOGS: Final = _resources(30, 1500, 1, 8)
_LEARNS: Final = _resources(50, 1000, 20, 64)
AGENTS: Final = (
    *(_agent(f"dialogue-{n}", "home", 100, _TALKS, "dialogue", str(n), "{think}", "{turn}", f"{{files}}/corpus-{n}")
      for n in range(3)),
    _agent("heavy", "research", 300, _HOGS, "hog", "2"),
    _agent("light", "research", 100, _HOGS, "hog", "2"),
    _agent("learner", "research", 100, _LEARNS, "learner", str(PEAK_MIB), "{step}", "{files}/dataset"),
    *(_agent(f"guest-{n}", "guests", 100 * (1 + n % 2), _HOGS, "hog", "1") for n in range(8)),
    _agent("indexer", "guests", 100, _LEARNS, "learner", str(PEAK_MIB), "{step}", "{files}/dataset"),
)  # fmt: skip
"""Their reservations are 1.6 CPUs, of the two that there are; a tenant of many agents is among them."""


class Regime(Protocol):
    """How the machine is divided."""

    name: str

    def __init__(self, bound: Path, period: float) -> None: ...
    def enter(self, number: int, spec: AgentSpec) -> str:
        """The group that a process of the agent belongs in; made if necessary."""

    def started(self) -> None:
        """Everybody runs."""

    def step(self) -> None:
        """A second has passed."""

    def close(self) -> None:
        """Everybody has ended."""


@dataclass
class Turns:
    """The turns of one dialogue agent that arrived in the window, in seconds; an unserved one has not ended."""

    latency: list[float] = field(default_factory=list)
    busy: float = 0.0
    window: float = 0.0
    """Seconds."""
    pending: list[tuple[float, float]] = field(default_factory=list)
    """When there was something to do, from the window's begin on."""
    missing: float = 0.0
    """CPU seconds that the turns lack of the reservation during their time."""
    offered: float = 0.0
    """Units of work."""
    done: float = 0.0
    used: float = 0.0
    """Units of the turns that have ended, and their CPU seconds."""


@dataclass
class Outcome:
    """What became of one agent in the window: CPUs used and wanted, units of useful work."""

    spec: AgentSpec
    used: float
    wanted: float
    work: int
    turns: Turns | None = None

    @property
    def pending(self) -> list[tuple[float, float]]:
        """When it had turns to answer, in seconds of the window."""
        return self.turns.pending if self.turns is not None else []

    @property
    def shortfall(self) -> float:
        """CPUs below its reservation while it wanted that much."""
        request = self.spec.resources.requests.cpu / 1000
        if self.turns is not None:
            turns, waited = self.turns, sum(end - begin for begin, end in self.turns.pending)
            of_turns = turns.missing / turns.busy if turns.busy else 0.0
            # a turn that has not ended tells nothing of itself; but all that the agent used, it used for its turns
            overall = request - self.used * turns.window / waited if waited else 0.0
            return max(of_turns, overall, 0.0)
        return max(0.0, min(request, self.wanted) - self.used)


@dataclass
class Played:
    """One regime's round."""

    agents: list[Outcome]
    oom_kills: int
    seconds: float
    own: float
    """CPUs that the regime itself used, and this program, which samples."""
    switches: float
    """Context switches of the machine in a second."""
    memory: str
    """What was in it at the end, in MiB."""


class _Running:
    """One agent's process, and those before it that were killed."""

    def __init__(self, number: int, spec: AgentSpec, command: list[str], reports: Path) -> None:
        self.number, self.spec = number, spec
        self._command, self._reports = command, reports
        self._past_used = self._past_waited = 0.0
        self._used = self._waited = 0.0
        self._lives: list[tuple[Path, float]] = []
        self._ended = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, group: str) -> None:
        report = self._reports / f"{self.spec.name}-{len(self._lives)}"
        self._lives.append((report, time.monotonic()))
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        words = [self._command[0], str(report), *self._command[1:]]
        self.process = subprocess.Popen(["sh", "-c", enter, "sh", *words])

    def died(self) -> bool:
        """Whether it has been killed; true once."""
        if self.process is None or self.process.poll() is None:
            return False
        self.process = None
        self._ended = time.monotonic()
        self._past_used += self._used
        self._past_waited += self._waited
        self._used = self._waited = 0.0
        return True

    def may_return(self) -> bool:
        """Whether it may be started again."""
        return self.process is None and time.monotonic() - self._ended >= BACKOFF

    def sample(self) -> tuple[float, float]:
        """CPU seconds used so far, and waited for a CPU by its first thread."""
        if self.process is not None:
            with contextlib.suppress(OSError, ValueError):
                # CPUCLOCK_SCHED of another process (kernel/time/posix-cpu-timers.c)
                self._used = time.clock_gettime((~self.process.pid << 3) | 2)
                self._waited = int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[1]) / 1e9
        return self._past_used + self._used, self._past_waited + self._waited

    def work(self) -> int:
        """Units done so far and not lost by a kill."""
        done = [_read(report)["work"] for report, _ in self._lives]
        if self.spec.command[0] == "learner":
            return sum(int(one[0]) for one in done) + (int(done[-1][1]) if self.process is not None else 0)
        return sum(int(one.sum()) for one in done)

    def turns(self, begin: float, end: float) -> Turns:
        """Those that arrived from `begin` to `end`."""
        request = self.spec.resources.requests.cpu / 1000
        found = Turns(window=end - begin)
        ends = [born for _, born in self._lives[1:]] + [end]
        for (report, _), until in zip(self._lives, ends, strict=True):
            for arrival, units, began, ended, used in _read(report)["turn"].tolist():
                done = 0 < ended <= end
                if arrival >= min(end, until) or (ended if done else until) <= begin:
                    continue
                free = found.pending[-1][1] if found.pending else 0.0
                found.pending.append((max(arrival - begin, free), (ended if done else min(end, until)) - begin))
                if arrival < begin:
                    continue
                found.offered += units
                found.latency.append((ended if done else end) - arrival)
                if done:
                    found.done += units
                    found.used += used
                    found.busy += ended - began
                    found.missing += max(0.0, request * (ended - began) - used)
        return found


def _read(report: Path) -> Any:  # one record of _REPORT
    if not report.exists() or report.stat().st_size < _REPORT.itemsize:
        return np.zeros(1, dtype=_REPORT)[0]
    return np.fromfile(report, dtype=_REPORT, count=1)[0]


class Stage:
    """Where the load is played: the compiled program, its files, and how fast this machine works.

    Args:
        program: agent.c, compiled.
        files: a directory on a disk, for what the agents read.
        reports: a directory in memory.
        bound: the group that everything runs in.
    """

    def __init__(self, program: Path, files: Path, reports: Path, bound: Path) -> None:
        self.program, self.files, self.reports, self.bound = program, files, reports, bound
        self._round = 0
        for number in range(3):
            (files / f"corpus-{number}").write_bytes(os.urandom(MIB) * (CORPUS // MIB))
        (files / "dataset").write_bytes(bytes(DATASET))
        os.sync()
        self.rate = self._calibrate()

    def _calibrate(self, seconds: float = 1.0) -> float:
        """Units of work in a second of CPU time while every CPU is busy: an emulated machine divides its speed then."""
        report = self.reports / "calibration"
        process = subprocess.Popen([self.program, report, "hog", str(os.cpu_count())])
        try:
            time.sleep(seconds)
            used = time.clock_gettime((~process.pid << 3) | 2)
            return float(_read(report)["work"].sum()) / used
        finally:
            process.kill()
            process.wait()

    def _command(self, spec: AgentSpec) -> list[str]:
        words = {
            "think": THINK_MS,
            "turn": round(TURN_SECONDS * self.rate),
            "step": round(STEP_SECONDS * self.rate),
            "files": self.files,
        }
        return [str(self.program), *(word.format(**words) for word in spec.command)]

    def play(self, regime: Regime, settle: float, seconds: float) -> Played:
        """Everybody under one regime, from cold caches; measured after `settle` seconds, for `seconds`."""
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        self._round += 1
        reports = self.reports / f"{self._round}-{regime.name}"
        reports.mkdir()
        running = [_Running(number, spec, self._command(spec), reports) for number, spec in enumerate(AGENTS)]
        kills = oom_kills(self.bound)
        try:
            for agent in running:
                agent.start(regime.enter(agent.number, agent.spec))
            regime.started()
            switches = _context_switches()
            self._run(regime, running, settle)
            begin, before = time.monotonic(), {agent.number: (*agent.sample(), agent.work()) for agent in running}
            own = time.process_time()
            self._run(regime, running, seconds)
            own = time.process_time() - own
            end, after = time.monotonic(), {agent.number: (*agent.sample(), agent.work()) for agent in running}
            outcomes = [self._outcome(agent, before, after, begin, end) for agent in running]
            rate = (_context_switches() - switches) / (settle + seconds)
            kills = oom_kills(self.bound) - kills
            return Played(outcomes, kills, end - begin, own / (end - begin), rate, memory_of(self.bound))
        finally:
            for agent in running:
                if agent.process is not None:
                    agent.process.kill()
                    agent.process.wait()
            regime.close()

    def _run(self, regime: Regime, running: list[_Running], seconds: float) -> None:
        """A step each second; whoever was killed returns after a while."""
        due = time.monotonic()
        end = due + seconds
        while (due := due + 1.0) <= end + 0.01:
            time.sleep(max(due - time.monotonic(), 0.0))
            regime.step()
            for agent in running:
                agent.sample()
                if not agent.died() and agent.may_return():
                    agent.start(regime.enter(agent.number, agent.spec))
        time.sleep(max(end - time.monotonic(), 0.0))

    def _outcome(
        self,
        agent: _Running,
        before: Mapping[int, tuple[float, float, int]],
        after: Mapping[int, tuple[float, float, int]],
        begin: float,
        end: float,
    ) -> Outcome:
        elapsed = end - begin
        used, waited, work = (b - a for a, b in zip(before[agent.number], after[agent.number], strict=True))
        kind = agent.spec.command[0]
        turns = agent.turns(begin, end) if kind == "dialogue" else None
        wanted = (used + waited) / elapsed  # of a learner, which also waits for memory and its disk
        if turns is not None:  # the time of a unit as it was meanwhile
            wanted = turns.offered * (turns.used / turns.done if turns.done else 1 / self.rate) / elapsed
        elif kind == "hog":
            wanted = float(agent.spec.command[1])
        return Outcome(agent.spec, used / elapsed, wanted, int(work), turns)


def _context_switches() -> int:
    words = Path("/proc/stat").read_text().split()
    return int(words[words.index("ctxt") + 1])


def memory_of(group: Path) -> str:
    """Of what kind the memory of `group` is."""
    figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return ", ".join(f"{name} {int(figures[name]) / MIB:.1f}" for name in ("anon", "file", "kernel"))


def oom_kills(group: Path) -> int:
    """Processes that the OOM killer has ended in `group` and below."""
    words = (group / "memory.events").read_text().split()
    return int(words[words.index("oom_kill") + 1])
