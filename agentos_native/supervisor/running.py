"""One run of an agent: from its start to its end, and on to the next one when its policy says so.

Theory of operation
    Each run has one watcher task, which waits for the end of the agent's first process and then tidies up
    (`Runner.finish`) under the agent's lock. A stop does the same tidying itself; whoever comes second finds nothing
    left to do. An exit is acknowledged to the launcher only when the registry has it, so that no end is lost between
    the two: while the disk is full, the launcher keeps it. A start of which the registry does not take that it runs is
    undone like one of which any other stage failed: nothing may run that nobody watches and no later supervisor knows.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from agentos_native import faults
from agentos_native.errors import EXIT_TIMEOUT, AgentosError
from agentos_native.supervisor import resources, restart
from agentos_native.supervisor.agents import Agent, Ending, Run
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.registry import refused
from agentos_native.supervisor.starting import Start, empty_and_remove

_log = logging.getLogger("agentos_native.supervisor")
T = TypeVar("T")
SAVE_AGAIN: Final = 5.0
"""Seconds after which an end that the registry did not take is offered to it again."""
TIMED_OUT = "timeout"
"""The stop reason of an agent that ran longer than its spec allows; unlike other stops it may be restarted."""


class Tasks:
    """Tasks that are kept alive (the event loop holds only weak references) and ended together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in the background."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def unbroken(self, work: Coroutine[Any, Any, T]) -> T:
        """`work`'s result; it goes on to its end even when the one who waits here is cancelled."""
        return await asyncio.shield(self.spawn(work))

    async def close(self) -> None:
        """Cancel all and wait for them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Runner:
    """Starts agents and sees to their ends; `stop` is what `Lifecycle` gives for agents that run out of time."""

    def __init__(self, host: Host, tasks: Tasks) -> None:
        self._host = host
        self._tasks = tasks
        self.closing = False
        self.on_timeout: Callable[[Agent], Coroutine[Any, Any, None]]
        self.on_auto_remove: Callable[[Agent], Coroutine[Any, Any, None]]
        self.on_free: Callable[[], None]
        """A reservation may have become free."""

    async def start(self, agent: Agent) -> None:
        """Start under the agent's lock; on failure the agent is in state failed, and the error is raised."""
        record = agent.record
        record.exit_status, record.oom_killed, record.oom, record.pid = None, False, {}, None
        record.ended_at = None
        agent.become("starting")
        try:
            if not record.provisional:  # such a record is taken back whatever its state
                self._host.registry.save(record)
            run = await Start(self._host, agent).go(partial(self._keep, agent))
        except Exception as error:
            self.start_failed(agent, error)
            raise
        self.attend(agent, run)
        self.event(agent, "started", pid=run.pid)
        self._host.userns.refill()

    def _keep(self, agent: Agent, run: Run) -> None:
        """From here on it runs, also for the next supervisor; or it does not, and all is as before."""
        faults.point("launch.kept")
        record = agent.record
        before = (record.pid, record.started_at, record.provisional, record.ticket, record.state)
        record.pid, record.started_at, record.provisional, record.ticket = run.pid, time.time(), False, 0
        record.state = "running"
        try:
            self._host.registry.save(record)
        except BaseException:
            record.pid, record.started_at, record.provisional, record.ticket, record.state = before
            raise
        agent.run = run
        agent.become("running")

    def start_failed(self, agent: Agent, error: Exception) -> None:
        """Record that no program ran, and why."""
        if isinstance(error, sqlite3.OperationalError):
            error = refused(error)
        record = agent.record
        record.ended_at, record.ticket, agent.error = time.time(), 0, error
        if isinstance(error, AgentosError):
            record.exit_status = error.exit_status
            agent.become("failed", f"{error.code}: {error.what}")
        else:
            record.exit_status = 125
            agent.become("failed", f"internal: {error}")
        self._record_end(agent, None)
        self.event(agent, "failed", error=record.reason)

    def attend(self, agent: Agent, run: Run) -> None:
        """Take a running agent into the allocator's care and watch for its end (also after an adoption)."""
        self._host.shares.add(resources.member(agent.record, run.group))
        self.arm_timeout(agent, run)
        self._tasks.spawn(self._watch(agent, run))

    def arm_timeout(self, agent: Agent, run: Run) -> None:
        """Let the run end when its spec's time is over, counted from its start; also when that time is another now."""
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        timeout = agent.record.spec.timeout
        if timeout is not None:
            left = (agent.record.started_at or time.time()) + timeout - time.time()
            loop = asyncio.get_running_loop()
            run.timer = loop.call_later(max(left, 0.0), lambda: self._tasks.spawn(self._time_out(agent, run)))

    async def _time_out(self, agent: Agent, run: Run) -> None:
        if agent.run is run and not run.finished:
            self.event(agent, "timed-out", seconds=agent.record.spec.timeout)
            await self.on_timeout(agent)

    async def _watch(self, agent: Agent, run: Run) -> None:
        ending = await asyncio.shield(run.ended)
        async with agent.lock:
            await self.finish(agent, run, ending)

    async def finish(self, agent: Agent, run: Run, ending: Ending) -> None:
        """Tidy up after an ended run, record how it ended, and restart or remove the agent as its spec says."""
        if run.finished:
            return
        run.finished = True
        host, record = self._host, agent.record
        host.shares.remove(agent.id)
        oom, leftovers = await host.workers.call(self._release, agent, run)
        oom_killed = bool(oom)
        if run.drain is not None:
            run.drain.finish()
            run.drain = None
        run.close()
        agent.run = None
        if leftovers:
            record.warnings = [*record.warnings, *leftovers]
        if record.started_at is not None:  # it may have ended before its start was written down
            record.started_at = min(record.started_at, ending.ended_at)
        ran_for = ending.ended_at - (record.started_at or ending.ended_at)
        record.ended_at, record.oom_killed, record.oom = ending.ended_at, oom_killed, oom
        record.exit_status = EXIT_TIMEOUT if run.stop_reason == TIMED_OUT else ending.status
        wait = self._next_start(agent, run, ran_for)
        agent.become("exited" if wait is None else "backoff", _reason(run, ending, oom_killed))
        self._record_end(agent, ending.exit_id)
        detail = {"oom_killed": oom_killed, **({"oom": oom} if oom else {})}
        self.event(agent, "exited", exit_status=record.exit_status, reason=record.reason, **detail)
        if wait is not None:
            agent.restart = self._tasks.spawn(self._restart_after(agent, wait))
            return
        self.on_free()
        if record.spec.auto_remove and not self.closing:
            await self.on_auto_remove(agent)

    def _record_end(self, agent: Agent, exit_id: int | None) -> None:
        """In the registry, later if its disk is full, and then let the launcher forget it. Nothing else waits for that:
        an agent that has ended makes room for others, and is started again, on a full disk as well."""
        try:
            self._save_and_acknowledge(agent, exit_id)
        except sqlite3.OperationalError as error:
            _log.warning("%s: its end is not in the registry yet: %s", agent.where, error)
            self._tasks.spawn(self._record_end_later(agent, exit_id))

    async def _record_end_later(self, agent: Agent, exit_id: int | None) -> None:
        while True:
            await asyncio.sleep(SAVE_AGAIN)
            try:
                self._save_and_acknowledge(agent, exit_id)
            except sqlite3.OperationalError:
                continue
            return

    def _save_and_acknowledge(self, agent: Agent, exit_id: int | None) -> None:
        if not agent.removed:
            self._host.registry.save(agent.record)
        if exit_id is not None:
            self._host.link.acknowledge(exit_id)

    def _release(self, agent: Agent, run: Run) -> tuple[dict[str, int | None], list[str]]:
        """In a worker thread. Gives figures if the OOM killer was there, and what could not be released, in words."""
        leftovers: list[str] = []
        oom: dict[str, int | None] = {}
        try:
            oom = resources.oom_figures(run.group.stat(), agent.record.spec)
            run.group.kill()
        except (AgentosError, OSError) as error:
            leftovers.append(f"cgroup: {error}")
        try:
            self._host.network.retire(agent.record.slot)
        except (AgentosError, OSError) as error:
            leftovers.append(f"network: {error}")
        faults.point("release.network")
        try:
            empty_and_remove(run.group)
        except (AgentosError, OSError) as error:
            leftovers.append(f"cgroup: {error}")
        faults.point("release.cgroup")
        return oom, leftovers

    def _next_start(self, agent: Agent, run: Run, ran_for: float) -> float | None:
        record = agent.record
        if self.closing or not record.wanted or run.stop_reason not in {"", TIMED_OUT}:
            return None
        return self.plan_restart(agent, ran_for)

    def plan_restart(self, agent: Agent, ran_for: float) -> float | None:
        """Seconds to the next start by the agent's policy, which is then counted as taken; None: there is none."""
        record = agent.record
        record.backoff_count = restart.failures_after(record.backoff_count, ran_for)
        wait = restart.delay(record.spec.restart, record.backoff_count, record.exit_status)
        if wait is not None:
            record.backoff_count += 1
            record.restarts += 1
        return wait

    async def _restart_after(self, agent: Agent, wait: float) -> None:
        await asyncio.sleep(wait)
        async with agent.lock:
            if agent.record.state != "backoff" or self.closing:
                return
            agent.restart = None
            try:
                await self.start(agent)
            except Exception:
                again = self.plan_restart(agent, 0.0)
                if again is not None:
                    agent.become("backoff", agent.record.reason)
                    agent.restart = self._tasks.spawn(self._restart_after(agent, again))
                else:
                    self.on_free()
                self._record_end(agent, None)

    def schedule_restart(self, agent: Agent, wait: float) -> None:
        """Restart an agent in state backoff after `wait` seconds (used by recovery)."""
        agent.restart = self._tasks.spawn(self._restart_after(agent, wait))

    def cancel_restart(self, agent: Agent) -> None:
        if agent.restart is not None:
            agent.restart.cancel()
            agent.restart = None
        if agent.record.state == "backoff":
            agent.become("exited", agent.record.reason)
            self.on_free()

    def event(self, agent: Agent, kind: str, **detail: Any) -> None:
        """Tell whoever follows the events."""
        spec = agent.record.spec
        self._host.events.add(kind, agent_id=agent.id, name=spec.name, tenant=spec.tenant, **detail)


def _reason(run: Run, ending: Ending, oom_killed: bool) -> str:
    if run.stop_reason:
        return run.stop_reason
    if ending.status is None:
        return "unknown"
    return "oom-killed" if oom_killed and ending.status != 0 else "exited"
