"""The catalog without privileges: names, leases, removal, collection, verification and differences."""

from __future__ import annotations

import contextlib
import contextvars
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.images import ImageStore, names
from agentos_native.images.catalog import Catalog
from agentos_native.images.diff import diff
from agentos_native.images.model import History
from agentos_native.images.verify import Verification
from agentos_native.spec.names import check_image
from agentos_native.supervisor.views import image_view
from tests.stores import add_layer, flip_one_bit, litter, make_image, manifest, measured, seen

DIGITS = "0123456789abcdef" * 4


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "images")


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(AgentosError) as caught:
        call()
    return caught.value.code


# -- names

REFERENCES = [
    ("python", ("", "python", "", "")),
    ("python:3.8", ("", "python", "3.8", "")),
    ("team/agent", ("", "team/agent", "", "")),
    ("localhost/a", ("localhost", "a", "", "")),
    ("localhost:5000/a/b:1", ("localhost:5000", "a/b", "1", "")),
    ("registry.example.org/a:V1", ("registry.example.org", "a", "V1", "")),
    (f"h.example:443/a/b@sha256:{DIGITS}", ("h.example:443", "a/b", "", f"sha256:{DIGITS}")),
    (f"a:1@sha256:{DIGITS}", ("", "a", "1", f"sha256:{DIGITS}")),
    ("a--b/c__d:x", ("", "a--b/c__d", "x", "")),
]


@pytest.mark.parametrize(("name", "parts"), REFERENCES)
def test_names_have_parts_and_are_safe_as_files(name: str, parts: tuple[str, ...]) -> None:
    assert names.parse_name(name) == name == check_image(name)
    assert names.split(name) == parts
    assert "/" not in names.to_file_name(name)
    assert names.from_file_name(names.to_file_name(name)) == name


@given(
    st.text(alphabet="ab0/:@.-_Z%+=", max_size=20)
    | st.from_regex(r"[a-z]{1,4}(:[0-9]{1,6})?(/[a-z_-]{1,4}){0,2}", fullmatch=True)
)
def test_the_spec_and_the_store_agree_on_names(name: str) -> None:
    try:
        parsed = names.parse_name(name)
    except AgentosError:
        assert names.parse_digest(name) or code_of(lambda: check_image(name)) == "invalid-name"
    else:
        assert check_image(name) == name
        assert names.from_file_name(names.to_file_name(parsed)) == parsed
        assert names.to_file_name(parsed) not in {".", ".."}


def test_the_longest_name_is_a_file_name() -> None:
    name = "a/" * 127 + "a"
    assert len(names.to_file_name(names.parse_name(name))) == 255
    assert code_of(lambda: names.parse_name(name + "a")) == "invalid-image-name"


def test_an_image_is_found_by_name_by_digest_and_by_both(catalog: Catalog) -> None:
    image = make_image(catalog, "localhost:5000/a/b:1", b"x")
    for ref in ("localhost:5000/a/b:1", image.digest, image.digest[:20], f"whatever@{image.digest}"):
        assert catalog.get(ref).digest == image.digest
    assert code_of(lambda: catalog.get(f"a@sha256:{DIGITS}")) == "image-not-found"


def test_a_name_with_a_registrys_digest_is_found_as_it_was_given(catalog: Catalog) -> None:
    name = f"localhost:5000/a@sha256:{DIGITS}"
    image = make_image(catalog, name, b"x")
    assert catalog.get(name).digest == image.digest
    assert catalog.remove(name)[0] == name


def test_names_of_version_0_1_are_still_names(catalog: Catalog) -> None:
    image = make_image(catalog, "team/python:3.8", b"x")
    (new,) = catalog.disk.refs.iterdir()
    new.rename(new.with_name("team%2Fpython%3A3.8"))
    assert catalog.get("team/python:3.8").digest == image.digest
    catalog.recover()
    assert [path.name for path in catalog.disk.refs.iterdir()] == [names.to_file_name("team/python:3.8")]
    assert catalog.get("team/python:3.8").digest == image.digest


