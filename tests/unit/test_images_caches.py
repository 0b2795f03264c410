"""Caches of RUN: who finds what, who waits for whom, and what a collection takes; see `images.caches`."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from agentos_native.images import gc
from agentos_native.images.build.model import Cache
from agentos_native.images.caches import CACHES, Caches, Held
from agentos_native.images.catalog import Catalog


@pytest.fixture
def caches(tmp_path: Path) -> Caches:
    return Caches(tmp_path)


def one(identity: str = "x", **fields: Any) -> Cache:
    return Cache(**({"target": f"/{identity}", "id": identity} | fields))


def taken(caches: Caches, *mounts: Cache, tenant: str = "t") -> Held:
    held = Held()
    assert caches.take(held, tenant, mounts)
    return held


def names(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / CACHES))


def test_what_was_left_is_found_by_its_id_and_tenant_wherever_it_is_mounted(caches: Caches) -> None:
    with taken(caches, one()) as held:
        Path(held.trees["/x"], "file").write_text("left")
    with taken(caches, one(target="/elsewhere")) as held:
        assert Path(held.trees["/elsewhere"], "file").read_text() == "left"
    with taken(caches, one(), tenant="other") as held:
        assert os.listdir(held.trees["/x"]) == []
    with taken(caches, one("y")) as held:
        assert os.listdir(held.trees["/y"]) == []


def test_the_first_who_uses_it_says_its_mode(caches: Caches) -> None:
    for mode in (0o1700, 0o755):
        with taken(caches, one(mode=mode)) as held:
            assert os.stat(held.trees["/x"]).st_mode & 0o7777 == 0o1700


def test_who_waits_for_whom(caches: Caches) -> None:
    with taken(caches, one()):
        for sharing in ("locked", "shared"):
            assert not caches.take(Held(), "t", [one(sharing=sharing)])
    with taken(caches, one(sharing="shared")) as first, taken(caches, one(sharing="shared")) as second:
        assert first.trees == second.trees
        assert not caches.take(Held(), "t", [one()])
    with taken(caches, one(sharing="private")) as first, taken(caches, one(sharing="private")) as second:
        assert first.trees != second.trees
    with taken(caches, one(sharing="private")) as third:
        assert third.trees == first.trees
    with taken(caches, one()):
        pass


def test_all_of_them_or_none(caches: Caches) -> None:
    with taken(caches, one("b")):
        assert not caches.take(Held(), "t", [one("a"), one("b"), one("c")])
        with taken(caches, one("a")), taken(caches, one("c")):
            pass
    with taken(caches, one("a"), one("b"), one("a", target="/again")) as held:
        assert held.trees["/a"] == held.trees["/again"] != held.trees["/b"]


def test_a_killed_build_lets_go(caches: Caches) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Path(taken(caches, one()).trees["/x"], "half").write_text("h")
            os.write(writing, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    assert not caches.take(Held(), "t", [one()])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with taken(caches, one()) as held:
        assert os.listdir(held.trees["/x"]) == ["half"]


def test_a_collection_takes_what_nobody_holds_or_held_lately(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    caches = Caches(tmp_path)
    assert catalog.gc(older_than=None).caches == 0
    for identity in ("old", "new", "held"):
        with taken(caches, one(identity)) as held:
            Path(held.trees[f"/{identity}"], "file").write_bytes(b"x" * 100)
    week = 7.1 * 86400
    for name in names(tmp_path):
        os.utime(tmp_path / CACHES / name, (time.time() - week,) * 2)
    with taken(caches, one("held")) as holding, taken(caches, one("new")):
        os.utime(Path(holding.trees["/held"]).parent, (time.time() - week,) * 2)
        dry = catalog.gc(dry_run=True)
        assert dry == catalog.gc()
        assert (dry.caches, dry.bytes, len(names(tmp_path))) == (1, 100, 2)
    assert catalog.gc(older_than=None).caches == 2
    assert names(tmp_path) == [] and os.listdir(tmp_path / "tmp") == []


def test_one_that_is_taken_away_while_it_is_opened_is_made_again(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    removed: list[Any] = []

    def slow(path: Any, *rest: Any, **given: Any) -> int:
        descriptor = real(path, *rest, **given)
        if not removed:
            removed.append(path)
            shutil.rmtree(str(path))
        return descriptor

    monkeypatch.setattr(os, "open", slow)
    with taken(caches, one()) as held:
        assert os.path.isdir(held.trees["/x"]) and removed
    assert len(names(tmp_path)) == 1


def test_a_collection_leaves_a_cache_that_is_taken_while_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, caches, holding = Catalog(tmp_path), Caches(tmp_path), Held()
    with taken(caches, one()) as held:
        Path(held.trees["/x"], "file").write_text("left")

    def counted(*_: object) -> int:
        assert caches.take(holding, "t", [one()])
        return 0

    monkeypatch.setattr(gc, "_bytes", counted)
    catalog.gc(older_than=None)
    assert Path(holding.trees["/x"], "file").read_text() == "left"
    holding.close()
    monkeypatch.undo()
    catalog.gc(older_than=None)
    assert names(tmp_path) == []
