"""``stop kill start restart pause resume rm wait``: one action, done to each agent that is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agentos_native.cli.context import AGENT, client_of, each, output_option, returns_status
from agentos_native.cli.output import print_json, to_plain
from agentos_native.cli.queued import no_wait, tell
from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from agentos_native.wire import api

_names = click.argument("names", nargs=-1, required=True, type=AGENT, metavar="NAME...")


def _signal(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    from agentos_native.spec.names import check_signal

    return None if value is None else check_signal(value)


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    from agentos_native.spec.quantities import parse_duration

    return None if value is None else parse_duration(value)


@click.command()
@_names
@click.option("-t", "--grace", callback=_seconds, metavar="TIME", help="Time until the whole tree is killed.")
@click.option("-s", "--signal", callback=_signal, metavar="SIGNAL", help="Signal to ask with (the spec's by default).")
@output_option
@returns_status
def stop(names: tuple[str, ...], grace: float | None, signal: str | None, output: str) -> int:
    """Stop agents: signal, grace, then a kill of the whole tree."""
    client = client_of()
    return each(names, lambda name: client.stop(name, grace=grace, signal=signal), output)


@click.command()
@_names
@click.option("-s", "--signal", callback=_signal, default="SIGKILL", metavar="SIGNAL", help="SIGKILL by default.")
@output_option
@returns_status
def kill(names: tuple[str, ...], signal: str, output: str) -> int:
    """Send a signal to agents' programs."""
    client = client_of()
    return each(names, lambda name: client.kill(name, signal), output)


@click.command()
@_names
@no_wait
@output_option
@returns_status
def start(names: tuple[str, ...], wait: bool, output: str) -> int:
    """Start agents that have ended, or queue them until there is room."""
    client = client_of()
    return each(names, lambda name: _told(client.start(name, wait=wait)), output)


def _told(agent: api.Agent) -> api.Agent:
    tell(agent)
    return agent


@click.command()
@_names
@click.option("-t", "--grace", callback=_seconds, metavar="TIME", help="Time until the whole tree is killed.")
@no_wait
@output_option
@returns_status
def restart(names: tuple[str, ...], grace: float | None, wait: bool, output: str) -> int:
    """Stop and start agents."""
    client = client_of()
    return each(names, lambda name: _told(client.restart(name, grace=grace, wait=wait)), output)


@click.command()
@_names
@output_option
@returns_status
def pause(names: tuple[str, ...], output: str) -> int:
    """Freeze all processes of agents."""
    return each(names, client_of().pause, output)


@click.command()
@_names
@output_option
@returns_status
def resume(names: tuple[str, ...], output: str) -> int:
    """Let frozen agents go on."""
    return each(names, client_of().resume, output)


@click.command()
@_names
@click.option("-f", "--force", is_flag=True, help="Kill them first if they run.")
@output_option
@returns_status
def rm(names: tuple[str, ...], force: bool, output: str) -> int:
    """Remove ended agents and their files."""
    client = client_of()
    return each(names, lambda name: client.remove(name, force=force), output)


@click.command()
@_names
@click.option("--timeout", callback=_seconds, metavar="TIME", help="Give up after this long (exit status 124).")
@output_option
def wait(names: tuple[str, ...], timeout: float | None, output: str) -> None:
    """Wait until agents end; print the exit status of each."""
    client = client_of()
    results = []
    for name in names:
        try:
            result = client.wait(name, timeout)
        except AgentosError as error:
            if error.code != "timeout":
                raise
            late = AgentosError("timeout", "the agent has not ended in this time", name)
            late.exit_status = 124
            raise late from error
        results.append({"name": name, **to_plain(result)})
        if output == "table":
            print("unknown" if result.exit_status is None else result.exit_status)
    if output == "json":
        print_json(results)
