"""Image names and digests: checked once, here, and safe as file names from then on."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

from agentos_native.errors import AgentosError
from agentos_native.spec.names import IMAGE_NAME_MAX, is_image_name

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{6,64})")
_TO_FILE: Final = str.maketrans({"/": "+", ":": "="})
"""One character for one: a name of 255 characters is the name of a file. No name has any of these."""
_FROM_FILE: Final = str.maketrans({"+": "/", "=": ":"})


class Reference(NamedTuple):
    """The parts of a name; "" where it has none. ``localhost:5000/a/b:1``: host ``localhost:5000``, path ``a/b``."""

    host: str
    path: str
    tag: str
    digest: str


def parse_name(name: str) -> str:
    """The canonical form of an image's name, ``[host[:port]/]path[:tag][@sha256:…]``; ``:latest`` is as no tag.

    Raises:
        AgentosError: ``invalid-image-name``.
    """
    if not is_image_name(name):
        shown = name if len(name) <= IMAGE_NAME_MAX else name[:40] + "…"
        raise AgentosError(
            "invalid-image-name",
            f"{shown!r} is not an image name",
            hint="lower-case letters and digits, separated by . _ - or /, perhaps with a :tag, as in\n"
            f"python:3.8 or localhost:5000/team/agent:1; at most {IMAGE_NAME_MAX} characters",
        )
    bare, at, digest = name.partition("@")
    return bare.removesuffix(":latest") + at + digest


def parse_digest(text: str) -> str | None:
    """The hex digits of ``sha256:<6 to 64 digits>``; None when `text` is not a digest."""
    match = _DIGEST.fullmatch(text)
    return match.group(1) if match else None


def split(name: str) -> Reference:
    """The parts of a checked name. As docker has it, the first part is a host when it has a dot or a port, or is
    ``localhost``, and something follows it."""
    bare, _, digest = name.partition("@")
    first, slash, rest = bare.partition("/")
    is_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    host, rest = (first, rest) if is_host else ("", bare)
    path, _, tag = rest.partition(":")
    return Reference(host, path, tag, digest)


def to_file_name(name: str) -> str:
    """A checked name as the name of a file."""
    return name.translate(_TO_FILE)


def from_file_name(file_name: str) -> str:
    """The inverse of `to_file_name`; also reads what the stores of version 0.1 have, percent-encoded names."""
    return unquote(file_name) if "%" in file_name else file_name.translate(_FROM_FILE)
