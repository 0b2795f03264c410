"""What the disk was made to have, and in which order: a power cut takes the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentos_native.images.catalog import Catalog
from tests.stores import make_image

Step = tuple[str, Path]


@pytest.fixture
def store(tmp_path: Path) -> Catalog:
    catalog = Catalog(tmp_path / "images")
    make_image(catalog, "old", b"old")
    return catalog


@pytest.fixture
def steps(store: Catalog, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What happens from now on: ("fsync", file or directory) and ("rename", where it is then)."""
    found: list[Step] = []
    fsync: Callable[[int], None] = os.fsync
    rename: Callable[[Path, Path], None] = os.rename

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        found.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def watched_rename(source: Path, target: Path) -> None:
        if ("fsync", source) in found:  # the file has another name from now on
            found.append(("fsync", target))
        rename(source, target)
        found.append(("rename", target))

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    return found


def named(store: Catalog, steps: list[Step], name: str) -> int:
    """When the name was put in its place: not before its own content was on the disk."""
    moment = steps.index(("rename", store.disk.refs / name))
    assert ("fsync", store.disk.refs / name) in steps[:moment]
    return moment


def kept(steps: list[Step], entry: Path) -> bool:
    """Whether a renamed entry of a directory survives, by these steps."""
    return ("fsync", entry.parent) in steps[steps.index(("rename", entry)) :]


def test_a_name_comes_when_all_that_it_leads_to_is_there(store: Catalog, steps: list[Step]) -> None:
    image = make_image(store, "new", b"new")
    before = steps[: named(store, steps, "new")]
    record = store.disk.manifests / f"{image.digest.removeprefix('sha256:')}.next"
    assert ("fsync", record) in before
    assert kept(before, record)
    assert kept(before, image.layers[0])
    assert kept(steps, store.disk.refs / "new")


def test_a_layer_that_came_back_is_there_before_a_further_name(store: Catalog, steps: list[Step]) -> None:
    layer = store.get("old").layers[0]
    store.disk.put_aside(layer)
    steps.clear()
    make_image(store, "again", b"old")
    assert kept(steps[: named(store, steps, "again")], layer)
    assert kept(steps, store.disk.refs / "again")


def test_a_record_is_there_when_no_name_will_follow(store: Catalog, steps: list[Step]) -> None:
    image = make_image(store, None, b"new")
    record = store.disk.manifests / f"{image.digest.removeprefix('sha256:')}.json"
    before = steps[: steps.index(("rename", record))]
    assert kept(before, image.layers[0])
    assert ("fsync", record) in before
    assert kept(steps, record)


def test_a_tag_is_there_when_the_call_is_through(store: Catalog, steps: list[Step]) -> None:
    store.tag("old", "further")
    named(store, steps, "further")
    assert kept(steps, store.disk.refs / "further")
