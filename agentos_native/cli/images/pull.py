"""``image pull``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from agentos_native.cli.context import output_option
from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from agentos_native.client import Client
    from agentos_native.wire.images import ImageBody, PullRequest


@click.command("pull", short_help="Fetch an image from a registry.")
@click.argument("reference", metavar="REF")
@click.option("--name", default="", metavar="NAME", help="What the image is called here (as REF).")
@click.option("--platform", default="", metavar="OS/ARCH[/VARIANT]", help="Of an image for several (this machine's).")
@click.option("--creds", metavar="USER[:PASSWORD]", help="Who asks; without the password it is asked for.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--authfile", metavar="FILE", help="Users and passwords as docker keeps them (REGISTRY_AUTH_FILE).")
@click.option("--token-host", default="", metavar="HOST", help="May be given the password, too: its token server.")
@click.option("--ca-file", "--cacert", "ca_file", default="", metavar="FILE", help="Further authorities to trust, PEM.")
@click.option("--plain-http", is_flag=True, help="No TLS.")
@click.option("--tls-verify/--no-tls-verify", "verify_tls", default=True, help="Check the certificate (default).")
@click.option("-q", "--quiet", is_flag=True, help="Only the digest.")
@output_option
@click.pass_context
def pull(ctx: click.Context, /, *, reference: str, quiet: bool, output: str, **given: Any) -> None:
    """Fetch the image REF, HOST[:PORT]/PATH[:TAG][@sha256:…], and unpack it; its digest is printed at the end.

    Layers that are here already are not fetched. A pull that was interrupted goes on where it ended when it is
    started again. HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the supervisor's environment count.
    """
    from agentos_native.cli.embedded import supervised
    from agentos_native.cli.images.pulling import display

    request = _request(reference, **given)
    with supervised(ctx) as client, display(sys.stderr, quiet=quiet or output == "json") as show:
        image = _watch(client, request, show)
    if output == "json":
        from agentos_native.cli.output import print_json

        print_json(image)
    else:
        print(image.digest)


def _request(
    reference: str, *, creds: str | None, password_stdin: bool, authfile: str | None, ca_file: str, **given: Any
) -> PullRequest:
    from agentos_native.cli.images.credentials import chosen
    from agentos_native.wire.images import PullRequest

    username, password = chosen(reference, creds, password_stdin, authfile)
    ca_path = os.path.abspath(ca_file) if ca_file else ""
    return PullRequest(reference=reference, username=username, password=password, ca_file=ca_path, **given)


def _watch(client: Client, request: PullRequest, show: Any) -> ImageBody:
    """Show the pull as it goes; the image."""
    for event in client.pull_image(request):
        if event.kind == "failed":
            raise AgentosError.from_dict(event.error or {})
        if event.kind == "done" and event.image is not None:
            return event.image
        show(event)
    raise AgentosError("connection-lost", "the supervisor went away in the middle of the pull", hint="pull it again")
