"""Images exchanged with skopeo and umoci, both ways, on the live kernel."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import Image, ImageStore
from agentos_native.images.oci.exporting import ExportOptions
from agentos_native.images.oci.importing import ImportOptions
from agentos_native.images.overlay import view
from agentos_native.wire.images import ImageEvent
from tests.images import make_tar, make_tree, needs_root
from tests.ocilayouts import Made, blob_of, layer, tool, tree
from tests.supervisors import eventually

pytestmark = needs_root


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of four layers by umoci: files, changes to them, an opaque directory, a whiteout."""
    home = tmp_path_factory.mktemp("umoci")
    path, one, two, more = home / "layout", home / "one", home / "two", home / "more"
    tool("umoci", "init", "--layout", path)
    tool("umoci", "new", "--image", f"{path}:base")
    tool("umoci", "unpack", "--image", f"{path}:base", one)
    root = make_tree(one / "rootfs")
    os.unlink(root / "queue")  # umoci 0.4 cannot pack a FIFO again
    for name in ("opt/old/gone", "opt/keep", "opt/stays", "usr/lib/a", "etc/shadow"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    os.symlink("usr/lib", root / "lib")
    shutil.copy("/bin/true", root / "ping")
    tool("setcap", "cap_net_raw+ep", root / "ping")
    tool("umoci", "repack", "--image", f"{path}:base", one)
    tool("umoci", "unpack", "--image", f"{path}:base", two)
    root = two / "rootfs"
    (root / "opt/keep").unlink()
    shutil.rmtree(root / "opt/old")
    (root / "opt/old").write_text("a file now")
    (root / "etc/passwd").chmod(0o600)
    (root / "usr/lib/b").write_text("b")
    tool("umoci", "repack", "--image", f"{path}:two", two)
    (more / "below").mkdir(parents=True)
    (more / "below/file").write_text("new")
    tool("umoci", "insert", "--image", f"{path}:two", "--tag", "all", "--opaque", more, "/home")
    tool("umoci", "insert", "--image", f"{path}:all", "--whiteout", "/etc/shadow")
    settings = ["--config.entrypoint", "/init", "--config.cmd", "a", "--config.env", "A=b=c", "--config.user", "1000"]
    settings += ["--config.workingdir", "/srv", "--config.label", "x=y", "--config.stopsignal", "SIGINT"]
    settings += ["--config.exposedports", "80/tcp", "--config.volume", "/data", "--author", "me"]
    tool("umoci", "config", "--image", f"{path}:all", *settings)
    return path


@contextlib.contextmanager
def merged(image: Image) -> Iterator[Path]:
    """The image as an agent sees it."""
    mounted = view(image.layers, None)
    try:
        yield Path(f"/proc/self/fd/{mounted}/.")
    finally:
        os.close(mounted)


def unpacked(layout: Path, tag: str, where: Path) -> dict[str, tuple[object, ...]]:
    """What umoci makes of it."""
    tool("umoci", "unpack", "--image", f"{layout}:{tag}", where)
    return tree(where / "rootfs")


def exported(store: ImageStore, ref: str, path: Path, options: ExportOptions = ExportOptions()) -> Path:  # noqa: B008
    with open(path, "wb") as file:
        store.export(ref, file.fileno(), options)
    return path


def extracted(archive: Path, where: Path) -> Path:
    where.mkdir()
    tool("tar", "-xf", archive, "-C", where)
    return where


def contents(state: Path) -> list[str]:
    """What a store holds, but for its lock."""
    return sorted(str(path.relative_to(state)) for path in state.glob("*/*"))


# -- in


def test_an_image_of_umoci_has_the_tree_that_umoci_makes(store: ImageStore, layout: Path, tmp_path: Path) -> None:
    image = store.import_("all", layout, options=ImportOptions(ref="all"))
    assert len(image.layers) == 4
    with merged(image) as root:
        found = tree(root)
    assert found == unpacked(layout, "all", tmp_path / "bundle")
    assert "opt/old" in found and "opt/keep" not in found and "home/ada" not in found
    assert found["ping"][4]
    config = image.config
    assert (config.entrypoint, config.cmd, config.user, config.workdir) == (("/init",), ("a",), "1000", "/srv")
    assert ("A", "b=c") in config.env and config.labels["x"] == "y" and config.stop_signal == "SIGINT"
    assert (config.exposed, config.volumes, image.author) == (("80/tcp",), ("/data",), "me")
    assert len([step for step in image.history if not step.empty]) == 4


def test_one_of_several_images_must_be_chosen(store: ImageStore, layout: Path) -> None:
    with pytest.raises(AgentosError, match="ambiguous-ref") as caught:
        store.import_("x", layout)
    assert "'base'" in caught.value.hint and "'all'" in caught.value.hint
    assert (
        store.import_("base", layout, options=ImportOptions(ref="base")).layers
        == (store.import_("two", layout, options=ImportOptions(ref="two")).layers[:1])
    )


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "gz", "zst", "pipe"])
def test_archives_of_skopeo_are_the_same_image(store: ImageStore, layout: Path, tmp_path: Path, form: str) -> None:
    wanted = store.import_("all", layout, options=ImportOptions(ref="all"))
    archive = tmp_path / "archive.tar"
    kind = form if form.endswith("archive") else "oci-archive"
    tool("skopeo", "copy", f"oci:{layout}:all", f"{kind}:{archive}:name:tag")
    if form in ("gz", "zst"):
        tool(
            "tar",
            "--gzip" if form == "gz" else "--zstd",
            "-cf",
            tmp_path / "packed",
            "-C",
            extracted(archive, tmp_path / "x"),
            ".",
        )
        archive = tmp_path / "packed"
    if form == "pipe":
        with subprocess.Popen(["cat", archive], stdout=subprocess.PIPE) as pipe:
            assert pipe.stdout is not None
            image = store.import_("again", cast(BinaryIO, pipe.stdout))
    else:
        image = store.import_("again", archive)
    assert image.layers == wanted.layers
    assert image.digest == wanted.digest
    assert not list((store.path / "tmp").iterdir())


