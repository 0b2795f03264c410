"""SIGKILL and failure at every point of every change of the store: it is as before or as after, and goes on.

Each change is done by a forked process whose fault point is armed, as often as it passes that point; then this process
looks at the store like a reader, changes it itself, and recovers it.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from agentos_native import faults
from agentos_native.errors import AgentosError
from agentos_native.images.catalog import Catalog
from agentos_native.images.verify import Verification
from tests.stores import Seen, litter, make_image, measured, seen

Change = Callable[[Catalog], object]


def _remove_by_digest(catalog: Catalog) -> None:
    catalog.remove(catalog.get("two-names").digest)


def _import_over_damage(catalog: Catalog) -> None:
    """It is only said to be damaged: so that what is left of a half change is whole or is not."""
    catalog.damage.mark(catalog.get("one").stack[1].digest)
    make_image(catalog, "one", b"base", b"one")


CHANGES: dict[str, Change] = {
    "import": lambda catalog: make_image(catalog, "new", b"base", b"new"),
    "import over a name": lambda catalog: make_image(catalog, "one", b"base", b"new"),
    "import of what is there": lambda catalog: make_image(catalog, "again", b"base", b"one"),
    "import over a damaged layer": _import_over_damage,
    "import without a name": lambda catalog: make_image(catalog, None, b"base", b"new"),
    "tag": lambda catalog: catalog.tag("one", "further"),
    "tag over a name": lambda catalog: catalog.tag("one", "lone"),
    "rm of one name of two": lambda catalog: catalog.remove("two-names"),
    "rm of the last name": lambda catalog: catalog.remove("lone"),
    "rm by digest": _remove_by_digest,
    "gc": lambda catalog: catalog.gc(),
    "gc of the cache": lambda catalog: catalog.gc({catalog.list()[-1].digest}, older_than=None),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with shared layers, an image of two names, one without a name, and a step of the build cache."""
    path = tmp_path_factory.mktemp("original") / "images"
    catalog = Catalog(path)
    make_image(catalog, "one", b"base", b"one")
    make_image(catalog, "lone", b"lone")
    make_image(catalog, "two-names", b"base", b"two")
    catalog.tag("two-names", "second-name")
    make_image(catalog, "moved", b"base", b"unnamed")
    catalog.tag("one", "moved")
    make_image(catalog, "cached", b"step", key="step")
    catalog.remove("cached")
    return path


def points_of(store: Path, change: Change, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The points that a change passes, as often as it does."""
    passed: list[str] = []
    monkeypatch.setattr(faults, "point", passed.append)
    change(Catalog(store))
    monkeypatch.undo()
    return passed


def killed_at(store: Path, change: Change, nth: int, action: str) -> None:
    """Let a child do the change and meet its fault at the `nth` point that it passes."""
    child = os.fork()
    if child == 0:
        count = 0

        def point(name: str) -> None:
            nonlocal count
            count += 1
            if count == nth and action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if count == nth:
                raise faults.InjectedFault(name)

        faults.point = point
        try:
            change(Catalog(store))
        except faults.InjectedFault:
            os._exit(7)
        finally:
            os._exit(8)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGKILL if action == "kill" else 7)


def assert_whole(catalog: Catalog, allowed: tuple[Seen, ...], where: str) -> None:
    """As a reader sees it; then after a change; then after recovery, when nothing is left over."""
    found = seen(catalog)
    assert found in allowed, where
    for _, _, layers in found:
        assert all(there for _, there in layers), where
    make_image(catalog, "next", b"next")
    assert seen(catalog) - {row for row in seen(catalog) if row[0] == "next"} == found, where
    catalog.recover()
    assert seen(catalog) - {row for row in seen(catalog) if row[0] == "next"} == found, where
    assert litter(catalog) == [], where
    assert not [finding for finding in Verification(catalog, measured).run(None) if finding.problem], where


@pytest.mark.parametrize("action", ["kill", "error"])
@pytest.mark.parametrize("name", CHANGES)
def test_before_or_after_and_nothing_in_between(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, action: str
) -> None:
    change = CHANGES[name]
    before = seen(Catalog(original))
    whole = tmp_path / "whole"
    shutil.copytree(original, whole, symlinks=True)
    passed = points_of(whole, change, monkeypatch)
    after = seen(Catalog(whole))
    assert passed
    for nth, point in enumerate(passed, 1):
        store = tmp_path / str(nth)
        shutil.copytree(original, store, symlinks=True)
        killed_at(store, change, nth, action)
        assert_whole(Catalog(store), (before, after), f"{name}: {action} at {point}, number {nth} of {len(passed)}")


def test_every_point_is_passed_by_some_change(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: set[str] = set()
    for number, change in enumerate(CHANGES.values()):
        store = tmp_path / str(number)
        shutil.copytree(original, store, symlinks=True)
        passed |= set(points_of(store, change, monkeypatch))
    assert passed == set(faults.STORE_POINTS)


def test_a_failed_import_leaves_nothing_at_once(original: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(original, store, symlinks=True)
    catalog = Catalog(store)
    before = seen(catalog)
    with pytest.raises(AgentosError), catalog.lease():
        make_image(catalog, "..", b"base", b"never named")
    assert seen(catalog) == before
    assert litter(catalog) == []
