"""After a crash: everything on this host that carries the node's name is adopted by its agent or removed.

Theory of operation
    Runs once, before the API answers, with nothing else going on. Four sources are compared: the registry, the
    launcher's replay (units that still run, ends that were not acknowledged), the kernel (cgroups, network devices by
    their alias) and the agents' directories. An agent whose first start was interrupted never existed for anybody: it
    is taken back. One that ran and whose processes are still there is adopted; one that ran and is gone has ended, with
    the status that the launcher kept, or unknown. One that waited for its start waits again. Whatever belongs to no
    agent after that is removed. When the registry had to be moved aside, the records come back from the agents' own
    directories first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from collections.abc import Callable

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.kernel.process import exit_status_of, pidfd_open
from agentos_native.supervisor import resources, stdio
from agentos_native.supervisor.agents import BUILD_LABEL, Agent, Ending, Run
from agentos_native.supervisor.doors import Group
from agentos_native.supervisor.drain import Drain
from agentos_native.supervisor.host import ending
from agentos_native.supervisor.launcher_link import Replay
from agentos_native.supervisor.lifecycle import SUPERVISOR_STOPPED, Lifecycle
from agentos_native.supervisor.logs import LogWriter
from agentos_native.supervisor.registry import decode_record
from agentos_native.supervisor.starting import empty_and_remove
from agentos_native.supervisor.streams import readable
from agentos_native.wire.api import LIVE_STATES

_REQUEUES = 3
"""Interrupted starts after which a queued agent is not tried again: it may be what ends the supervisor."""
_REAPED_WITHIN = 50
"""Hundredths of a second that an adopted agent's new parent is given to reap it."""


