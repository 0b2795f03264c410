"""``image diff|verify|gc``: what images changed, whether they still are what they were, and making room."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import click

from agentos_native.cli.context import IMAGE, output_option, returns_status
from agentos_native.cli.output import count, print_json, printable, size, table
from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from agentos_native.wire.images import Finding, VerifyEvent

_NAMES: Final = 24
_FOUND: Final = 1
"""Exit status of a verification that found something."""


@click.command("diff")
@click.argument("name", type=IMAGE)
@click.argument("against", type=IMAGE, required=False)
@output_option
@click.pass_context
def diff(ctx: click.Context, name: str, against: str | None, output: str) -> None:
    """The paths that image NAME adds (A), changes (C) and deletes (D), compared with image AGAINST.

    Without AGAINST: what its top layer does to the layers below. Content, kind, owner, mode and attributes count,
    times do not; a deleted directory stands for what was in it.

    \b
    Example:
      agentos-native image diff agent:2 agent:1
    """
    from agentos_native.cli.embedded import supervised

    with supervised(ctx) as client:
        found = client.diff_image(name, against)
    if output == "json":
        print_json(found)
        return
    for change in found.changes:
        print(f"{change.kind} {printable(change.path)}")
    if found.truncated:
        print("there are more changes than these", file=sys.stderr)


@click.command("verify")
@click.argument("name", type=IMAGE, required=False)
@output_option
@click.pass_context
@returns_status
def verify(ctx: click.Context, name: str | None, output: str) -> int:
    """Read every file of image NAME, or of all images, and compare with the digests; status 1 if anything differs.

    What is found damaged is remembered: the next import, pull or build of it replaces it, unless an agent runs from it.

    \b
    Example:
      agentos-native image verify python:3.8
    """
    from agentos_native.cli.embedded import supervised

    findings: list[Finding] = []
    with supervised(ctx) as client, _bar() as show:
        for event in client.verify_images(name):
            show(event)
            if event.finding is not None:
                findings.append(event.finding)
    wrong = [finding for finding in findings if finding.problem]
    if output == "json":
        print_json(findings)
    elif wrong:
        rows = [(found.image or "-", found.layer.removeprefix("sha256:")[:12] or "-", found.problem) for found in wrong]
        table(("IMAGE", "LAYER", "PROBLEM"), rows, fold=("IMAGE", "PROBLEM"))
        print("hint: import, pull or build these images again: what is damaged is replaced", file=sys.stderr)
    else:
        layers = sum(bool(finding.layer) for finding in findings)
        print(f"{count(layers, 'layer')} of {count(len(findings) - layers, 'image')}: unchanged")
    return _FOUND if wrong else 0


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[VerifyEvent], None]]:
    """Shows how far a verification is, on a terminal only; gone at the end."""
    if not sys.stderr.isatty():
        yield lambda _event: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("verifying {task.fields[what]}"), BarColumn(20), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, what="")

        def show(event: VerifyEvent) -> None:
            what = event.finding.image if event.finding else ""
            progress.update(task, completed=event.done, total=event.total or None, what=_clipped(what))

        yield show


def _clipped(names: str) -> str:
    """So that a line of 80 characters has room for the bar, too."""
    return names if len(names) <= _NAMES else names[: _NAMES - 1] + "…"


def _older_than(_: click.Context, param: click.Parameter, value: str | None) -> float | None:
    from agentos_native.spec.quantities import parse_duration

    try:
        return None if value is None else parse_duration(value)
    except AgentosError as error:
        raise AgentosError(error.code, error.what, param.opts[0], error.hint)


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option(
    "--older-than",
    callback=_older_than,
    metavar="TIME",
    help="Keep of the build cache what was used since then (7d): 12h.",
)
@click.option("-a", "--all", "everything", is_flag=True, help="The whole build cache, too.")
@output_option
@click.pass_context
def gc(ctx: click.Context, dry_run: bool, older_than: float | None, everything: bool, output: str) -> None:
    """Free images without a name, layers that nothing needs, what killed imports left, and of the build cache (steps,
    and what RUN --mount=type=cache keeps) all that was not used for a week.

    Never what an agent uses (running or not), nor what is being imported, pulled or built. Names stay: image rm.

    \b
    Examples:
      agentos-native image gc --dry-run --older-than 1d
      agentos-native image gc --all
    """
    from agentos_native.cli.embedded import supervised
    from agentos_native.wire.images import CACHE_KEPT

    if everything and older_than is not None:
        raise AgentosError("usage", "--all takes steps of any age", "--older-than", "say one of them")
    age = None if everything else CACHE_KEPT if older_than is None else older_than
    with supervised(ctx) as client:
        freed = client.collect_images(dry_run=dry_run, older_than=age)
    if output == "json":
        print_json(freed)
        return
    for note in freed.notes:
        print(f"note: {note}", file=sys.stderr)
    for digest in freed.images:
        print(f"image  {digest.removeprefix('sha256:')[:12]}")
    for digest in freed.layers:
        print(f"layer  {digest.removeprefix('sha256:')[:12]}")
    counts = f"{count(len(freed.images), 'image')}, {count(len(freed.layers), 'layer')}"
    counts += f", {count(freed.steps, 'step')} of the build cache"
    counts += f", {count(freed.caches, 'cache')} of RUN" if freed.caches else ""
    print(f"{'would free' if dry_run else 'freed'} {size(freed.bytes)}: {counts}")
    if freed.kept_steps:
        kept = count(freed.kept_steps, "step")
        print(f"the build cache keeps {kept} with {size(freed.kept_bytes)}: --all frees that", file=sys.stderr)
