"""The top command: which commands there are, and how a failure leaves the process.

`COMMANDS` names each command's module, so that ``--help`` and every command import only what they need. Exit status:
the program's own where there is one; 125 for a failure of this product; 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any, Final

import click

from agentos_native import __version__
from agentos_native.errors import EXIT_FAILED, AgentosError

COMMANDS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "Host": {
        "check": ("host:check", "What this host can do, what is missing, how to mend it."),
        "supervise": ("host:supervise", "Run the supervisor in the foreground."),
        "version": ("host:version", "Version of this program and of the supervisor that answers."),
    },
    "Agents": {
        "run": ("run:run", "Run a program from an image as an agent."),
        "ps": ("listing:ps", "List agents."),
        "inspect": ("listing:inspect", "Everything about agents."),
        "logs": ("logs:logs", "What an agent wrote."),
        "exec": ("streams:exec_", "Run a further program inside an agent."),
        "attach": ("streams:attach", "Join an agent's standard streams."),
        "stop": ("lifecycle:stop", "Stop agents: signal, grace, kill of the whole tree."),
        "kill": ("lifecycle:kill", "Send a signal to agents' programs."),
        "start": ("lifecycle:start", "Start agents that have ended."),
        "restart": ("lifecycle:restart", "Stop and start agents."),
        "set": ("set:set_", "Change agents while they run: weight, reservations, limits, policies."),
        "pause": ("lifecycle:pause", "Freeze agents."),
        "resume": ("lifecycle:resume", "Let frozen agents go on."),
        "rm": ("lifecycle:rm", "Remove ended agents and their files."),
        "wait": ("lifecycle:wait", "Wait until agents end; print their exit status."),
        "events": ("logs:events", "What happened on this node."),
    },
    "Policies": {
        "apply": ("documents:apply", "Make it as the documents say."),
        "delete": ("documents:delete", "Remove what the documents describe."),
        "validate": ("documents:validate", "Check documents without a supervisor."),
        "tenant": ("set:tenant", "Owners of agents."),
    },
    "Shares": {
        "top": ("alloc:top", "Live: request, limit, share, use and pressure of each agent."),
        "alloc": ("alloc:alloc", "What the allocator gives, and why."),
        "report": ("report:report", "A page about the recorded ticks: shares, pressure, starts."),
    },
    "Images": {"image": ("images:image", "Root filesystems of agents.")},
}
_NoArguments: Final[Any] = getattr(click.exceptions, "NoArgsIsHelpError", ())  # from click 8.2 on
_FLAT: Final = {name: entry for commands in COMMANDS.values() for name, entry in commands.items()}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_FLAT)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _FLAT:
            return None
        module, _, attribute = _FLAT[cmd_name][0].partition(":")
        command = getattr(import_module(f"agentos_native.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # whoever read our output went away; the interpreter must not complain of it again when it flushes
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(128 + signal.SIGPIPE)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _FLAT:
            from agentos_native.cli.habits import command_hint
            from agentos_native.spec.tree import clip

            raise AgentosError("usage", f"no command {clip(args[0])}", hint=command_hint(args[0], _FLAT))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, help_text) for name, (_, help_text) in commands.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="agentos-native")
@click.option("--socket", metavar="PATH", help="Use the supervisor there, and start no other (AGENTOS_SOCKET may).")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, socket: str | None, debug: bool) -> None:
    """Sandboxes for LLM agents, made of the kernel's own parts, sharing one machine fairly.

    Completion: eval "$(_AGENTOS_NATIVE_COMPLETE=bash_source agentos-native)" (or zsh_source, fish_source).
    """
    ctx.obj = {"socket": socket, "debug": debug}


def run(argv: list[str] | None = None) -> int:
    """Run one command line; returns its exit status. Errors go to standard error, with a traceback only if wanted."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        status: Any = cli.main(argv, prog_name="agentos-native", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except Exception as error:
        if isinstance(error, _NoArguments):
            print(error.format_message(), file=sys.stderr)
            return EXIT_FAILED
        if "--debug" in argv[:4]:
            import traceback

            traceback.print_exc()
        reported = _error_of(error)
        from agentos_native.cli.output import printable

        print("\n".join(map(printable, str(reported).split("\n"))), file=sys.stderr)
        return reported.exit_status


def _error_of(error: Exception) -> AgentosError:
    """Any failure as what users meet."""
    if isinstance(error, AgentosError):
        return error
    if isinstance(error, click.UsageError):
        return _usage(error)
    if isinstance(error, click.ClickException):
        return AgentosError("failed", error.format_message())
    return AgentosError("internal", f"{type(error).__name__}: {error}", hint="this is a defect; --debug shows where")


def _usage(error: click.UsageError) -> AgentosError:
    path = error.ctx.command_path if error.ctx else "agentos-native"
    what = error.format_message().rstrip(".")
    hint = f"see {path} --help"
    if isinstance(error, click.NoSuchOption):
        from agentos_native.cli.habits import option_hint

        hint = option_hint(path.rpartition(" ")[2], error.option_name) or hint
    elif isinstance(error, click.MissingParameter) and error.ctx:
        hint = " ".join([path, *error.ctx.command.collect_usage_pieces(error.ctx)]) + f"\n{hint}"
    return AgentosError("usage", what[:1].lower() + what[1:], hint=hint)
