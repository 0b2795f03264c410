"""The store on the live kernel: imports at once, SIGKILL at every point of one, full disks, verification by the worker,
and what a supervisor with running agents lets nobody take."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.client import Client
from agentos_native.errors import AgentosError
from agentos_native.images import ImageStore
from agentos_native.images.catalog import Catalog
from tests.images import make_tar, make_tree, needs_root
from tests.layers import opaque, whiteout
from tests.networks import require_outer_namespace
from tests.stores import flip_one_bit, litter, make_image, manifest, measured, seen
from tests.supervisors import Place, eventually, place

pytestmark = needs_root


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(AgentosError) as caught:
        call()
    return caught.value.code


def problems(store: ImageStore) -> list[str]:
    return [finding.problem for finding in store.verify() if finding.problem]


# -- several at once


def test_threads_import_the_same_and_different_things_at_once(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    archive = make_tar(tree, tmp_path / "t.tar", "gz")
    (tree / "more").write_text("other content")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            store.import_(f"same-{number}", archive)
            store.import_("both", tree if number % 2 else archive)
            store.gc(older_than=None)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len({store.get(f"same-{number}").digest for number in range(4)}) == 1
    store.gc(older_than=None)
    assert len(list((store.path / "layers").iterdir())) == len({image.digest for image in store.list()}) <= 2
    assert litter(store.catalog) == []
    assert problems(store) == []


_IMPORT = """
import sys
from pathlib import Path
from agentos_native.images import ImageStore
ImageStore(Path(sys.argv[1])).import_(sys.argv[2], Path(sys.argv[3]))
"""


def importer(store: ImageStore, name: str, source: Path, fault: str = "") -> subprocess.Popen[bytes]:
    """A process that imports."""
    environment = {**os.environ, "AGENTOS_FAULT": fault}
    command = [sys.executable, "-c", _IMPORT, str(store.path.parent), name, str(source)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> int:
    with process:
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode <= 0, said
    return process.returncode


def test_processes_import_the_same_and_different_things_at_once(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    archive = make_tar(tree, tmp_path / "t.tar")
    (tree / "more").write_text("other content")
    sources = {"one": archive, "two": archive, "three": tree, "both": archive}
    running = [importer(store, name, source) for name, source in sources.items()]
    assert [ended(process) for process in running] == [0] * 4
    assert store.get("one").digest == store.get("two").digest == store.get("both").digest != store.get("three").digest
    assert len(list((store.path / "layers").iterdir())) == 2
    assert litter(store.catalog) == []
    assert problems(store) == []


def test_gc_and_removal_under_a_running_import(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    """The import waits for the rest of its archive while everything else is removed, its own content too."""
    archive = make_tar(tree, tmp_path / "t.tar").read_bytes()
    same = store.import_("same", io.BytesIO(archive))
    read_end, write_end = os.pipe()
    failures: list[AgentosError] = []

    def work() -> None:
        with open(read_end, "rb", buffering=0) as stream:
            try:
                store.import_("late", stream)
            except AgentosError as error:
                failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with open(write_end, "wb", buffering=0) as pipe:
            pipe.write(archive[: len(archive) // 2])
            eventually(lambda: any(os.listdir(path) for path in (store.path / "tmp").iterdir()), "it is at work")
            store.remove("same")
            assert store.gc(older_than=None).layers == ()
            assert store.recover() == []
            pipe.write(archive[len(archive) // 2 :])
    finally:
        thread.join()
    assert failures == []
    assert store.get("late").digest == same.digest
    assert litter(store.catalog) == []
    assert problems(store) == []


# -- SIGKILL

OF_AN_IMPORT = ("store.staged", "store.layer-added", "store.manifest-written", "store.name-written")
"""Points of an import by a real worker; `tests/unit/test_images_crash.py` walks through all of all changes."""


@pytest.mark.parametrize("point", OF_AN_IMPORT)
def test_kill_9_of_the_importing_process(store: ImageStore, tree: Path, point: str) -> None:
    make_image(store.catalog, "good", b"good")
    before = seen(store.catalog)
    assert ended(importer(store, "new", tree, point)) == -signal.SIGKILL
    found = seen(store.catalog)
    assert found == before or {name for name, _, _ in found} == {"good", "new"}
    again = ImageStore(store.path.parent)
    assert again.import_("next", tree).layers[0].is_dir()
    again.remove("next")
    again.recover()
    assert seen(store.catalog) == found
    assert litter(store.catalog) == []
    assert problems(store) == []


# -- full disks


def _tmpfs(where: Path) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", "size=640k,mode=700", "agentos-test", str(where)]


def _ext4(where: Path) -> list[str]:
    image = where.with_suffix(".ext4")
    with image.open("wb") as file:
        file.truncate(6 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", "1024", "-N", "512", str(image)], check=True)
    return ["mount", "-o", "loop", str(image), str(where)]


@pytest.fixture(params=[_tmpfs, _ext4], ids=["tmpfs", "ext4"])
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of a few hundred pages."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(request.param(where), check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def fill(small: Path) -> Path:
    """Take all the space that there is; the file that has it."""
    ballast = small / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (4096, 1024, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return ballast


def leave_free(ballast: Path, size: int) -> None:
    """Give `size` bytes of it back."""
    os.truncate(ballast, max(ballast.stat().st_size - size, 0))


ON_A_FULL_DISK: dict[str, Callable[[ImageStore, Path], object]] = {
    "import": lambda store, tree: store.import_("new", tree),
    "commit": lambda store, _: make_image(store.catalog, "new", b"base", b"new"),
    "commit over a name": lambda store, _: make_image(store.catalog, "one", b"base", b"new"),
    "tag": lambda store, _: store.tag("one", "new"),
}


@pytest.mark.parametrize("name", ON_A_FULL_DISK)
def test_a_full_disk_changes_nothing(small: Path, tmp_path: Path, name: str) -> None:
    """With no space left, then with a little more and more, until it suffices."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"y" * 8000)
    store = ImageStore(small)
    make_image(store.catalog, "one", b"base", b"one")
    make_image(store.catalog, "two", b"base", b"two")
    before = seen(store.catalog)
    ballast = fill(small)
    refused = 0
    for _ in range(40):
        try:
            ON_A_FULL_DISK[name](store, tree)
            break
        except AgentosError as error:
            assert error.code == "disk-full", error
            assert error.hint or error.where
            refused += 1
            assert seen(store.catalog) == before
            assert litter(store.catalog) == []
            leave_free(ballast, 16384 if name == "import" else 4096)
    else:
        raise AssertionError("it never works again")
    assert refused
    after = seen(store.catalog)
    assert after != before
    store.recover()
    assert seen(store.catalog) == after
    assert litter(store.catalog) == []