def test_a_docker_archive_of_the_old_kind(store: ImageStore, layout: Path, tmp_path: Path) -> None:
    wanted = store.import_("all", layout, options=ImportOptions(ref="all"))
    tool("skopeo", "copy", f"oci:{layout}:all", f"docker-archive:{tmp_path}/new.tar:name:tag")
    old = extracted(tmp_path / "new.tar", tmp_path / "old")
    (manifest,) = json.loads((old / "manifest.json").read_text())
    paths = []
    for number, path in enumerate(manifest["Layers"]):
        home = old / f"{number:064x}"
        home.mkdir()
        (old / path).rename(home / "layer.tar")
        paths.append(f"{number:064x}/layer.tar")
    (old / f"{9:064x}").mkdir()  # a layer that two images share is a link
    os.symlink(f"../{0:064x}/layer.tar", old / f"{9:064x}/layer.tar")
    paths[0] = f"{9:064x}/layer.tar"
    (old / "manifest.json").write_text(json.dumps([manifest | {"Layers": paths}]))
    for name in os.listdir(old):
        if (old / name).is_dir() and not (old / name / "layer.tar").exists():
            shutil.rmtree(old / name)
    tool("tar", "-cf", tmp_path / "old.tar", "-C", old, ".")
    assert ImageStore(tmp_path / "other").import_("x", tmp_path / "old.tar").digest == wanted.digest
    assert store.import_("x", old).digest == wanted.digest


def test_layers_that_are_there_are_not_read_again(store: ImageStore, layout: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(layout, copy)
    events: list[ImageEvent] = []
    first = store.import_("one", copy, options=ImportOptions(ref="all"), watch=events.append)
    assert [event.kind for event in events if event.kind != "progress"] == ["step"] * 4
    manifest = next(
        entry for entry in json.loads((copy / "index.json").read_text())["manifests"] if "all" in str(entry)
    )
    for entry in json.loads(blob_of(copy, manifest).read_text())["layers"]:
        blob_of(copy, entry).unlink()
    events.clear()
    assert store.import_("two", copy, options=ImportOptions(ref="all"), watch=events.append).digest == first.digest
    assert [event.kind for event in events] == ["step", "cached"] * 4


def test_two_at_once_make_one_image(store: ImageStore, layout: Path) -> None:
    made: list[Image] = []

    def work(name: str) -> None:
        made.append(ImageStore(store.path.parent).import_(name, layout, options=ImportOptions(ref="all")))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0].digest == made[1].digest
    assert store.get("a").names == ("a", "b")
    assert len(list((store.path / "layers").iterdir())) == 4


