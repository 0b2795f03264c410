"""The agents that this supervisor knows, in memory: record, what a running one holds, and how users name them."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.supervisor.registry import Record
from agentos_native.wire.api import LIVE_STATES, AgentState

if TYPE_CHECKING:
    from agentos_native.supervisor.doors import Group
    from agentos_native.supervisor.drain import Drain, Listener
    from agentos_native.supervisor.logs import LogWriter

BUILD_LABEL: Final = "agentos/build"
"""Of an agent (and of its image) that is a step of a build: it is worth nothing without the build that waits for it."""
TOMBSTONES: Final = 256
"""Removed agents that can still be asked how they ended (``run --rm`` waits for a fast program)."""
_ID_LIKE: Final = re.compile(r"[0-9a-f]{1,12}")


class Ending(NamedTuple):
    """How a unit ended. `status` is as a shell gives it (128+n for signal n); None when nobody could see it.

    `exit_id` is the launcher's, to be acknowledged once recorded; None when the launcher was not the parent.
    """

    status: int | None
    ended_at: float
    exit_id: int | None


class Run:
    """What a running agent holds. `ended` is set by the launcher's message or by the pidfd, whichever knows."""

    def __init__(self, group: Group, pid: int, pidfd: int, ended: asyncio.Future[Ending]) -> None:
        self.group = group
        self.pid = pid
        self.pidfd = pidfd
        self.ended = ended
        self.log: LogWriter | None = None
        self.drain: Drain | None = None
        self.stdin_fd = -1
        self.tty_fd = -1
        self.stop_reason = ""
        self.finished = False
        self.next_exec = 0
        self.timer: asyncio.TimerHandle | None = None

    def close_stdin(self) -> None:
        """The agent sees the end of its input."""
        if self.stdin_fd >= 0:
            os.close(self.stdin_fd)
            self.stdin_fd = -1

    def close(self) -> None:
        """Let go of every fd; the agent itself is not touched."""
        self.close_stdin()
        if self.timer is not None:
            self.timer.cancel()
        if self.drain is not None:
            self.drain.abandon()
            self.drain = None
        for fd in (self.pidfd, self.tty_fd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.tty_fd = -1


class Agent:
    """One agent; `lock` is held by whatever changes its state. `error`: why its last start failed."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.run: Run | None = None
        self.timings: dict[str, float] = {}
        self.changed = asyncio.Event()
        self.listeners: list[Listener] = []
        self.restart: asyncio.Task[None] | None = None
        self.error: Exception | None = None
        self.removed = False

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"agent {self.record.spec.tenant}/{self.record.spec.name}"

    @property
    def live(self) -> bool:
        """Whether it holds processes."""
        return self.record.state in LIVE_STATES

    def become(self, state: AgentState, reason: str = "") -> None:
        """Change state and wake whoever waits for it; saving is the caller's."""
        self.record.state = state
        self.record.reason = reason
        self.notify()

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


class Agents:
    """All of them, by id and by name; the graves of the removed ones for a while."""

    def __init__(self) -> None:
        self._by_id: dict[str, Agent] = {}
        self._by_name: dict[tuple[str, str], Agent] = {}
        self._graves: dict[str, Agent] = {}

    def __iter__(self) -> Iterator[Agent]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, agent: Agent) -> None:
        """Take in a new or adopted one."""
        spec = agent.record.spec
        self._by_id[agent.id] = agent
        self._by_name[spec.tenant, spec.name] = agent

    def remove(self, agent: Agent) -> None:
        """Forget it; its end can still be asked for."""
        spec = agent.record.spec
        self._by_id.pop(agent.id, None)
        if self._by_name.get((spec.tenant, spec.name)) is agent:
            del self._by_name[spec.tenant, spec.name]
        agent.removed = True
        agent.notify()
        self._graves[agent.id] = agent
        while len(self._graves) > TOMBSTONES:
            del self._graves[next(iter(self._graves))]

    def named(self, tenant: str, name: str) -> Agent | None:
        """The one of exactly this name."""
        return self._by_name.get((tenant, name))

    def by_id(self, agent_id: str) -> Agent | None:
        """The one of exactly this id."""
        return self._by_id.get(agent_id)

    def new_id(self) -> str:
        """Twelve random hexadecimal digits that no agent has."""
        while True:
            agent_id = secrets.token_hex(6)
            if agent_id not in self._by_id:
                return agent_id

    def slots(self) -> set[int]:
        """The slots that are taken."""
        return {agent.record.slot for agent in self._by_id.values()}

    def find(self, ref: str, *, buried: bool = False) -> Agent:
        """The agent that a user means by NAME, TENANT/NAME, an id, or the beginning of one id.

        Args:
            buried: also look among the removed ones (by full id).

        Raises:
            AgentosError: ``agent-not-found``, or ``agent-ambiguous`` when several fit.
        """
        if "/" in ref:
            tenant, _, name = ref.partition("/")
            exact = self._by_name.get((tenant, name))
            matches = [exact] if exact else []
        else:
            matches = [agent for (_, name), agent in self._by_name.items() if name == ref]
            if not matches and _ID_LIKE.fullmatch(ref):
                matches = [agent for agent_id, agent in self._by_id.items() if agent_id.startswith(ref)]
        if not matches and buried and ref in self._graves:
            return self._graves[ref]
        if not matches:
            raise AgentosError(
                "agent-not-found", "no such agent", ref[:300], "`agentos-native ps -a` lists all of them."
            )
        if len(matches) > 1:
            names = ", ".join(f"{agent.record.spec.tenant}/{agent.record.spec.name}" for agent in matches[:5])
            raise AgentosError(
                "agent-ambiguous", f"{len(matches)} agents fit: {names}", ref, "Say TENANT/NAME or more of the id."
            )
        return matches[0]
