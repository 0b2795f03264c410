"""Image names and digests: checked once, here, and safe as file names from then on."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

from agentos_native.errors import AgentosError

NAME_MAX: Final = 120
"""Percent-encoding may triple the separators, of which at most half of a name consists; a file name holds 255."""

_COMPONENT: Final = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_NAME: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,63}})?")
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{6,64})")


def parse_name(name: str) -> str:
    """The canonical form of an image's name, ``path/to/name[:tag]``; ``:latest`` is the same as no tag.

    Raises:
        AgentosError: ``invalid-image-name``.
    """
    if len(name) > NAME_MAX or not _NAME.fullmatch(name):
        shown = name if len(name) <= NAME_MAX else name[:40] + "…"
        raise AgentosError(
            "invalid-image-name",
            f"{shown!r} is not an image name",
            hint=f"lower-case letters and digits, separated by . _ - or /, perhaps with a :tag; at most {NAME_MAX}",
        )
    return name.removesuffix(":latest")


def parse_digest(text: str) -> str | None:
    """The hex digits of ``sha256:<6 to 64 digits>``; None when `text` is not a digest."""
    match = _DIGEST.fullmatch(text)
    return match.group(1) if match else None


def to_file_name(name: str) -> str:
    """A checked name as the name of a file."""
    return quote(name, safe="")


def from_file_name(file_name: str) -> str:
    """The inverse of `to_file_name`."""
    return unquote(file_name)
