"""``RUN --mount``: what is only there while the program runs.

Only a ``cache`` is a mount, of a directory that the store keeps (`images.caches`). Files of a ``bind`` are copied into
a layer below that of the RUN, which the image does not get, and what the program leaves at the path of any mount is
left out of its layer.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Final, NamedTuple

from agentos_native.images.build.configure import absolute
from agentos_native.images.build.model import SHARING, Cache, Copy, Instruction
from agentos_native.images.build.scope import InstructionError, State, unsupported

_ALIASES: Final = {"dst": "target", "destination": "target", "src": "source", "ro": "readonly", "rw": "readwrite"}
_KEYS: Final = {
    "bind": {"target", "source", "from", "readonly", "readwrite"},
    "cache": {"target", "id", "readonly", "sharing", "mode", "uid", "gid"},
    "tmpfs": {"target", "size"},
    "secret": {"target", "id", "required", "mode", "uid", "gid", "env"},
    "ssh": {"target", "id", "required", "mode", "uid", "gid"},
}
_ID_MAX: Final = 65535
_DIGITS: Final = 8
_HINTS: Final = {
    "secret": "an image must not depend on secrets: give them to the agent when it runs",
    "ssh": "fetch what needs the key before the build, and COPY it",
}


class Mounts(NamedTuple):
    """As in `Run`."""

    binds: tuple[Copy, ...]
    caches: tuple[Cache, ...]
    forgotten: tuple[str, ...]


def origins_of(instruction: Instruction) -> list[str]:
    """The stages and images that an instruction takes files from, as it names them."""
    found = [value for key, value in instruction.flags if key == "from"]
    for key, value in instruction.flags:
        if key == "mount":
            found += [part[5:] for part in value.split(",") if part.startswith("from=")]
    return found


def mounts_of(instruction: Instruction, state: State, find_origin: Callable[[str], str]) -> Mounts:
    """The mounts of a RUN.

    Args:
        find_origin: what ``from=name`` means, as in `Copy.origin`.

    Raises:
        InstructionError, ExpansionError, and what `find_origin` raises.
    """
    expander = state.expander(instruction)
    binds: list[Copy] = []
    caches: dict[str, Cache] = {}
    forgotten: list[str] = []
    for flag, value in instruction.flags:
        if flag != "mount":
            continue
        options = _options(expander.word(value))
        kind = options.get("type", "bind")
        if kind in _HINTS:
            if options.get("required", "false") not in ("false", "0"):
                raise unsupported(f"--mount of type {kind} is not supported", _HINTS[kind])
            state.note(f"--mount of type {kind} is left out: nothing of that kind is given to a build")
            continue
        if not options.get("target"):
            raise InstructionError(f"--mount={value} has no target", "target=/path")
        target = absolute(options["target"], state.config.workdir)
        if target == "/":
            raise InstructionError(f"--mount={value} would hide everything", "target=/path")
        if kind == "bind":
            binds.append(_bind(options, target, find_origin))
        elif kind == "cache":
            caches[target] = _cache(options, target)
        forgotten.append(target)
    return Mounts(tuple(binds), tuple(caches.values()), tuple(dict.fromkeys(forgotten)))


def _options(value: str) -> dict[str, str]:
    """``key=value,…``; a switch has the value "true"."""
    found: dict[str, str] = {}
    try:
        (parts,) = csv.reader([value], strict=True)
    except (ValueError, csv.Error):
        raise InstructionError(f"--mount={value[:80]} cannot be read", "type=cache,target=/path") from None
    for part in parts:
        key, equals, text = part.partition("=")
        key = _ALIASES.get(key.strip().lower(), key.strip().lower())
        found[key] = text if equals else "true"
    kind = found.get("type", "bind")
    if kind not in _KEYS:
        raise InstructionError(f"--mount has no type {kind!r}", ", ".join(_KEYS))
    for key in found.keys() - _KEYS[kind] - {"type"}:
        if kind == "cache" and key in ("from", "source"):
            raise unsupported(f"--mount of type cache with {key}= is not supported", "COPY what it is to begin with")
        raise InstructionError(f"--mount of type {kind} has no {key!r}", ", ".join(sorted(_KEYS[kind])))
    return found


def _cache(options: dict[str, str], target: str) -> Cache:
    said = options.get("sharing", "locked")
    sharing = next((known for known in SHARING if known == said), None)
    if sharing is None:
        raise InstructionError(f"--mount has sharing={said[:40]!r}", ", ".join(SHARING))
    return Cache(
        target=target,
        id=options.get("id") or target,
        sharing=sharing,
        read_only=options.get("readonly", "false") not in ("false", "0"),
        mode=_integer(options, "mode", 0o755, 8, 0o7777),
        uid=_integer(options, "uid", 0, 10, _ID_MAX),
        gid=_integer(options, "gid", 0, 10, _ID_MAX),
    )


def _integer(options: dict[str, str], key: str, default: int, base: int, most: int) -> int:
    text = options.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS:
        raise InstructionError(f"--mount has {key}={text[:40]!r}", "a number")
    try:
        value = int(text, base)
    except ValueError:
        value = most + 1
    if value > most:
        raise InstructionError(f"--mount has {key}={text!r}", f"a number up to {most:{'o' if base == 8 else 'd'}}")
    return value


def _bind(options: dict[str, str], target: str, find_origin: Callable[[str], str]) -> Copy:
    origin = find_origin(options["from"]) if options.get("from") else ""
    source = absolute(options.get("source", ""), "/")
    # what is copied has the owners that a mount would show: those of the origin, or root's
    return Copy(sources=(source if origin else source.lstrip("/") or ".",), destination=target, origin=origin)
