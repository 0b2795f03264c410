"""References to images in registries: an image's name (`images.names`) that says which registry it is in.

There is no default registry: a name that says nothing about where it is from means nothing to a pull.
"""

from __future__ import annotations

from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.images import names
from agentos_native.images.oci.importing import this_platform
from agentos_native.images.oci.survey import parse_platform
from agentos_native.images.registry.model import Place

_NO_HOST: Final = (
    "there is no default registry: write the host too, HOST[:PORT]/PATH[:TAG][@sha256:…]\n"
    "(a host has a dot or a port, or is localhost)"
)


def parse_reference(text: str) -> Place:
    """``host[:port]/path[:tag][@sha256:…]``; of tag and digest the digest decides.

    Raises:
        AgentosError: ``invalid-image-name``, ``invalid-reference``.
    """
    name = names.parse_name(text)
    parts = names.split(name)
    shown = repr(text if len(text) <= 80 else text[:80] + "…")
    if not parts.host or not parts.path:
        raise AgentosError("invalid-reference", f"{shown} does not say which registry it is in", hint=_NO_HOST)
    host, _, digits = parts.host.partition(":")
    port = int(digits) if digits else None
    if port is not None and not 0 < port < 65536:
        raise AgentosError("invalid-reference", f"{shown} has an impossible port", hint="1 to 65535")
    return Place(name=name, host=host, port=port, path=parts.path, target=parts.digest or parts.tag or "latest")


def check_platform(text: str) -> str:
    """``linux/architecture[/variant]``, or this machine's for "".

    Raises:
        AgentosError: ``invalid-platform``.
    """
    if not text:
        return this_platform()
    parsed = parse_platform(text if "/" in text else f"linux/{text}")
    if parsed.os != "linux":
        raise AgentosError("invalid-platform", f"{parsed.os[:20]!r} is not run here", hint="linux/ARCHITECTURE")
    return str(parsed)
