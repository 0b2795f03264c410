"""Attach: a client on the streams of an agent's own program, from before its start if it likes, until its end."""

from __future__ import annotations

import asyncio
import contextlib

from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.routes import as_error
from agentos_native.supervisor.streams import Channels, Listener, set_window, write_all
from agentos_native.wire import api


async def attach(agent: Agent, channels: Channels, *, stdin: bool) -> None:
    """Stream until the agent has ended or the client has gone (the agent does not mind).

    An agent that has not been started yet is waited for, so that a client which attaches first misses nothing.
    """

    def resume() -> None:
        if agent.run is not None and agent.run.drain is not None:
            agent.run.drain.resume()

    listener = Listener(resume)
    agent.listeners.append(listener)
    sender = asyncio.create_task(listener.pump(channels))
    receiver = asyncio.create_task(_receive(agent, channels, stdin=stdin))
    ended = asyncio.create_task(until_ended(agent))
    try:
        await asyncio.wait([ended, receiver], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            return
        listener.end()
        await sender
        record = agent.record
        failed = as_error(agent.error).to_dict() if agent.error is not None and record.state == "failed" else None
        await channels.finish(api.StreamStatus(exit_status=record.exit_status, reason=record.reason, error=failed))
    finally:
        agent.listeners.remove(listener)
        resume()
        for task in (sender, receiver, ended):
            task.cancel()
        await asyncio.gather(sender, receiver, ended, return_exceptions=True)


async def until_ended(agent: Agent) -> None:
    """Returns when the agent's current or first run is over."""
    while not agent.removed and (agent.live or agent.record.state in {"pending", "queued"}):
        await agent.changed.wait()


async def _receive(agent: Agent, channels: Channels, *, stdin: bool) -> None:
    """Frames of the client, until it goes."""
    while (frame := await channels.receive()) is not None:
        channel, data = frame
        if channel == api.CHANNEL_RESIZE and await _running(agent):
            if agent.run is not None and agent.run.tty_fd >= 0:
                set_window(agent.run.tty_fd, data)
        elif stdin and channel == api.CHANNEL_STDIN and await _running(agent):
            run = agent.run
            fd = -1 if run is None else run.tty_fd if run.tty_fd >= 0 else run.stdin_fd
            if fd >= 0:
                await write_all(fd, data)
        elif stdin and channel == api.CHANNEL_CLOSE and data[:1] == b"\0" and await _running(agent):
            run = agent.run
            if run is not None and run.tty_fd >= 0:
                with contextlib.suppress(OSError):
                    await write_all(run.tty_fd, b"\x04")  # a terminal's own way to say it (VEOF, termios(3))
            elif run is not None:
                run.close_stdin()


async def _running(agent: Agent) -> bool:
    """Wait for a start that may still come; whether the agent runs then."""
    while agent.run is None and not agent.removed and agent.record.state in {"pending", "queued", "starting"}:
        await agent.changed.wait()
    return agent.run is not None
