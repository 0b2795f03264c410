"""From the bytes of a Dockerfile to instructions: lines, continuations, comments, heredocs, flags and exec forms.

The rules are those of Docker's own reader (BuildKit's frontend), which differ from a shell's in small ways: comments
and empty lines inside a continuation vanish, an escape before the end of a line joins without a space, and a JSON list
that is no JSON is a shell's command. Nothing is expanded here, see `evaluate`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.build.model import Heredoc, Instruction

if TYPE_CHECKING:
    from agentos_native.images.session import Session

BYTES_MAX: Final = 1 << 20
INSTRUCTIONS_MAX: Final = 10_000
LINE_MAX: Final = 65_535
"""Docker's limit of one line."""

_FLAGS: Final[dict[str, frozenset[str]]] = {
    "ADD": frozenset({"chown", "chmod", "exclude", "link", "keep-git-dir", "checksum", "unpack"}),
    "COPY": frozenset({"from", "chown", "chmod", "exclude", "link", "parents"}),
    "FROM": frozenset({"platform"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "start-interval", "retries"}),
    "RUN": frozenset({"mount", "network", "security"}),
}
_SWITCHES: Final = frozenset({"link", "parents", "keep-git-dir", "unpack"})
"""Flags that may stand without a value."""
_JSON: Final = frozenset({"ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME"})
_HEREDOC: Final = frozenset({"ADD", "COPY", "RUN"})
INSTRUCTIONS: Final = frozenset(
    {*_JSON, *_FLAGS, "ARG", "ENV", "EXPOSE", "LABEL", "MAINTAINER", "ONBUILD", "STOPSIGNAL", "USER", "WORKDIR"}
)

_DIRECTIVE: Final = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*")
_WORD: Final = re.compile(r"[A-Za-z]{1,24}")
_NAME: Final = re.compile(r"\s*(\S+)\s*(.*)", re.DOTALL)
HEREDOC_WORD: Final = re.compile(r"\d*<<(-?)([^<\s]+)")


class Request(msgspec.Struct, frozen=True):
    """What the confined task "dockerfile" is asked: the file's name for messages, and its bytes."""

    name: str
    text: bytes


def task(request: bytes) -> bytes:
    """`parse` in the confined child: a `Request` in, a tuple of `Instruction` out, both as MessagePack."""
    asked = msgspec.msgpack.decode(request, type=Request)
    return msgspec.msgpack.encode(parse(asked.text, asked.name))


def read(session: Session, text: bytes, name: str = "Dockerfile") -> tuple[Instruction, ...]:
    """`parse` in a confined process of `session`.

    Raises:
        AgentosError: as `parse`, and what `Session.ask` raises.
    """
    check_size(text, name)
    answer = session.ask("dockerfile", msgspec.msgpack.encode(Request(name, text)))
    return msgspec.msgpack.decode(answer, type=tuple[Instruction, ...])


def invalid(what: str, name: str, line: int, hint: str = "") -> AgentosError:
    """A Dockerfile that cannot be built."""
    return AgentosError("invalid-dockerfile", what, f"{name}:{line}", hint)


def check_size(text: bytes, name: str) -> None:
    """Refuse a file larger than any Dockerfile."""
    if len(text) > BYTES_MAX:
        raise invalid(f"it has more than {BYTES_MAX} bytes", name, 1, "is it a Dockerfile?")


def parse(text: bytes, name: str = "Dockerfile") -> tuple[Instruction, ...]:
    """The instructions of a Dockerfile, in order; `name` is for messages.

    Raises:
        AgentosError: ``invalid-dockerfile``, with file and line.
    """
    check_size(text, name)
    return _Reader(text, name).instructions()


def exec_form(text: str) -> tuple[str, ...] | None:
    """The strings of a JSON list; None when `text` is no JSON list, and so a shell form.

    Raises:
        ValueError: it is a list, of other things than strings.
    """
    if not text.lstrip().startswith("["):
        return None
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if not isinstance(found, list):
        return None
    if not all(isinstance(word, str) for word in found):
        raise ValueError("an exec form has other things than strings in it")
    return tuple(found)


def split_words(text: str, escape: str) -> list[str]:
    """The words of `text`; quotes and escapes keep a blank inside a word, and stay in it."""
    words: list[str] = []
    start = -1
    quote = ""
    position = 0
    while position < len(text):
        char = text[position]
        if quote:
            if char == quote:
                quote = ""
            elif char == escape and quote == '"':
                position += 1
        elif char.isspace():
            if start >= 0:
                words.append(text[start:position])
                start = -1
            position += 1
            continue
        else:
            start = position if start < 0 else start
            if char in "'\"":
                quote = char
            elif char == escape:
                position += 1
        position += 1
    if start >= 0:
        words.append(text[start:])
    return words


class _Line(NamedTuple):
    number: int
    text: str


