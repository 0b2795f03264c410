"""``image …``: each command's module is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from agentos_native.errors import AgentosError

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "build": ("build:build", "Make an image as a Dockerfile says."),
    "pull": ("pull:pull", "Fetch an image from a registry."),
    "import": ("importing:import_", "Make an image of a tree, a tar, an OCI layout or a docker save archive."),
    "export": ("exporting:export", "Write an image as an OCI layout or a docker load archive."),
    "ls": ("listing:ls", "List images."),
    "inspect": ("listing:inspect", "Everything about one image."),
    "history": ("listing:history", "The steps that an image was made by."),
    "tag": ("listing:tag", "Give an image a further name."),
    "rm": ("listing:rm", "Remove images that no agent uses."),
    "diff": ("upkeep:diff", "The paths that an image changes."),
    "verify": ("upkeep:verify", "Read images again and compare them with their digests."),
    "gc": ("upkeep:gc", "Free what no image, agent or build needs."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(f"{__name__}.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from agentos_native.cli.habits import command_hint
            from agentos_native.spec.tree import clip

            hint = command_hint(args[0], COMMANDS, image=True)
            raise AgentosError("usage", f"no command {clip(args[0])}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])


@click.group(cls=_Commands)
def image() -> None:
    """Root filesystems of agents."""