def test_what_is_said_beside_the_source_counts(store: ImageStore, layout: Path, tmp_path: Path) -> None:
    options = ImportOptions(ref="all", entrypoint=("/other",), env={"A": "1", "B": "2"}, workdir="/", labels={"z": ""})
    config = store.import_("x", layout, options=options).config
    assert (config.entrypoint, config.cmd, config.workdir, config.user) == (("/other",), (), "/", "1000")
    assert {"A": "1", "B": "2"}.items() <= dict(config.env).items() and config.labels == {"x": "y", "z": ""}
    plain = store.import_("plain", make_tree(tmp_path / "tree"), options=ImportOptions(cmd=("/bin/x",)))
    assert plain.config.cmd == ("/bin/x",)


def test_a_sha512_layer_and_an_index_for_several_machines(store: ImageStore, tmp_path: Path) -> None:
    made = Made(tmp_path / "layout")
    here = made.image([layer(("etc", None), ("etc/here", b"x"))], algorithm="sha512")
    there = made.image([layer(("etc", None), ("etc/there", b"x"))], architecture="s390x")
    here["platform"], there["platform"] = ({"os": "linux", "architecture": a} for a in ("amd64", "s390x"))
    inner = made.document({"schemaVersion": 2, "manifests": [there, here]}, "application/vnd.oci.image.index.v1+json")
    made.index(inner)
    assert (
        store.import_("x", made.path, options=ImportOptions(platform="linux/amd64")).layers[0] / "etc/here"
    ).exists()
    other = store.import_("y", made.path, options=ImportOptions(platform="linux/s390x"))
    assert (other.layers[0] / "etc/there").exists() and other.architecture == "s390x"


# -- out


def test_what_is_exported_is_taken_by_skopeo_and_umoci(store: ImageStore, layout: Path, tmp_path: Path) -> None:
    image = store.import_("name:v1", layout, options=ImportOptions(ref="all"))
    out = extracted(exported(store, "name:v1", tmp_path / "out.tar"), tmp_path / "out")
    assert unpacked(out, "v1", tmp_path / "ours") == unpacked(layout, "all", tmp_path / "theirs")
    said = json.loads(tool("skopeo", "inspect", f"oci:{out}:v1"))
    assert (said["Architecture"], said["Os"], said["Labels"]) == ("amd64", "linux", {"x": "y"})
    assert len(said["Layers"]) == 4 and "A=b=c" in said["Env"]
    tool("skopeo", "copy", f"oci:{out}:v1", f"docker-archive:{tmp_path}/back.tar:name:v1")
    assert store.import_("back", tmp_path / "back.tar").digest == image.digest
    assert store.import_("again", out).digest == image.digest


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_exports_come_back_as_the_same_image_and_are_the_same_bytes(
    store: ImageStore, layout: Path, tmp_path: Path, compression: str
) -> None:
    image = store.import_("a", layout, options=ImportOptions(ref="all"))
    options = ExportOptions(compression=compression)  # type: ignore[arg-type]  # one of the three
    first = exported(store, "a", tmp_path / "first.tar", options)
    fresh = ImageStore(tmp_path / "fresh")
    assert fresh.import_("a", first).digest == image.digest
    assert exported(fresh, "a", tmp_path / "second.tar", options).read_bytes() == first.read_bytes()
    assert not list((store.path / "tmp").iterdir())


def test_what_is_exported_for_docker_is_taken_by_skopeo(store: ImageStore, layout: Path, tmp_path: Path) -> None:
    image = store.import_("name:v1", layout, options=ImportOptions(ref="all"))
    archive = exported(store, "name:v1", tmp_path / "docker.tar", ExportOptions(format="docker"))
    tool("skopeo", "copy", f"docker-archive:{archive}:name:v1", f"oci:{tmp_path}/oci:v1")
    assert store.import_("x", tmp_path / "oci").digest == image.digest
    assert store.import_("y", archive, options=ImportOptions(ref="name:v1")).digest == image.digest


