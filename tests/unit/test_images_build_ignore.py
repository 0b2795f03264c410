"""Patterns of .dockerignore and --exclude: Docker's documented meaning, and an oracle that shares nothing with them."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.images.build.ignore import Ignore, PatternError, _automaton, parse_ignore, tokens


@pytest.mark.parametrize(
    ("patterns", "taken", "stays"),
    [
        (["foo"], ["foo", "foo/a", "foo/a/b"], ["a/foo", "foob", "fo"]),
        (["/foo/"], ["foo", "foo/a"], ["a/foo"]),
        (["./foo/../bar"], ["bar"], ["foo"]),
        (["*/temp*"], ["a/temp", "a/temp.txt", "a/temporary/x"], ["temp", "a/b/temp"]),
        (["*/*/temp*"], ["a/b/temporary"], ["a/temp"]),
        (["temp?"], ["tempa", "tempb/x"], ["temp", "tempab", "temp/"]),
        (["*.md", "!README.md"], ["a.md"], ["README.md", "a/b.md"]),
        (["*.md", "!README*.md", "README-secret.md"], ["README-secret.md", "a.md"], ["README.md", "README-x.md"]),
        (["*.md", "README-secret.md", "!README*.md"], ["a.md"], ["README-secret.md"]),
        (["**/*.go"], ["a.go", "a/b.go", "a/b/c.go"], ["a.gox"]),
        (["**"], ["a", "a/b"], []),
        (["*"], ["a", "a/b", ".x"], []),
        (["*", "!keep"], ["a"], ["keep", "keep/a"]),
        (["a/**"], ["a/b", "a/b/c"], ["a", "b"]),
        (["a/**/b"], ["a/b", "a/x/b", "a/x/y/b/z"], ["a/xb", "ab"]),
        (["**/b"], ["b", "a/b", "a/b/c"], ["ab"]),
        (["**/a/**/b"], ["a/b", "x/a/y/b"], ["a", "b"]),
        (["a", "!a/b"], ["a", "a/c"], ["a/b", "a/b/c"]),
        (["!a", "a"], ["a"], []),
        (["[a-c]x"], ["ax", "cx"], ["dx", "x"]),
        (["[^a]x"], ["bx"], ["ax", "/x"]),
        (["[]]x", "[-a]y"], ["]x", "-y", "ay"], []),
        ([r"\*x", r"a\?"], ["*x", "a?"], ["ax", "ab"]),
        (["a.b+c(d)$"], ["a.b+c(d)$"], ["aXb+c(d)$"]),
        (["a\nb*"], ["a\nbc"], []),
        (["*"], ["a\nb"], []),
        (["."], [], ["a"]),
        ([], [], ["a"]),
    ],
)
def test_patterns(patterns: list[str], taken: list[str], stays: list[str]) -> None:
    ignore = Ignore(patterns)
    assert [path for path in taken if not ignore.takes(path)] == []
    assert [path for path in stays if ignore.takes(path)] == []


def test_the_file() -> None:
    ignore = parse_ignore(b"\xef\xbb\xbf# comment\n\n  a  \r\n!  a/b\n #c\n")
    assert [ignore.takes(path) for path in ("a", "a/b", "#c", "# comment")] == [True, False, True, False]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a\n[b", r"a \[ without a \]: .dockerignore:2"),
        (b"!", "without a pattern: .dockerignore:1"),
        (b"a\\", "at the end"),
        (b"[z-a]", "is empty"),
        (b"x" * 1025, "1024"),
        (b"a\n" * 10_001, "more than 10000"),
    ],
)
def test_what_is_no_pattern(content: bytes, what: str) -> None:
    with pytest.raises(PatternError, match=what):
        parse_ignore(content)


def test_whether_it_is_worth_looking_below() -> None:
    assert not Ignore(["a"]).may_bring_back_below("a")
    assert Ignore(["a", "!a/b/c"]).may_bring_back_below("a/b")
    assert not Ignore(["a", "!b/c"]).may_bring_back_below("a")
    assert Ignore(["a", "!**/c"]).may_bring_back_below("a")


def test_patterns_made_to_be_slow_are_not() -> None:
    begun = time.monotonic()
    assert not Ignore(["*a" * 20 + "b"]).takes("a" * 200)
    assert not Ignore(["**/a" * 20 + "b"]).takes("a/" * 100 + "a")
    assert not Ignore(["*a*a*b", "**a**a**b"]).takes("a" * 4000)
    assert time.monotonic() - begun < 20


def test_many_patterns_made_to_be_slow_let_others_run() -> None:
    """A regular expression holds the interpreter's lock: the supervisor would do nothing else for minutes."""
    ignore = Ignore([f"*a*a*a{number}b" for number in range(2000)] + [f"**/a*{number}b" for number in range(2000)])
    longest, stop = 0.0, threading.Event()

    def watch() -> None:
        nonlocal longest
        before = time.monotonic()
        while not stop.wait(0.01):
            longest, before = max(longest, time.monotonic() - before), time.monotonic()

    watching = threading.Thread(target=watch)
    watching.start()
    begun = time.monotonic()
    assert not ignore.takes("a/" * 64 + "a" * 120)
    taken = time.monotonic() - begun
    stop.set()
    watching.join()
    assert longest < 2
    assert taken < 30


# -- the oracle: Docker's rules by plain recursion over characters


def oracle_matches(pattern: str, path: str) -> bool:  # noqa: PLR0911 - one for each kind of part
    if not pattern:
        return not path
    if pattern.startswith("**"):
        rest = pattern[2:].removeprefix("/")
        if not rest:
            return True
        if oracle_matches(rest, path):
            return True
        return any(path[at] == "/" and oracle_matches(rest, path[at + 1 :]) for at in range(len(path)))
    if pattern[0] == "*":
        if oracle_matches(pattern[1:], path):
            return True
        return bool(path) and path[0] != "/" and oracle_matches(pattern, path[1:])
    if not path:
        return False
    if pattern[0] == "?":
        return path[0] != "/" and oracle_matches(pattern[1:], path[1:])
    if pattern[0] == "[":
        inside, _, rest = pattern[1:].partition("]")
        negated = inside.startswith("^")
        return path[0] != "/" and (path[0] in inside.lstrip("^")) != negated and oracle_matches(rest, path[1:])
    return path[0] == pattern[0] and oracle_matches(pattern[1:], path[1:])


def oracle(patterns: list[str], path: str) -> bool:
    parts = path.split("/")
    taken = False
    for pattern in patterns:
        if any(oracle_matches(pattern.lstrip("!"), "/".join(parts[:count])) for count in range(1, len(parts) + 1)):
            taken = not pattern.startswith("!")
    return taken


_PATTERN = st.lists(
    st.sampled_from(["a", "b", "ab", "*", "?", "**", "**/", "[ab]", "[^a]", "/"]), min_size=1, max_size=6
).map("".join)
_CLEAN = _PATTERN.filter(
    lambda text: "//" not in text and "***" not in text and not text.startswith("/") and not text.endswith("/")
)
_PATH = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4).map("/".join)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["", "!"]), _CLEAN).map("".join), max_size=5), st.lists(_PATH, max_size=6))
def test_the_oracle_agrees(patterns: list[str], paths: list[str]) -> None:
    ignore = Ignore(patterns)
    assert [ignore.takes(path) for path in paths] == [oracle(patterns, path) for path in paths]


@settings(max_examples=150)
@given(_CLEAN, _PATH)
def test_the_automaton_agrees(pattern: str, path: str) -> None:
    assert _automaton(tokens(pattern), path) == oracle_matches(pattern, path)
