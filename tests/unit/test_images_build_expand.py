"""Variables in Dockerfiles: the forms of the Dockerfile reference, quotes, escapes, and bounds."""

from __future__ import annotations

import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.images.build.expand import VALUE_MAX, Expander, ExpansionError

ENV = {"a": "1", "empty": "", "path": "/x/y/z.tar.gz", "b": "two words", "HOME": "/root"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ""),
        ("x", "x"),
        ("$a", "1"),
        ("${a}", "1"),
        ("${a}b$a-", "1b1-"),
        ("$unset", ""),
        ("$ab", ""),
        ("$", "$"),
        ("a$", "a$"),
        ("$.", "$."),
        ("$1x", "x"),
        (r"\$a", "$a"),
        (r"\${a}", "${a}"),
        (r"\\$a", r"\1"),
        ("'$a'", "$a"),
        ('"$a"', "1"),
        (r'"\$a"', "$a"),
        (r'"\x\"\\"', '\\x"\\'),
        (r"'\$'", r"\$"),
        ("a'b'\"c\"", "abc"),
        ("a b", "a b"),
        (r"a\ b", "a b"),
        ("x\\", "x"),
        ("${unset:-d}", "d"),
        ("${empty:-d}", "d"),
        ("${empty-d}", ""),
        ("${unset-d}", "d"),
        ("${a:-d}", "1"),
        ("${a:+d}", "d"),
        ("${empty:+d}", ""),
        ("${empty+d}", "d"),
        ("${unset+d}", ""),
        ("${a:?no}", "1"),
        ("${empty?no}", ""),
        ("${unset:-$a}", "1"),
        ("${unset:-${unset:-x}}y", "xy"),
        ("${unset:-'}'}", "}"),
        (r"${unset:-\}}", "}"),
        ("${path#*/}", "x/y/z.tar.gz"),
        ("${path##*/}", "z.tar.gz"),
        ("${path%.*}", "/x/y/z.tar"),
        ("${path%%.*}", "/x/y/z"),
        ("${path#nothing}", "/x/y/z.tar.gz"),
        ("${path/x/Q}", "/Q/y/z.tar.gz"),
        ("${path//[xy]/Q}", "/x/y/z.tar.gz"),
        ("${path//z.tar.gz/}", "/x/y/"),
        ("${path/*/-}", "-"),
        ("${path//?tar/-}", "/x/y/z-.gz"),
        (r"${path//\//_}", "_x_y_z.tar.gz"),
        ("${path%${unset:-.gz}}", "/x/y/z.tar"),
    ],
)
def test_words(text: str, value: str) -> None:
    assert Expander(ENV).word(text) == value


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("'a", "single quote"),
        ('"a', "double quote"),
        ("${", "to end it"),
        ("${a", "to end it"),
        ("${a:", "to end it"),
        ("${}", "needs a name"),
        ("${:x}", "needs a name"),
        ("${a:=x}", "followed by '='"),
        ("${a^}", r"followed by '\^'"),
        ("${unset:?it is needed}", "unset: it is needed"),
        ("${empty:?}", "empty: it is not set"),
        ("${a/b}", "to end it"),
        ("${x:-" * 40 + "}" * 40, "inside one another"),
        ("${path#" + "x" * 300 + "}", "128 characters"),
    ],
)
def test_what_cannot_be_expanded(text: str, what: str) -> None:
    with pytest.raises(ExpansionError, match=what):
        Expander(ENV).word(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$a $b", ["1", "two", "words"]),
        ("'$b' \"$b\"", ["$b", "two words"]),
        ("x$b", ["xtwo", "words"]),
        ("$empty", []),
        (r"a\ b c", ["a b", "c"]),
        ("  ", []),
    ],
)
def test_words_are_split_after_they_are_expanded(text: str, words: list[str]) -> None:
    assert Expander(ENV).words(text) == words


def test_the_escape_character_of_the_file() -> None:
    assert Expander(ENV, "`").word(r"c:\$a`$a") == r"c:\1$a"


def test_a_heredocs_content_has_no_quotes() -> None:
    assert Expander(ENV).text('it\'s "$a" \\$a \\n\n') == 'it\'s "1" $a \\n\n'


def test_sizes_and_times_are_bounded() -> None:
    value = "x" * (VALUE_MAX // 2)
    assert len(Expander({"v": value}).word("$v$v")) == VALUE_MAX
    with pytest.raises(ExpansionError, match="longer than"):
        Expander({"v": value}).word("$v$v$v")
    with pytest.raises(ExpansionError, match="longer than"):
        Expander({"v": value}).words("$v $v $v")
    with pytest.raises(ExpansionError, match="only tried"):
        Expander({"v": value}).word("${v%x}")
    begun = time.monotonic()
    Expander({"v": "a" * 250}).word("${v//" + "*a" * 20 + "b/}")
    Expander({"v": "a" * 8000}).word("${v##" + "*a" * 20 + "b}")
    assert time.monotonic() - begun < 30


_NAMES = st.sampled_from(["a", "empty", "unset", "path", "b"])
_PLAIN = st.text("xy/.", max_size=3)
_PIECES = st.one_of(
    _PLAIN,
    _NAMES.map("${{{}}}".format),
    st.builds("${{{}{}{}}}".format, _NAMES, st.sampled_from([":-", ":+", "-", "+"]), _PLAIN),
    st.builds(
        "${{{}{}{}}}".format,
        _NAMES,
        st.sampled_from(["#", "##", "%", "%%"]),
        st.text("xz/.*?", min_size=1, max_size=4),
    ),
    _PLAIN.map("'{}'".format),
)


@settings(max_examples=40)
@given(st.lists(st.lists(_PIECES, max_size=4).map("".join), min_size=1, max_size=20))
def test_a_shell_says_the_same(words: list[str]) -> None:
    """What dash makes of the same words between double quotes (single quotes are no quotes there, so they go)."""
    words = [word.replace("'", "") for word in words]
    script = "".join(f'printf "%s\\0" "{word}"\n' for word in words)
    ran = subprocess.run(["/bin/sh", "-c", script], env=ENV, capture_output=True, check=True)
    assert [Expander(ENV).word(f'"{word}"').encode() for word in words] == ran.stdout.split(b"\0")[:-1]


@settings(max_examples=150)
@given(st.text("ab${}:-+?#%/'\"\\ *", max_size=30))
def test_anything_is_a_word_or_an_error(text: str) -> None:
    for act in (Expander(ENV).word, Expander(ENV).words, Expander(ENV).text):
        try:
            act(text)
        except ExpansionError as error:
            assert str(error)
