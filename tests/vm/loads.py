"""Real load in real groups, for tests that need the controllers: busy loops in the leaves of a tree of their own."""

from __future__ import annotations

import os
import subprocess
import time
from types import TracebackType

from agentos_native.cgroup import AgentGroup, GroupRef, GroupSettings, Tree, discover
from agentos_native.supervisor.loop.rows import AllocationRow
from agentos_native.supervisor.loop.ticker import Ticker

CPUS = float(os.cpu_count() or 1)
BUSY = ("sh", "-c", "while :; do :; done")
SLEEPY = """import time
while True:
    end = time.monotonic() + {busy}
    while time.monotonic() < end:
        pass
    time.sleep({idle})"""


class Load:
    """A node with a ticker, and agents that burn CPU in it; everything is removed at the end."""

    def __init__(self, node: str, period: float = 1.0) -> None:
        self.tree = Tree(discover(), node)
        self.tree.open()
        self.ticker = Ticker(self.tree, CPUS)
        self.period = period
        self.writes = 0
        self._count = 0
        self._groups: dict[str, AgentGroup] = {}
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ticker.close()
        for name in list(self._groups):
            self.stop(name)
        self.tree.teardown()

    def agent(
        self,
        name: str,
        tenant: str = "home",
        tier: str = "normal",
        weight: int = 100,
        request: int = 0,
        limit: int | None = None,
        threads: int = int(CPUS),
        command: tuple[str, ...] = BUSY,
    ) -> AgentGroup:
        """An agent that computes without end in `threads` processes (or runs `command` in each)."""
        self._count += 1
        ref = GroupRef(tenant, tier, f"{self._count:012x}")
        settings = GroupSettings(cpu_weight=weight, cpu_max_millis=limit, cpu_min_millis=request)
        group = self._groups[name] = self.tree.create(ref, settings)
        self._processes[name] = [start(group, command) for _ in range(threads)]
        self.ticker.add(ref.agent_id, ref, weight, request, limit)
        return group

    def stop(self, name: str) -> None:
        """Kill the agent and remove its group."""
        group = self._groups.pop(name)
        self.ticker.remove(group.ref.agent_id)
        group.kill()
        for process in self._processes.pop(name):
            process.wait()
        group.remove()

    def run(self, seconds: float) -> None:
        """Tick for some time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.period)
            self.writes += self.ticker.tick(time.monotonic()).writes

    def shares(self, settle: float = 4.0, window: float = 10.0) -> dict[str, AllocationRow]:
        """What each agent was entitled to and got in `window` seconds, by name, after the load has settled."""
        self.run(settle)
        self.run(window)
        names = {group.ref.agent_id: name for name, group in self._groups.items()}
        rows = {names[row.agent_id]: row for row in self.ticker.rows(window)}
        for name, row in rows.items():  # seen with pytest -s, and when a test fails
            print(
                f"{name:10} {row.tier:7} weight {row.weight:4} request {row.request:.2f} demand {row.demand:.3f}"
                f" entitled {row.entitled:.3f} measured {row.measured:.3f} of {row.capacity:.2f}"
            )
        return rows


def start(group: AgentGroup, command: tuple[str, ...], leaf: str = "main") -> subprocess.Popen[bytes]:
    """Start `command` in a leaf of the group."""
    os.close(group.leaf(leaf))
    enter = f'echo $$ > {group.path}/{leaf}/cgroup.procs && exec "$@"'
    return subprocess.Popen(["sh", "-c", enter, "sh", *command])
