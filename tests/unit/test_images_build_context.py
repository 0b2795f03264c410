"""What a COPY selects of a context, and when the key of it changes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.build import selecting
from agentos_native.images.build.context import (
    Hashes,
    Selection,
    Tree,
    content_key,
    open_context,
    origin_key,
    read_beneath,
)
from agentos_native.images.build.model import Copy
from agentos_native.images.unpack import reading

FILES = ("a.txt", "b.txt", "c.md", "src/main.py", "src/util/x.py", "src/util/y.txt", "docs/a.txt", "docs/deep/a.txt")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "outside").write_text("secret")
    return root


@pytest.fixture
def fd(context: Path) -> Iterator[int]:
    descriptor = os.open(context, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def select(fd: int, *sources: str, **more: object) -> list[tuple[str, str]]:
    """Source and destination of everything that is selected, in order."""
    chosen = selection(fd, *sources, **more)
    return [(each.source.decode(), each.destination.decode()) for each in chosen.entries]


def selection(fd: int, *sources: str, **more: object) -> Selection:
    return open_context(fd).select(Copy(sources=sources, destination="/x/", **more))  # type: ignore[arg-type]


def names(fd: int, *sources: str, **more: object) -> list[str]:
    return [source for source, _ in select(fd, *sources, **more)]


# -- selecting


def test_a_directory_is_its_content_with_parents_first(fd: int) -> None:
    assert select(fd, "src") == [
        ("src", ""),
        ("src/main.py", "main.py"),
        ("src/util", "util"),
        ("src/util/x.py", "util/x.py"),
        ("src/util/y.txt", "util/y.txt"),
    ]
    assert (
        select(fd, "src/")
        == select(fd, "./src/.")
        == select(fd, "/src")
        == select(fd, "../../src")
        == select(fd, "src")
    )
    assert len(select(fd, ".")) == 1 + len(FILES) + 4


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("a.txt", ["a.txt"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("?.md", ["c.md"]),
        ("[ab].*", ["a.txt", "b.txt"]),
        ("*/a.txt", ["docs/a.txt"]),
        ("*/*/*.py", ["src/util/x.py"]),
        ("src/*.py", ["src/main.py"]),
        ("**.txt", ["a.txt", "b.txt"]),
        ("s?c", ["src", "src/main.py", "src/util", "src/util/x.py", "src/util/y.txt"]),
        (r"\a.txt", ["a.txt"]),
    ],
)
def test_wildcards(fd: int, source: str, found: list[str]) -> None:
    assert names(fd, source) == found


def test_a_pattern_that_matches_nothing_is_only_noted(fd: int) -> None:
    chosen = selection(fd, "*.none")
    assert chosen.entries == ()
    assert chosen.notes == ("nothing in the context matches '*.none'",)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("a.tx", "is a.txt meant?"),
        ("src/mian.py", "is src/main.py meant?"),
        ("../outside", "directory further up"),
        ("nothing/like/it", ""),
        ("a.txt/b", ""),
    ],
)
def test_what_is_not_there(fd: int, source: str, hint: str) -> None:
    with pytest.raises(AgentosError) as caught:
        select(fd, source)
    assert caught.value.code == "source-not-found"
    assert repr(source) in caught.value.what
    assert hint in caught.value.hint


def test_names_that_hold_wildcards_or_are_not_utf8(fd: int, context: Path) -> None:
    (context / "arr[0].txt").write_text("")
    assert names(fd, "arr[[]0].txt") == ["arr[0].txt"]
    with open(os.fsencode(context) + b"/docs/caf\xe9", "wb"):
        pass
    found = [each.source for each in selection(fd, "docs").entries]
    assert b"docs/caf\xe9" in found
    content_key(Copy(sources=(), destination="/"), selection(fd, "docs"), Hashes())


def test_links_are_followed_as_sources_only_and_never_out(fd: int, context: Path) -> None:
    (context / "l").symlink_to("src/util")
    (context / "abs").symlink_to("/src/main.py")
    (context / "docs/in").symlink_to("../a.txt")
    (context / "out").symlink_to("../outside")
    (context / "round").symlink_to("round")
    assert select(fd, "l/x.py") == [("src/util/x.py", "x.py")]
    assert select(fd, "l") == [("src/util", ""), ("src/util/x.py", "x.py"), ("src/util/y.txt", "y.txt")]
    assert select(fd, "abs") == [("src/main.py", "abs")]
    assert select(fd, "ab*") == [("src/main.py", "abs")]
    inside = [each for each in selection(fd, "docs").entries if each.source == b"docs/in"]
    assert inside[0].target == b"../a.txt"
    for source in ("out", "round"):
        with pytest.raises(AgentosError) as caught:
            select(fd, source)
        assert caught.value.code == "source-not-found"
    assert ("out", "out") in select(fd, ".")


def test_special_files_are_refused_and_sockets_left_for_later(fd: int, context: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        directory = os.open(context, os.O_PATH)
        server.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
    assert "socket" in names(fd, ".")
    os.mkfifo(context / "docs/fifo")
    with pytest.raises(AgentosError) as caught:
        select(fd, "docs")
    assert (caught.value.code, caught.value.where) == ("special-file", "'docs/fifo'")
    assert ".dockerignore" in caught.value.hint
    assert [
        each.source for each in Tree(fd, where="--from=0").select(Copy(sources=("docs/f*",), destination="/")).entries
    ]


def test_too_many_files(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selecting, "ENTRIES_MAX", 5)
    with pytest.raises(AgentosError) as caught:
        select(fd, ".")
    assert caught.value.code == "context-too-large"


# -- .dockerignore, --exclude, --parents


@pytest.mark.parametrize(
    ("ignored", "source", "found"),
    [
        ("*.txt", ".", ["", "c.md", "docs", "docs/a.txt", "docs/deep", "docs/deep/a.txt", "src", "src/main.py",
                        "src/util", "src/util/x.py", "src/util/y.txt"]),
        ("src\ndocs\n*.txt", ".", ["", "c.md"]),
        ("*\n!src/util/x.py", ".", ["", "src", "src/util", "src/util/x.py"]),
        ("*\n!**/x.py", ".", ["", "src", "src/util", "src/util/x.py"]),
        ("src\n!src/util", "src", ["src", "src/util", "src/util/x.py", "src/util/y.txt"]),
        ("src\n!**/x.py", "src/util/x.py", ["src/util/x.py"]),
        ("**/*.txt\n!docs/deep", "docs", ["docs", "docs/deep", "docs/deep/a.txt"]),
        ("a.txt", "*.txt", ["b.txt"]),
        ("*.txt", "*.txt", []),
    ],
)  # fmt: skip
def test_dockerignore(fd: int, context: Path, ignored: str, source: str, found: list[str]) -> None:
    (context / ".dockerignore").write_text(f"{ignored}\n.dockerignore\n")
    assert names(fd, source) == found


@pytest.mark.parametrize(
    ("ignored", "source"),
    [("a.txt", "a.txt"), ("src", "src"), ("src\n!**/z.py", "src"), ("src\n!**/x.py", "src/main.py")],
)
def test_what_dockerignore_takes_is_not_there(fd: int, context: Path, ignored: str, source: str) -> None:
    (context / ".dockerignore").write_text(ignored)
    with pytest.raises(AgentosError) as caught:
        select(fd, source)
    assert caught.value.code == "source-not-found"
    assert caught.value.hint == ".dockerignore takes it out"


def test_the_dockerfiles_own_ignore_file_comes_first(fd: int, context: Path) -> None:
    (context / ".dockerignore").write_text("a.txt")
    (context / "docs/Other.dockerignore").write_text("b.txt")
    tree = open_context(fd, "docs/Other")
    found = [each.source for each in tree.select(Copy(sources=("*.txt",), destination="/")).entries]
    assert found == [b"a.txt"]


@pytest.mark.parametrize("kind", ["pattern", "directory", "link"])
def test_an_ignore_file_that_cannot_be_meant(fd: int, context: Path, kind: str) -> None:
    place = context / ".dockerignore"
    if kind == "pattern":
        place.write_text("a\n[b\n")
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to("../outside")
    with pytest.raises(AgentosError) as caught:
        open_context(fd)
    assert caught.value.code == "invalid-dockerignore"


def test_exclude(fd: int) -> None:
    assert names(fd, "*.txt", exclude=("a*",)) == ["b.txt"]
    assert names(fd, "src", exclude=("util",)) == ["src", "src/main.py"]
    assert names(fd, "src", exclude=("**/*.py", "util/y.txt")) == ["src", "src/util"]
    assert names(fd, "docs", exclude=("docs/deep",)) == ["docs", "docs/a.txt"]


def test_parents(fd: int) -> None:
    assert select(fd, "src/util/x.py", "docs/deep", parents=True) == [
        ("src", "src"),
        ("src/util", "src/util"),
        ("src/util/x.py", "src/util/x.py"),
        ("docs", "docs"),
        ("docs/deep", "docs/deep"),
        ("docs/deep/a.txt", "docs/deep/a.txt"),
    ]
    assert select(fd, "src/./util/*.py", parents=True) == [("src/util", "util"), ("src/util/x.py", "util/x.py")]
    assert [destination for _, destination in select(fd, "./**/a.txt", parents=True)] == [
        "a.txt",
        "docs",
        "docs/a.txt",
        "docs/deep",
        "docs/deep/a.txt",
    ]


def test_reading_beneath(fd: int, context: Path) -> None:
    assert read_beneath(fd, "src/main.py", 100) == b"src/main.py"
    (context / "link").symlink_to("a.txt")
    os.mkfifo(context / "fifo")
    for path in ("link", "../outside", "src", "fifo", "none"):
        with pytest.raises(OSError):
            read_beneath(fd, path, 100)
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_beneath(fd, "a.txt", 3)


# -- keys


def key(fd: int, hashes: Hashes | None = None, *sources: str, **more: object) -> str:
    copy = Copy(sources=sources or (".",), destination="/x/", **more)  # type: ignore[arg-type]
    return content_key(copy, open_context(fd).select(copy), hashes or Hashes())


def test_the_key_is_the_same_for_the_same_files(fd: int, context: Path) -> None:
    before = key(fd)
    assert before.startswith("sha256:")
    for name in FILES:
        os.utime(context / name, (1, 1))
    assert key(fd) == before
    content = (context / "a.txt").read_bytes()
    (context / "a.txt").unlink()
    (context / "a.txt").write_bytes(content)
    assert key(fd) == before


def test_every_change_changes_the_key(fd: int, context: Path) -> None:
    hashes = Hashes()
    seen = {key(fd, hashes)}

    def changed() -> bool:
        before = len(seen)
        seen.add(key(fd, hashes))
        return len(seen) > before

    (context / "a.txt").write_text("A.txt")
    assert changed()
    (context / "a.txt").chmod(0o600)
    assert changed()
    (context / "a.txt").rename(context / "A.txt")
    assert changed()
    (context / "src/util").chmod(0o700)
    assert changed()
    (context / "link").symlink_to("a")
    assert changed()
    (context / "link").unlink()
    (context / "link").symlink_to("b")
    assert changed()
    (context / "link").unlink()
    (context / "link").write_text("b")
    assert changed()
    (context / "new").mkdir()
    assert changed()
    (context / "twin").write_text("c.md")
    assert changed()
    (context / "twin").unlink()
    os.link(context / "c.md", context / "twin")
    assert changed()


def test_the_instruction_is_part_of_the_key(fd: int) -> None:
    keys = {key(fd), key(fd, None, "src"), key(fd, None, ".", chown="1"), key(fd, None, ".", chmod="600")}
    keys.add(key(fd, None, ".", files=(("a", "b"),)))
    assert len(keys) == 5
    copy = Copy(sources=("/a",), destination="/b", origin="0")
    assert len({origin_key(copy, ["x"]), origin_key(copy, ["x", "y"]), origin_key(copy, ["y", "x"])}) == 3


def test_what_is_ignored_does_not_change_the_key(fd: int, context: Path) -> None:
    (context / ".dockerignore").write_text("*.log\n")
    before = key(fd)
    (context / "x.log").write_text("x")
    assert key(fd) == before


def test_a_file_is_hashed_again_when_it_may_have_changed(
    fd: int, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = Hashes()
    first = key(fd, hashes)
    os.utime(context / "a.txt", (5, 5))
    size = (context / "a.txt").stat().st_size
    (context / "a.txt").write_text("z" * size)
    os.utime(context / "a.txt", (5, 5))  # same inode, size and mtime: only ctime tells
    assert key(fd, hashes) != first


def test_an_unchanged_file_is_read_once(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentos_native.images.build.context._SETTLED_NS", -(10**18))
    hashes = Hashes()
    first = key(fd, hashes)
    monkeypatch.setattr(reading.Reading, "opened", lambda *_: pytest.fail("read again"))
    assert key(fd, hashes) == first


def test_a_file_that_changes_meanwhile(fd: int, context: Path) -> None:
    copy = Copy(sources=("a.txt", "b.txt"), destination="/x/")
    chosen = open_context(fd).select(copy)
    (context / "b.txt").write_text("longer than it was")
    with pytest.raises(AgentosError) as caught:
        content_key(copy, chosen, Hashes())
    assert (caught.value.code, caught.value.where) == ("context-changed", "'b.txt'")
    (context / "b.txt").unlink()
    with pytest.raises(AgentosError, match="context-changed"):
        content_key(copy, chosen, Hashes())
