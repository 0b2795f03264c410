"""What a Dockerfile says, and what is to be done for it."""

from __future__ import annotations

import msgspec

from agentos_native.images.model import ImageConfig


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction as it is written.

    Args:
        name: upper case, "RUN".
        flags: ``--name=value`` before the arguments, in order (a name may come twice).
        words: the arguments: of the exec form (JSON) its strings, else the words as a shell would split them, quotes
            and ``$`` still in.
        text: the arguments as one string, continuation lines joined: what a shell form gives to its shell.
        exec_form: whether they were a JSON list.
        heredocs: name and content of each ``<<NAME`` of the instruction, in order.
    """

    name: str
    line: int
    end_line: int
    text: str
    words: tuple[str, ...] = ()
    flags: tuple[tuple[str, str], ...] = ()
    exec_form: bool = False
    heredocs: tuple[tuple[str, str], ...] = ()


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """RUN: a program in a sandbox on what the stage is so far. `env` holds the ARGs too, which are not in the image."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    user: str
    workdir: str
    network: str = ""
    """``--network=`` of the instruction; "" the build's."""


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """COPY or ADD: files into the stage.

    Args:
        sources: patterns relative to their root, for the context or the root of another stage or image.
        destination: absolute; ends with "/" when it has to be a directory.
        origin: "" for the context, else a stage's index ("0") or an image's name.
        unpack: ADD: a tar among the sources is unpacked.
        files: heredocs: name → content; copied like sources.
    """

    sources: tuple[str, ...]
    destination: str
    origin: str = ""
    chown: str = ""
    chmod: str = ""
    unpack: bool = False
    exclude: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction of a stage, evaluated. `config` is the image's after it. `make_workdir`: WORKDIR makes it."""

    line: int
    text: str
    config: ImageConfig
    run: Run | None = None
    copy: Copy | None = None
    make_workdir: str = ""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One FROM and what follows. `base`: an image's name, "" for scratch, or the index of an earlier stage ("0")."""

    index: int
    name: str
    base: str
    base_stage: int = -1
    line: int = 0
    text: str = ""
    steps: tuple[Step, ...] = ()
