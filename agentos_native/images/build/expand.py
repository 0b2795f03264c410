"""``$name`` and ``${name…}`` in the arguments of an instruction, and what quotes and escapes there mean.

Docker's own dialect: a shell's words without its commands, arithmetic or lists. All sizes are bounded, for a line can
double a variable that the line before has doubled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

VALUE_MAX: Final = 128 << 10
"""What the kernel takes for one string of a program's arguments and environment (MAX_ARG_STRLEN, execve(2))."""
_DEPTH_MAX: Final = 32
_PATTERN_MAX: Final = 128
_TRIM_MAX: Final = 8192
_REPLACE_MAX: Final = 256
_WORK_MAX: Final = 32 << 20
_SPECIAL: Final = "@*#?-$!0"


class ExpansionError(ValueError):
    """The word cannot be expanded; the text says why."""


class Budget:
    """What all the lines of one file together may take, in characters: each of ten thousand lines can make its 128 KiB
    of a few bytes, and a plan keeps what every line made."""

    def __init__(self) -> None:
        self._left = _WORK_MAX

    def spend(self, characters: int) -> None:
        """Raises ExpansionError once all of it is spent."""
        self._left -= characters
        if self._left < 0:
            raise ExpansionError("what the lines up to here become is too much for one file")


class Expander:
    """Expands words with the variables `env`; `escape` is the escape character of the file. `budget`: of the file."""

    def __init__(self, env: Mapping[str, str], escape: str = "\\", budget: Budget | None = None) -> None:
        self._env = env
        self._escape = escape
        self._budget = budget or Budget()

    def word(self, text: str) -> str:
        """`text` expanded, quotes and escapes taken away; blanks in it stay.

        Raises:
            ExpansionError: unbalanced quotes or braces, ``${name:?}`` of what is not set, or it becomes too long.
        """
        return self._cursor(text).until("")

    def text(self, text: str) -> str:
        """As `word` for a heredoc's content: quotes are ordinary characters there, and only ``$`` can be escaped."""
        cursor = self._cursor(text)
        cursor.quotes = False
        return cursor.until("")

    def words(self, text: str) -> list[str]:
        """`text` expanded and then split at blanks that are neither quoted nor escaped."""
        return self._cursor(text).split()

    def _cursor(self, text: str) -> _Cursor:
        return _Cursor(text, self._env, self._escape, self._budget)


