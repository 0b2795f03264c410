"""COPY and ADD as they are written: which sources, where to, with which owner and mode."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from agentos_native.images.build.configure import absolute
from agentos_native.images.build.dockerfile import HEREDOC_WORD
from agentos_native.images.build.expand import Expander
from agentos_native.images.build.model import Copy, Instruction
from agentos_native.images.build.scope import InstructionError, State, unsupported
from agentos_native.images.unpack.chmod import parse_mode

_URL: Final = re.compile(r"(?:https?|ftp|git|ssh)://|git@[\w.-]+:|github\.com/", re.IGNORECASE)
_TRUE: Final = {"true": True, "1": True, "false": False, "0": False}


def copy_of(instruction: Instruction, state: State, find_origin: Callable[[str], str]) -> Copy:
    """What a COPY or ADD asks for.

    Args:
        find_origin: what ``--from=name`` means, as in `Copy.origin`.

    Raises:
        InstructionError, ExpansionError, and what `find_origin` raises.
    """
    expander = state.expander(instruction)
    flags = dict(instruction.flags)
    words, files = _take_heredocs(instruction, expander)
    if len(words) + len(files) < 2 or not words:
        raise InstructionError("it needs a source and a destination")
    *sources, destination = [expander.word(word) for word in words]
    if not all((*sources, destination)):
        raise InstructionError("a source or the destination is empty once its variables are expanded")
    adds = instruction.name == "ADD"
    if adds:
        _refuse_remote(sources, flags)
    chmod = expander.word(flags.get("chmod", ""))
    if chmod:
        try:
            parse_mode(chmod)
        except ValueError as error:
            raise InstructionError(f"--chmod={chmod}: {error}", "755, or u=rwX,go=rX") from None
    _switch(flags, "link")  # layers are made from what is copied and its base; there is nothing to keep apart
    target = _target(destination, state.config.workdir)
    if len(sources) + len(files) > 1 and not target.endswith("/"):
        raise InstructionError("several sources need a directory as destination", f"let it end with /: {target}/")
    return Copy(
        sources=tuple(sources),
        destination=target,
        origin=find_origin(_origin_name(flags["from"])) if "from" in flags else "",
        chown=expander.word(flags.get("chown", "")),
        chmod=chmod,
        unpack=adds and _switch(flags, "unpack", True),
        parents=_switch(flags, "parents"),
        exclude=tuple(expander.word(value) for key, value in instruction.flags if key == "exclude"),
        files=files,
    )


def _origin_name(name: str) -> str:
    if "$" in name:
        hint = "name a stage by a variable: FROM ${NAME} AS source, then --from=source"
        raise unsupported(f"--from={name} has a variable", hint)
    return name


def _switch(flags: dict[str, str], name: str, default: bool = False) -> bool:
    value = flags.get(name)
    if value is None:
        return default
    if value.lower() not in _TRUE:
        raise InstructionError(f"--{name}={value} is neither true nor false")
    return _TRUE[value.lower()]


def _take_heredocs(instruction: Instruction, expander: Expander) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """The words that are no heredocs, and each heredoc's name and content."""
    if not instruction.heredocs:
        return list(instruction.words), ()
    words = [word for word in instruction.words if not HEREDOC_WORD.fullmatch(word)]
    for each in instruction.heredocs:
        if "/" in each.name or each.name in (".", ".."):
            raise InstructionError(f"the heredoc {each.name!r} cannot be the name of a file")
    return words, tuple(
        (each.name, expander.text(each.content) if each.expand else each.content) for each in instruction.heredocs
    )


def _refuse_remote(sources: list[str], flags: dict[str, str]) -> None:
    for source in sources:
        if _URL.match(source):
            hint = "fetch it yourself, check what it is, put it into the context and COPY it"
            raise unsupported(f"{source[:80]!r} is not fetched", hint)
    for name in ("checksum", "keep-git-dir"):
        if name in flags:
            raise InstructionError(f"--{name} is for what is fetched, and nothing is")


def _target(destination: str, workdir: str) -> str:
    """Absolute; with "/" at its end where only a directory will do."""
    directory = destination.endswith(("/", "/.", "/..")) or destination in (".", "..")
    path = absolute(destination, workdir)
    return path + "/" if directory and path != "/" else path
