"""``apply``, ``delete`` and ``validate``: documents from files, directories or standard input."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from agentos_native.cli.context import client_of, output_option
from agentos_native.cli.effects import print_effects
from agentos_native.cli.output import print_json, table
from agentos_native.cli.queued import no_wait, place_words
from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from agentos_native.spec.model import Document
    from agentos_native.wire import api

_files = click.option(
    *("-f", "--file", "files"),
    multiple=True,
    required=True,
    metavar="FILE",
    type=click.Path(),
    help="YAML file, directory of them, or - for standard input. May be given several times.",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


def read(files: tuple[str, ...]) -> list[Document]:
    """Every document of `files`. The same thing described in two files is an error."""
    from agentos_native.spec import load, load_file
    from agentos_native.spec.check import check_distinct
    from agentos_native.spec.tree import Place

    found: list[tuple[Document, Place]] = []
    for name in files:
        if name == "-":
            found += [(document, Place("-")) for document in load(_standard_input(), "-", os.getcwd())]
        else:
            paths = _below(name) if os.path.isdir(name) else [name]
            found += [(document, Place(path)) for path in paths for document in load_file(path)]
    check_distinct(found)
    return [document for document, _ in found]


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise AgentosError("invalid-yaml", "not a UTF-8 text", "-")


def _below(directory: str) -> list[str]:
    paths = sorted(
        os.path.join(directory, entry) for entry in os.listdir(directory) if entry.endswith((".yaml", ".yml", ".json"))
    )
    if not paths:
        raise AgentosError("empty-document", "no YAML file in this directory", directory)
    return paths


def _report(results: list[api.ApplyResult], output: str, dry_run: bool) -> None:
    if output == "json":
        print_json({"results": results, "dry_run": dry_run})
        return
    suffix = " (dry run)" if dry_run else ""
    for result in results:
        name = f"{result.tenant}/{result.name}" if result.kind == "Agent" else result.name
        place = result.queue
        where = f" at place {place_words(place, result.tenant)}" if place else ""
        print(f"{result.kind.lower()}/{name} {result.action}{suffix}{where}")


@click.command()
@_files
@_dry_run
@no_wait
@output_option
def apply(files: tuple[str, ...], dry_run: bool, wait: bool, output: str) -> None:
    """Make it as the documents say: create, update or leave each agent and tenant.

    With --dry-run: what would be done, what would have to wait and why, and who would gain and lose what by it.

    Sources of volumes that begin with ./ are relative to their file.
    """
    documents = read(files)
    if not dry_run:
        _report(client_of().apply(documents, wait=wait), output, dry_run)
        return
    rehearsed = client_of().rehearse(documents, wait=wait)
    if output == "json":
        print_json({"results": rehearsed.results, "dry_run": True, "effects": rehearsed.effects})
        return
    _report(rehearsed.results, output, dry_run)
    if any(result.action != "unchanged" for result in rehearsed.results):
        print_effects(rehearsed.effects)


@click.command()
@_files
@_dry_run
@output_option
def delete(files: tuple[str, ...], dry_run: bool, output: str) -> None:
    """Remove what the documents describe."""
    _report(client_of().delete(read(files), dry_run=dry_run), output, dry_run)


@click.command()
@_files
@output_option
def validate(files: tuple[str, ...], output: str) -> None:
    """Check documents without a supervisor; with -o json show them as they are understood."""
    from agentos_native.spec import to_builtins
    from agentos_native.spec.model import AgentSpec

    documents = read(files)
    kinds = ["Agent" if isinstance(document, AgentSpec) else "Tenant" for document in documents]
    if output == "json":
        print_json(
            [{"kind": kind, "spec": to_builtins(document)} for kind, document in zip(kinds, documents, strict=True)]
        )
        return
    rows = [
        (kind, document.tenant if isinstance(document, AgentSpec) else "-", document.name, "ok")
        for kind, document in zip(kinds, documents, strict=True)
    ]
    table(("KIND", "TENANT", "NAME", "STATE"), rows)
