"""Reading Dockerfiles: lines, continuations, heredocs, flags, exec forms, and what is refused, with its place."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from dockerfile_parse import DockerfileParser
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.images.build import dockerfile
from agentos_native.images.build.dockerfile import exec_form, parse, split_words
from agentos_native.images.build.model import Heredoc, Instruction


def only(text: str) -> Instruction:
    (found,) = parse(text.encode())
    return found


@pytest.mark.parametrize(
    ("text", "name", "arguments", "words"),
    [
        ("RUN a b", "RUN", "a b", ("a", "b")),
        ("  run\ta  b ", "RUN", "a  b", ("a", "b")),
        ("RUN a \\\n b", "RUN", "a  b", ("a", "b")),
        ("RUN a\\\nb", "RUN", "ab", ("ab",)),
        ("RUN a \\  \n  b \\\t\n\tc", "RUN", "a   b \tc", ("a", "b", "c")),
        ("RUN a \\\n# comment\n   # another\n\n b", "RUN", "a  b", ("a", "b")),
        ("RUN a # no comment", "RUN", "a # no comment", ("a", "#", "no", "comment")),
        ("RUN a \\\\\n", "RUN", "a \\\\", ("a", "\\\\")),
        ("RUN a \\", "RUN", "a", ("a",)),
        ("\n\n# c\nRUN a\r\n", "RUN", "a", ("a",)),
        ("RUN a \\\r\n  b\r\n", "RUN", "a   b", ("a", "b")),
        ("\ufeffRUN a", "RUN", "a", ("a",)),
        ("# escape=`\nRUN a `\n b\\", "RUN", "a  b\\", ("a", "b\\")),
        ("#escape = `\n# syntax=docker/dockerfile:1\nRUN c:\\x `\n", "RUN", "c:\\x", ("c:\\x",)),
        ("# comment first\n# escape=`\nRUN a \\\n b", "RUN", "a  b", ("a", "b")),
        ('ENV a="x y" b=x\\ y c=\'$x "\'', "ENV", 'a="x y" b=x\\ y c=\'$x "\'', ('a="x y"', "b=x\\ y", "c='$x \"'")),
    ],
)  # fmt: skip
def test_lines_become_instructions(text: str, name: str, arguments: str, words: tuple[str, ...]) -> None:
    found = only(text)
    assert (found.name, found.text, found.words) == (name, arguments, words)
    assert not found.exec_form


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["a", "b c"]', ("a", "b c")),
        ('  [ "a\\n\\"" ] ', ('a\n"',)),
        ("[]", ()),
        ("['a']", None),
        ('["a", ]', None),
        ('["a"] b', None),
        ("[ -f x ] && y", None),
        ("a", None),
        ("[" * 5000, None),
    ],
)
def test_an_exec_form_is_json_and_all_else_is_a_shells(text: str, words: tuple[str, ...] | None) -> None:
    assert exec_form(text) == words
    found = only(f"CMD {text}")
    assert found.exec_form == (words is not None)
    if words is not None:
        assert found.words == words


def test_positions_flags_and_lines() -> None:
    first, second, third = parse(b"FROM a\n\nCOPY --from=x --chown=a:b \\\n  --link c \\\n d /e\nRUN f\n")
    assert (first.line, first.end_line) == (1, 1)
    assert (second.line, second.end_line) == (3, 5)
    assert second.flags == (("from", "x"), ("chown", "a:b"), ("link", "true"))
    assert second.words == ("c", "d", "/e")
    assert (third.line, third.end_line) == (6, 6)
    assert only("COPY --from=x -- --odd /e").words == ("--odd", "/e")
    assert only("COPY --exclude=a --exclude='b c' d e").flags == (("exclude", "a"), ("exclude", "'b c'"))
    assert only("RUN echo --from=x").flags == ()


def test_heredocs() -> None:
    found = only("RUN <<EOF\n a $b\n# kept\nEOF \nEOF\n")
    assert found.heredocs == (Heredoc(name="EOF", content=" a $b\n# kept\nEOF \n"),)
    found = only("COPY <<A <<-'B' <<\"C\" /x/\n1\nA\n\t\t2\n\tB\nC\n")
    assert found.heredocs == (
        Heredoc(name="A", content="1\n"),
        Heredoc(name="B", content="2\n", expand=False),
        Heredoc(name="C", content="", expand=False),
    )
    assert found.end_line == 6
    two = parse(b"RUN cat <<EOF > /x && \\\n   echo\nline\nEOF\nUSER a\n")
    assert two[0].text == "cat <<EOF > /x &&    echo"
    assert two[0].heredocs[0].content == "line\n"
    assert two[1].line == 5
    assert not only("RUN cat <<<EOF").heredocs
    assert not only('RUN echo "<<EOF" $((1 << 2))').heredocs
    assert not only('RUN ["a", "<<EOF"]').heredocs
    assert only("ONBUILD COPY <<EOF /x\n1\nEOF").heredocs[0].content == "1\n"
    assert not only("LABEL a=b c=<<EOF").heredocs


@pytest.mark.parametrize(
    ("text", "line", "what", "hint"),
    [
        ("FORM x", 1, "unknown instruction 'FORM'", "is FROM meant?"),
        ("root:$y$j9T$abc:1:0:::", 1, "a line that begins with no instruction", ""),
        ("FROM x\n\nCOYP a b", 3, "unknown instruction 'COYP'", "is COPY meant?"),
        ("FROM x\nRUN a &&\n b", 3, "unknown instruction 'b'", "needs a \\"),
        ("FROM x\nRUN", 2, "RUN without arguments", ""),
        ("FROM x\nRUN \\\n\n# c\n", 2, "RUN without arguments", ""),
        ("FROM x\nCMD [1]", 2, "other things than strings", "double quotes"),
        ("FROM x\nCOPY --form=a b c", 2, "COPY has no flag --form", "is --from meant?"),
        ("FROM x\nCMD --a", 2, "CMD has no flag --a", ""),
        ("FROM x\nCOPY --from b c", 2, "--from needs a value", "--from="),
        ("FROM x\nRUN <<A <<B\nA\nx\n B", 2, "'B' has no end", "a line with B"),
        ("FROM x\nCOPY <<'' /x\n", 2, "without a name", ""),
        ("# escape=x\nFROM a", 1, "cannot be the escape character", "\\ or `"),
        ("# escape=`\n# escape=`\nFROM a", 2, "comes twice", ""),
        ("", 1, "no instruction", "FROM"),
        ("# only a comment\n", 1, "no instruction", "FROM"),
        ("FROM a\n\\\n", 2, "an escape character and nothing else", ""),
        ("FROM x\nRUN a\0b", 2, "NUL", "Dockerfile?"),
        ("FROM x\nRUN " + "a" * 70000, 2, "65535", ""),
    ],
)
def test_errors_name_line_and_instruction(text: str, line: int, what: str, hint: str) -> None:
    with pytest.raises(AgentosError) as caught:
        parse(text.encode(), "My.Dockerfile")
    assert caught.value.code == "invalid-dockerfile"
    assert what in caught.value.what
    assert caught.value.where == f"My.Dockerfile:{line}"
    assert hint in caught.value.hint


def test_limits() -> None:
    with pytest.raises(AgentosError, match="more than 1048576 bytes"):
        parse(b"#" * (1 << 20) + b"\n")
    with pytest.raises(AgentosError, match="more than 10000 instructions"):
        parse(b"USER a\n" * 10_001)
    assert len(parse(b"USER a\n" * 10_000)) == 10_000
    with pytest.raises(AgentosError, match="not UTF-8: Dockerfile:2") as caught:
        parse(b"FROM a\nRUN \xff\n")
    assert "Dockerfile" in caught.value.hint


def test_the_confined_task_is_the_same() -> None:
    text = b"FROM a\nRUN <<E\n1\nE\n"
    answer = dockerfile.task(msgspec.msgpack.encode(dockerfile.Request("D", text)))
    assert msgspec.msgpack.decode(answer, type=tuple[Instruction, ...]) == parse(text)


@settings(max_examples=150)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    b"FROM",
                    b"RUN",
                    b"COPY",
                    b"ENV",
                    b"ONBUILD",
                    b"a",
                    b"=",
                    b"\\",
                    b"\n",
                    b"\r\n",
                    b" ",
                    b"\t",
                    b"#",
                    b"<<E",
                    b"<<-'E'",
                    b"E",
                    b"--from=",
                    b"--",
                    b'"',
                    b"'",
                    b"[",
                    b"]",
                    b",",
                    b"`",
                    b"# escape=`",
                    b"$",
                ]
            ),
            max_size=40,
        ).map(b"".join),
    )
)
def test_anything_is_instructions_or_an_error_with_a_place(text: bytes) -> None:
    try:
        found = parse(text)
    except AgentosError as error:
        assert error.code == "invalid-dockerfile"
        assert error.where.startswith("Dockerfile:")
        return
    lines = text.count(b"\n") + 1
    assert all(1 <= each.line <= each.end_line <= lines for each in found)
    assert all(each.name in dockerfile.INSTRUCTIONS for each in found)


_WORD = st.text("abcxyz019./_-", min_size=1, max_size=8).filter(lambda word: not word.startswith("-"))


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["RUN", "USER", "WORKDIR", "LABEL", "ENV", "EXPOSE", "STOPSIGNAL"]),
            st.lists(_WORD, min_size=1, max_size=4),
            st.sampled_from([" ", " \\\n ", " \\\n# comment\n "]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_plain_files_are_read_as_dockerfile_parse_reads_them(lines: list[tuple[str, list[str], str]]) -> None:
    text = "FROM scratch\n" + "\n".join(f"{name} {joint.join(words)}" for name, words, joint in lines) + "\n"
    other: Any = DockerfileParser(fileobj=io.BytesIO(text.encode()))
    expected = [
        (each["instruction"], each["value"].split(), each["startline"] + 1, each["endline"] + 1)
        for each in other.structure
        if each["instruction"] != "COMMENT"
    ]
    assert [(each.name, each.text.split(), each.line, each.end_line) for each in parse(text.encode())] == expected


@given(st.text(" ab'\"\\", max_size=12))
def test_words_are_the_text_without_the_blanks_between(text: str) -> None:
    words = split_words(text, "\\")
    assert all(word.strip() for word in words)
    rest = text
    for word in words:
        rest = rest.lstrip()
        assert rest.startswith(word)
        rest = rest[len(word) :]
    assert not rest.strip()