class Recovery:
    """One pass; `report` says in words what was found."""

    def __init__(self, lifecycle: Lifecycle, replay: Replay) -> None:
        self._lifecycle = lifecycle
        self._host = lifecycle.host
        self._replay = replay
        self._ends = {message.unit: ending(message) for message in replay.exited}
        self.report: list[str] = []

    async def run(self, *, registry_lost: bool) -> None:
        """See the module. Must be awaited before the first request."""
        host = self._host
        if registry_lost:
            self._records_from_directories()
        for record in host.registry.agents():
            host.agents.add(Agent(record))
        for agent in host.agents:
            await self._settle(agent)
        self._lifecycle.queue.restore()
        await host.workers.call(self._remove_strangers)
        for message in self._replay.exited:
            host.link.acknowledge(message.exit_id)
        host.units.recovered()
        for _, fds in self._replay.live.values():
            for fd in fds:
                os.close(fd)
        self._replay.live.clear()

    def _say(self, agent: Agent, what: str) -> None:
        self.report.append(f"{agent.where}: {what}")
        self._lifecycle.runner.event(agent, "recovered", what=what)

    # -- one agent -----------------------------------------------------------------------------------------------

    async def _settle(self, agent: Agent) -> None:
        record = agent.record
        if record.provisional:
            await self._host.workers.call(self._release, agent)
            await self._lifecycle.remove(agent)
            self._say(agent, "its first start was interrupted; taken back")
        elif BUILD_LABEL in record.spec.labels:
            await self._host.workers.call(self._release, agent)
            agent.become("exited", "interrupted")
            await self._lifecycle.remove(agent)
            self._say(agent, "the build that it was a step of was interrupted; removed")
        elif record.state == "starting" and record.ticket > 0 and record.backoff_count < _REQUEUES:
            await self._put_back(agent)
        elif record.state in LIVE_STATES:
            await self._adopt_or_bury(agent)
        elif record.state == "backoff" or (record.reason == SUPERVISOR_STOPPED and _always(agent)):
            self._restart(agent)

    async def _adopt_or_bury(self, agent: Agent) -> None:
        host, record = self._host, agent.record
        group = host.groups.get(resources.group_ref(agent.id, record.spec))
        run = None
        if record.state in {"running", "paused"}:
            run = await self._find_run(agent, group)
        if run is not None:
            rates = resources.network_rates(record.spec)
            wire = (record.slot, agent.id, record.spec.network, rates, run.pidfd)
            await host.workers.call(host.network.adopt, *wire)
            self._adopt(agent, run)
            self._say(agent, f"adopted (process {run.pid})")
            return
        # A start or stop that was under way when the supervisor died is not carried on: its client has gone.
        await host.workers.call(self._release, agent)
        await self._bury(agent)

    async def _put_back(self, agent: Agent) -> None:
        """Its turn had come, and the supervisor died during its start: nobody but the queue waits for it."""
        await self._host.workers.call(self._release, agent)
        agent.record.backoff_count += 1
        agent.become("queued")
        self._host.registry.save(agent.record)
        self._say(agent, "its start from the queue was interrupted; it is first in line again")

    async def _find_run(self, agent: Agent, group: Group) -> Run | None:
        entry = self._replay.live.pop(agent.id, None)
        if entry is not None:
            message, (pidfd, *rest) = entry
            run = Run(group, message.pid, pidfd, self._host.units.expect(agent.id))
            run.tty_fd = rest[0] if rest else -1
            return run
        if agent.id in self._ends:
            return None
        found = await self._host.workers.call(first_process, group)
        if found is None:
            return None
        pid, pidfd = found
        ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._lifecycle.tasks.spawn(_foreign_end(pidfd, ended))
        return Run(group, pid, pidfd, ended)

    def _adopt(self, agent: Agent, run: Run) -> None:
        host, spec = self._host, agent.record.spec
        directory = host.options.agent_dir(agent.id)
        settings = host.options.settings
        os.makedirs(directory, 0o700, exist_ok=True)
        run.log = LogWriter(directory, settings.log_max_bytes, settings.log_files)
        run.drain = Drain(run.log, agent.listeners)
        if run.tty_fd >= 0:
            run.drain.add(os.dup(run.tty_fd), "stdout")
        else:
            pipes = stdio.reopen(directory, stdin=spec.stdin)
            for fd, stream in pipes.take_readers().items():
                run.drain.add(fd, stream)
            run.stdin_fd = pipes.take_input()
        run.next_exec = _clear_execs(run.group)
        agent.run = run
        agent.record.pid = run.pid
        self._lifecycle.runner.attend(agent, run)

    async def _bury(self, agent: Agent) -> None:
        record = agent.record
        end = self._ends.get(agent.id)
        record.ended_at = end.ended_at if end else time.time()
        record.exit_status = end.status if end else None
        reason = "exited" if end else "unknown"
        if record.state == "starting":
            reason = "interrupted"
        elif record.state == "stopping":
            reason = record.reason  # it was being stopped, and now it is
        ran_for = record.ended_at - (record.started_at or record.ended_at)
        wait = self._lifecycle.runner.plan_restart(agent, ran_for) if record.wanted else None
        agent.become("exited" if wait is None else "backoff", reason)
        self._host.registry.save(record)
        self._say(agent, f"has ended ({reason})")
        if wait is not None:
            self._lifecycle.runner.schedule_restart(agent, wait)
        elif record.spec.auto_remove:
            await self._lifecycle.remove(agent)

    def _restart(self, agent: Agent) -> None:
        agent.become("backoff", agent.record.reason)
        self._host.registry.save(agent.record)
        self._lifecycle.runner.schedule_restart(agent, 0.0)

    def _release(self, agent: Agent) -> None:
        """In a worker thread: shares, processes, network and cgroup of an agent that is not adopted."""
        host = self._host
        host.shares.remove(agent.id)  # who is in the registry has been divided among since this supervisor began
        group = host.groups.get(resources.group_ref(agent.id, agent.record.spec))
        self._try(lambda: empty_and_remove(group))
        if agent.record.slot >= 0:
            self._try(lambda: host.network.destroy(agent.record.slot))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (AgentosError, OSError) as error:
            self.report.append(f"not removed: {error}")

    # -- strangers -----------------------------------------------------------------------------------------------

    def _records_from_directories(self) -> None:
        """The registry was lost: each agent's directory has a copy of its record, the kernel knows who runs."""
        host = self._host
        running = {ref.agent_id for ref in host.groups.find()}
        for agent_id in self._directories():
            path = os.path.join(host.options.agent_dir(agent_id), "spec.json")
            try:
                with open(path, "rb") as file:
                    record = decode_record(file.read(1 << 20))
            except (OSError, msgspec.MsgspecError):
                continue
            record.provisional, record.wanted = False, agent_id in running
            record.state = "running" if agent_id in running else "exited"
            record.reason = "registry-lost"
            with contextlib.suppress(Exception):  # a second directory for the same name or slot: the first one keeps it
                host.registry.save(record)
                self.report.append(f"agent {record.spec.tenant}/{record.spec.name}: record restored from its directory")

    def _directories(self) -> list[str]:
        try:
            return sorted(os.listdir(os.path.dirname(self._host.options.agent_dir("x"))))
        except FileNotFoundError:
            return []

    def _remove_strangers(self) -> None:
        """In a worker thread: cgroups, devices and directories that belong to no agent."""
        host = self._host
        known = {agent.id: agent for agent in host.agents}
        for ref in host.groups.find():
            agent = known.get(ref.agent_id)
            if agent is None or agent.run is None or agent.run.group.ref != ref:
                group = host.groups.get(ref)
                self._try(lambda group=group: empty_and_remove(group))  # type: ignore[misc]
                self.report.append(f"cgroup {ref.relative}: belonged to no running agent; removed")
        for slot, agent_id in self._wires().items():
            agent = known.get(agent_id)
            if agent is None or agent.run is None or agent.record.slot != slot:
                self._try(lambda slot=slot: host.network.destroy(slot))  # type: ignore[misc]
                self.report.append(f"network of {agent_id}: belonged to no running agent; removed")
        for agent_id in self._directories():
            if agent_id not in known:
                self._try(lambda agent_id=agent_id: self._lifecycle.release_files(agent_id))  # type: ignore[misc]
                self.report.append(f"directory of {agent_id}: belonged to no agent; removed")
        host.groups.remove_empty_tenants()

    def _wires(self) -> dict[int, str]:
        try:
            return self._host.network.found()
        except AgentosError as error:  # settings.network is "off", and there is no way to look
            self.report.append(f"network devices were not looked for: {error.what}")
            return {}


