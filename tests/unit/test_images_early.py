"""Hashes made while others still write: used for files that did not change since, and for no others."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentos_native.images.unpack.digest import measure
from agentos_native.images.unpack.early import EarlyHashes, Hints


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def hashed(root: int, *paths: bytes) -> EarlyHashes:
    """What the measurer knows after it was told of `paths`."""
    early = EarlyHashes(root)
    hints_r, hints_w = os.pipe()
    go_r, go_w = os.pipe()
    thread = threading.Thread(target=early.follow, args=(hints_r, go_r))
    thread.start()
    hints = Hints(hints_w)
    for path in paths:
        hints.add(path, 0)
    hints.flush()
    time.sleep(0.3)
    os.close(go_w)
    thread.join()
    for descriptor in (hints_r, hints_w, go_r):
        os.close(descriptor)
    return early


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "d").mkdir(parents=True)
    for name in ("a", "b", "d/c"):
        (root / name).write_text(name * 1000)
    (root / "marked").write_text("m")
    os.setxattr(root / "marked", "user.note", b"n")
    os.symlink("/etc/passwd", root / "link")
    return root


def test_the_digest_is_the_same_with_and_without(tree: Path) -> None:
    root = opened(tree)
    try:
        early = hashed(root, b"a", b"b", b"d/c", b"marked", b"link", b"not-there", b"../tree/a", b"/etc/passwd", b"d")
        assert early.digest((tree / "a").stat()) == hashlib.sha256(b"a" * 1000).digest()
        assert early.digest((tree / "marked").stat()) is None  # it has attributes, which are looked at in the end
        assert early.digest(Path("/etc/passwd").stat()) is None
        assert measure(root, early) == measure(root)
    finally:
        os.close(root)


def rewrite_with_old_time(path: Path) -> None:
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=times)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"Y" * path.stat().st_size)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [rewrite_with_old_time, replace, lambda path: os.setxattr(path, "user.x", b"y")])
def test_a_file_that_was_changed_afterwards_is_read_again(tree: Path, change: Callable[[Path], None]) -> None:
    root = opened(tree)
    try:
        early = hashed(root, b"a", b"b")
        before = measure(root, early)
        change(tree / "a")
        assert early.digest((tree / "a").stat()) is None
        assert early.digest((tree / "b").stat()) is not None
        after = measure(root, early)
        assert after == measure(root)
        assert after != before
    finally:
        os.close(root)


def test_nobody_waits_for_hints_to_be_read() -> None:
    hints_r, hints_w = os.pipe()
    hints = Hints(hints_w)
    began = time.monotonic()
    for number in range(100_000):
        hints.add(b"path-%d" % number, 1 << 20 if number % 1000 == 0 else 0)
    assert time.monotonic() - began < 20
    os.close(hints_r)
    os.close(hints_w)
