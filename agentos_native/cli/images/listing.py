"""``image ls|inspect|rm``: what is in the store."""

from __future__ import annotations

import click

from agentos_native.cli.context import IMAGE, each, output_option, returns_status
from agentos_native.cli.output import age, print_json, sections, size, table, to_plain


@click.command("ls")
@output_option
@click.pass_context
def ls(ctx: click.Context, output: str) -> None:
    """List images."""
    from agentos_native.cli.embedded import supervised

    with supervised(ctx) as client:
        images = client.images()
    if output == "json":
        print_json(images)
        return
    rows = [
        (row.name, row.digest.removeprefix("sha256:")[:12], size(row.size), str(row.entries), age(row.created))
        for row in images
    ]
    table(("NAME", "DIGEST", "SIZE", "FILES", "AGE"), rows, right=("SIZE", "FILES", "AGE"))


@click.command("inspect")
@click.argument("name", type=IMAGE)
@output_option
@click.pass_context
def inspect(ctx: click.Context, name: str, output: str) -> None:
    """Everything about one image."""
    from agentos_native.cli.embedded import supervised

    with supervised(ctx) as client:
        found = client.image(name)
    print_json(found) if output == "json" else sections(to_plain(found))


@click.command("rm")
@click.argument("names", nargs=-1, required=True, type=IMAGE, metavar="NAME...")
@output_option
@click.pass_context
@returns_status
def rm(ctx: click.Context, names: tuple[str, ...], output: str) -> int:
    """Remove images that no agent uses."""
    from agentos_native.cli.embedded import supervised

    with supervised(ctx) as client:
        return each(names, client.remove_image, output)
