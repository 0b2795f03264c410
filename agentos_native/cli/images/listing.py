"""``image ls|inspect|history|tag|rm``: what is in the store and what it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from agentos_native.cli.context import IMAGE, each, output_option, returns_status
from agentos_native.cli.output import age, count, print_json, sections, size, table, to_plain
from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from agentos_native.wire.images import HistoryBody, ImageBody

_STEP: Final = 60
_UNDATED: Final = "1970-01-01T00:00:00"
"""What exports and reproducible builds say of steps whose time nobody knows."""


@click.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only digests, each once.")
@output_option
@click.pass_context
def ls(ctx: click.Context, quiet: bool, output: str) -> None:
    """List images. OWN is what only this image has, SHARED is in layers that others have, too.

    \b
    Example:
      agentos-native image ls
    """
    from agentos_native.cli.embedded import supervised

    with supervised(ctx) as client:
        images = client.images()
    if quiet:
        for digest in dict.fromkeys(row.digest for row in images):
            print(digest)
        return
    if output == "json":
        print_json(images)
        return
    headers = ("NAME", "DIGEST", "SIZE", "OWN", "SHARED", "FILES", "AGE")
    rows = [
        (
            row.name or "-",
            _short(row.digest),
            size(row.size),
            size(row.own_size),
            size(row.shared_size),
            str(row.entries),
            age(row.created) if row.layers else "damaged",
        )
        for row in images
    ]
    table(headers, rows, right=headers[2:], fold=("NAME",))


@click.command("inspect")
@click.argument("names", nargs=-1, required=True, type=IMAGE, metavar="NAME...")
@output_option
@click.pass_context
def inspect(ctx: click.Context, names: tuple[str, ...], output: str) -> None:
    """Everything about images: what they run, their layers and how many others have them, steps, notes of the import.

    \b
    Examples:
      agentos-native image inspect python:3.8
      agentos-native image inspect python:3.8 -o json
    """
    from agentos_native.cli.embedded import supervised

    with supervised(ctx) as client:
        found = [client.image(name) for name in names]
    if output == "json":
        print_json(found[0] if len(found) == 1 else found)
        return
    for number, one in enumerate(found):
        if number:
            print()
        _show(one)


def _show(image: ImageBody) -> None:
    """An image for people: what it is, what it runs, and its layers and steps as tables."""
    plain = to_plain(image)
    kept = ("name", "names", "digest", "type", "created", "architecture", "author")
    sections({key: plain[key] for key in kept})
    own = f", {size(image.own_size)} of it in no other image" if image.shared_size else ""
    print(f"size: {size(image.size)} in {count(image.entries, 'file')}{own}")
    sections({"config": plain["config"], "notes": plain["notes"]})
    if image.layers:
        print("layers, lowest first:")
        rows = [(_short(row.digest), size(row.size), str(row.entries), str(row.shared)) for row in image.layers]
        table(("LAYER", "SIZE", "FILES", "OTHER IMAGES"), rows, right=("SIZE", "FILES", "OTHER IMAGES"))
    if image.history:
        print("steps, newest first:")
        _steps(image.history)


@click.command("history")
@click.argument("name", type=IMAGE)
@output_option
@click.pass_context
def history(ctx: click.Context, name: str, output: str) -> None:
    """The steps that an image was made by, newest first (json: oldest first), and the layers that they made.

    \b
    Example:
      agentos-native image history python:3.8
    """
    from agentos_native.cli.embedded import supervised

    with supervised(ctx) as client:
        steps = client.image(name).history
    if output == "json":
        print_json(steps)
        return
    _steps(steps)


def _steps(steps: Sequence[HistoryBody]) -> None:
    """Newest first."""
    rows = []
    for step in reversed(steps):
        words = " ".join((step.created_by or step.comment or "-").split())
        words = words if len(words) <= _STEP else words[: _STEP - 1] + "…"
        created = "-" if step.created.startswith(_UNDATED) else step.created[:19] or "-"
        rows.append((_short(step.layer) or "-", created, size(step.size) if step.layer else "-", words))
    table(("LAYER", "CREATED", "SIZE", "CREATED BY"), rows, right=("SIZE",), fold=("CREATED BY",))


@click.command("tag")
@click.argument("source", type=IMAGE)
@click.argument("name")
@output_option
@click.pass_context
def tag(ctx: click.Context, source: str, name: str, output: str) -> None:
    """Give image SOURCE (a name, or a digest or its beginning) the further name NAME.

    An image that had NAME before keeps its other names, or has none, until gc.

    \b
    Example:
      agentos-native image tag python:3.8 localhost:5000/team/python:3.8
    """
    from agentos_native.cli.embedded import supervised
    from agentos_native.spec.names import check_image

    check_image(name)
    with supervised(ctx) as client:
        made = client.tag_image(source, name)
    print_json(made) if output == "json" else print(made.digest)


@click.command("rm")
@click.argument("names", nargs=-1, required=True, type=IMAGE, metavar="NAME...")
@click.option("-f", "--force", is_flag=True, help="A name that is not there is no failure.")
@output_option
@click.pass_context
@returns_status
def rm(ctx: click.Context, names: tuple[str, ...], force: bool, output: str) -> int:
    """Remove names, and with its last name an image, unless an agent uses it; a digest removes all its names.

    \b
    Example:
      agentos-native image rm python:3.8 sha256:0123456789ab
    """
    from agentos_native.cli.embedded import supervised

    with supervised(ctx) as client:

        def remove(name: str) -> None:
            try:
                client.remove_image(name)
            except AgentosError as error:
                if not (force and error.code == "image-not-found"):
                    raise

        return each(names, remove, output)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
