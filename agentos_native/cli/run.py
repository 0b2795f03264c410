"""``run``: make an agent, join its streams, start it, and end as it ends."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from agentos_native.cli.context import returns_status
from agentos_native.cli.queued import await_turn, no_wait, tell
from agentos_native.cli.spec_options import build, spec_options
from agentos_native.errors import EXIT_FAILED, AgentosError

if TYPE_CHECKING:
    from agentos_native.client import Client
    from agentos_native.client.stream import Stream
    from agentos_native.spec.model import AgentSpec
    from agentos_native.wire import api

_RECONNECT_SECONDS: Final = 20.0
"""How long a supervisor that went away under a running agent may take to come back."""


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Print the id and leave it running.")
@click.option("--rm", "remove", is_flag=True, help="Remove the agent when it has ended.")
@click.option("-i", "--interactive", is_flag=True, help="Hand standard input to the program.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@no_wait
@spec_options
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="json: one result object.")
@click.argument("image")
@click.argument("command", nargs=-1)
@click.pass_context
@returns_status
def run(
    ctx: click.Context,
    /,
    detach: bool,
    remove: bool,
    interactive: bool,
    tty: bool,
    wait: bool,
    output: str,
    image: str,
    command: tuple[str, ...],
    **given: Any,
) -> int:
    """Run a program from IMAGE as an agent; COMMAND replaces the image's own.

    In the foreground its output is ours, signals go to it, and the exit status is its own. Without a supervisor one
    runs inside this command for as long as it lasts, unless --socket names one. What does not fit now waits in its
    tenant's queue: in the foreground until it is called off by Ctrl-C, nowhere longer than --wait-timeout.
    """
    from agentos_native.cli.embedded import supervised
    from agentos_native.cli.streams import check_terminal

    if tty and interactive and not detach:
        check_terminal()
    spec = build(image, command, given, {"stdin": interactive, "tty": tty, "autoRemove": remove})
    with supervised(ctx, lasting=detach) as client:
        if detach:
            _report_detached(client.run(spec, wait=wait), output)
            return 0
        return _Foreground(client, spec, interactive, output).run(wait=wait)


def _report_detached(agent: api.Agent, output: str) -> None:
    from agentos_native.cli.output import print_json

    for warning in agent.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    tell(agent)
    print_json(agent) if output == "json" else print(agent.id)


class _Foreground:
    """One agent whose streams are ours."""

    def __init__(self, client: Client, spec: AgentSpec, interactive: bool, output: str) -> None:
        from agentos_native.cli.capture import Capture

        self._client = client
        self._spec = spec
        self._interactive = interactive
        self._capture = Capture() if output == "json" else None
        self._id = ""
        self._interrupts = 0
        self._streams = contextlib.ExitStack()
        self._stream: Stream

    def run(self, *, wait: bool) -> int:
        agent = self._client.run(self._spec, start=False, wait=wait)
        self._id = agent.id
        for warning in agent.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        with contextlib.ExitStack() as self._streams:
            try:
                self._attach()
                agent = self._client.start(agent.id, wait=wait)
                if agent.state == "queued":
                    agent = await_turn(self._client, agent, self._attach)
                if agent.state == "failed":  # its turn came, and it could not be started: the stream says why
                    self._stream.result_at_the_end()
            except BaseException:
                self._discard()
                raise
            status = self._pump(self._stream)
        return self._finish(agent, status)

    def _attach(self) -> None:
        self._stream = self._streams.enter_context(self._client.attach(self._id, stdin=self._interactive))

    def _discard(self) -> None:
        """What never ran leaves nothing behind."""
        with contextlib.suppress(AgentosError):
            self._client.remove(self._id, force=True)

    def _pump(self, stream: Any) -> api.StreamStatus:
        from agentos_native.client.terminal import Pump

        raw = self._interactive and self._spec.tty
        stdin = 0 if self._interactive else None
        try:
            return Pump(stream, stdin=stdin, raw=raw, output=self._capture, on_signal=self._forward).run()
        except AgentosError as error:
            if error.code != "connection-lost":
                raise
            return self._wait_again(error)

    def _wait_again(self, lost: AgentosError) -> api.StreamStatus:
        """The supervisor went away: the agent did not, and the next supervisor knows how it ends."""
        from agentos_native.wire.api import StreamStatus

        deadline = time.monotonic() + _RECONNECT_SECONDS
        while time.monotonic() < deadline:
            try:
                result = self._client.wait(self._id)
                print("warning: the supervisor was away: later output is only in the agent's log", file=sys.stderr)
                return StreamStatus(exit_status=result.exit_status, reason=result.reason)
            except AgentosError as error:
                if error.code not in ("no-supervisor", "connection-lost"):
                    raise
            time.sleep(0.2)
        raise lost

    def _forward(self, number: int) -> None:
        """A signal of ours goes to the program; the third Ctrl-C is a kill."""
        self._interrupts += number == signal.SIGINT
        name = "SIGKILL" if self._interrupts > 2 else signal.Signals(number).name
        with contextlib.suppress(AgentosError):
            self._client.kill(self._id, name)

    def _finish(self, agent: api.Agent, status: api.StreamStatus) -> int:
        oom = status.reason == "oom-killed"
        if self._capture:
            from agentos_native.cli.output import to_plain

            result = {"exit_status": status.exit_status, "reason": status.reason, "oom_killed": oom}
            self._capture.report({"agent": to_plain(self._ended(agent, result)), **result})
        elif oom:
            limit = self._spec.resources.limits.memory
            print(_oom(f"{agent.tenant}/{agent.name}", limit), file=sys.stderr)
        elif status.reason == "timeout":
            print(AgentosError("timeout", "the agent ran longer than it may", agent.name), file=sys.stderr)
        elif status.reason == "cancelled":
            print(AgentosError("cancelled", "it was called off while its start waited", agent.name), file=sys.stderr)
            return EXIT_FAILED
        if status.exit_status is None:
            print(AgentosError("unknown-exit", "how the agent ended is not known", agent.name), file=sys.stderr)
            return EXIT_FAILED
        return status.exit_status

    def _ended(self, agent: api.Agent, result: dict[str, Any]) -> api.Agent:
        """The agent as it is now, or what is known of one that is removed already."""
        from msgspec.structs import replace

        try:
            return self._client.agent(self._id)
        except AgentosError:
            return replace(agent, state="exited", pid=None, **result)


def _oom(name: str, limit: int | None) -> AgentosError:
    from agentos_native.spec.quantities import format_memory

    bound = f" (limit {format_memory(limit)})" if limit else ""
    return AgentosError("oom-killed", f"the kernel killed it: out of memory{bound}", name, "raise --memory-limit")
