"""Imports on the live kernel: what lands on disk, what hostile archives get, and what a kill leaves."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import Image, ImageStore, Limits, Progress
from agentos_native.images.confine import UNPACKER_BASE
from agentos_native.images.oci.importing import ImportOptions
from tests.images import add, listing, make_tar, make_tree, needs_root

pytestmark = needs_root


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


def on_disk(path: Path) -> dict[bytes, tuple[object, ...]]:
    """Path → type and mode, owners, mtime, content or target, attributes."""
    found: dict[bytes, tuple[object, ...]] = {}
    for directory, names, files in os.walk(os.fsencode(path)):
        for name in [b"", *files, *[n for n in names if os.path.islink(os.path.join(directory, n))]]:
            full = os.path.join(directory, name) if name else directory
            status = os.lstat(full)
            link, regular = os.path.islink(full), os.path.isfile(full)
            content: object = os.readlink(full) if link else b""
            if regular and not link:
                with open(full, "rb") as file:
                    content = file.read()
            attributes = (
                {key: os.getxattr(full, key) for key in os.listxattr(full)}
                if not link and (regular or not name)
                else {}
            )
            relative = os.path.relpath(full, os.fsencode(path))
            found[relative] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                content,
                attributes,
            )
    return found


def test_a_directory_lands_as_it_is(store: ImageStore, tree: Path) -> None:
    image = store.import_("tree", tree)
    assert on_disk(image.layers[0]) == on_disk(tree)
    assert os.stat(image.layers[0] / "diary").st_ino == os.stat(image.layers[0] / "home/ada/diary").st_ino
    assert os.stat(image.layers[0] / "sparse").st_blocks * 512 < 1 << 20
    assert image.entries == len(on_disk(tree))
    assert image.config.cmd == ("/bin/sh",)


@pytest.mark.parametrize("compression", ["w", "gz", "xz", "zst"])
def test_a_tar_of_it_is_the_same_image(store: ImageStore, tree: Path, tmp_path: Path, compression: str) -> None:
    from_directory = store.import_("tree", tree)
    image = store.import_("tar", make_tar(tree, tmp_path / "t.tar", compression))
    assert image.digest == from_directory.digest
    assert image.names == ("tar", "tree")
    (layer,) = store.path.joinpath("layers").iterdir()
    assert layer == image.layers[0]
    assert os.listdir(store.path / "tmp") == []


def test_a_tar_lands_with_its_owners_and_modes(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    image = store.import_("tar", make_tar(tree, tmp_path / "t.tar"))
    seconds = {path: (*fields[:3], *fields[4:]) for path, fields in on_disk(image.layers[0]).items()}
    assert seconds == {path: (*fields[:3], *fields[4:]) for path, fields in on_disk(tree).items()}
    assert int(os.stat(image.layers[0] / "bin-su").st_mtime) == int(os.stat(tree / "bin-su").st_mtime)
    assert os.stat(image.layers[0] / "sparse").st_blocks * 512 < 1 << 20


def test_directories_that_a_tar_leaves_out_are_made(store: ImageStore, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bare.tar", "w") as archive:
        add(archive, "etc/deep/er/file")
    layer = store.import_("bare", tmp_path / "bare.tar").layers[0]
    assert (layer / "etc/deep/er/file").is_file()
    assert os.stat(layer / "etc/deep").st_mode & 0o7777 == 0o755


def test_a_pipe_and_a_stream_work(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    archive = make_tar(tree, tmp_path / "t.tar", "gz")
    with subprocess.Popen(["cat", archive], stdout=subprocess.PIPE, bufsize=0) as cat:
        assert isinstance(cat.stdout, io.FileIO)
        piped = store.import_("piped", cat.stdout)
    assert store.import_("stream", io.BytesIO(archive.read_bytes())).digest == piped.digest


def test_configuration_is_kept_and_part_of_the_digest(store: ImageStore, tree: Path) -> None:
    plain = store.import_("plain", tree)
    image = store.import_(
        "own",
        tree,
        options=ImportOptions(
            entrypoint=("/init",), cmd=("a",), env={"A": "b=c"}, workdir="/srv", user="ada", labels={"x": "y"}
        ),
    )
    assert image.digest != plain.digest
    assert image.layers == plain.layers
    got = store.get("own").config
    assert (got.entrypoint, got.cmd, got.env, got.workdir, got.user) == (
        ("/init",),
        ("a",),
        (("A", "b=c"),),
        "/srv",
        "ada",
    )
    assert store.inspect("own")["config"] == {
        "entrypoint": ["/init"],
        "cmd": ["a"],
        "env": {"A": "b=c"},
        "user": "ada",
        "workdir": "/srv",
        "labels": {"x": "y"},
    }


def test_names_digests_and_removal(store: ImageStore, tree: Path) -> None:
    first = store.import_("a", tree)
    store.import_("b:1", tree)
    assert store.get(first.digest).names == ("a", "b:1")
    assert store.get(first.digest[:20]).digest == first.digest
    assert [image.name for image in store.list()] == ["a", "b:1"]
    assert store.remove("a", in_use={first.digest}) == ["a"]
    with pytest.raises(AgentosError) as caught:
        store.remove("b:1", in_use={first.digest})
    assert caught.value.code == "image-in-use"
    assert store.remove("b:1") == ["b:1", first.digest]
    assert [os.listdir(store.path / part) for part in ("layers", "manifests", "refs", "tmp")] == [[], [], [], []]


def test_a_replaced_name_keeps_the_old_image_for_those_who_run_it(store: ImageStore, tree: Path) -> None:
    old = store.import_("a", tree)
    (tree / "more").touch()
    new = store.import_("a", tree)
    assert store.get("a").digest == new.digest != old.digest
    assert store.get(old.digest).layers[0].is_dir()
    assert store.recover() == []
    assert [image.digest for image in store.list()] == [new.digest, old.digest]


def test_a_damaged_record_is_listed_and_can_be_removed(store: ImageStore, tree: Path) -> None:
    image = store.import_("a", tree)
    record = store.path / "manifests" / f"{image.digest[7:]}.json"
    record.write_text(record.read_text().replace("/bin/sh", "/bin/ss"))
    with pytest.raises(AgentosError) as caught:
        store.get("a")
    assert caught.value.code == "image-damaged"
    assert "changed" in store.list()[0].notes[0]
    store.remove("a")
    assert store.list() == []


def test_progress_and_notes(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    os.setxattr(tree / "bin-su", "security.of-this-host", b"x")
    os.setxattr(tree / "bin-su", "user.overlay.origin", b"x")
    image = store.import_("a", tree, seen.append)
    assert seen[-1].entries == image.entries
    for name in ("security.of-this-host", "user.overlay.origin"):
        assert any(name in note for note in image.notes)
        assert name not in os.listxattr(image.layers[0] / "bin-su")


# -- hostile archives


def hostile(build: Callable[[tarfile.TarFile], None], path: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "innocent")
        build(archive)
    return path


def _through_symlink(archive: tarfile.TarFile) -> None:
    add(archive, "out", tarfile.SYMTYPE, linkname="/etc")
    add(archive, "out/owned")


def _through_relative_symlink(archive: tarfile.TarFile) -> None:
    add(archive, "a", tarfile.DIRTYPE)
    add(archive, "a/up", tarfile.SYMTYPE, linkname="../../../..")
    add(archive, "a/up/owned")


def _directory_then_symlink(archive: tarfile.TarFile) -> None:
    add(archive, "d", tarfile.DIRTYPE)
    add(archive, "d/f")
    add(archive, "d", tarfile.SYMTYPE, linkname="/etc")


def _empty_directory_becomes_symlink(archive: tarfile.TarFile) -> None:
    add(archive, "d", tarfile.DIRTYPE)
    add(archive, "d/x", tarfile.DIRTYPE)
    add(archive, "d/x", tarfile.SYMTYPE, linkname="/etc")
    add(archive, "d/x/owned")


def _hardlink_through_symlink(archive: tarfile.TarFile) -> None:
    add(archive, "out", tarfile.SYMTYPE, linkname="/etc")
    add(archive, "shadow", tarfile.LNKTYPE, linkname="out/shadow")


def _hardlink_to_nothing(archive: tarfile.TarFile) -> None:
    add(archive, "h", tarfile.LNKTYPE, linkname="later")
    add(archive, "later")


def _hardlink_to_directory(archive: tarfile.TarFile) -> None:
    add(archive, "d", tarfile.DIRTYPE)
    add(archive, "h", tarfile.LNKTYPE, linkname="d")


def _file_as_parent(archive: tarfile.TarFile) -> None:
    add(archive, "innocent/child")


def _device(archive: tarfile.TarFile) -> None:
    add(archive, "disk", tarfile.BLKTYPE, devmajor=8, devminor=0)


def _dotdot(archive: tarfile.TarFile) -> None:
    add(archive, "../../../../tmp/owned")


def _foreign_setuid(archive: tarfile.TarFile) -> None:
    add(archive, "su", uid=1_000_000, mode=0o4755)


@pytest.mark.parametrize(
    "build",
    [
        _through_symlink,
        _through_relative_symlink,
        _directory_then_symlink,
        _empty_directory_becomes_symlink,
        _hardlink_through_symlink,
        _hardlink_to_nothing,
        _hardlink_to_directory,
        _file_as_parent,
        _device,
        _dotdot,
        _foreign_setuid,
    ],
)
def test_hostile_archives_change_nothing(
    store: ImageStore, tree: Path, tmp_path: Path, build: Callable[[tarfile.TarFile], None]
) -> None:
    store.import_("good", tree)
    before = listing(store.path)
    with pytest.raises(AgentosError) as caught:
        store.import_("bad", hostile(build, tmp_path / "bad.tar"))
    assert caught.value.code == "hostile-archive"
    assert "entry" in caught.value.where
    assert listing(store.path) == before
    assert not list(Path("/etc").glob("owned"))


def test_a_symlink_is_replaced_by_a_later_entry_not_followed(store: ImageStore, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")

    def build(archive: tarfile.TarFile) -> None:
        add(archive, "f", tarfile.SYMTYPE, linkname=str(target))
        add(archive, "f")
        add(archive, "d", tarfile.SYMTYPE, linkname="/etc")
        add(archive, "d", tarfile.DIRTYPE)
        add(archive, "d/inside")

    image = store.import_("a", hostile(build, tmp_path / "a.tar"))
    assert target.read_text() == "kept"
    assert not (image.layers[0] / "f").is_symlink()
    assert (image.layers[0] / "d/inside").is_file()


def test_an_absolute_link_of_the_image_is_kept_and_harmless(store: ImageStore, tmp_path: Path) -> None:
    image = store.import_(
        "a", hostile(lambda archive: add(archive, "l", tarfile.SYMTYPE, linkname="/etc/shadow"), tmp_path / "a.tar")
    )
    assert os.readlink(image.layers[0] / "l") == "/etc/shadow"


def test_a_directory_with_foreign_ids_or_devices_is_refused(store: ImageStore, tree: Path) -> None:
    os.chown(tree / "empty", 100_000, 0)
    with pytest.raises(AgentosError, match="100000"):
        store.import_("a", tree)
    os.chown(tree / "empty", 0, 0)
    os.mknod(tree / "null", 0o666 | 0o020000, os.makedev(1, 3))
    with pytest.raises(AgentosError, match="device"):
        store.import_("a", tree)
    assert listing(store.path / "tmp") == []


def test_limits_on_entries_and_bytes(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    archive = make_tar(tree, tmp_path / "t.tar")
    for limits in (Limits(entries=5), Limits(bytes=4)):
        for source in (archive, tree):
            with pytest.raises(AgentosError) as caught:
                store.import_("a", source, limits=limits)
            assert caught.value.code == "image-too-large"
    assert os.listdir(store.path / "tmp") == os.listdir(store.path / "layers") == []


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "agentos-test", small], check=True)
    try:
        store = ImageStore(small)
        with tarfile.open(tmp_path / "big.tar", "w") as archive:
            info = tarfile.TarInfo("big")
            info.size = 4 << 20
            archive.addfile(info, io.BytesIO(bytes(4 << 20)))
        with pytest.raises(AgentosError) as caught:
            store.import_("a", tmp_path / "big.tar")
        assert caught.value.code == "disk-full"
        assert os.listdir(store.path / "tmp") == os.listdir(store.path / "layers") == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_unpacker_has_no_power(tmp_path: Path) -> None:
    """Looks at a real unpacker that waits for the rest of its archive."""
    read_end, write_end = os.pipe()
    thread, failure = import_in_thread(ImageStore(tmp_path / "state"), read_end)
    try:
        os.write(write_end, bytes(100))
        _, unpacker = _wait_for_unpacker()
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{unpacker}/status").read_text().splitlines() if ":\t" in line
        )
        assert set(status["Uid"].split()) == {str(UNPACKER_BASE)}
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0b11111 | 1 << 31
        for name in ("user", "mnt", "net", "pid", "ipc", "uts"):
            assert os.readlink(f"/proc/{unpacker}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name
        assert os.listdir(f"/proc/{unpacker}/root") == []
        # stdio (all null), the archive, the mount, the pipes for messages and for the names of finished files
        assert len(os.listdir(f"/proc/{unpacker}/fd")) == 7
    finally:
        os.close(write_end)
        thread.join()
    assert [error.code for error in failure] == ["invalid-archive"]


def import_in_thread(store: ImageStore, descriptor: int) -> tuple[threading.Thread, list[AgentosError]]:
    """An import of the pipe `descriptor` that will fail, and with what."""
    failure: list[AgentosError] = []

    def run() -> None:
        with open(descriptor, "rb", buffering=0) as stream:
            try:
                store.import_("a", stream)
            except AgentosError as error:
                failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, failure


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [
            int(child)
            for listed in Path(f"/proc/{pid}/task").glob("*/children")
            for child in listed.read_text().split()
        ]
    return []


def _below(pid: int) -> list[int]:
    """All descendants of a process, parents first."""
    found = _children(pid)
    for each in found:
        found += _children(each)
    return found


def _wait_for_unpacker() -> tuple[int, int]:
    """The warden and the unpacker of an import of this process: the one below with a filter, and capabilities in
    its own namespace."""
    for _ in range(1000):
        for starter in _children(os.getpid()):
            for warden in _children(starter):
                for below in _below(warden):
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                        status = Path(f"/proc/{below}/status").read_text()
                        unprivileged = f"Uid:\t{UNPACKER_BASE}" in status
                        if unprivileged and "Seccomp:\t2" in status and "CapEff:\t0000000000000000" not in status:
                            return warden, below
        time.sleep(0.01)
    raise AssertionError("no unpacker")


# -- crashes and company

_IMPORT = """
import sys
from pathlib import Path
from agentos_native.images import ImageStore
store = ImageStore(Path(sys.argv[1]))
store.import_("late", open(0, "rb", buffering=0))
"""


def test_kill_9_in_the_middle_leaves_what_recover_removes(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    store.import_("good", tree)
    before = listing(store.path)
    archive = make_tar(tree, tmp_path / "t.tar").read_bytes()
    command = [sys.executable, "-c", _IMPORT, str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        process.stdin.write(archive[: len(archive) // 2])
        (staged,) = _wait_for_content(store.path / "tmp")
        assert store.recover() == []  # it is at work: hands off
        workers = _below(process.pid)
        assert len(workers) == 5  # starter, warden, measurer, feeder, unpacker
        process.kill()
    for worker in workers:
        _wait_for_end(worker)
    assert store.recover() == [staged]
    assert listing(store.path) == before
    assert store.import_("late", io.BytesIO(archive)).digest == store.get("good").digest


def _wait_for_content(path: Path) -> list[str]:
    for _ in range(500):
        if any(os.listdir(entry) for entry in path.iterdir()):
            return os.listdir(path)
        time.sleep(0.01)
    raise AssertionError("nothing was unpacked")


def _wait_for_end(pid: int) -> None:
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.01)
    raise AssertionError("the worker outlived the importer")


def test_a_layer_without_a_record_is_removed(store: ImageStore, tree: Path) -> None:
    image = store.import_("a", tree)
    (store.path / "refs/a").unlink()
    (store.path / "manifests" / f"{image.digest[7:]}.json").unlink()
    store.recover()
    assert os.listdir(store.path / "layers") == os.listdir(store.path / "tmp") == []


@pytest.mark.parametrize("victim", ["warden", "unpacker"])
def test_a_killed_worker_is_an_error_and_changes_nothing(store: ImageStore, victim: str) -> None:
    read_end, write_end = os.pipe()
    thread, failure = import_in_thread(store, read_end)
    try:
        warden, unpacker = _wait_for_unpacker()
        os.kill(warden if victim == "warden" else unpacker, signal.SIGKILL)
        thread.join(20)
    finally:
        os.close(write_end)
        thread.join()
    assert failure[0].code == "import-failed"
    assert failure[0].hint
    assert os.listdir(store.path / "tmp") == []
    _wait_for_end(unpacker)


def test_imports_at_the_same_time(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    archive = make_tar(tree, tmp_path / "t.tar")
    images: list[Image] = []
    threads = [
        threading.Thread(target=lambda *job: images.append(store.import_(*job)), args=(name, source))
        for name, source in (("a", tree), ("a", archive), ("b", archive), ("c", tree))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({image.digest for image in images}) == 1
    assert len(images) == 4
    assert store.get("a").names == ("a", "b", "c")
    assert len(os.listdir(store.path / "layers")) == 1
    assert os.listdir(store.path / "tmp") == []
