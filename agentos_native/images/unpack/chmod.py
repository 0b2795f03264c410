"""A mode as chmod(1) has it: octal, or clauses such as ``u=rwX,go=rX``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

Change = Callable[[int, bool], int]
"""From the mode that something has, and whether it is a directory, to the mode that it shall have."""

_OCTAL: Final = re.compile(r"0?[0-7]{1,4}")
_CLAUSE: Final = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)")
_ACTION: Final = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_MASKS: Final = {"u": 0o4700, "g": 0o2070, "o": 0o1007}
_SHIFTS: Final = {"u": 6, "g": 3, "o": 0}
_BITS: Final = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}


def parse_mode(text: str) -> Change:
    """What `text` does to a mode.

    Raises:
        ValueError: it is neither octal nor symbolic.
    """
    if _OCTAL.fullmatch(text):
        mode = int(text, 8)
        return lambda old, is_directory: mode
    clauses = [_CLAUSE.fullmatch(clause) for clause in text.split(",")]
    if len(text) > 200 or not all(clauses):
        raise ValueError("it is no mode")
    actions = [
        (clause[1], operator, letters)
        for clause in clauses
        if clause is not None
        for operator, letters in _ACTION.findall(clause[2])
    ]

    def change(old: int, is_directory: bool) -> int:
        for who, operator, letters in actions:
            old = _apply(old, is_directory, who, operator, letters)
        return old

    return change


def _apply(mode: int, is_directory: bool, who: str, operator: str, letters: str) -> int:
    mask = 0
    for each in "ugo" if not who or "a" in who else who:
        mask |= _MASKS[each]
    bits = 0
    for letter in letters:
        if letter in _SHIFTS:  # g=u: what the owner may
            bits |= (mode >> _SHIFTS[letter] & 7) * 0o111
        elif letter == "X":
            bits |= _BITS["x"] if is_directory or mode & 0o111 else 0
        else:
            bits |= _BITS[letter]
    bits &= mask
    if operator == "+":
        return mode | bits
    if operator == "-":
        return mode & ~bits
    return mode & ~mask | bits
