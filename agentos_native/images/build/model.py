"""What a Dockerfile says, and what is to be done for it."""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from agentos_native.images.model import ImageConfig


class Heredoc(msgspec.Struct, frozen=True, kw_only=True):
    """``<<NAME`` and what follows up to the line NAME; `expand`: the name was not quoted, so ``$`` means something."""

    name: str
    content: str
    expand: bool = True


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction as it is written.

    Args:
        name: upper case, "RUN".
        flags: ``--name=value`` before the arguments, in order (a name may come twice).
        words: the arguments: of the exec form (JSON) its strings, else the words as a shell would split them, quotes
            and ``$`` still in.
        text: the arguments as one string, continuation lines joined: what a shell form gives to its shell.
        exec_form: whether they were a JSON list.
        heredocs: each ``<<NAME`` of the instruction, in order.
        escape: the character that takes the meaning from the next, ``\\`` or (``# escape=``) a backquote.
    """

    name: str
    line: int
    end_line: int
    text: str
    words: tuple[str, ...] = ()
    flags: tuple[tuple[str, str], ...] = ()
    exec_form: bool = False
    heredocs: tuple[Heredoc, ...] = ()
    escape: str = "\\"


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """COPY or ADD: files into the stage.

    Args:
        sources: patterns relative to their root, for the context or the root of another stage or image.
        destination: absolute; ends with "/" when it has to be a directory.
        origin: "" for the context, else a stage's index ("0") or an image's name.
        chown: as written; "" for 0:0, or with an `origin` the owner that the file has there.
        unpack: ADD: a tar among the sources is unpacked.
        parents: a source keeps the directories of its own path below the destination.
        files: heredocs: name → content; copied like sources.
    """

    sources: tuple[str, ...]
    destination: str
    origin: str = ""
    chown: str = ""
    chmod: str = ""
    unpack: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


Sharing = Literal["locked", "shared", "private"]
SHARING: Final[tuple[Sharing, ...]] = get_args(Sharing)


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """``--mount=type=cache``: a directory at `target` that keeps what is in it, see `images.caches`.

    `sharing`: ``locked``, another build waits; ``shared``, it does not; ``private``, it gets another one. `mode`, `uid`
    and `gid` are those of the directory when it is made.
    """

    target: str
    id: str
    sharing: Sharing = "locked"
    read_only: bool = False
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """RUN: a program in a sandbox on what the stage is so far.

    Args:
        env: holds the ARGs too, which are not in the image.
        network: ``--network=`` of the instruction; "" the build's.
        binds: files that are only there for it (``--mount=type=bind``).
        caches: directories that outlive it (``--mount=type=cache``).
        forgotten: paths whose content is no part of the layer: those of `binds` and `caches`, and directories that are
            to be there (``type=tmpfs``).
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    user: str
    workdir: str
    network: str = ""
    binds: tuple[Copy, ...] = ()
    caches: tuple[Cache, ...] = ()
    forgotten: tuple[str, ...] = ()


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction of a stage, evaluated. `config` is the image's after it. `make_workdir`: WORKDIR makes it."""

    line: int
    text: str
    config: ImageConfig
    run: Run | None = None
    copy: Copy | None = None
    make_workdir: str = ""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One FROM and what follows. `base`: an image's name, "" for scratch; `base_stage`: the index of an earlier stage,
    or -1.
    """

    index: int
    name: str
    base: str
    base_stage: int = -1
    line: int = 0
    text: str = ""
    config: ImageConfig = ImageConfig()
    """What the steps begin with: the base's own."""
    steps: tuple[Step, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The stages that the target needs, in the order of the file; the last is the target. `notes` in words."""

    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()
    author: str = ""
