"""What commands share: the client, ``-o json``, names that complete themselves, and one action over several agents."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from agentos_native.errors import EXIT_FAILED, AgentosError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from agentos_native.client import Client

_P = ParamSpec("_P")
_R = TypeVar("_R")


def client_of(ctx: click.Context | None = None) -> Client:
    """The client for the socket that ``--socket`` or the environment names."""
    from agentos_native.client.client import Client

    context = ctx or click.get_current_context()
    return Client((context.find_object(dict) or {}).get("socket"))


def output_option(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Adds ``-o``; the command gets ``output`` ("table" or "json")."""
    choice = click.Choice(["table", "json"])
    return click.option("-o", "--output", type=choice, default="table", help="table (default) or json.")(function)


class _Names(click.ParamType[str, str]):
    """A name that the shell can complete by asking the supervisor."""

    name = "name"

    def __init__(self, ask: Callable[[Client], Iterable[str]]) -> None:
        self._ask = ask

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        try:
            return [CompletionItem(name) for name in self._ask(client_of(ctx)) if name.startswith(incomplete)]
        except AgentosError:
            return []


def _agent_names(client: Client) -> Iterable[str]:
    for agent in client.agents(ended=True):
        yield agent.name
        yield f"{agent.tenant}/{agent.name}"


AGENT = _Names(_agent_names)
"""NAME, TENANT/NAME, id or a beginning of it."""
IMAGE = _Names(lambda client: (image.name for image in client.images()))
TENANT = _Names(lambda client: (tenant.name for tenant in client.tenants()))


def _name(name: str, _result: Any) -> None:
    print(name)


def each(
    names: Iterable[str],
    action: Callable[[str], Any],
    output: str,
    show: Callable[[str, Any], None] = _name,
) -> int:
    """Do `action` to each of `names`, go on after a failure, and report; the exit status.

    As a table `show` prints what was done (the name alone); as JSON one list of ``{"name", "ok", "result" | "error"}``.
    """
    from agentos_native.cli.output import print_json, to_plain

    done = []
    status = 0
    for name in names:
        try:
            result = action(name)
        except AgentosError as error:
            status = status or error.exit_status or EXIT_FAILED
            done.append({"name": name, "ok": False, "error": error.to_dict()})
            print(error, file=sys.stderr)
        else:
            done.append({"name": name, "ok": True, "result": to_plain(result)})
            if output == "table":
                show(name, result)
    if output == "json":
        print_json(done)
    return status


def returns_status(function: Callable[_P, int | None]) -> Callable[_P, None]:
    """A command whose return value is the exit status."""

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> None:
        if status := function(*args, **kwargs):
            raise click.exceptions.Exit(status)

    return wrapper
