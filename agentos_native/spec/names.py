"""Which names, paths and words are accepted; each check returns the value or raises `AgentosError` without a place.

A name is checked once, here, and ends up in cgroup paths, file names and firewall comments: no ``/``, no ``..``, no NUL
and no surprise in length ever gets past this file.
"""

from __future__ import annotations

import re
import signal
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.spec.tree import clip, nearest

MAX_STRING: Final = 128 * 1024 - 1
"""Bytes of one argument or variable: the kernel's MAX_ARG_STRLEN less its NUL."""
MAX_PATH: Final = 4095

_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_NODE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,13}[a-z0-9])?\Z")
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}\Z")
_USER: Final = re.compile(r"(?:[a-z_][a-z0-9_.-]{0,31}|[0-9]{1,5})(?::(?:[a-z_][a-z0-9_.-]{0,31}|[0-9]{1,5}))?\Z")
_PART: Final = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_IMAGE: Final = re.compile(
    rf"(?:{_PART}(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?\Z"
)
IMAGE_NAME_MAX: Final = 255
_IMAGE_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{6,64}\Z")
_LABEL_KEY: Final = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z"
)
_LABEL_VALUE: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?\Z")

CAPABILITIES: Final[dict[str, str]] = {
    "CAP_CHOWN": "change owners of its own files",
    "CAP_DAC_OVERRIDE": "ignore permissions of its own files",
    "CAP_FOWNER": "act as the owner of its own files",
    "CAP_FSETID": "keep set-id bits on its own files",
    "CAP_KILL": "signal its own processes whatever their user",
    "CAP_SETGID": "change among its own groups",
    "CAP_SETUID": "change among its own users",
    "CAP_SETPCAP": "drop capabilities from its own bounding set",
    "CAP_SYS_CHROOT": "use chroot in its own root",
}
"""What a spec may ask to keep, and what for: each acts only on the agent's own ids, files and processes. Low ports need
none of them, and those that act on the network or on mounts are never given."""
RLIMITS: Final = (
    *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss"),
    *("rtprio", "rttime", "sigpending", "stack"),
)


def _refuse(code: str, what: str, hint: str = "") -> AgentosError:
    return AgentosError(code, what, hint=hint)


