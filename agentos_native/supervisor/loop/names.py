"""Agents' names in sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

Namer = Callable[[str], str]
"""From an agent's id to the name that people know it by."""
NAMED: Final = 4
"""Names in one line of words; of more, the number is told."""


def names_of(ids: Sequence[str], name: Namer) -> str:
    """Some names, and how many more."""
    shown = ", ".join(name(agent_id) for agent_id in ids[:NAMED])
    return shown if len(ids) <= NAMED else f"{shown} and {len(ids) - NAMED} more"
