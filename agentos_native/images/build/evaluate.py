"""From instructions to a plan: which stages, with which variables, and what each step does. Pure: nothing is read.

Where variables come from, as Docker has it: an ENV of the stage (or its base) is before an ARG of the same name; a
stage sees the ARGs that it declares, and those of the stage it is built on; ARGs before the first FROM are for FROM
lines, and for a stage that names them again. RUN, CMD, ENTRYPOINT and SHELL are not expanded: their program does that.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.build import configure
from agentos_native.images.build.copies import copy_of
from agentos_native.images.build.dockerfile import invalid, parse
from agentos_native.images.build.expand import ExpansionError
from agentos_native.images.build.model import Instruction, Plan, Stage, Step
from agentos_native.images.build.mounts import mounts_of, origins_of
from agentos_native.images.build.scope import PROXY_ARGS, InstructionError, Scope, State, platform_args
from agentos_native.images.model import ImageConfig

__all__ = ["PROXY_ARGS", "evaluate"]

Resolve = Callable[[str], ImageConfig]
_STAGE_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]*")
_STAGES_MAX: Final = 128


class _Section(msgspec.Struct, frozen=True):
    """A FROM and the instructions after it."""

    index: int
    name: str
    start: Instruction
    body: tuple[Instruction, ...]


def evaluate(
    instructions: Sequence[Instruction],
    args: Mapping[str, str],
    resolve: Resolve,
    target: str = "",
    *,
    name: str = "Dockerfile",
    architecture: str = "amd64",
) -> Plan:
    """What is to be done for `target` (a stage's name or number; "" the last).

    Args:
        args: what the user gave for ARGs.
        resolve: the configuration of an image of the store; raises AgentosError when there is none of that name.
        name: of the file, for messages.
        architecture: of this machine, in Docker's words.

    Raises:
        AgentosError: ``invalid-dockerfile``, ``stage-not-found``, ``unsupported-instruction``, and what `resolve`
        raises.
    """
    try:
        return _Evaluation(instructions, args, resolve, name, architecture).plan(target)
    except RecursionError:  # stages that need one another only through the ONBUILD of their bases
        raise invalid("stages depend on one another too deeply", name, 1) from None


class _Evaluation:
    def __init__(
        self,
        instructions: Sequence[Instruction],
        args: Mapping[str, str],
        resolve: Resolve,
        name: str,
        architecture: str,
    ) -> None:
        self._args = args
        self._resolve = resolve
        self._name = name
        self._platform = platform_args(architecture)
        self._declared: set[str] = set()
        self._global = Scope(args, self._platform)
        self._sections = self._split(instructions)
        self._stages: dict[int, Stage] = {}
        self._scopes: dict[int, Scope] = {}
        self._notes: list[str] = []
        self._author = ""

    def plan(self, target: str) -> Plan:
        wanted = self._find_target(target)
        for index in self._needed(wanted):
            self._stage(index)
        stages = tuple(self._stages[index] for index in sorted(self._stages))
        unused = sorted(set(self._args) - self._declared - PROXY_ARGS)
        notes = [f"--build-arg {key}: no ARG of that name" for key in unused]
        return Plan(stages=stages, notes=(*self._notes, *notes), author=self._author)

    def _needed(self, target: int) -> list[int]:
        """The stages that `target` needs as far as the file says it, in order (a base's ONBUILD may need others)."""
        found: set[int] = set()
        waiting = {target}
        while waiting:
            index = waiting.pop()
            found.add(index)
            section = self._sections[index]
            below = {self._base_of(section)[1]}
            for each in section.body:
                below |= {self._find_stage(name, index) for name in origins_of(each)}
            waiting |= below - found - {-1}
        return sorted(found)

    # -- the file's sections

    def _split(self, instructions: Sequence[Instruction]) -> list[_Section]:
        starts = [number for number, each in enumerate(instructions) if each.name == "FROM"]
        self._declared |= {word.partition("=")[0] for each in instructions if each.name == "ARG" for word in each.words}
        if not starts:
            raise invalid("there is no FROM", self._name, instructions[0].line, "a Dockerfile begins with FROM image")
        if len(starts) > _STAGES_MAX:
            raise invalid(f"more than {_STAGES_MAX} stages", self._name, instructions[starts[_STAGES_MAX]].line)
        for each in instructions[: starts[0]]:
            if each.name != "ARG":
                raise invalid(f"{each.name} before the first FROM", self._name, each.line, "only ARG may stand there")
            with self._place(each):
                self._global.declare(each)
        ends = [*starts[1:], len(instructions)]
        return [
            _Section(
                index, self._stage_name(instructions[start]), instructions[start], tuple(instructions[start + 1 : end])
            )
            for index, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    def _stage_name(self, start: Instruction) -> str:
        words = start.words
        if len(words) == 1:
            return ""
        if len(words) != 3 or words[1].upper() != "AS":
            raise invalid("FROM takes an image, or an image and AS name", self._name, start.line)
        name = words[2].lower()
        if not _STAGE_NAME.fullmatch(name) or name == "scratch":
            hint = "letters, digits, . _ and -, beginning with a letter"
            raise invalid(f"{words[2]!r} cannot be the name of a stage", self._name, start.line, hint)
        return name

    def _find_target(self, target: str) -> int:
        if not target:
            return len(self._sections) - 1
        found = self._find_stage(target, len(self._sections))
        if found < 0:
            names = [section.name for section in self._sections if section.name]
            near = difflib.get_close_matches(target.lower(), names, 1)
            hint = f"is {near[0]} meant?" if near else f"stages with a name: {', '.join(names) or 'none'}"
            raise AgentosError("stage-not-found", f"there is no stage {target!r}", self._name, hint)
        return found

    def _find_stage(self, name: str, before: int) -> int:
        """The last stage of that name or number of those `before`; -1 when there is none."""
        for section in reversed(self._sections[:before]):
            if section.name and section.name == name.lower():
                return section.index
        return int(name) if name.isascii() and name.isdigit() and int(name) < before else -1

    # -- one stage

    def _stage(self, index: int) -> Stage:
        if index not in self._stages:
            self._stages[index] = self._evaluate(self._sections[index])
        return self._stages[index]

    def _base_of(self, section: _Section) -> tuple[str, int]:
        """The image ("" for scratch) and the stage (-1 for none) that a section is built on."""
        start = section.start
        with self._place(start):
            reference = self._global.expander(start.escape).word(start.words[0])
        if not reference:
            hint = "an ARG before FROM needs a value: ARG name=value, or --build-arg name=value"
            raise invalid(f"FROM {start.words[0]}: that is no image", self._name, start.line, hint)
        self._check_platform(start)
        stage = -1 if reference.isdigit() else self._find_stage(reference, section.index)
        return ("" if stage >= 0 or reference == "scratch" else reference), stage

    def _check_platform(self, start: Instruction) -> None:
        for _, value in start.flags:
            with self._place(start):
                wanted = self._global.expander(start.escape).word(value)
            own = self._platform["TARGETPLATFORM"]
            if wanted.split("/")[:2] != own.split("/"):
                hint = "programs of another platform cannot run here: leave --platform out, or build there"
                raise AgentosError(
                    "unsupported-platform", f"FROM --platform={wanted}; this is {own}", self._where(start), hint
                )

    def _evaluate(self, section: _Section) -> Stage:
        image, below = self._base_of(section)
        if below >= 0:
            base = self._stages[below]
            config = base.steps[-1].config if base.steps else base.config
            scope = self._scopes[below].child()
        else:
            config = self._image(image, section.start) if image else ImageConfig()
            scope = Scope(self._args, self._platform, self._global)
        self._scopes[section.index] = scope
        triggers = self._triggers(config, section.start)
        config = msgspec.structs.replace(config, on_build=())
        steps: list[Step] = []
        state = State(config=config, scope=scope, name=self._name)
        for each in (*triggers, *section.body):
            steps.append(self._step(each, state, section))
        self._author = state.author or self._author
        return Stage(
            index=section.index,
            name=section.name,
            base=image,
            base_stage=below,
            line=section.start.line,
            text=_shown(section.start),
            config=config,
            steps=tuple(steps),
        )

    def _image(self, name: str, asking: Instruction) -> ImageConfig:
        try:
            return self._resolve(name)
        except AgentosError as error:
            where = f"{self._where(asking)}: {error.where}" if error.where else self._where(asking)
            raise AgentosError(error.code, error.what, where, error.hint, details=error.details) from None

    def _triggers(self, config: ImageConfig, start: Instruction) -> list[Instruction]:
        """The ONBUILD instructions of the base, which are carried out now."""
        found = []
        for text in config.on_build:
            for each in parse(text.encode("utf-8", "replace"), f"{self._where(start)}: ONBUILD of {start.words[0]}"):
                if each.name in ("ONBUILD", "FROM", "MAINTAINER"):
                    raise invalid(f"ONBUILD {each.name} in the base", self._name, start.line)
                found.append(msgspec.structs.replace(each, line=start.line, end_line=start.end_line))
        return found

    def _step(self, each: Instruction, state: State, section: _Section) -> Step:
        run = copy = None
        workdir = ""
        with self._place(each):
            if each.name in ("COPY", "ADD"):
                copy = copy_of(each, state, lambda name: self._origin(name, each, section))
            elif each.name == "RUN":
                mounts = mounts_of(each, state, lambda name: self._origin(name, each, section))
                run = msgspec.structs.replace(configure.run_of(each, state), **mounts._asdict())
            else:
                configure.APPLY[each.name](each, state)
                workdir = state.config.workdir if each.name == "WORKDIR" else ""
        self._notes += state.take_notes(self._where(each))
        return Step(line=each.line, text=_shown(each), config=state.config, run=run, copy=copy, make_workdir=workdir)

    def _origin(self, name: str, asking: Instruction, section: _Section) -> str:
        """What ``--from=name`` means: a stage's index, or an image's name."""
        found = self._find_stage(name, section.index)
        if found >= 0:
            self._stage(found)
            return str(found)
        if name.isdigit() or name.lower() == section.name:
            raise invalid(f"--from={name}: no earlier stage", self._name, asking.line)
        self._image(name, asking)
        return name

    # -- errors

    def _where(self, each: Instruction) -> str:
        return f"{self._name}:{each.line}"

    @contextlib.contextmanager
    def _place(self, each: Instruction) -> Iterator[None]:
        """Errors of what is done inside name the instruction's place."""
        try:
            yield
        except InstructionError as error:
            raise AgentosError(error.code, f"{each.name}: {error}", self._where(each), error.hint) from None
        except ExpansionError as error:
            raise invalid(f"{each.name}: {error}", self._name, each.line) from None


def _shown(each: Instruction) -> str:
    flags = "".join(f"--{key}={value} " for key, value in each.flags)
    return f"{each.name} {flags}{each.text}"
