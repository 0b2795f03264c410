"""``image build``."""

from __future__ import annotations

import contextlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from agentos_native.cli.context import returns_status
from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from agentos_native.cli.images.progress import Display
    from agentos_native.client import Client
    from agentos_native.wire.images import BuildRequest, ImageBody, ImageEvent


@click.command("build", short_help="Make an image as a Dockerfile says.")
@click.option("-t", "--tag", "names", multiple=True, metavar="NAME", help="Name of the image. Repeatable.")
@click.option(
    "-f",
    "--file",
    metavar="FILE",
    help="The Dockerfile (CONTEXT/Dockerfile); in a tar a path in it; - for standard input.",
)
@click.option("--build-arg", "args", multiple=True, metavar="K=V", help="ARG; K alone takes it from here. Repeatable.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Label of the image. Repeatable.")
@click.option("--target", default="", metavar="STAGE", help="Build this stage, not the last.")
@click.option("--no-cache", is_flag=True, help="Do every step, also those whose layer is known.")
@click.option(
    "--network", type=click.Choice(["none", "egress"]), default="none", help="Of RUN: none (default), egress."
)
@click.option("--cpu-limit", default="", metavar="VALUE", help="CPU that a RUN never exceeds: 500m, 2.")
@click.option("-m", "--memory-limit", default="", metavar="VALUE", help="Memory that a RUN never exceeds: 1Gi.")
@click.option("--tenant", default="default", metavar="NAME", help="Whose agents the steps are (default).")
@click.option("--debug-shell", is_flag=True, help="When a RUN fails, open a shell in what it left.")
@click.option("-q", "--quiet", is_flag=True, help="Only the digest.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="json: one result object.")
@click.option(
    "--progress", type=click.Choice(["auto", "plain"]), default="auto", help="plain: lines, also on a terminal."
)
@click.argument("context", type=click.Path())
@click.pass_context
@returns_status
def build(
    ctx: click.Context, /, *, context: str, file: str | None, quiet: bool, output: str, progress: str,
    debug_shell: bool, **given: Any,
) -> int:  # fmt: skip
    """Make an image of what the Dockerfile in CONTEXT says; its digest is printed at the end.

    CONTEXT is a directory, or a tar of one (gzip, bzip2, xz or zstd, too); - takes a tar or a Dockerfile alone from
    standard input.

    Each RUN is an agent of its own with no network unless --network egress. A step whose layer is known from an
    earlier build is not done again.

    \b
    Examples:
      agentos-native image build -t app .
      agentos-native image build -t app - < Dockerfile
      git archive HEAD | agentos-native image build -t app -f docker/Dockerfile -
    """
    from agentos_native.cli.embedded import supervised
    from agentos_native.cli.images.context import given as taken
    from agentos_native.cli.images.progress import display

    with taken(context, file) as what, supervised(ctx) as client:
        request = _request(what.context, what.file, debug_shell, given)
        shown = "none" if quiet or output == "json" else progress
        with display(shown, " ".join(request.names)) as watching:
            last = _watch(client, request, watching)
        if last.kind == "failed" and not watching.complete:
            _repeat(last)
        if last.kind == "done" and last.image is not None:
            _report(last.image, quiet, output)
            return 0
        return _failed(ctx, last, request, output, interactive=debug_shell)


def _request(context: str, file: str, debug_shell: bool, given: dict[str, Any]) -> BuildRequest:
    from agentos_native.cli.spec_options import environment, pair
    from agentos_native.spec.names import check_image
    from agentos_native.wire.images import BuildRequest

    args = environment(given.pop("args"), ())
    labels = dict(pair(text, "--label") for text in given.pop("labels"))
    wanted = [check_image(name) for name in given.pop("names")]
    return BuildRequest(
        context=context,
        file=file,
        names=wanted,
        args=args,
        labels=labels,
        keep_failed=debug_shell,
        **given,
    )


def _watch(client: Client, request: BuildRequest, watching: Display) -> ImageEvent:
    """Show the build as it goes; its last event."""
    for event in client.build_image(request):
        watching.show(event)
        if event.kind in ("done", "failed"):
            return event
    raise AgentosError("connection-lost", "the supervisor went away in the middle of the build", hint="build it again")


def _repeat(last: ImageEvent) -> None:
    """What the failing step said last, which was not shown or is gone from the screen."""
    from agentos_native.cli.images.progress import printable

    for line in (last.error or {}).get("details", {}).get("output", ()):
        print(printable(str(line)), file=sys.stderr)


def _report(image: ImageBody, quiet: bool, output: str) -> None:
    from agentos_native.cli.output import print_json

    if output == "json":
        print_json(image)
    else:
        print(image.digest)
        if not quiet:
            named = f"named {', '.join(image.names)}" if image.names else "without a name (-t NAME): image gc frees it"
            print(named, file=sys.stderr)


def _failed(ctx: click.Context, last: ImageEvent, request: BuildRequest, output: str, *, interactive: bool) -> int:
    """Say why, and open the shell if that was wanted."""
    error = AgentosError.from_dict(last.error or {})
    if not (interactive and last.failed_image):
        raise error
    print(error, file=sys.stderr)
    network = str(error.details.get("network", request.network))
    print(f"  a shell in what the step left; to try it again:\n    {shlex.join(last.shell)}", file=sys.stderr)
    print(f"  the image stays as {last.failed_image[:19]} until `agentos-native image gc`", file=sys.stderr)
    if sys.stdin.isatty() and output != "json":
        from agentos_native.cli.run import run

        words = ["--rm", "-it", "--network", network, "--tenant", request.tenant, last.failed_image]
        with contextlib.suppress(click.exceptions.Exit):  # the shell's own status: the build's counts
            run.main(words, standalone_mode=False, parent=ctx, obj=ctx.obj)
    return error.exit_status
