"""Real memory in real groups: a tree of its own, agents that allocate or read files, and the slow loop beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from agentos_native.cgroup import AgentGroup, GroupRef, GroupSettings, Tree, discover
from agentos_native.cgroup.memory_files import MachineMemory, machine_memory
from agentos_native.spec.model import AgentSpec, Limits, Requests, Resources
from agentos_native.supervisor.loop.controllers import Member
from agentos_native.supervisor.loop.memory import MemoryController
from tests.vm.loads import start

MIB = 1 << 20
HOLD = """import mmap,time
data=mmap.mmap(-1,{size}<<20)
for at in range(0,{size}<<20,4096): data[at]=1
time.sleep(1000)"""
GROW = """import mmap,time
kept=[]
while True:
    data=mmap.mmap(-1,{step}<<20)
    for at in range(0,{step}<<20,4096): data[at]=1
    kept.append(data)
    time.sleep({rest})"""
READ = "import time\nwith open({path!r},'rb') as file:\n    while file.read(1<<20): pass\ntime.sleep(1000)"


class Memory:
    """A node with the slow loop of memory; `size` is what its agents may have, in MiB."""

    def __init__(self, node: str, size: int) -> None:
        self.tree = Tree(discover(), node)
        self.tree.open()
        self.size = size
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.loop = MemoryController(self.tree, self._notify, machine=self._machine, margin=0)
        self.names: dict[str, str] = {}
        self._groups: dict[str, AgentGroup] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._others = 0

    def _notify(self, kind: str, agent_id: str, **detail: Any) -> None:
        self.events.append((kind, self.names[agent_id], detail))

    def _machine(self) -> MachineMemory:
        """As if the machine had only `size` for agents."""
        with open(f"{self.tree.path}/memory.stat", encoding="ascii") as file:
            stat = dict(line.split() for line in file)
        with open(f"{self.tree.path}/memory.current", encoding="ascii") as file:
            fixed = int(file.read()) - int(stat["inactive_file"]) - int(stat["active_file"])
        return MachineMemory(self.size * MIB, max(self.size * MIB - fixed, 0), machine_memory().swap_free)

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.close()
        for group in self._groups.values():
            group.kill()
        for process in self._processes:
            process.wait()
        for group in self._groups.values():
            group.remove()
        self.tree.teardown()

    def agent(self, name: str, program: str, request: int = 0, limit: int | None = None, leaf: str = "main") -> str:
        """An agent that runs `program`; the path of its group."""
        ref = GroupRef("home", "normal", f"{len(self._groups) + 1:012x}")
        bound = None if limit is None else limit * MIB
        group = self.tree.create(ref, GroupSettings(memory_low=request * MIB or None, memory_max=bound))
        self._groups[name], self.names[ref.agent_id] = group, name
        self.run(name, program, leaf)
        resources = Resources(requests=Requests(memory=request * MIB), limits=Limits(memory=bound))
        spec = AgentSpec(name=name, image="none", resources=resources)
        self.loop.add(Member(ref.agent_id, len(self._groups), ref, group.path, spec))
        return group.path

    def run(self, name: str, program: str, leaf: str = "main") -> subprocess.Popen[bytes]:
        """One more process in an agent's group."""
        self._processes.append(start(self._groups[name], (sys.executable, "-S", "-c", program), leaf))
        return self._processes[-1]

    def turns(self, count: int, period: float = 0.5) -> None:
        """Turns of the loop, at another pace than the product's: the emulated machine's time is dear."""
        for _ in range(count):
            time.sleep(period)
            self.loop.turn(time.monotonic())

    def turns_until(self, condition: Callable[[dict[str, dict[str, Any]]], bool], seconds: float = 60.0) -> None:
        """Turns until the rows are as they shall be."""
        deadline = time.monotonic() + seconds
        self.turns(1)
        while not condition(rows := self.rows()):
            assert time.monotonic() < deadline, rows
            self.turns(1)

    def rows(self) -> dict[str, dict[str, Any]]:
        found = {self.names[agent_id]: row for agent_id, row in self.loop.rows().items()}
        for name, row in found.items():
            shown = ("measured", "working_set", "demand", "entitled", "high", "stalled", "bound")
            print(name, {key: row[key] // MIB if isinstance(row[key], int) else row[key] for key in shown})
        return found


def value(path: str, name: str) -> int:
    """One number of a group."""
    return int(Path(path, name).read_text())


def filled(path: str, size: int, seconds: float = 60.0) -> None:
    """Wait until the group uses `size` MiB."""
    deadline = time.monotonic() + seconds
    while value(path, "memory.current") < size * MIB:
        assert time.monotonic() < deadline, value(path, "memory.current")
        time.sleep(0.1)


def make_file(path: Path, size: int) -> None:
    """A file of `size` MiB on the disk, not in anybody's cache."""
    with open(path, "wb") as file:
        for _ in range(size):
            file.write(bytes(MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