class _Reader:
    """The lines of one file; an instruction takes as many of them as it has."""

    def __init__(self, text: bytes, name: str) -> None:
        self._name = name
        try:
            decoded = text.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        except UnicodeDecodeError as error:
            line = text.count(b"\n", 0, error.start) + 1
            raise invalid("a line that is not UTF-8", name, line, "is it a Dockerfile?") from None
        self._lines = [line.removesuffix("\r") for line in decoded.split("\n")]
        self._next = 0
        self._escape = "\\"

    def instructions(self) -> tuple[Instruction, ...]:
        self._directives()
        found: list[Instruction] = []
        while (line := self._logical()) is not None:
            if len(found) == INSTRUCTIONS_MAX:
                raise invalid(f"more than {INSTRUCTIONS_MAX} instructions", self._name, line.number)
            found.append(self._instruction(line))
        if not found:
            raise invalid("there is no instruction in it", self._name, 1, "the first is FROM")
        return tuple(found)

    def _directives(self) -> None:
        """``# escape=`` and others; they stand before everything else, comments too."""
        seen = set()
        for number, line in enumerate(self._lines, 1):
            match = _DIRECTIVE.fullmatch(line.strip())
            if match is None or match[1].lower() not in ("escape", "syntax", "check"):
                return
            key, value = match[1].lower(), match[2]
            if key in seen:
                raise invalid(f"the directive {key!r} comes twice", self._name, number)
            seen.add(key)
            if key == "escape":
                if value not in ("\\", "`"):
                    raise invalid(f"{value!r} cannot be the escape character", self._name, number, "\\ or `")
                self._escape = value

    def _physical(self) -> Iterator[_Line]:
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            if len(line) > LINE_MAX:
                raise invalid(f"a line of more than {LINE_MAX} characters", self._name, self._next)
            if "\0" in line:
                raise invalid("a line with a NUL byte", self._name, self._next, "is it a Dockerfile?")
            yield _Line(self._next, line)

    def _logical(self) -> _Line | None:
        """The next instruction's text, continuation lines joined, and the number of its first line."""
        first = 0
        parts: list[str] = []
        for number, line in self._physical():
            stripped = line.strip()
            if not stripped or stripped.startswith("#"):
                continue  # also between the lines of one instruction
            first = first or number
            head, continued = self._continued(line)
            parts.append(head)
            if not continued:
                break
        text = "".join(parts).strip()
        if first and not text:
            raise invalid("an escape character and nothing else", self._name, first)
        return _Line(first, text) if first else None

    def _continued(self, line: str) -> tuple[str, bool]:
        """`line` without the escape character at its end, and whether there was one (two are a plain one)."""
        bare = line.rstrip(" \t")
        if not bare.endswith(self._escape) or bare.endswith(self._escape * 2):
            return line, False
        return bare[:-1], True

    def _instruction(self, line: _Line) -> Instruction:
        match = _NAME.fullmatch(line.text)
        assert match is not None, "a logical line is never empty"
        name, rest = match[1].upper(), match[2]
        if name not in INSTRUCTIONS:
            near = difflib.get_close_matches(name, sorted(INSTRUCTIONS), 1, 0.6)
            hint = f"is {near[0]} meant?" if near else "a line that goes on needs a \\ at the end of the line before"
            if not _WORD.fullmatch(match[1]):  # then it may be any file, whose content is nobody's business
                raise invalid("a line that begins with no instruction", self._name, line.number, hint)
            raise invalid(f"unknown instruction {match[1]!r}", self._name, line.number, hint)
        flags, rest = self._flags(name, rest, line.number)
        if not rest.strip():
            raise invalid(f"{name} without arguments", self._name, line.number)
        words = None
        if name in _JSON:
            try:
                words = exec_form(rest)
            except ValueError as error:
                hint = "put every word in double quotes"
                raise invalid(f"{name}: {error}", self._name, line.number, hint) from None
        raw = split_words(rest, self._escape)
        heredocs = self._heredocs(name, raw, line.number) if words is None else ()
        return Instruction(
            name=name,
            line=line.number,
            end_line=self._next,
            text=rest,
            words=tuple(raw) if words is None else words,
            flags=flags,
            exec_form=words is not None,
            heredocs=heredocs,
            escape=self._escape,
        )

    def _flags(self, name: str, rest: str, line: int) -> tuple[tuple[tuple[str, str], ...], str]:
        """``--name=value`` at the beginning of `rest`, and what is left of it; ``--`` ends them."""
        found: list[tuple[str, str]] = []
        while match := re.match(r"\s*(--\S*)", rest):
            word = split_words(rest, self._escape)[0]
            rest = rest[match.start(1) + len(word) :].lstrip()
            if word == "--":
                break
            flag, equals, value = word[2:].partition("=")
            if flag not in _FLAGS.get(name, ()):
                near = difflib.get_close_matches(flag, sorted(_FLAGS.get(name, ())), 1)
                hint = f"is --{near[0]} meant?" if near else ""
                raise invalid(f"{name} has no flag --{flag[:40]}", self._name, line, hint)
            if not equals and flag not in _SWITCHES:
                raise invalid(f"{name}: --{flag} needs a value", self._name, line, f"--{flag}=…")
            found.append((flag, value if equals else "true"))
        return tuple(found), rest

    def _heredocs(self, name: str, words: list[str], line: int) -> tuple[Heredoc, ...]:
        if name == "ONBUILD" and words[0].upper() in _HEREDOC:
            words = words[1:]
        elif name not in _HEREDOC:
            return ()
        return tuple(
            self._heredoc(match[2], bool(match[1]), line) for match in map(HEREDOC_WORD.fullmatch, words) if match
        )

    def _heredoc(self, word: str, strip_tabs: bool, line: int) -> Heredoc:
        quoted = any(char in word for char in "'\"" + self._escape)
        name = re.sub(r"['\"]|" + re.escape(self._escape), "", word)
        if not name:
            raise invalid("a heredoc without a name", self._name, line)
        content: list[str] = []
        for _, text in self._physical():
            bare = text.lstrip("\t") if strip_tabs else text
            if bare == name:
                return Heredoc(name=name, content="".join(f"{each}\n" for each in content), expand=not quoted)
            content.append(bare)
        raise invalid(f"the heredoc {name!r} has no end", self._name, line, f"a line with {name} and nothing else")