class _Cursor:
    """A position in one text."""

    def __init__(self, text: str, env: Mapping[str, str], escape: str, budget: Budget) -> None:
        self._text = text
        self._env = env
        self._escape = escape
        self._budget = budget
        self._at = 0
        self._depth = 0
        self._size = 0
        self.quotes = True

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _count(self, piece: str) -> str:
        self._size += len(piece)
        self._budget.spend(len(piece))
        if self._size > VALUE_MAX:
            raise ExpansionError(f"it becomes longer than {VALUE_MAX} characters")
        return piece

    def split(self) -> list[str]:
        words: list[str] = []
        current: list[str] = []
        while char := self._peek():
            if char == "$":
                value = self._count(self._dollar())
                first, *others = value.split() or [""]
                if value[:1].isspace():
                    self._end(words, current)
                current.append(first)
                for other in others:
                    self._end(words, current)
                    current.append(other)
                if value[-1:].isspace():
                    self._end(words, current)
            elif char.isspace():
                self._at += 1
                self._end(words, current)
            else:
                current.append(self._count(self._plain()))
        self._end(words, current)
        return words

    @staticmethod
    def _end(words: list[str], current: list[str]) -> None:
        if word := "".join(current):
            words.append(word)
        current.clear()

    def until(self, stop: str, *, keep_escapes: bool = False) -> str:
        """Everything up to the character `stop`, expanded ("": to the end)."""
        found: list[str] = []
        while char := self._peek():
            if char == stop:
                self._at += 1
                return "".join(found)
            if char == "$":
                piece = self._dollar()
            elif keep_escapes and char == self._escape:
                piece = self._take() + self._take()
            else:
                piece = self._plain()
            found.append(self._count(piece))
        if stop:
            raise ExpansionError(f"there is no {stop!r} to end it")
        return "".join(found)

    def _plain(self) -> str:
        """One character that is not ``$``, or a quoted part."""
        char = self._take()
        if char == self._escape:
            following = self._take()
            return following if self.quotes or following == "$" else char + following
        if char == "'" and self.quotes:
            return self._single()
        if char == '"' and self.quotes:
            return self._double()
        return char

    def _single(self) -> str:
        end = self._text.find("'", self._at)
        if end < 0:
            raise ExpansionError("a single quote is not closed")
        start, self._at = self._at, end + 1
        return self._text[start:end]

    def _double(self) -> str:
        found: list[str] = []
        while char := self._peek():
            if char == "$":
                found.append(self._count(self._dollar()))
                continue
            self._at += 1
            if char == '"':
                return "".join(found)
            if char == self._escape and self._peek() and self._peek() in f'"${self._escape}':
                char = self._take()
            found.append(char)
        raise ExpansionError("a double quote is not closed")

    def _name(self) -> str:
        start = self._at
        first = self._peek()
        if first.isdigit():
            while self._peek().isdigit():
                self._at += 1
        elif first and first in _SPECIAL:
            self._at += 1
        else:
            while (char := self._peek()) == "_" or char.isalnum():
                self._at += 1
        return self._text[start : self._at]

    def _dollar(self) -> str:
        self._at += 1
        if self._peek() != "{":
            name = self._name()
            return self._env.get(name, "") if name else "$"
        self._at += 1
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise ExpansionError(f"more than {_DEPTH_MAX} braces inside one another")
        try:
            return self._braced()
        finally:
            self._depth -= 1

    def _braced(self) -> str:
        name = self._name()
        if not name:
            raise ExpansionError("${ needs a name after it" if self._peek() else "there is no '}' to end it")
        modifier = self._take()
        if modifier == "}":
            return self._env.get(name, "")
        value = self._env.get(name)
        if modifier == "/":
            return self._replaced(value or "")
        if modifier in ("#", "%"):
            return self._trimmed(value or "", modifier)
        if modifier == ":":
            modifier = self._take()
            value = value or None  # an empty one counts as none
        if not modifier or modifier not in "-+?":
            raise ExpansionError(f"${{{name} is followed by {modifier!r}" if modifier else "there is no '}' to end it")
        word = self.until("}")
        if modifier == "+":
            return "" if value is None else word
        if value is None and modifier == "?":
            raise ExpansionError(f"{name}: {word or 'it is not set'}")
        return word if value is None else value

    def _trimmed(self, value: str, modifier: str) -> str:
        longest = self._peek() == modifier
        if longest:
            self._at += 1
        pattern = _tokens(self.until("}", keep_escapes=True))
        _bound(value, _TRIM_MAX)
        self._budget.spend(8 * len(value) * len(pattern))
        if modifier == "%":
            ends = _prefixes(pattern[::-1], value[::-1])
            return value[: len(value) - (max(ends) if longest else min(ends))] if ends else value
        ends = _prefixes(pattern, value)
        return value[max(ends) if longest else min(ends) :] if ends else value

    def _replaced(self, value: str) -> str:
        everywhere = self._peek() == "/"
        if everywhere:
            self._at += 1
        pattern = _tokens(self.until("/", keep_escapes=True))
        replacement = self.until("}", keep_escapes=True)
        if pattern and not any(token in ("*", "?") for token in pattern):
            plain = "".join(token[1:] for token in pattern)
            count = value.count(plain) if everywhere else 1
            self._count(" " * min(VALUE_MAX + 1, count * len(replacement)))
            return value.replace(plain, replacement, count)
        _bound(value, _REPLACE_MAX)
        self._budget.spend(8 * len(value) ** 2 * len(pattern))
        found: list[str] = []
        position = 0
        while position <= len(value):
            ends = _prefixes(pattern, value[position:])
            end = max(ends, default=0)
            if not end:
                found.append(value[position : position + 1])
                position += 1
                continue
            found.append(self._count(replacement))
            position += end
            if not everywhere:
                break
        return "".join(found) + value[position:]


def _bound(value: str, limit: int) -> None:
    if len(value) > limit:
        raise ExpansionError(f"a pattern is only tried on up to {limit} characters")


def _tokens(pattern: str) -> list[str]:
    r"""The pattern's characters; an ordinary one is marked by a leading ``\``."""
    if len(pattern) > _PATTERN_MAX:
        raise ExpansionError(f"a pattern of more than {_PATTERN_MAX} characters")
    found: list[str] = []
    chars = iter(pattern)
    for char in chars:
        if char == "\\":
            found.append("\\" + next(chars, "\\"))
        else:
            found.append(char if char in "*?" else "\\" + char)
    return found


def _prefixes(pattern: Sequence[str], value: str) -> list[int]:
    """The lengths of the beginnings of `value` that `pattern` matches: all of its states at once, so never slow."""
    last = len(pattern)

    def open_stars(states: set[int]) -> set[int]:
        for state in sorted(states):
            following = state
            while following < last and pattern[following] == "*":
                following += 1
                states.add(following)
        return states

    states = open_stars({0})
    ends = [0] if last in states else []
    for position, char in enumerate(value, 1):
        moved = {state for state in states if state < last and pattern[state] == "*"}
        moved |= {state + 1 for state in states if state < last and pattern[state] in ("?", "\\" + char)}
        states = open_stars(moved)
        if last in states:
            ends.append(position)
        if not states:
            break
    return ends
