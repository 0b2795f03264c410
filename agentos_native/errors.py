"""The one error that users meet: a code for programs, words for people, and what to do about it.

Printed as ``error[code]: what: where`` with an indented ``hint:``; carried over the wire as the same five fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

EXIT_FAILED: Final = 125
"""This program failed (docker's and podman's convention)."""
EXIT_CANNOT_EXECUTE: Final = 126
EXIT_NOT_FOUND: Final = 127
EXIT_TIMEOUT: Final = 124


class AgentosError(Exception):
    """A failure that is reported to the user.

    Args:
        code: short, stable, kebab-case; programs match on it, for example ``invalid-quantity``.
        what: one sentence fragment that names the thing that failed.
        where: file:line and path, or the agent, stage or system call; may be empty.
        hint: how to mend it; may span several lines; may be empty.
        exit_status: what the command exits with (125 unless the program itself could not be run: 126, 127).
        details: figures for programs (``-o json``), for example what was asked and what is left.
    """

    def __init__(
        self,
        code: str,
        what: str,
        where: str = "",
        hint: str = "",
        *,
        exit_status: int = EXIT_FAILED,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code, what, where, hint)
        self.code = code
        self.what = what
        self.where = where
        self.hint = hint
        self.exit_status = exit_status
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        line = f"error[{self.code}]: {self.what}"
        if self.where:
            line += f": {self.where}"
        for number, hint_line in enumerate(self.hint.splitlines()):
            line += f"\n  hint: {hint_line}" if number == 0 else f"\n        {hint_line}"
        return line

    def to_dict(self) -> dict[str, Any]:
        """The error as it travels over the API."""
        return {
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "hint": self.hint,
            "exit_status": self.exit_status,
            "details": self.details,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AgentosError:
        """The inverse of `to_dict`; unknown shapes become ``internal`` rather than a second failure."""
        return cls(
            str(data.get("code", "internal")),
            str(data.get("what", "unknown failure")),
            str(data.get("where", "")),
            str(data.get("hint", "")),
            exit_status=int(data.get("exit_status", EXIT_FAILED)),
            details=data.get("details") or {},
        )