def _always(agent: Agent) -> bool:
    return agent.record.wanted and agent.record.spec.restart.policy == "always"


def first_process(group: Group) -> tuple[int, int] | None:
    """(pid, pidfd) of the process that is number 1 in the agent's own pid namespace; None when it is not there.

    The pidfd is opened before the membership is read a second time, so a number that was reused meanwhile is not taken.
    """
    try:
        candidates = group.procs()
    except (AgentosError, OSError):
        return None
    for pid in candidates:
        try:
            pidfd = pidfd_open(pid)
        except OSError:
            continue
        if _inner_pid(pid) == 1 and pid in group.procs() and not _readable(pidfd):
            return pid, pidfd
        os.close(pidfd)
    return None


def _inner_pid(pid: int) -> int | None:
    """Its number in its innermost pid namespace (NSpid in proc_pid_status(5))."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("NSpid:"):
                    return int(line.split()[-1])
    except (OSError, ValueError):
        return None
    return None


def _readable(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


async def _foreign_end(pidfd: int, ended: asyncio.Future[Ending]) -> None:
    """An agent whose launcher died has ended: its new parent gets the status, and where the kernel can, it tells us,
    too.

    The pidfd becomes readable when the process is dead; its status can be read only once its parent has reaped it.
    """
    own = os.dup(pidfd)
    try:
        await readable(own)
        ended_at = time.time()
        status = None
        for _ in range(_REAPED_WITHIN):
            status = exit_status_of(own)
            if status is not None:
                break
            await asyncio.sleep(0.01)
    finally:
        os.close(own)
    code = os.waitstatus_to_exitcode(status) if status is not None else None
    if not ended.done():
        ended.set_result(Ending(128 - code if code is not None and code < 0 else code, ended_at, None))


def _clear_execs(group: Group) -> int:
    """End the further processes of an adopted agent, whose clients are gone; gives the first unused number."""
    first = 0
    for name in group.leaves():
        if name.startswith("exec-") and name[5:].isdecimal():
            first = max(first, int(name[5:]) + 1)
            with contextlib.suppress(AgentosError):
                group.kill(name)
                group.remove_leaf(name)
    return first
