"""``image import``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, BinaryIO

import click

from agentos_native.cli.context import output_option
from agentos_native.cli.output import print_json
from agentos_native.errors import AgentosError


@click.command("import", short_help="Unpack a directory or a tar as an image.")
@click.argument("name")
@click.argument("source", type=click.Path())
@output_option
@click.pass_context
def import_(ctx: click.Context, name: str, source: str, output: str) -> None:
    """Unpack SOURCE (a directory, a tar that may be compressed, or - for a tar on standard input) as image NAME."""
    from agentos_native.cli.embedded import supervised
    from agentos_native.spec.names import check_image

    check_image(name)
    with supervised(ctx) as client:
        if source == "-":
            made = client.import_image(name, sys.stdin.buffer)
        elif os.path.isdir(source):
            made = client.import_image(name, source)
        else:
            with _open(source) as file, _progress(file, name) as stream:
                made = client.import_image(name, stream)
    if output == "json":
        print_json(made)
    else:
        print(made.digest)


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise AgentosError("cannot-read", error.strerror or str(error), path)


@contextlib.contextmanager
def _progress(file: BinaryIO, name: str) -> Iterator[IO[bytes]]:
    """The file with a bar on a terminal, gone at the end; the file itself elsewhere."""
    if not sys.stderr.isatty():
        yield file
        return
    from rich.console import Console
    from rich.progress import wrap_file

    total = os.fstat(file.fileno()).st_size
    with wrap_file(
        file, total, description=f"importing {name}", console=Console(stderr=True), transient=True
    ) as stream:
        yield stream
