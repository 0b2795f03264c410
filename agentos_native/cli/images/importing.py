"""``image import``."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import click

from agentos_native.cli.context import output_option
from agentos_native.cli.output import print_json
from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentos_native.wire.images import ImageEvent, ImportSettings


@click.command("import", short_help="Make an image of a tree, a tar, an OCI layout or a docker save archive.")
@click.argument("name")
@click.argument("source", type=click.Path())
@click.option("--ref", default="", metavar="REF", help="Which image of a layout or archive: its tag, name or digest.")
@click.option("--platform", default="", metavar="OS/ARCH", help="Of an image for several machines; this one's.")
@click.option("--entrypoint", metavar="WORDS", help="Instead of the image's own, as in a shell.")
@click.option("--cmd", metavar="WORDS", help="Instead of the image's own, as in a shell.")
@click.option("-e", "--env", "env", multiple=True, metavar="K=V", help="A variable. Repeatable.")
@click.option("-w", "--workdir", metavar="PATH", help="Instead of the image's own.")
@click.option("-u", "--user", metavar="USER", help="Instead of the image's own.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label. Repeatable.")
@output_option
@click.pass_context
def import_(ctx: click.Context, /, *, name: str, source: str, output: str, **given: Any) -> None:
    """Make image NAME of SOURCE: a directory or a tar (plain, gzip, bzip2, xz or zstd; - for standard input) that holds
    a root filesystem, an OCI layout, or what docker save wrote.

    Of a layout or a docker save archive in a plain tar file only the layers are read that the store has not; what comes
    compressed or over a pipe is unpacked as a whole first.
    """
    from agentos_native.cli.embedded import supervised
    from agentos_native.spec.names import check_image

    check_image(name)
    settings = _settings(given)
    with supervised(ctx) as client, _opened(source, name) as what, _progress(name) as watch:
        made = client.import_image(name, what, settings, watch=watch)
    if output == "json":
        print_json(made)
        return
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)
    print(made.digest)


def _settings(given: dict[str, Any]) -> ImportSettings:
    from agentos_native.wire.images import ImportSettings

    return ImportSettings(
        ref=given["ref"],
        platform=given["platform"],
        entrypoint=_words(given["entrypoint"], "--entrypoint"),
        cmd=_words(given["cmd"], "--cmd"),
        env=_pairs(given["env"], "--env"),
        workdir=_absolute(given["workdir"]),
        user=given["user"],
        labels=_pairs(given["labels"], "--label"),
    )


def _words(text: str | None, option: str) -> list[str] | None:
    try:
        return None if text is None else shlex.split(text)
    except ValueError as error:
        raise AgentosError("invalid-value", f"{text!r} cannot be split into words: {error}", option)


def _pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    found = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise AgentosError("invalid-value", f"{value!r} is not KEY=VALUE", option)
        found[key] = rest
    return found


def _absolute(path: str | None) -> str | None:
    if path is not None and not path.startswith("/"):
        raise AgentosError("invalid-value", f"{path!r} is no absolute path", "--workdir")
    return path


@contextlib.contextmanager
def _opened(source: str, name: str) -> Iterator[str | IO[bytes]]:
    """What the client takes: a path where the supervisor can read it as well, a stream of everything else."""
    if source == "-":
        if sys.stdin.isatty():
            raise AgentosError("cannot-read", "standard input is a terminal", "-", "pipe an archive into the command")
        yield sys.stdin.buffer
        return
    try:
        mode = os.stat(source).st_mode
        file = None if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else open(source, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        hint = f"the name comes first: image import {source} {name}" if os.path.exists(name) else ""
        raise AgentosError("cannot-read", error.strerror or str(error), source, hint)
    with contextlib.nullcontext() if file is None else file:
        yield source if file is None else file


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[ImageEvent], None] | None]:
    """A bar on a terminal, gone at the end; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(f"importing {name}", total=None)

        def watch(event: ImageEvent) -> None:
            if event.kind == "step":
                bars.reset(task, total=None, description=f"importing {name}, layer {event.step} of {event.steps}")
            elif event.kind == "progress":
                bars.update(task, completed=event.done, total=event.total or None)

        yield watch