def test_a_plain_tree_comes_back_with_all_that_it_has(store: ImageStore, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    tool("setcap", "cap_net_raw+ep", root / "bin-su")
    image = store.import_("tree", make_tar(root, tmp_path / "t.tar"))
    image = store.import_("tree", root)
    out = extracted(exported(store, "tree", tmp_path / "out.tar"), tmp_path / "out")
    assert store.import_("back", out).layers == image.layers
    assert unpacked(out, "latest", tmp_path / "bundle") == tree(root)


def test_a_name_that_means_a_removed_file_is_not_exported(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "tree/.wh.x").mkdir(parents=True)
    store.import_("x", tmp_path / "tree")
    with pytest.raises(AgentosError, match="image-not-exportable"):
        exported(store, "x", tmp_path / "out.tar")
    assert (tmp_path / "out.tar").stat().st_size == 0
    assert not list((store.path / "tmp").iterdir())


def test_an_export_whose_reader_goes_away_ends(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/noise").write_bytes(os.urandom(4 << 20))
    store.import_("x", tmp_path / "tree")
    reading, writing = os.pipe()
    timer = threading.Timer(0.1, os.close, [reading])
    timer.start()
    started = time.monotonic()
    with pytest.raises(AgentosError, match="export-failed"):
        store.export("x", writing)
    os.close(writing)
    timer.join()
    assert time.monotonic() - started < 30


def test_an_export_to_which_the_disk_is_too_small_says_so(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    tool("mount", "-t", "tmpfs", "-o", "size=6m", "none", state)
    try:
        store = ImageStore(state)
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/noise").write_bytes(os.urandom(4 << 20))
        store.import_("x", tmp_path / "tree")
        with pytest.raises(AgentosError, match="disk-full"):
            exported(store, "x", tmp_path / "out.tar")
        assert (tmp_path / "out.tar").stat().st_size == 0
        assert os.statvfs(state).f_bavail * os.statvfs(state).f_frsize > 1 << 20
    finally:
        tool("umount", "-l", state)


def test_a_kill_in_the_middle_of_a_layout_leaves_the_store_as_it_was(store: ImageStore, tmp_path: Path) -> None:
    made = Made(tmp_path / "layout")
    made.index(made.image([layer(("a", b"x")), layer(("b", os.urandom(24 << 20))), layer(("c", b"x"))]))
    program = (
        "import sys, pathlib; from agentos_native.images import ImageStore\n"
        "ImageStore(pathlib.Path(sys.argv[1])).import_('x', pathlib.Path(sys.argv[2]))"
    )
    with subprocess.Popen([sys.executable, "-c", program, store.path.parent, made.path]) as process:
        while len(list((store.path / "layers").iterdir())) < 1 and process.poll() is None:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL

    def recovered() -> bool:  # the worker goes with its session, but a moment later
        store.recover()
        return not list((store.path / "layers").iterdir()) and not list((store.path / "tmp").iterdir())

    eventually(recovered, "the store is as it was")
    assert store.list() == []
    assert len(store.import_("x", made.path).layers) == 3


def test_the_packing_process_needs_little_memory(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with open(tmp_path / "tree/big", "wb") as file:
        file.truncate(192 << 20)
        file.write(os.urandom(8 << 20))
    store.import_("x", tmp_path / "tree")
    peak = 0

    def sample(stop: threading.Event) -> None:
        nonlocal peak
        while not stop.wait(0.02):
            for status in Path("/proc/self/task").glob("*/children"):
                for pid in status.read_text().split():
                    with contextlib.suppress(OSError, StopIteration):
                        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                        peak = max(peak, int(next(line for line in lines if line.startswith("VmHWM")).split()[1]))

    stop = threading.Event()
    thread = threading.Thread(target=sample, args=(stop,))
    thread.start()
    try:
        with open("/dev/null", "wb") as file:
            store.export("x", file.fileno(), ExportOptions(compression="zstd"))
    finally:
        stop.set()
        thread.join()
    assert 0 < peak < 64 << 10


def test_an_archive_has_plain_entries(store: ImageStore, tmp_path: Path) -> None:
    store.import_("x", make_tree(tmp_path / "tree"))
    with tarfile.open(exported(store, "x", tmp_path / "out.tar")) as archive:
        members = archive.getmembers()
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
    assert [member.name for member in members[:1] + members[-1:]] == ["oci-layout", "index.json"]
