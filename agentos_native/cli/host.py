"""``check``, ``supervise`` and ``version``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from agentos_native import __version__
from agentos_native.cli.context import client_of, output_option, returns_status
from agentos_native.cli.output import print_json, table, to_plain
from agentos_native.errors import EXIT_FAILED, AgentosError
from agentos_native.spec import settings

if TYPE_CHECKING:
    from agentos_native.wire import api


@click.command()
@output_option
@returns_status
def check(output: str) -> int:
    """What this host can do, what is missing, how to mend it. Exit status 125 when agents cannot run here."""
    report = _report()
    if output == "json":
        print_json(report)
    else:
        _show(report)
    return 0 if report.ok else EXIT_FAILED


def _report() -> api.CheckReport:
    """From the supervisor that answers, otherwise probed by a process of its own."""
    import msgspec

    from agentos_native.wire import api

    try:
        return client_of().check()
    except AgentosError as error:
        if error.code != "no-supervisor":
            raise
    command = [sys.executable, "-m", "agentos_native.supervisor.check", "-o", "json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    try:
        return msgspec.json.decode(done.stdout, type=api.CheckReport)
    except msgspec.DecodeError:
        raise AgentosError("check-failed", f"the probe ended with status {done.returncode} and without a report")


def _show(report: api.CheckReport) -> None:
    groups: dict[str, list[api.CheckFeature]] = {}
    for feature in report.features:
        groups.setdefault(feature.group, []).append(feature)
    rows = [
        (group, feature.name, feature.state, "yes" if feature.required else "", feature.detail)
        for group, features in groups.items()
        for feature in features
    ]
    table(("GROUP", "FEATURE", "STATE", "REQUIRED", "DETAIL"), rows)
    for feature in report.features:
        if feature.state != "ok" and feature.hint:
            print(f"\n{feature.name}: {feature.state}")
            for number, line in enumerate(feature.hint.splitlines()):
                print(f"  hint: {line}" if not number else f"        {line}")
    print("\n" + ("Agents can run here." if report.ok else "Agents cannot run here: a required feature is missing."))


def _settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for row in reversed(settings.TABLE):
        default = "" if row.default is None else f" ({row.show(row.default)})"
        variable = f" [{row.variable}]" if row.variable else ""
        text = row.help[:1].upper() + row.help[1:] + default + variable + "."
        function = click.option(row.option, row.attribute, metavar=row.metavar, help=text)(function)
    return function


@click.command()
@click.option(
    "--config", metavar="FILE", type=click.Path(), help="Configuration file (YAML: the options in camelCase)."
)
@_settings_options
@click.pass_context
def supervise(ctx: click.Context, /, config: str | None, **given: str | None) -> None:
    """Run the supervisor in the foreground. SIGTERM stops it, and its agents unless --on-exit=keep.

    An option wins over the environment, that over the configuration file.
    """
    overrides = {name: text for name, text in given.items() if text is not None}
    outer = (ctx.find_object(dict) or {}).get("socket")
    if outer and "socket" not in overrides:
        overrides["socket"] = os.path.abspath(outer)
    loaded = settings.load(overrides, config)
    if os.geteuid() != 0:
        raise AgentosError("permission-denied", "the supervisor needs root", hint="run this as root")
    python = [sys.executable, "-m"]
    command = [
        *python,
        "agentos_native.launcher",
        "--",
        *python,
        "agentos_native.supervisor",
        *settings.to_argv(loaded),
    ]
    sys.stdout.flush()
    os.execv(sys.executable, command)


@click.command()
@output_option
def version(output: str) -> None:
    """Version of this program and of the supervisor that answers."""
    supervisor: dict[str, Any] | None = None
    try:
        supervisor = to_plain(client_of().version())
    except AgentosError as error:
        if error.code != "no-supervisor":
            raise
    if output == "json":
        print_json({"client": {"name": "agentos-native", "version": __version__}, "supervisor": supervisor})
        return
    print(f"agentos-native {__version__}")
    print(f"supervisor: {supervisor['version'] if supervisor else 'none answers'}")