def test_what_frees_space_works_on_a_full_disk(small: Path) -> None:
    store = ImageStore(small)
    for number in range(4):
        make_image(store.catalog, f"image-{number}", b"base", b"%d" % number, key="step")
        store.tag(f"image-{number}", f"also-{number}")
    make_image(store.catalog, "image-0", b"base", b"another")
    fill(small)
    store.remove("image-1")
    fill(small)
    store.remove("also-1")
    fill(small)
    store.remove(store.get("image-2").digest)
    fill(small)
    store.recover()
    fill(small)
    store.gc(older_than=None)
    assert {image.name for image in store.list()} == {"image-0", "also-0", "image-3", "also-3"}
    assert litter(store.catalog) == []


# -- verification by the confined worker


def _chown(layer: Path) -> None:
    os.chown(layer / "etc/passwd", 1, 0)


def _capability(layer: Path) -> None:
    os.setxattr(layer / "bin-su", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))


def _whiteout(layer: Path) -> None:
    whiteout(layer / "hidden")


def _opaque(layer: Path) -> None:
    opaque(layer / "var")


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: flip_one_bit(layer / "etc/passwd"),
        lambda layer: flip_one_bit(layer / "sparse"),
        lambda layer: (layer / "bin-su").chmod(0o755),
        lambda layer: os.setxattr(layer / "etc", "user.note", b"Directory"),
        _chown,
        _capability,
        _whiteout,
        _opaque,
    ],
)
def test_one_change_of_a_layer_is_found(store: ImageStore, tree: Path, change: Callable[[Path], object]) -> None:
    image = store.import_("a", tree)
    make_image(store.catalog, "b", b"other")
    assert problems(store) == []
    change(image.layers[0])
    (finding,) = [finding for finding in store.verify() if finding.problem]
    assert (finding.image, finding.layer) == ("a", image.stack[0].digest)
    assert [finding.problem for finding in store.verify("b")] == ["", ""]


def test_a_missing_whiteout_is_found(store: ImageStore, tmp_path: Path) -> None:
    catalog = store.catalog
    with catalog.lease():
        base = make_image(catalog, None, b"base").stack[0]
        with catalog.staging() as staged:
            whiteout(staged.path / "file")
            top = catalog.add_layer(staged, measured(staged.fd).layer())
        image = catalog.commit("a", manifest(base, top))
    assert problems(store) == []
    assert [(change.kind, change.path) for change in store.diff("a")] == [("D", b"/file")]
    (image.layers[1] / "file").unlink()
    assert len(problems(store)) == 1
    assert store.diff("a") == []


# -- with a supervisor


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_outer_namespace()
    with place(tmp_path_factory.mktemp("store"), "store") as made:
        yield made


def catalog_of(ground: Place) -> Catalog:
    return Catalog(ground.directory / "state" / "images")


def events(client: Client, kind: str) -> list[dict[str, Any]]:
    return [event.detail for event in client.events(follow=False) if event.type == kind]


