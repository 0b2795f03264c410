"""Exec: a further process in a running agent, for as long as its client stays.

It gets a leaf cgroup of its own (``exec-<n>``), all of the agent's namespaces and the same restrictions. Its pipes or
its terminal belong to this connection alone: when the client goes, the leaf is killed, because nobody could reach the
process any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

from agentos_native.errors import AgentosError
from agentos_native.kernel.process import pidfd_send_signal
from agentos_native.sandbox.hints import failure_to_error
from agentos_native.supervisor import admission, program
from agentos_native.supervisor.agents import Agent, Ending, Run
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.launcher_link import CloneError
from agentos_native.supervisor.streams import Channels, read_some, set_window, write_all
from agentos_native.wire import api


class Exec:
    """One further process; use once."""

    def __init__(self, host: Host, agent: Agent, request: program.ExecRequest) -> None:
        self._host = host
        self._agent = agent
        self._request = request
        self._run = _running(agent)
        self._number = self._run.next_exec
        self._run.next_exec += 1
        self._leaf = f"exec-{self._number}"
        self._mine: list[int] = []
        self._theirs: list[int] = []
        self._input = self._output = self._errors = self._terminal = -1

    async def start(self) -> asyncio.Future[Ending]:
        """Clone it; what is given is set when it has ended.

        Raises:
            AgentosError: it cannot be started (126 or 127 for the command itself); nothing is left.
        """
        try:
            return await self._start()
        except BaseException as error:
            await self._remove_leaf()
            self.close()
            if isinstance(error, CloneError):
                raise failure_to_error(error.failure, self._agent.where) from error
            raise
        finally:
            for fd in self._theirs:
                os.close(fd)
            self._theirs.clear()

    async def _start(self) -> asyncio.Future[Ending]:
        host, record, request = self._host, self._agent.record, self._request
        id_base = admission.id_base(host.block, record.slot)
        image = await host.workers.call(host.image, record.image_digest)
        wanted = request.user or record.spec.user or image.config.user or None
        user = await host.workers.call(host.user, image, wanted)
        if not request.tty:
            self._pipes(id_base + user.uid)
        handles = program.ExecHandles(
            leaf=self._their(self._run.group.leaf(self._leaf)),
            agent=self._run.pidfd,
            pidns=self._their(pid_namespace(self._run)),
            stdio=() if request.tty else tuple(self._theirs[:3]),
        )
        plan = program.exec_program(record, image.config, user, id_base, request, handles)
        unit = f"{self._agent.id}/{self._leaf}"
        ended = host.units.expect(unit)
        try:
            clone = host.link.clone(
                unit, plan.encode(), namespaces=plan.namespaces, fds=plan.fds, cgroup=plan.cgroup, pidns=plan.pidns
            )
            _, pidfd = await clone.cloned
            self._mine.append(pidfd)
            terminal = await clone.running
        except BaseException:
            host.units.forget(unit)
            raise
        if terminal:
            self._terminal = terminal[0]
            self._mine += terminal
            os.set_blocking(self._terminal, False)
        return ended

    def _their(self, fd: int) -> int:
        self._theirs.append(fd)
        return fd

    def _pipes(self, uid: int) -> None:
        """stdin, stdout, stderr; the process's user may reopen its ends through /proc/self/fd."""
        null_or_pipe = os.pipe2(os.O_CLOEXEC) if self._request.stdin else (os.open(os.devnull, os.O_RDONLY), -1)
        self._their(null_or_pipe[0])
        self._input = null_or_pipe[1]
        self._output, out = os.pipe2(os.O_CLOEXEC)
        self._errors, err = os.pipe2(os.O_CLOEXEC)
        self._theirs += [out, err]
        self._mine += [fd for fd in (self._input, self._output, self._errors) if fd >= 0]
        for fd in self._mine:
            os.set_blocking(fd, False)
        for fd in (out, err, *([null_or_pipe[0]] if self._request.stdin else [])):
            os.fchown(fd, uid, uid)

    async def serve(self, channels: Channels, ended: asyncio.Future[Ending]) -> None:
        """Stream until the process has ended and its output is through, or the client has gone."""
        if self._terminal >= 0:
            outputs = [asyncio.create_task(_send(channels, api.CHANNEL_STDOUT, self._terminal))]
        else:
            outputs = [
                asyncio.create_task(_send(channels, api.CHANNEL_STDOUT, self._output)),
                asyncio.create_task(_send(channels, api.CHANNEL_STDERR, self._errors)),
            ]
        receiver = asyncio.create_task(self._receive(channels))
        try:
            either: list[asyncio.Future[Any]] = [ended, receiver]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():  # the client has gone
                await self._host.workers.call(self._kill)
                await asyncio.wait([ended], timeout=10)
            # What was written before the end is read to its end; a child that was left behind may hold the pipe open.
            await asyncio.wait(outputs, timeout=1.0)
        finally:
            receiver.cancel()
            for task in outputs:
                task.cancel()
            await asyncio.gather(receiver, *outputs, return_exceptions=True)
            await self._end(channels, ended)

    async def _end(self, channels: Channels, ended: asyncio.Future[Ending]) -> None:
        if ended.done():
            ending = ended.result()
            if ending.exit_id is not None:
                self._host.link.acknowledge(ending.exit_id)
            await channels.finish(api.StreamStatus(exit_status=ending.status, reason="exited"))
        await self._remove_leaf()
        self.close()

    def close(self) -> None:
        """Close every fd of this side."""
        for fd in self._mine:
            os.close(fd)
        self._mine.clear()
        self._input = self._terminal = -1

    def _kill(self) -> None:
        with contextlib.suppress(AgentosError, OSError):
            self._run.group.kill(self._leaf)

    async def _remove_leaf(self) -> None:
        """Kill what is left in the leaf and remove it; when the agent itself is gone the leaf is, too."""

        def remove() -> None:
            self._kill()
            with contextlib.suppress(AgentosError, OSError):
                self._run.group.remove_leaf(self._leaf)

        await self._host.workers.call(remove)

    async def _receive(self, channels: Channels) -> None:
        while (frame := await channels.receive()) is not None:
            channel, data = frame
            target = self._terminal if self._terminal >= 0 else self._input
            if channel == api.CHANNEL_RESIZE and self._terminal >= 0:
                set_window(self._terminal, data)
            elif channel == api.CHANNEL_STDIN and self._request.stdin and target >= 0:
                await write_all(target, data)
            elif channel == api.CHANNEL_CLOSE and data[:1] == b"\0":
                await self._close_input()

    async def _close_input(self) -> None:
        if self._terminal >= 0:
            await write_all(self._terminal, b"\x04")  # VEOF, termios(3)
        elif self._input >= 0:
            self._mine.remove(self._input)
            os.close(self._input)
            self._input = -1


async def _send(channels: Channels, channel: int, fd: int) -> None:
    while data := await read_some(fd):
        await channels.send(channel, data)


def _running(agent: Agent) -> Run:
    run, state = agent.run, agent.record.state
    if run is None or run.finished or state == "paused":
        hints = {"paused": "Resume it first.", "queued": "It starts when there is room; `ps` shows what it waits for."}
        raise AgentosError(
            "agent-not-running", f"the agent is {state}", agent.where, hints.get(state, "Start it first.")
        )
    return run


def pid_namespace(run: Run) -> int:
    """An fd of the agent's pid namespace. Its number is looked up in /proc and proved by the pidfd afterwards."""
    try:
        fd = os.open(Path("/proc", str(run.pid), "ns", "pid"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise AgentosError("agent-not-running", "the agent has just ended", run.group.path)
    try:
        pidfd_send_signal(run.pidfd, 0)
    except OSError:
        os.close(fd)
        raise AgentosError("agent-not-running", "the agent has just ended", run.group.path)
    return fd
