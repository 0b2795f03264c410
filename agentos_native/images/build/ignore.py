"""Which paths a list of patterns takes out: .dockerignore and ``COPY --exclude``, with Docker's meaning of them.

A pattern that matches a path takes all below it, too; of several that match, the last decides, and one that begins
with ``!`` brings back. ``*`` and ``?`` stop at a slash; ``**`` is any number of directories, also in the middle of a
name (``a**b`` is ``ab``, ``axyz/b``): that is what Docker does, if not what it says.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

PATTERNS_MAX: Final = 10_000
_LENGTH_MAX: Final = 1024
_FAST_PATH_MAX: Final = 256
_CHOICES_MAX: Final = 2
"""A regular expression tries at most path ** choices ways; what could be more is matched by `_automaton`."""
_TOGETHER: Final = 100
"""Patterns in one regular expression: while it is tried no other thread runs."""


class PatternError(ValueError):
    """A pattern that means nothing."""


class Token(NamedTuple):
    """One part of a pattern; `kind`: ``char``, ``class`` (`text` as in a regular expression), ``any`` (``?``),
    ``star``, ``directories`` (``**``), ``rest`` (``**`` at the end).
    """

    kind: str
    text: str = ""


def tokens(pattern: str) -> list[Token]:
    """The parts of a pattern.

    Raises:
        PatternError: a class without an end, or an escape without a character.
    """
    found: list[Token] = []
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "*":
            run = pattern.startswith("**", position)
            position += 2 if run else 1
            if not run:
                found.append(Token("star"))
                continue
            position += pattern.startswith("/", position)
            found.append(Token("directories" if position < len(pattern) else "rest"))
            continue
        position += 1
        if char == "?":
            found.append(Token("any"))
        elif char == "[":
            end, text = _class(pattern, position)
            found.append(Token("class", text))
            position = end
        elif char == "\\":
            if position == len(pattern):
                raise PatternError("a \\ at the end")
            found.append(Token("char", pattern[position]))
            position += 1
        else:
            found.append(Token("char", char))
    return found


def _class(pattern: str, position: int) -> tuple[int, str]:
    """Where a class that begins before `position` ends, and what it is as a regular expression."""
    negated = pattern.startswith("^", position)
    position += negated
    parts: list[str] = []
    while position < len(pattern) and (pattern[position] != "]" or not parts):
        low, position = _class_char(pattern, position)
        high = low
        if pattern.startswith("-", position) and not pattern.startswith("-]", position):
            high, position = _class_char(pattern, position + 1)
        if low > high:
            raise PatternError(f"the range {low}-{high} is empty")
        parts.append(f"{re.escape(low)}-{re.escape(high)}")
    if not parts or position >= len(pattern):
        raise PatternError("a [ without a ]")
    # Docker's classes may match a slash when they are negated; filepath.Match's never do, and nobody means it
    return position + 1, f"(?!/)[{'^' if negated else ''}{''.join(parts)}]"


def _class_char(pattern: str, position: int) -> tuple[str, int]:
    position += pattern.startswith("\\", position)
    if position >= len(pattern):
        raise PatternError("a [ without a ]")
    return pattern[position], position + 1


_EXPRESSIONS: Final = {"any": "[^/]", "star": "[^/]*", "directories": "(?:.*/)?", "rest": ".*"}


def _source(parts: Sequence[Token]) -> str:
    found = []
    is_open = False
    for part, is_choice in zip(parts, _choices(parts), strict=True):
        if part.kind in _EMPTY and is_open:
            found.append(")")
            is_open = False
        if part.kind == "star" and not is_choice:
            found.append("(?>[^/]*?")
            is_open = True
        else:
            found.append(re.escape(part.text) if part.kind == "char" else part.text or _EXPRESSIONS[part.kind])
    return "".join(found)


def _choices(parts: Sequence[Token]) -> list[bool]:
    """Of each part, whether more than one length of what it matches has to be tried.

    Not of a star that another follows: what is between the two has one length, and its first slash one place, so that
    the first fit is as good as any; the second star takes the rest.
    """
    found = []
    following = ""
    for part in reversed(parts):
        found.append(part.kind == "directories" or (part.kind == "star" and following not in ("star", "rest")))
        following = part.kind if part.kind in _EMPTY else following
    return found[::-1]


def expression(parts: Sequence[Token]) -> re.Pattern[str]:
    """`parts` as a regular expression for names of files.

    Raises:
        PatternError: so many wildcards that trying them all could take forever.
    """
    if sum(_choices(parts)) > _CHOICES_MAX:
        raise PatternError("too many wildcards in one name")
    return re.compile(_source(parts), re.DOTALL)


def _automaton(parts: Sequence[Token], path: str) -> bool:
    """Whether `parts` match the whole of `path`, in time linear in both: all ways at once.

    State 2i is before part i, 2i + 1 inside of it (a ``directories`` that has begun).
    """
    last = 2 * len(parts)

    def settle(states: set[int]) -> set[int]:
        for state in sorted(states):
            following = state
            while following < last and not following % 2 and parts[following // 2].kind in _EMPTY:
                following += 2
                states.add(following)
        return states

    classes = {part.text: re.compile(part.text) for part in parts if part.kind == "class"}
    states = settle({0})
    for char in path:
        moved: set[int] = set()
        for state in states - {last}:
            part = parts[state // 2]
            if part.kind == "directories":
                moved.add(state | 1)
                if char == "/":
                    moved.add((state | 1) + 1)
            elif part.kind == "rest" or (part.kind == "star" and char != "/"):
                moved.add(state)
            elif _takes(part, char, classes):
                moved.add(state + 2)
        states = settle(moved)
    return last in states


_EMPTY: Final = frozenset({"star", "directories", "rest"})


def _takes(part: Token, char: str, classes: dict[str, re.Pattern[str]]) -> bool:
    if part.kind == "char":
        return char == part.text
    if part.kind == "any":
        return char != "/"
    return part.kind == "class" and classes[part.text].fullmatch(char) is not None


class _Run(NamedTuple):
    """Patterns that follow one another and all take out, or all bring back."""

    brings_back: bool
    fast: tuple[re.Pattern[str], ...]
    slow: tuple[tuple[Token, ...], ...]
    """Those that are never tried as a regular expression."""
    every: tuple[tuple[Token, ...], ...]


def _clean(pattern: str) -> str:
    return posixpath.normpath(pattern.strip()).lstrip("/")


class Ignore:
    """The patterns of a .dockerignore, in order. Immutable; paths are relative and without "." and ".."."""

    def __init__(self, patterns: Iterable[str], where: str = ".dockerignore") -> None:
        self.where = where
        self._runs: list[_Run] = []
        self._literals: list[str] = []
        """What is brought back, where it is said without wildcards."""
        self._brings_back_anywhere = False
        current: list[tuple[Token, ...]] = []
        brings_back = False
        for pattern in patterns:
            negated = pattern.startswith("!")
            if current and negated != brings_back:
                self._runs.append(_run(brings_back, current))
                current = []
            brings_back = negated
            current.append(self._pattern(pattern.removeprefix("!"), negated))
        if current:
            self._runs.append(_run(brings_back, current))
        self._brings_back = any(run.brings_back for run in self._runs)

    def _pattern(self, text: str, negated: bool) -> tuple[Token, ...]:
        if len(text) > _LENGTH_MAX:
            raise PatternError(f"a pattern of more than {_LENGTH_MAX} characters")
        if not text.strip():
            raise PatternError("a ! without a pattern")
        parts = tuple(tokens(_clean(text)))
        if negated:
            if all(part.kind == "char" for part in parts):
                self._literals.append("".join(part.text for part in parts))
            else:
                self._brings_back_anywhere = True
        return parts

    def __bool__(self) -> bool:
        return bool(self._runs)

    def takes(self, path: str, *, parents_stay: bool = False) -> bool:
        """Whether `path` is taken out; `parents_stay`: it is known that no directory above it is."""
        taken = False
        lineage = (path,) if parents_stay and not self._brings_back else tuple(_lineage(path))
        for run in self._runs:
            if run.brings_back == taken and any(_matches(run, each) for each in lineage):
                taken = not run.brings_back
        return taken

    def may_bring_back_below(self, directory: str) -> bool:
        """Whether something below a directory that is taken out may not be."""
        return self._brings_back_anywhere or any(each.startswith(directory + "/") for each in self._literals)


def _run(brings_back: bool, patterns: Sequence[tuple[Token, ...]]) -> _Run:
    fast = [f"(?:{_source(parts)})" for parts in patterns if sum(_choices(parts)) <= _CHOICES_MAX]
    slow = [parts for parts in patterns if sum(_choices(parts)) > _CHOICES_MAX]
    together = ["|".join(fast[at : at + _TOGETHER]) for at in range(0, len(fast), _TOGETHER)]
    return _Run(brings_back, tuple(re.compile(each, re.DOTALL) for each in together), tuple(slow), tuple(patterns))


def _matches(run: _Run, path: str) -> bool:
    if len(path) > _FAST_PATH_MAX:
        return any(_automaton(parts, path) for parts in run.every)
    return any(each.fullmatch(path) for each in run.fast) or any(_automaton(parts, path) for parts in run.slow)


def _lineage(path: str) -> Iterator[str]:
    """`path` and the directories above it, the path first."""
    yield path
    end = path.rfind("/")
    while end > 0:
        yield path[:end]
        end = path.rfind("/", 0, end)


def parse_ignore(content: bytes, where: str = ".dockerignore") -> Ignore:
    """The patterns of a file: one a line, ``#`` in the first column for comments.

    Raises:
        PatternError: with the number of the line.
    """
    patterns = []
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    for number, line in enumerate(text.split("\n"), 1):
        pattern = line.strip()
        if line.startswith("#") or not pattern:
            continue
        try:
            Ignore([pattern])
        except PatternError as error:
            raise PatternError(f"{error}: {where}:{number}") from None
        patterns.append(pattern)
    if len(patterns) > PATTERNS_MAX:
        raise PatternError(f"more than {PATTERNS_MAX} patterns: {where}")
    return Ignore(patterns, where)