def test_tag_moves_a_name_and_the_old_image_stays_by_digest(catalog: Catalog) -> None:
    one, two = make_image(catalog, "one", b"1"), make_image(catalog, "two", b"2")
    assert catalog.tag("one", "two:latest").names == ("one", "two")
    assert [(image.name, image.digest) for image in catalog.list()] == [
        ("one", one.digest), ("two", one.digest), ("", two.digest)
    ]  # fmt: skip
    assert code_of(lambda: catalog.tag("nothing", "x")) == "image-not-found"
    assert code_of(lambda: catalog.tag("one", "../x")) == "invalid-image-name"


# -- layers that images share


def test_a_record_that_could_not_be_read_again_is_not_written(catalog: Catalog) -> None:
    image = make_image(catalog, "a", b"1")
    large = msgspec.structs.replace(
        manifest(*image.stack), history=tuple(History(created_by="x" * 1000) for _ in range(1100))
    )
    with pytest.raises(AgentosError) as failure:
        catalog.commit("b", large)
    assert failure.value.code == "image-too-large"
    assert [each.name for each in catalog.list()] == ["a"]


def test_layers_are_shared_and_go_with_the_last_image(catalog: Catalog) -> None:
    make_image(catalog, "a", b"base", b"a")
    make_image(catalog, "b", b"base", b"b")
    assert sorted(catalog.sharing().values()) == [1, 1, 2]
    catalog.remove("a")
    assert len(list(catalog.disk.layers.iterdir())) == 2
    assert catalog.known("diff:base") is not None
    assert catalog.known("diff:a") is None
    catalog.remove("b")
    assert litter(catalog) == []
    assert list(catalog.disk.layers.iterdir()) == list(catalog.disk.index.iterdir()) == []


def test_a_layer_of_the_build_cache_stays_until_gc(catalog: Catalog) -> None:
    make_image(catalog, "a", b"x", key="step")
    catalog.remove("a")
    assert catalog.recover() == []
    assert catalog.known("step:x") is not None
    freed = catalog.gc(older_than=3600)
    assert (freed.steps, freed.kept_steps, freed.kept_bytes) == (0, 1, 1)
    assert catalog.known("step:x") is not None
    freed = catalog.gc(older_than=None)
    assert (freed.steps, len(freed.layers), freed.bytes, freed.kept_steps, freed.kept_bytes) == (1, 1, 1, 0, 0)
    assert catalog.known("step:x") is None
    assert litter(catalog) == []


def test_the_build_cache_stays_for_a_week_unless_told_otherwise(catalog: Catalog) -> None:
    for number, (content, days) in enumerate(((b"new", 0), (b"recent", 6.9), (b"old", 7.1))):
        make_image(catalog, f"i{number}", content, key="step")
        catalog.remove(f"i{number}")
        path = catalog.index._path(f"step:{content.decode()}")
        os.utime(path, (time.time() - days * 86400,) * 2)
    make_image(catalog, "named", b"recent")
    freed = catalog.gc(dry_run=True)
    assert freed == catalog.gc()
    assert (freed.steps, len(freed.layers), freed.bytes) == (1, 1, len("old"))
    assert (freed.kept_steps, freed.kept_bytes) == (2, len("new")), "what an image has, too, is not the cache's alone"
    assert catalog.known("step:old") is None and catalog.known("step:recent") and catalog.known("step:new")


def test_looking_a_step_up_is_using_it(catalog: Catalog) -> None:
    make_image(catalog, None, b"x", key="step")
    make_image(catalog, None, b"y", key="step")
    for path, _ in catalog.index.all():
        os.utime(path, (time.time() - 7200,) * 2)
    assert catalog.known("step:x") is not None
    freed = catalog.gc(older_than=3600)
    assert (len(freed.images), freed.steps, len(freed.layers)) == (2, 1, 1)
    assert catalog.known("step:x") is not None
    assert catalog.known("step:y") is None


def test_gc_takes_what_has_no_name_and_is_not_used(catalog: Catalog) -> None:
    old = make_image(catalog, "a", b"base", b"old")
    used = make_image(catalog, "a", b"base", b"used")
    make_image(catalog, "a", b"base", b"new")
    before = seen(catalog)
    dry = catalog.gc({used.digest}, dry_run=True)
    assert seen(catalog) == before
    freed = catalog.gc({used.digest})
    assert freed == dry
    assert freed.images == (old.digest,)
    assert (len(freed.layers), freed.bytes) == (1, 3)
    assert {image.digest for image in catalog.list()} == {used.digest, catalog.get("a").digest}
    assert litter(catalog) == []


