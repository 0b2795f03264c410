"""``exec`` and ``attach``."""

from __future__ import annotations

import os
import sys

import click

from agentos_native.cli.context import AGENT, client_of, returns_status
from agentos_native.errors import AgentosError


def check_terminal() -> None:
    """Raises when ``-t`` is asked for without a terminal to give."""
    if not sys.stdin.isatty():
        raise AgentosError("not-a-terminal", "-t needs a terminal as standard input", hint="leave out -t")


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Hand standard input to the program.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-u", "--user", metavar="USER", help="User inside (the agent's by default).")
@click.option("-w", "--workdir", metavar="PATH", help="Working directory inside.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Environment variable; NAME takes it from here.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="json: one result object.")
@click.argument("name", type=AGENT)
@click.argument("command", nargs=-1, required=True)
@returns_status
def exec_(
    interactive: bool,
    tty: bool,
    user: str | None,
    workdir: str | None,
    env: tuple[str, ...],
    output: str,
    name: str,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND inside the agent NAME, in a cgroup of its own below the agent's; the exit status is the command's."""
    from agentos_native.cli.capture import Capture
    from agentos_native.cli.spec_options import environment
    from agentos_native.client.terminal import Pump

    if tty and interactive:
        check_terminal()
    pairs = [f"{key}={value}" for key, value in environment(env, ()).items()]
    if tty and "TERM" in os.environ:
        pairs.insert(0, f"TERM={os.environ['TERM']}")
    capture = Capture() if output == "json" else None
    client = client_of()
    with client.exec(name, command, tty=tty, stdin=interactive, user=user, workdir=workdir, env=pairs) as stream:
        pump = Pump(stream, stdin=0 if interactive else None, raw=tty and interactive, output=capture)
        status = pump.run()
    if capture:
        capture.report({"name": name, "exit_status": status.exit_status, "reason": status.reason})
    return 125 if status.exit_status is None else status.exit_status


@click.command()
@click.option("-i", "--interactive", is_flag=True, help="Hand standard input to the program (the spec asks for stdin).")
@click.argument("name", type=AGENT)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="json: one result object.")
@returns_status
def attach(interactive: bool, name: str, output: str) -> int:
    """Join an agent's standard streams. Ctrl-C (on a terminal of the agent's: Ctrl-]) leaves; the agent goes on."""
    from agentos_native.cli.capture import Capture
    from agentos_native.client.terminal import Detached, Pump

    client = client_of()
    raw = interactive and bool(client.agent(name).spec.get("tty")) and sys.stdin.isatty()
    capture = Capture() if output == "json" else None
    with client.attach(name, stdin=interactive) as stream:
        try:
            pump = Pump(stream, stdin=0 if interactive else None, raw=raw, detachable=True, output=capture)
            status = pump.run()
        except Detached:
            return 0
    if capture:
        capture.report({"name": name, "exit_status": status.exit_status, "reason": status.reason})
    return 125 if status.exit_status is None else status.exit_status