def check_name(name: str, what: str = "name") -> str:
    """A DNS label (RFC 1123): 1 to 63 of a-z, 0-9 and ``-``, not at either end. Raises ``invalid-name``."""
    if _LABEL.match(name):
        return name
    if len(name) > 63:
        raise _refuse("invalid-name", f"{what} {clip(name, 24)} has {len(name)} characters", "at most 63 are allowed")
    hint = "use a-z, 0-9 and '-', beginning and ending with a letter or digit"
    if (better := re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")) and _LABEL.match(better):
        hint += f", for example {better!r}"
    raise _refuse("invalid-name", f"{what} {clip(name)} is not allowed" if name else f"{what} is empty", hint)


def check_node(name: str) -> str:
    """A node's name: a DNS label of at most 15 characters. Raises ``invalid-name``."""
    if not _NODE.match(name):
        raise _refuse(
            "invalid-name",
            f"node name {clip(name)} is not allowed",
            "use 1 to 15 of a-z, 0-9 and '-', not at either end",
        )
    return name


def check_text(text: str, what: str = "value", limit: int = MAX_STRING) -> str:
    """A string that can be handed to a program: no NUL, no lone surrogate, at most `limit` bytes.

    Raises ``invalid-value`` or ``too-large``.
    """
    if "\0" in text:
        raise _refuse("invalid-value", f"{what} {clip(text)} contains a NUL byte")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _refuse("invalid-value", f"{what} {clip(text)} is not Unicode text")
    if size > limit:
        raise _refuse("too-large", f"{what} has {size} bytes", f"at most {limit} are allowed")
    return text


def check_path(path: str, what: str = "path") -> str:
    """An absolute path without ``.`` and ``..``, returned without superfluous slashes. Raises ``invalid-path``."""
    check_text(path, what, MAX_PATH)
    if not path.startswith("/"):
        raise _refuse("invalid-path", f"{what} {clip(path)} is not absolute", "begin it with '/'")
    parts = [part for part in path.split("/") if part]
    if "." in parts or ".." in parts:
        raise _refuse("invalid-path", f"{what} {clip(path)} contains '.' or '..'", "write the path itself")
    if any(len(part.encode()) > 255 for part in parts):
        raise _refuse("invalid-path", f"{what} {clip(path)} has a part of more than 255 bytes")
    return "/" + "/".join(parts)


def check_target(path: str) -> str:
    """Where a volume may appear inside: not over the root, nor over what the sandbox itself puts there."""
    path = check_path(path, "target")
    top = path.split("/")[1]
    if top in ("", "proc", "sys", "dev"):
        raise _refuse(
            "invalid-path", f"a volume cannot be put at {path}", "/, /proc, /sys and /dev are the sandbox's own"
        )
    return path


def check_env_name(name: str) -> str:
    """The name of an environment variable. Raises ``invalid-name``."""
    if not _ENV.match(name):
        hint = "use letters, digits, '_', '.' and '-', not beginning with a digit, '.' or '-'"
        raise _refuse("invalid-name", f"environment variable {clip(name)} is not allowed", hint)
    return name


def check_user(user: str) -> str:
    """``NAME|UID[:GROUP|GID]``; names are looked up in the image later. Raises ``invalid-user``."""
    numbers = [int(part) for part in user.split(":") if part.isascii() and part.isdigit() and len(part) <= 5]
    if not _USER.match(user) or any(number > 65535 for number in numbers):
        raise _refuse(
            "invalid-user",
            f"user {clip(user)} is not allowed",
            "write NAME, UID, NAME:GROUP or UID:GID, ids up to 65535",
        )
    return user


def is_image_name(name: str) -> bool:
    """``[host[:port]/]path[:tag][@sha256:…]``: a reference as OCI's distribution specification has it, in lower case;
    not a digest alone."""
    return len(name) <= IMAGE_NAME_MAX and not name.startswith("sha256:") and _IMAGE.match(name) is not None


def check_image(name: str) -> str:
    """An image's name (`is_image_name`), or ``sha256:`` and 6 to 64 digits. Raises ``invalid-name``."""
    if not (is_image_name(name) or _IMAGE_DIGEST.match(name)):
        hint = "use lower-case letters, digits and . _ - / between them, perhaps with :tag, or sha256:…"
        raise _refuse("invalid-name", f"image {clip(name)} is not allowed" if name else "image is empty", hint)
    return name


def check_label(key: str, value: str) -> None:
    """A label by Kubernetes' rules. Raises ``invalid-name`` or ``invalid-value``."""
    if not _LABEL_KEY.match(key):
        raise _refuse(
            "invalid-name", f"label {clip(key)} is not allowed", "use [prefix/]name of letters, digits and - _ ."
        )
    if not _LABEL_VALUE.match(value):
        raise _refuse(
            "invalid-value", f"label value {clip(value)} is not allowed", "use at most 63 letters, digits and - _ ."
        )


def check_capability(name: str) -> str:
    """A capability from `CAPABILITIES`, with or without ``CAP_``; returned with it. Raises ``invalid-capability``."""
    full = name.upper()
    full = full if full.startswith("CAP_") else f"CAP_{full}"
    if full not in CAPABILITIES:
        raise _refuse("invalid-capability", f"capability {clip(name)} cannot be given", nearest(full, CAPABILITIES))
    return full


def check_rlimit(name: str) -> str:
    """A resource limit's name as in ``ulimit`` files: ``nofile``, ``nproc``, … Raises ``invalid-value``."""
    if name not in RLIMITS:
        raise _refuse("invalid-value", f"unknown resource limit {clip(name)}", nearest(name, RLIMITS))
    return name


def check_signal(name: str) -> str:
    """``SIGTERM``, ``TERM`` or ``15``; returned as ``SIGTERM``. Raises ``invalid-signal``."""
    by_name = {member.name: member for member in signal.Signals}
    word = name.strip().upper()
    if word.isascii() and word.isdigit() and len(word) <= 2:
        for member in signal.Signals:
            if member.value == int(word):
                return member.name
    elif word in by_name or f"SIG{word}" in by_name:
        return word if word in by_name else f"SIG{word}"
    raise _refuse("invalid-signal", f"unknown signal {clip(name)}", nearest(word, by_name))
