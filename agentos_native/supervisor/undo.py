"""A start's way back: what each stage pushed is undone in reverse order, and no failure of an undo hides another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

Undo = Callable[[], Awaitable[None]]


class UndoStack:
    """Undo actions by name; `commit` forgets them, `unwind` runs them last in, first out."""

    def __init__(self) -> None:
        self._actions: list[tuple[str, Undo]] = []

    def push(self, name: str, action: Undo) -> None:
        """`action` takes back what the stage `name` has just made; it must be idempotent."""
        self._actions.append((name, action))

    def commit(self) -> None:
        """The start succeeded: everything stays."""
        self._actions.clear()

    async def unwind(self) -> list[str]:
        """Undo all, in reverse; what could not be undone comes back in words (the next start finds it by name)."""
        failures: list[str] = []
        while self._actions:
            name, action = self._actions.pop()
            try:
                await action()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                failures.append(f"{name}: {error}")
        return failures