def test_partial_downloads_go_unless_they_are_under_way(catalog: Catalog) -> None:
    import fcntl

    for name in ("left", "active"):
        (catalog.disk.downloads / name).mkdir()
        (catalog.disk.downloads / name / "blob").write_bytes(b"x" * 100)
    held = os.open(catalog.disk.downloads / "active", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert catalog.recover() == []
        assert catalog.gc(dry_run=True).bytes == 100
        assert catalog.gc().bytes == 100
        assert os.listdir(catalog.disk.downloads) == ["active"]
    finally:
        os.close(held)


# -- damage


def damage(catalog: Catalog, name: str) -> str:
    digest = catalog.get(name).digest
    (catalog.disk.manifests / f"{digest[7:]}.json").write_bytes(b'{"layers": nothing')
    return digest


def test_a_damaged_record_is_listed_blocks_gc_of_layers_and_can_be_removed(catalog: Catalog) -> None:
    make_image(catalog, "a", b"x")
    digest = damage(catalog, "a")
    assert code_of(lambda: catalog.get("a")) == "image-damaged"
    assert catalog.list()[0].notes[0].startswith("the record of image")
    freed = catalog.gc()
    assert freed.layers == ()
    assert "damaged" in freed.notes[0]
    assert len(list(catalog.disk.layers.iterdir())) == 1, "nobody knows whose it is"
    assert catalog.remove("a") == ["a", digest]
    assert litter(catalog) == []
    assert list(catalog.disk.layers.iterdir()) == []


def test_some_of_many_agents_are_named(catalog: Catalog) -> None:
    digest = make_image(catalog, "a", b"x").digest
    with pytest.raises(AgentosError) as caught:
        catalog.remove("a", {digest: [f"team/w{number}" for number in (4, 2, 3, 1)]})
    assert caught.value.what.endswith("used by agents: team/w1, team/w2, team/w3 and 1 more")


def test_an_image_without_one_of_its_layers_is_damaged(catalog: Catalog) -> None:
    image = make_image(catalog, "a", b"base", b"x")
    make_image(catalog, "b", b"base")
    shutil.rmtree(image.layers[1])
    with pytest.raises(AgentosError) as caught:
        catalog.get("a")
    assert (caught.value.code, "image a " in caught.value.what) == ("image-damaged", True)
    assert "image verify a" in caught.value.hint
    assert [any("is gone" in note for note in row.notes) for row in catalog.list()] == [True, False]
    assert [len(row.layers) for row in catalog.list()] == [0, 1], "`image ls` calls it damaged"
    make_image(catalog, "a", b"base", b"x")
    assert catalog.get("a").digest == image.digest


def test_what_is_no_file_among_the_names_is_passed_over(catalog: Catalog) -> None:
    make_image(catalog, "a", b"x")
    (catalog.disk.refs / "alien").mkdir()
    (catalog.disk.refs / "link").symlink_to("a")
    assert [row.name for row in catalog.list()] == ["a"]
    assert [problem.rpartition("/")[2] for _, problem in problems(catalog)] == [
        "alien is no name of an image",
        "link is no name of an image",
    ]
    assert code_of(lambda: catalog.tag("a", "alien")) == "store-damaged"
    assert code_of(lambda: make_image(catalog, "alien", b"y")) == "store-damaged"
    catalog.remove("a")
    assert catalog.list() == []


def test_importing_again_mends_a_damaged_record(catalog: Catalog) -> None:
    digest = make_image(catalog, "a", b"x").digest
    damage(catalog, "a")
    assert make_image(catalog, "b", b"x").digest == digest
    assert catalog.get("a").names == ("a", "b")


def test_a_name_that_leads_nowhere_is_listed_and_can_be_removed(catalog: Catalog) -> None:
    image = make_image(catalog, "a", b"x")
    (catalog.disk.manifests / f"{image.digest[7:]}.json").unlink()
    make_image(catalog, "b", b"y")
    (catalog.disk.refs / "b").write_bytes(b"sha256:../../../etc\0\xff")
    assert [(row.name, row.layers) for row in catalog.list()][:2] == [("a", ()), ("b", ())]
    for name in ("a", "b"):
        assert code_of(lambda name=name: catalog.get(name)) == "image-damaged"  # type: ignore[misc]
        assert catalog.remove(name)[0] == name
    catalog.gc()
    assert catalog.list() == []
    assert litter(catalog) == []


def test_a_layer_that_is_gone_is_not_committed(catalog: Catalog) -> None:
    layer = add_layer(catalog, {"f": b"x"})  # its own lease is over
    assert code_of(lambda: catalog.commit("a", manifest(layer))) == "layer-missing"
    assert seen(catalog) == frozenset()
    assert litter(catalog) == []


# -- leases


def test_what_is_under_way_stays_and_what_failed_goes(catalog: Catalog) -> None:
    other = Catalog(catalog.path)
    with catalog.lease():
        layer = add_layer(catalog, {"f": b"x"}, ["diff:x"])
        assert other.recover() == []
        assert other.gc(older_than=None).layers == ()
        assert other.known("diff:x") == layer
    assert other.known("diff:x") is None
    assert litter(catalog) == []


def test_a_layer_that_an_import_has_looked_up_outlives_the_image_it_was_of(catalog: Catalog) -> None:
    make_image(catalog, "a", b"x")
    with catalog.lease():
        layer = catalog.known("diff:x")
        assert layer is not None
        Catalog(catalog.path).remove("a")
        assert catalog.commit("b", manifest(layer)).layers[0].is_dir()
    assert [image.name for image in catalog.list()] == ["b"]
    assert litter(catalog) == []


def test_an_image_that_a_build_begins_with_is_in_use(catalog: Catalog) -> None:
    make_image(catalog, "a", b"x")
    other = Catalog(catalog.path)
    with catalog.lease():
        unnamed = catalog.commit(None, manifest(*catalog.get("a").stack, cmd="/other"))
        in_thread: list[str] = []
        thread = threading.Thread(target=lambda: in_thread.append(code_of(lambda: other.remove("a"))))
        thread.start()
        thread.join()
        assert in_thread == ["image-in-use"]
        thread = threading.Thread(target=other.gc)
        thread.start()
        thread.join()
        assert catalog.get(unnamed.digest).digest == unnamed.digest
        assert catalog.remove(unnamed.digest) == [unnamed.digest], "its own lease is in nobody's way"
    assert other.remove("a")[0] == "a"
    assert litter(catalog) == []


def test_leases_nest_and_can_be_given_to_threads(catalog: Catalog) -> None:
    with catalog.lease() as outer, catalog.lease() as inner:
        assert outer is inner
        layers = []

        def work() -> None:
            with catalog.staging(outer) as staged:
                (staged.path / "f").write_bytes(b"x")
                layers.append(catalog.add_layer(staged, measured(staged.fd).layer()))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        catalog.commit("a", manifest(*layers))
    assert litter(catalog) == []


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process, which then waits; its pid."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os.write(done, b".")
            signal.pause()
        os._exit(1)
    os.close(done)
    assert os.read(ready, 1) == b"."
    os.close(ready)
    return child


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_lease_of_a_killed_process_ends_with_it(catalog: Catalog) -> None:
    def work() -> None:
        lease = Catalog(catalog.path).lease()
        lease.__enter__()
        add_layer(Catalog(catalog.path), {"f": b"x"})
        signal.pause()

    other = Catalog(catalog.path)
    child = in_child(lambda: threading.Thread(target=work, daemon=True).start())
    try:
        for _ in range(500):
            if list(catalog.disk.layers.iterdir()):
                break
            time.sleep(0.01)
        assert other.recover() == []
        assert other.gc(older_than=None).layers == ()
    finally:
        kill(child)
    assert len(other.recover()) == 1
    assert litter(catalog) == []


def test_processes_at_once_leave_a_store_that_is_whole(catalog: Catalog) -> None:
    """Importing the same and different content, tagging, removing and collecting, in four processes."""

    def work(number: int) -> None:
        mine = Catalog(catalog.path)
        for turn in range(10):
            make_image(mine, f"shared-{turn % 3}", b"base", b"%d" % (turn % 4))
            make_image(mine, f"own-{number}", b"base", b"%d-%d" % (number, turn))
            with contextlib.suppress(AgentosError):
                mine.tag(f"shared-{turn % 2}", f"tag-{number}")
            with contextlib.suppress(AgentosError):
                mine.remove(f"shared-{(turn + number) % 3}")
            mine.gc(older_than=None) if turn % 5 == number else mine.recover()

    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(number)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    catalog.gc()
    assert litter(catalog) == []
    assert all(there for _, _, layers in seen(catalog) for _, there in layers)
    assert not [finding for finding in Verification(catalog, measured).run(None) if finding.problem]


def test_an_agents_image_is_looked_up_while_others_have_the_lock(catalog: Catalog) -> None:
    """In a build's context, too: a removal holds the lock and waits for those who give agents their images."""
    image = make_image(catalog, "a", b"x")
    store = ImageStore(catalog.path.parent)
    found: list[str] = []
    with store.catalog.lease():
        context = contextvars.copy_context()
        with Catalog(catalog.path).disk.locked():
            thread = threading.Thread(
                target=lambda: context.run(lambda: found.append(store.get("a").digest)), daemon=True
            )
            thread.start()
            thread.join(20)
    assert found == [image.digest]


# -- verify


def problems(catalog: Catalog, ref: str | None = None) -> list[tuple[str, str]]:
    return [(finding.image, finding.problem) for finding in Verification(catalog, measured).run(ref) if finding.problem]


def test_a_sound_store_has_a_finding_for_each_record_and_layer(catalog: Catalog) -> None:
    make_image(catalog, "a", b"base", b"a")
    make_image(catalog, "b", b"base", b"b")
    make_image(catalog, None, b"cached", key="step")
    catalog.gc(older_than=3600)
    verification = Verification(catalog, measured)
    findings = list(verification.run(None))
    assert sorted((finding.image, bool(finding.layer), finding.problem) for finding in findings) == [
        ("", True, ""), ("a", False, ""), ("a", True, ""), ("a, b", True, ""), ("b", False, ""), ("b", True, "")
    ]  # fmt: skip
    assert verification.done == verification.total == 4 + 1 + 1 + 6
    assert {finding.image for finding in Verification(catalog, measured).run("a")} == {"a"}
    assert litter(catalog) == []


def _add_a_name(path: Path) -> None:
    (path / "more").touch()


CHANGES: list[Callable[[Path], object]] = [
    lambda layer: flip_one_bit(layer / "file"),
    lambda layer: (layer / "file").chmod(0o646),
    lambda layer: os.setxattr(layer / "file", "user.x", b"y"),
    lambda layer: os.setxattr(layer, "user.overlay.opaque", b"y"),
    lambda layer: (layer / "file").rename(layer / "filf"),
    lambda layer: (layer / "file").unlink(),
    lambda layer: layer.chmod(0o700),
    _add_a_name,
]


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_found_in_the_one_layer_that_has_it(catalog: Catalog, change: Callable[[Path], object]) -> None:
    make_image(catalog, "a", b"base", b"content of a")
    make_image(catalog, "b", b"base", b"content of b")
    change(catalog.get("b").layers[1])
    ((image, problem),) = problems(catalog)
    assert image == "b"
    assert "the layer was changed" in problem
    assert problems(catalog, "a") == []


def test_lost_layers_changed_records_and_keys_are_found(catalog: Catalog) -> None:
    make_image(catalog, "a", b"x")
    make_image(catalog, "b", b"y")
    make_image(catalog, "c", b"z")
    (catalog.get("a").layers[0] / "file").unlink()
    catalog.get("a").layers[0].rmdir()
    damage(catalog, "b")
    key = next(path for path, entry in catalog.index.all() if entry is not None and entry.key == "diff:z")
    key.write_bytes(key.read_bytes().replace(b'"size":1', b'"size":2'))
    found = dict(problems(catalog))
    assert "cannot be opened" in found["a"]
    assert "cannot be read" in found["b"]
    assert "another size" in found[""]


def test_a_damaged_layer_is_mended_by_what_the_hint_says(catalog: Catalog) -> None:
    make_image(catalog, "a", b"base", b"x", key="step")
    make_image(catalog, "b", b"base")
    flip_one_bit(catalog.get("a").layers[0] / "file")
    assert [image for image, _ in problems(catalog)] == ["a, b"]
    for name in ("a", "b"):
        catalog.remove(name)
    catalog.gc()
    make_image(catalog, "a", b"base", b"x")
    assert problems(catalog) == []


# -- what the API shows


def test_sizes_and_history_of_an_image_that_shares_a_layer(catalog: Catalog) -> None:
    make_image(catalog, "other", b"base")
    with catalog.lease():
        layers = [add_layer(catalog, {"file": content}) for content in (b"base", b"own", b"untold")]
        steps = (
            History(created_by="imported"),
            History(created_by="ENV A=1", empty=True),
            History(created_by="COPY x /", created="2026-01-01T00:00:00Z"),
        )
        image = catalog.commit("a", msgspec.structs.replace(manifest(*layers), history=steps))
    shown = image_view(image, catalog.sharing())
    assert (shown.size, shown.own_size, shown.shared_size) == (13, 9, 4)
    assert [(layer.size, layer.shared) for layer in shown.layers] == [(4, 1), (3, 0), (6, 0)]
    assert [(row.created_by, row.size) for row in shown.history] == [
        ("imported", 4), ("ENV A=1", 0), ("COPY x /", 3), ("", 6)
    ]  # fmt: skip
    assert [row.layer for row in shown.history] == [layers[0].digest, "", layers[1].digest, layers[2].digest]
    assert image_view(image).own_size == 13, "by itself"


# -- differences


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Callable[[int, dict[str, bytes | None]], Path]]:
    """Makes layers: path → content, None for a directory."""

    def make(number: int, content: dict[str, bytes | None]) -> Path:
        root = tmp_path / f"layer-{number}"
        root.mkdir(mode=0o755)
        for name, data in content.items():
            path = root / name
            if data is None:
                path.mkdir(mode=0o755, parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                path.chmod(0o644)
        return root

    yield make


def shown(before: list[Path], after: list[Path]) -> list[str]:
    return sorted(f"{change.kind} {change.path.decode()}" for change in diff(before, after))


Trees = Callable[[int, dict[str, bytes | None]], Path]


def test_what_a_layer_adds_and_changes(trees: Trees) -> None:
    base = trees(0, {"etc/passwd": b"root", "etc/same": b"same", "usr/lib/x": b"x", "gone/f": b"f"})
    top = trees(1, {"etc/passwd": b"ROOT", "etc/same": b"same", "etc/new/deep": b"", "usr/lib/x": b"xx"})
    assert shown([base], [base, top]) == ["A /etc/new", "A /etc/new/deep", "C /etc/passwd", "C /usr/lib/x"]
    assert shown([base], [base]) == []
    assert shown([], [top])[0] == "A /etc"


def test_an_opaque_directory_hides_what_is_below(trees: Trees) -> None:
    base = trees(0, {"d/old": b"1", "d/both": b"2", "d/sub/x": b"3"})
    middle = trees(1, {"d/middle": b"4"})
    top = trees(2, {"d/both": b"2", "d/new": b"5"})
    os.setxattr(top / "d", "user.overlay.opaque", b"y")
    assert shown([base, middle], [base, middle, top]) == ["A /d/new", "D /d/middle", "D /d/old", "D /d/sub"]


def test_kinds_modes_attributes_and_links_count_and_times_do_not(trees: Trees) -> None:
    base = trees(0, {"file": b"1", "mode": b"2", "attribute": b"3", "becomes-file/x": b"4", "dir": None, "time": b"5"})
    top = trees(1, {"file/x": b"1", "mode": b"2", "attribute": b"3", "becomes-file": b"4", "dir": None, "time": b"5"})
    for root, target in ((base, "a"), (top, "b")):
        os.symlink(target, root / "link")
        os.symlink("same", root / "same-link")
    (top / "mode").chmod(0o600)
    (top / "dir").chmod(0o700)
    os.setxattr(top / "attribute", "user.x", b"y")
    os.utime(top / "time", (1, 1))
    changed = ["A /file/x", "C /attribute", "C /becomes-file", "C /dir", "C /file", "C /link", "C /mode"]
    assert shown([base], [base, top]) == sorted([*changed, "D /becomes-file/x"])


def test_links_in_layers_are_not_followed(trees: Trees, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"s")
    base = trees(0, {"d/f": b"1"})
    top = trees(1, {})
    os.symlink(tmp_path / "outside", top / "d")
    assert shown([base], [base, top]) == ["C /d", "D /d/f"]
