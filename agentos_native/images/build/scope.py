"""The variables of a Dockerfile: ARGs and where their values come from, and what a stage has at one of its lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from agentos_native.images.build.expand import Budget, Expander
from agentos_native.images.build.model import Instruction
from agentos_native.images.model import ImageConfig

_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
PROXY_ARGS: Final = frozenset({*_PROXIES, *map(str.lower, _PROXIES)})
"""Given to every RUN without an ARG, and no part of what a step's result depends on."""


class InstructionError(ValueError):
    """An instruction that means nothing, or something that is not done here; the text says what."""

    def __init__(self, what: str, hint: str = "", code: str = "invalid-dockerfile") -> None:
        super().__init__(what)
        self.hint = hint
        self.code = code


def unsupported(what: str, hint: str) -> InstructionError:
    """Docker can do it, this project does not."""
    return InstructionError(what, hint, "unsupported-instruction")


def platform_args(architecture: str) -> dict[str, str]:
    """The ARGs that need no value: where the image will run, and where it is built, which is the same."""
    found: dict[str, str] = {}
    for which in ("TARGET", "BUILD"):
        values = {"PLATFORM": f"linux/{architecture}", "OS": "linux", "ARCH": architecture, "VARIANT": ""}
        found |= {which + key: value for key, value in values.items()}
    return found


class Scope:
    """The ARGs of a stage (or, with no `outer`, those before the first FROM) as far as they are declared.

    Args:
        given: the values of ``--build-arg``.
        platform: those that are always there.
        outer: the ARGs before the first FROM.
    """

    def __init__(
        self,
        given: Mapping[str, str],
        platform: Mapping[str, str],
        outer: Scope | None = None,
        inherited: Mapping[str, str] | None = None,
    ) -> None:
        self._given = given
        self._platform = platform
        self._outer = outer
        self._values: dict[str, str] = dict(inherited or {})
        self.budget: Budget = outer.budget if outer is not None else Budget()

    def child(self) -> Scope:
        """That of a stage built on this one."""
        return Scope(self._given, self._platform, self._outer, self._values)

    def declare(self, instruction: Instruction, env: Mapping[str, str] | None = None) -> None:
        """ARG ``name`` or ``name=default``, several on a line; `env` is the stage's, for their defaults.

        Raises:
            InstructionError: there is no name. ExpansionError.
        """
        expander = self.expander(instruction.escape, env)
        found: dict[str, str] = {}
        for word in instruction.words:
            raw, equals, default = word.partition("=")
            name = expander.word(raw)
            if not name:
                raise InstructionError(f"{word!r} has no name before the =")
            value = expander.word(default) if equals else self._fallback(name)
            value = self._given.get(name, value)
            if value is not None:
                found[name] = value
        self._values |= found

    def _fallback(self, name: str) -> str | None:
        """The value of an ARG without a default."""
        if self._outer is not None and name in self._outer._values:
            return self._outer._values[name]
        return self._platform.get(name)

    def expander(self, escape: str, env: Mapping[str, str] | None = None) -> Expander:
        """Expands with these ARGs, below `env`."""
        base = self._platform if self._outer is None else {}
        known = {**base, **self._values, **(env or {})}
        self.budget.spend(len(known))
        return Expander(known, escape, self.budget)

    def for_run(self) -> dict[str, str]:
        """What a RUN has of them, proxies too."""
        proxies = {name: value for name, value in self._given.items() if name in PROXY_ARGS}
        return {**proxies, **self._values}


class State:
    """A stage under evaluation; instructions replace `config`."""

    def __init__(self, *, config: ImageConfig, scope: Scope, name: str) -> None:
        self.config = config
        self.scope = scope
        self.name = name
        self.author = ""
        self.cmd_is_own = False
        self._notes: list[str] = []

    def set(self, **fields: object) -> None:
        """Replace fields of the configuration."""
        self.config = msgspec.structs.replace(self.config, **fields)

    def expander(self, instruction: Instruction) -> Expander:
        """Expands with what the stage has before `instruction`."""
        return self.scope.expander(instruction.escape, dict(self.config.env))

    def spend(self, entries: int) -> None:
        """The configuration gets a tuple or mapping of so many: each step keeps its own. Raises ExpansionError."""
        self.scope.budget.spend(32 * entries)

    def note(self, text: str) -> None:
        """Something the user should know that is no error."""
        self._notes.append(text)

    def take_notes(self, where: str) -> list[str]:
        """The notes since the last call, each with its place."""
        taken, self._notes = self._notes, []
        return [f"{where}: {text}" for text in taken]