def delete_a_damaged_image(ground: Place) -> None:
    made = ground.client.import_image("broken", str(ground.directory / "rootfs/etc"))
    record = catalog_of(ground).disk.manifests / f"{made.digest[7:]}.json"
    record.write_bytes(record.read_bytes()[:-5])
    shown = next(image for image in ground.client.images() if image.name == "broken")
    assert shown.layers == []
    assert "cannot be read" in shown.notes[0]
    found = [event.finding for event in ground.client.verify_images() if event.finding and event.finding.problem]
    assert [finding.image for finding in found] == ["broken"]
    ground.client.remove_image("broken")
    assert code_of(lambda: ground.client.image("broken")) == "image-not-found"


def test_the_upkeep_of_images_beside_running_agents(ground: Place) -> None:
    launcher = ground.start()
    try:
        client = ground.client
        old = client.image("box")
        agent = ground.run("keeper", "sleep", "1000")
        assert code_of(lambda: client.remove_image("box")) == "image-in-use"
        (ground.directory / "rootfs/etc/more").write_text("more")
        new = client.import_image("box", str(ground.directory / "rootfs"))
        unused = client.import_image("passing", str(ground.directory / "rootfs"))
        assert client.tag_image("passing", "localhost:5000/team/box:1").digest == unused.digest == new.digest
        client.remove_image("localhost:5000/team/box:1")
        client.remove_image("passing")
        assert [change.path for change in client.diff_image("box", old.digest).changes] == ["/etc/more"]
        dry = client.collect_images(dry_run=True)
        assert dry.images == dry.layers == [] == client.collect_images().images, "the agent has the old one"
        assert code_of(lambda: client.remove_image(old.digest)) == "image-in-use"
        client.stop(agent.id, grace=1)
        client.start(agent.id)
        client.remove(agent.id, force=True)
        freed = client.collect_images()
        assert freed.images == [old.digest]
        assert freed.bytes > 0
        assert code_of(lambda: client.image(old.digest)) == "image-not-found"
        assert [event.finding.problem for event in client.verify_images() if event.finding] == ["", ""]
        assert code_of(lambda: list(client.verify_images("nothing"))) == "image-not-found"
        assert events(client, "image-tagged")[0]["tag"] == "localhost:5000/team/box:1"
        assert [detail["images"] for detail in events(client, "images-collected")] == [0, 1]
        assert ground.run("again", "true").image_digest == new.digest
        client.remove("again", force=True)
        delete_a_damaged_image(ground)
    finally:
        assert ground.stop(launcher) == 0
    assert litter(catalog_of(ground)) == []


def test_what_is_damaged_is_replaced_when_no_agent_runs_from_it(ground: Place) -> None:
    launcher = ground.start()
    try:
        client = ground.client
        (ground.directory / "rootfs/etc/note").write_text("as it was")
        made = client.import_image("mended", str(ground.directory / "rootfs"))
        agent = ground.run("from-it", "sleep", "1000", image="mended")
        note = catalog_of(ground).layer_path(made.layers[0].digest) / "etc/note"
        flip_one_bit(note)

        def found() -> list[str]:
            seen = [event.finding.problem for event in client.verify_images("mended") if event.finding]
            return [problem for problem in seen if problem]

        assert len(found()) == 1
        with pytest.raises(AgentosError) as caught:
            client.import_image("mended", str(ground.directory / "rootfs"))
        assert caught.value.code == "layer-in-use" and "default/from-it" in caught.value.what
        assert client.agent(agent.id).state == "running" and len(found()) == 1
        client.stop(agent.id, grace=0)
        assert client.import_image("mended", str(ground.directory / "rootfs")).digest == made.digest
        assert note.read_text() == "as it was" and found() == []
        client.start(agent.id)
        client.remove(agent.id, force=True)
        client.remove_image("mended")
        (ground.directory / "rootfs/etc/note").unlink()
    finally:
        assert ground.stop(launcher) == 0
    assert litter(catalog_of(ground)) == []


@pytest.mark.parametrize("point", ["store.name-written", "store.manifest-gone"])
def test_a_supervisor_killed_in_the_middle_restarts_with_a_whole_store(ground: Place, point: str) -> None:
    launcher = ground.start(point, once=True)
    try:
        with pytest.raises(AgentosError):
            ground.client.import_image("victim", str(ground.directory / "rootfs/etc"))
            ground.client.remove_image("victim")
        ground.wait_ready()
        names = {image.name for image in ground.client.images()}
        assert names in ({"box"}, {"box", "victim"})
        assert litter(catalog_of(ground)) == []
        assert not [event for event in ground.client.verify_images() if event.finding and event.finding.problem]
        if "victim" in names:
            ground.client.remove_image("victim")
    finally:
        assert ground.stop(launcher) == 0
