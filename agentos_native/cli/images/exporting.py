"""``image export``."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Final, cast

import click

from agentos_native.cli.context import IMAGE
from agentos_native.errors import AgentosError

_MEMBERS: Final = re.compile(r"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")
_DIRECTORIES: Final = ("blobs", "blobs/sha256")
_COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2")
_PIECE: Final = 1 << 18


@click.command("export", short_help="Write an image as an OCI layout or a docker load archive.")
@click.argument("name", type=IMAGE)
@click.argument("dest", type=click.Path())
@click.option("--format", "form", type=click.Choice(["oci", "docker"]), default="oci", help="oci (default) or docker.")
@click.option("--tag", metavar="REF", help="What it is called there (latest); with docker, a whole name.")
@click.option("--compress", type=click.Choice(["gzip", "zstd", "none"]), default="gzip", help="Of the layers (gzip).")
@click.option("--force", is_flag=True, help="Replace DEST.")
@click.pass_context
def export(ctx: click.Context, name: str, dest: str, form: str, tag: str | None, compress: str, force: bool) -> None:
    """Write image NAME to DEST: a directory, a .tar file, or - for a tar on standard output.

    The same image gives the same bytes each time.
    """
    from agentos_native.cli.embedded import supervised

    if dest == "-" and sys.stdout.isatty():
        raise AgentosError("cannot-write", "standard output is a terminal", "-", "redirect it to a file or a pipe")
    if dest.endswith(_COMPRESSED) and not os.path.isdir(dest):
        hint = "the layers in it are compressed already (--compress): name it .tar, or use - and a pipe"
        raise AgentosError("unsupported", "an archive is not compressed once more", dest, hint)
    as_file = dest.endswith(".tar") or form == "docker"
    if dest != "-":
        _check(dest, as_file, force)
    with supervised(ctx) as client, _watched(name, dest) as watch:
        pieces = watch(client.export_image(name, format=form, compression=compress, tag=tag))
        if dest == "-":
            _to_stdout(pieces)
            return
        try:
            _to_file(pieces, dest, force) if as_file else _to_directory(pieces, dest, force)
        except OSError as error:
            raise AgentosError("cannot-write", error.strerror or str(error), str(error.filename or dest)) from None


def _check(dest: str, as_file: bool, force: bool) -> None:
    """Refuse a destination before anything is packed for it; again when it is put in place."""
    if not os.path.lexists(dest):
        return
    if not force:
        raise AgentosError("already-there", "there is something already", dest, "--force replaces it")
    if as_file and os.path.isdir(dest):
        raise AgentosError("cannot-write", "it is a directory", dest)
    if not as_file and not _is_layout(dest):
        hint = "--force replaces OCI layouts and empty directories only"
        raise AgentosError("cannot-write", "it is no OCI layout", dest, hint)


def _is_layout(path: str) -> bool:
    if os.path.islink(path) or not os.path.isdir(path):
        return False
    return not os.listdir(path) or os.path.isfile(os.path.join(path, "oci-layout"))


def _beside(dest: str) -> str:
    """A new name in the directory of `dest`."""
    directory, name = os.path.split(os.path.abspath(dest))
    return os.path.join(directory, f".{name}.{secrets.token_hex(4)}")


def _to_stdout(pieces: Iterator[bytes]) -> None:
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _to_file(pieces: Iterator[bytes], dest: str, force: bool) -> None:
    partial = _beside(dest)
    try:
        with open(partial, "xb") as file:
            for piece in pieces:
                file.write(piece)
        if force:
            os.replace(partial, dest)
        else:
            os.link(partial, dest)  # fails when it is there by now
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _to_directory(pieces: Iterator[bytes], dest: str, force: bool) -> None:
    partial = _beside(dest)
    os.mkdir(partial)
    try:
        _unpack(pieces, partial)
        if not os.path.lexists(dest):
            os.rename(partial, dest)
            return
        _check(dest, False, force)
        old = _beside(dest)
        os.rename(dest, old)
        os.rename(partial, dest)
        shutil.rmtree(old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(pieces: Iterator[bytes], directory: str) -> None:
    """The layout in the stream: a few names, known beforehand."""
    with tarfile.open(fileobj=cast(IO[bytes], _Stream(pieces)), mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if member.isdir() and member.name in _DIRECTORIES:
                os.mkdir(os.path.join(directory, member.name))
            elif content is not None and _MEMBERS.fullmatch(member.name):
                with open(os.path.join(directory, member.name), "xb") as file:
                    shutil.copyfileobj(content, file, _PIECE)
            else:
                raise AgentosError("internal", f"an unexpected entry {member.name!r} in the answer")
    for _ in pieces:  # whether it has an end is known at its end
        pass


class _Stream:
    """Pieces as the file object that `tarfile` reads a stream from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = bytearray()

    def read(self, size: int) -> bytes:
        while len(self._held) < size and (piece := next(self._pieces, b"")):
            self._held += piece
        data = bytes(self._held[:size])
        del self._held[:size]
        return data


@contextlib.contextmanager
def _watched(name: str, dest: str) -> Iterator[Callable[[Iterator[bytes]], Iterator[bytes]]]:
    """A function that passes pieces through, and counts them on a terminal."""
    if not sys.stderr.isatty():
        yield lambda pieces: pieces
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(f"packing {name}", total=None)

        def watch(pieces: Iterator[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                bars.update(task, advance=len(piece), description=f"writing {dest}")
                yield piece

        yield watch
