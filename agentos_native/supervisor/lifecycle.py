"""What can be done with one agent: make, start, stop, kill, restart, pause, resume, wait for, remove.

Theory of operation
    Everything here runs on the event loop's thread; what blocks goes to the workers. An agent's lock is held by
    whatever changes its state. A client that goes away changes nothing: operations run in tasks of their own
    (`Tasks.unbroken`). Each start asks the `queueing.Queue` for room; one that has to wait is in state queued, holds
    nothing but its directory, and is started later by a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal as signals
import sqlite3
import time
from functools import partial
from pathlib import Path

from agentos_native import faults
from agentos_native.errors import AgentosError
from agentos_native.images.model import ImageConfig
from agentos_native.kernel.process import pidfd_send_signal
from agentos_native.spec.model import AgentSpec
from agentos_native.supervisor import imagetypes, resources
from agentos_native.supervisor.agents import Agent, Run
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.queueing import Queue
from agentos_native.supervisor.registry import Record, encode_record
from agentos_native.supervisor.running import TIMED_OUT, Runner, Tasks
from agentos_native.supervisor.signalling import signal_name, signal_number, stop_signal
from agentos_native.supervisor.tenancy import Tenancy

SUPERVISOR_STOPPED = "supervisor-stopped"
CANCELLED = "cancelled"
"""The reason of an agent that was called off while its start waited."""
LAST_GRACE = 10.0
"""Seconds that an agent gets at most when its supervisor stops: a machine that shuts down does not wait for ever."""
_ENDING = frozenset({signals.SIGINT, signals.SIGTERM, signals.SIGKILL, signals.SIGHUP, signals.SIGQUIT})
KILL_TIMEOUT = 10.0
"""Seconds that a killed tree may take to go (a process in uninterruptible sleep takes as long as its I/O)."""


class Lifecycle:
    """The operations; one per supervisor."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.tasks = Tasks()
        self.tenancy = Tenancy(host, self.tasks.spawn)
        self.runner = Runner(host, self.tasks)
        self.runner.on_timeout = partial(self.stop, reason=TIMED_OUT)
        self.runner.on_auto_remove = self._remove_locked
        self.queue = Queue(
            host,
            start=lambda agent: self.tasks.spawn(self._start_queued(agent)),
            refuse=lambda agent, error: self.tasks.spawn(self._fail_queued(agent, error)),
            save=self._save_both,
        )
        self.runner.on_free = self.queue.wake
        host.queue_place = self.queue.place

    def wake_queue(self) -> None:
        """Reservations or limits have changed: a start that waits may fit now."""
        self.queue.wake(changed=True)

    # -- making and removing -------------------------------------------------------------------------------------

    def check(self, spec: AgentSpec, *, wait: bool = True) -> list[str]:
        """The controllers that `spec` does without.

        Raises:
            AgentosError: this host or its tenant can never take it, or without `wait` not now.
        """
        host = self.host
        settings = resources.group_settings(spec, host.options.state_dir)
        missing = resources.check_enforceable(spec, settings, host.controllers)
        self.queue.check(spec, wait=wait)
        return missing

    def promised_specs(self, without: Agent | None = None) -> list[AgentSpec]:
        """What is reserved for agents that run, are about to, or wait for their next restart."""
        return self.queue.promised(without)

    async def create(self, spec: AgentSpec, *, provisional: bool = False, wait: bool = True) -> Agent:
        """Record a new agent; its directory exists afterwards, nothing else does.

        Raises:
            AgentosError: its name is taken, the image is not there, it cannot be enforced or can never fit (without
                `wait`: does not fit now).
        """
        host = self.host
        if spec.replicas != 1:
            raise AgentosError(
                "invalid-value", "replicas are for documents", f"agent {spec.tenant}/{spec.name}", "Use apply."
            )
        self._check_name(spec)
        missing = self.check(spec, wait=wait)
        with host.admitting:
            agent = self._admit(spec, missing, provisional, wait)
        directory = host.options.agent_dir(agent.id)
        os.mkdir(directory, 0o700)
        write_spec(directory, agent.record)
        self.runner.event(agent, "created")
        return agent

    def _admit(self, spec: AgentSpec, missing: list[str], provisional: bool, wait: bool) -> Agent:
        """From here on the image is in use; without a wait, or its removal could be decided in between."""
        host = self.host
        image = host.images.get(spec.image)  # two small files: less than it takes to ask a worker
        spec = imagetypes.typed(spec, image.config)
        slot = self._slot(wait)
        record = Record(
            id=host.agents.new_id(),
            slot=slot,
            block=host.block,
            spec=spec,
            image_digest=image.digest,
            created_at=time.time(),
            unenforced=missing,
            warnings=[*resources.warnings(spec, host.controllers), *imagetypes.warnings(image.config)],
            provisional=provisional,
        )
        host.registry.save(record)
        faults.point("admit.recorded")
        agent = Agent(record)
        host.agents.add(agent)
        return agent

    def _slot(self, wait: bool) -> int:
        """A slot; when all are taken and the start may wait for one, a negative number that stands for it."""
        try:
            return self.host.userns.free_slot()
        except AgentosError:
            if not wait:
                raise
            return min(0, *self.host.agents.slots()) - 1

    def _save_both(self, agent: Agent) -> None:
        self.host.registry.save(agent.record)
        write_spec(self.host.options.agent_dir(agent.id), agent.record)

    def _check_name(self, spec: AgentSpec) -> None:
        if self.host.agents.named(spec.tenant, spec.name) is not None:
            raise AgentosError(
                "name-taken",
                f"tenant {spec.tenant} already has an agent named {spec.name}",
                f"agent {spec.tenant}/{spec.name}",
                f"Choose another --name, or remove it: agentos-native rm {spec.tenant}/{spec.name}",
            )

    async def run(self, spec: AgentSpec, *, wait: bool = True) -> Agent:
        """Make and start (or queue, if it may `wait`); when the start fails nothing of the agent is left."""
        agent = await self.create(spec, provisional=True, wait=wait)
        try:
            await self.start(agent, wait=wait)
        except BaseException:
            await self.tasks.unbroken(self.remove(agent, force=True))
            raise
        return agent

    async def remove(self, agent: Agent, *, force: bool = False) -> None:
        """Forget the agent and delete its files.

        Raises:
            AgentosError: ``agent-running`` unless `force`, which kills it first.
        """
        while not agent.removed:
            if agent.live and not force:
                raise AgentosError(
                    "agent-running", "the agent is running", agent.where, "Stop it first, or say --force to kill it."
                )
            if agent.live:
                await self.stop(agent, grace=0.0)
            async with agent.lock:
                if not agent.live:  # otherwise it was started while the lock was waited for
                    await self._remove_locked(agent)

    async def _remove_locked(self, agent: Agent) -> None:
        if agent.removed:
            return
        if agent.record.state == "queued":
            agent.become("exited", CANCELLED)
        self.runner.cancel_restart(agent)
        self.queue.leave(agent)
        host = self.host
        try:
            host.registry.forget(agent.id)
        except sqlite3.OperationalError:  # a full disk, and what fills it may be the agent's own files
            await host.workers.call(self.release_files, agent.id)
            host.registry.forget(agent.id)
        host.agents.remove(agent)
        await host.workers.call(self.release_files, agent.id)
        self.runner.event(agent, "removed")
        host.userns.refill()
        self.tenancy.sweep_soon()

    def release_files(self, agent_id: str) -> None:
        """Delete an agent's directory (in a worker thread): the image's part by the store, the rest here."""
        directory = self.host.options.agent_dir(agent_id)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, "spec.json"))
        self.host.images.release(Path(directory))
        faults.point("release.rootfs")
        shutil.rmtree(directory, ignore_errors=True)

    # -- starting ------------------------------------------------------------------------------------------------

    async def start(self, agent: Agent, *, wait: bool = True) -> None:
        """Start a made or ended agent; returns when its program has been executed, or when its start is queued.

        Raises:
            AgentosError: it runs or waits already, can never fit (without `wait`: does not fit now), its tenant's
                queue is full, or a stage failed (everything undone).
        """
        await self.tasks.unbroken(self._start(agent, wait))

    async def _start(self, agent: Agent, wait: bool) -> None:
        async with agent.lock:
            self._check_startable(agent)
            with self.queue.keeping(agent):  # what it has reserved if it waits for its next restart
                self.runner.cancel_restart(agent)
                if not self.queue.request(agent, wait=wait):
                    return
            try:
                agent.record.wanted = True
                agent.record.restarts = agent.record.backoff_count = 0
                await self.runner.start(agent)
            finally:
                self.queue.settled(agent)

    async def _start_queued(self, agent: Agent) -> None:
        """The start of an agent whose turn has come. Nobody waits for its answer: a failure is in the agent's state."""
        try:
            async with agent.lock:
                if not self.queue.may_start(agent):
                    return
                agent.record.restarts = 0
                with contextlib.suppress(Exception):  # told by `Runner` in the agent's state and as an event
                    await self.runner.start(agent)
                if agent.record.state == "failed" and agent.record.spec.auto_remove:
                    await self._remove_locked(agent)
        finally:
            self.queue.settled(agent)

    async def _fail_queued(self, agent: Agent, error: AgentosError) -> None:
        """What waited can never fit any more."""
        async with agent.lock:
            if agent.record.state == "queued" and not agent.removed:
                self.runner.start_failed(agent, error)
                if agent.record.spec.auto_remove:
                    await self._remove_locked(agent)

    async def _cancel_queued(self, agent: Agent, reason: str) -> None:
        """Call off a start that waits; the agent's lock is held."""
        record = agent.record
        self.queue.leave(agent)
        record.wanted, record.ticket, record.ended_at, record.exit_status = False, 0, time.time(), None
        agent.become("exited", reason)
        self.host.registry.save(record)
        self.runner.event(agent, "exited", exit_status=None, reason=reason, oom_killed=False)
        if record.spec.auto_remove:
            await self._remove_locked(agent)

    def _check_startable(self, agent: Agent) -> None:
        if agent.live:
            raise AgentosError("agent-running", "the agent is running already", agent.where)
        if agent.record.state == "queued" and not agent.removed:
            raise self.queue.error(agent)
        if agent.removed:
            raise AgentosError("agent-not-found", "the agent has been removed", agent.where)
        if self.runner.closing:
            raise AgentosError("stopping", "the supervisor is stopping", agent.where)

    # -- ending --------------------------------------------------------------------------------------------------

    async def stop(
        self, agent: Agent, *, grace: float | None = None, signal: str | None = None, reason: str = "stopped"
    ) -> None:
        """Signal the agent, give it `grace` seconds, kill the whole tree; returns when it is gone. It is not restarted.

        An agent that does not run is only kept from being restarted, or from being started when its turn comes.
        """
        await self.tasks.unbroken(self._stop(agent, grace, signal, reason))

    async def _stop(self, agent: Agent, grace: float | None, signal: str | None, reason: str) -> None:
        spec = agent.record.spec
        number = signal_number(signal) if signal else stop_signal(spec, self._config_of(agent))
        async with agent.lock:
            if agent.removed:  # while the lock was waited for: its record must not come back
                return
            if agent.record.state == "queued":
                await self._cancel_queued(agent, CANCELLED if reason == "stopped" else reason)
                return
            if reason not in {TIMED_OUT, SUPERVISOR_STOPPED}:  # after those the agent's policy still counts
                agent.record.wanted = False
                self.runner.cancel_restart(agent)
            run = agent.run
            if run is None or run.finished:
                self.host.registry.save(agent.record)
                return
            run.stop_reason = reason
            was_paused = agent.record.state == "paused"
            agent.become("stopping", reason)
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk is no reason to let it run on
                self.host.registry.save(agent.record)
            self.runner.event(agent, "stopping", signal=signal_name(number))
            await self._signal_then_kill(run, number, spec.stop.grace if grace is None else grace, was_paused)
            await self.runner.finish(agent, run, run.ended.result())

    def _config_of(self, agent: Agent) -> ImageConfig | None:
        """None where the image cannot be read (any more): that keeps nobody from stopping the agent."""
        try:
            return self.host.image(agent.record.image_digest).config
        except (AgentosError, OSError):
            return None

    async def _signal_then_kill(self, run: Run, number: int, grace: float, was_paused: bool) -> None:
        if grace > 0 and number != signals.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                pidfd_send_signal(run.pidfd, number)
            if was_paused:
                await self.host.workers.call(run.group.thaw)
            faults.point("stop.signalled")
            await asyncio.wait([run.ended], timeout=grace)
        if not run.ended.done():
            await self.host.workers.call(run.group.kill)
            faults.point("stop.signalled")
            done, _ = await asyncio.wait([run.ended], timeout=KILL_TIMEOUT)
            if not done:
                raise AgentosError(
                    "not-killed",
                    f"the agent's processes are still there {KILL_TIMEOUT:g} s after SIGKILL",
                    run.group.path,
                    "A process in uninterruptible sleep (state D) goes when its I/O ends; stop it again then.",
                )

    # -- restarting ----------------------------------------------------------------------------------------------

    async def restart(self, agent: Agent, *, grace: float | None = None, wait: bool = True) -> None:
        """Stop (if it runs) and start again, in the room that it has."""
        await self.tasks.unbroken(self._restart(agent, grace, wait))

    async def _restart(self, agent: Agent, grace: float | None, wait: bool) -> None:
        with self.queue.keeping(agent):
            if agent.live:
                await self.stop(agent, grace=grace)
            await self.start(agent, wait=wait)

    # -- the rest ------------------------------------------------------------------------------------------------

    async def kill(self, agent: Agent, signal: str) -> None:
        """Send `signal` to the agent; SIGKILL to its whole tree. The restart policy applies to what follows.

        A start that waits is called off by what would end a program.
        """
        number = signal_number(signal)
        if agent.record.state == "queued" and number in _ENDING:
            await self.stop(agent)
            return
        run = self._running(agent)
        if number == signals.SIGKILL:
            await self.host.workers.call(run.group.kill)
        else:
            with contextlib.suppress(ProcessLookupError):
                pidfd_send_signal(run.pidfd, number)
        self.runner.event(agent, "signalled", signal=signal_name(number))

    async def pause(self, agent: Agent) -> None:
        """Freeze every process of the agent."""
        async with agent.lock:
            run = self._running(agent)
            await self.host.workers.call(run.group.freeze)
            agent.become("paused")
            self.host.registry.save(agent.record)
            self.runner.event(agent, "paused")

    async def resume(self, agent: Agent) -> None:
        """The inverse of `pause`."""
        async with agent.lock:
            run = self._running(agent)
            await self.host.workers.call(run.group.thaw)
            agent.become("running")
            self.host.registry.save(agent.record)
            self.runner.event(agent, "resumed")

    def _running(self, agent: Agent) -> Run:
        run = agent.run
        if agent.record.state == "queued":
            raise self.queue.error(agent)
        if run is None or run.finished:
            raise AgentosError(
                "agent-not-running", f"the agent is {agent.record.state}", agent.where, "Start it first."
            )
        return run

    async def wait(self, agent: Agent) -> Record:
        """The agent's record once it has ended for good (removed, or ended and not about to be restarted)."""
        while not agent.removed and (agent.live or agent.record.state in {"backoff", "pending", "queued"}):
            await agent.changed.wait()
        return agent.record

    async def _stop_at_the_end(self, agent: Agent) -> None:
        await self.stop(agent, grace=min(agent.record.spec.stop.grace, LAST_GRACE), reason=SUPERVISOR_STOPPED)

    async def close(self, *, keep: bool) -> None:
        """Stop every agent (or let them live on), and end all tasks. What is queued waits for the next supervisor."""
        self.runner.closing = self.queue.closed = True
        if not keep:
            waits = {"queued"} if self.host.options.embedded else set()  # no next supervisor is sure to come
            stops = [
                self._stop_at_the_end(agent) for agent in self.host.agents if agent.live or agent.record.state in waits
            ]
            await asyncio.gather(*stops, return_exceptions=True)
        await self.tasks.close()
        for agent in self.host.agents:
            if agent.run is not None:
                agent.run.close()


def write_spec(directory: str, record: Record) -> None:
    """The agent's own copy of its record, from which it is adopted should the registry be lost."""
    temporary = os.path.join(directory, ".spec.json")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, encode_record(record))
    finally:
        os.close(fd)
    os.replace(temporary, os.path.join(directory, "spec.json"))
