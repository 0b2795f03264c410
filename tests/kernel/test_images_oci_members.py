"""Archives whose blobs are read where they lie: of skopeo and tar, once and again, and what was made to harm."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import ImageStore, session
from agentos_native.images.model import Limits
from agentos_native.images.oci import answers, members
from agentos_native.images.oci.importing import ImportOptions
from agentos_native.wire.images import ImageEvent
from tests.images import needs_root
from tests.ocilayouts import Made, layer, tool

pytestmark = needs_root

CONTENT = (layer(("etc", None), ("etc/one", b"1" * 5000)), layer(("etc/two", b"2" * 5000)))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    made = Made(tmp_path / "layout")
    return made.index(made.image(CONTENT))


def packed(layout: Path, form: str) -> Path:
    """The layout as an archive, by a program that nobody here wrote."""
    made = layout.parent / f"{form}.tar"
    if form == "tar":
        tool("tar", "-cf", made, "-C", layout, ".")
    else:
        tool("skopeo", "copy", f"oci:{layout}", f"{form}:{made}:registry.example/name:tag")
    return made


def blob(archive: Path, number: int) -> tuple[int, int]:
    """Where the layer `number` is in the archive, and its size."""
    with tarfile.open(archive) as tar:
        members = {member.name.removeprefix("./"): member for member in tar}
        if "index.json" in members:
            (entry,) = json.load(cast(BinaryIO, tar.extractfile(members["index.json"])))["manifests"]
            path = f"blobs/sha256/{entry['digest'][7:]}"
            said = json.load(cast(BinaryIO, tar.extractfile(members[path])))
            path = f"blobs/sha256/{said['layers'][number]['digest'][7:]}"
        else:
            (said,) = json.load(cast(BinaryIO, tar.extractfile(members["manifest.json"])))
            path = said["Layers"][number]
        return members[path].offset_data, members[path].size


def damage(archive: Path, number: int) -> None:
    """Other bytes where the layer is."""
    offset, size = blob(archive, number)
    with open(archive, "r+b") as file:
        file.seek(offset)
        file.write(os.urandom(size))


def settle(archive: Path) -> None:
    """Wait until another change would show in its times."""
    while time.time_ns() - archive.stat().st_ctime_ns <= members._SETTLED:
        time.sleep(0.05)


def is_empty(store: ImageStore) -> bool:
    """But for keys that lead nowhere, which cost nothing."""
    return store.list() == [] and [path for path in store.path.glob("*/*") if path.parent.name != "index"] == []


@pytest.mark.parametrize("form", ["tar", "oci-archive", "docker-archive"])
def test_only_what_the_store_has_not_is_read(
    store: ImageStore, layout: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(layout, form)
    staged: list[str] = []
    real = store.catalog.staging

    def staging() -> object:
        staged.append("")
        return real()

    monkeypatch.setattr(store.catalog, "staging", staging)
    written: list[str] = []
    unpack = session.Session.unpack

    def unpacking(*given: Any, **options: Any) -> session.Unpacked:
        written.append(options["kind"])
        return unpack(*given, **options)

    monkeypatch.setattr(session.Session, "unpack", unpacking)
    first = store.import_("first", archive)
    assert len(staged) == 3  # a tree for each layer, and one that was for the archive
    assert written == ["layer"] * 2
    assert first.digest == ImageStore(layout.parent / "other").import_("x", layout).digest

    for number in range(2):
        damage(archive, number)
    settle(archive)
    started: list[session.Session] = []
    start = session.Session

    def starting(limits: Limits) -> session.Session:
        started.append(start(limits))
        return started[-1]

    monkeypatch.setattr(answers, "Session", starting)
    for name in ("second", "third"):
        events: list[ImageEvent] = []
        assert store.import_(name, archive, watch=events.append).digest == first.digest
        assert [event.kind for event in events] == ["step", "cached"] * 2
    # asked for where things are in the file that was changed, and for nothing when that is known
    assert (len(started), len(staged)) == (1, 4)


@pytest.mark.parametrize("form", ["tar", "oci-archive", "docker-archive"])
def test_a_layer_among_known_ones_is_read_and_verified(store: ImageStore, layout: Path, form: str) -> None:
    archive = packed(layout, form)
    made = Made(layout.parent / "below")
    below = store.import_("below", made.index(made.image(CONTENT[:1])))
    events: list[ImageEvent] = []
    image = store.import_("all", archive, watch=events.append)
    assert [event.kind for event in events if event.kind != "progress"] == ["step", "cached", "step"]
    assert image.layers[0] == below.layers[0] and (image.layers[1] / "etc/two").read_bytes() == b"2" * 5000
    progress = [event for event in events if event.kind == "progress"]
    assert progress and all(0 <= event.done <= event.total == blob(archive, 1)[1] for event in progress)


@pytest.mark.parametrize("form", ["tar", "oci-archive", "docker-archive"])
def test_a_damaged_layer_is_found(store: ImageStore, layout: Path, form: str) -> None:
    archive = packed(layout, form)
    damage(archive, 1)
    with pytest.raises(AgentosError) as caught:
        store.import_("x", archive)
    # random bytes are no tar; that they are not those of the digest counts more, where there is one
    assert caught.value.code == ("invalid-archive" if form == "docker-archive" else "digest-mismatch"), caught.value
    assert is_empty(store)


def test_a_header_that_lies_about_a_size(store: ImageStore, layout: Path) -> None:
    """One block more than the blob has: the next header begins where it should, and the manifest says another size."""
    archive = layout.parent / "lies.tar"
    names = sorted(path for path in layout.rglob("*") if path.is_file())
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in names:
            info = tar.gettarinfo(path, str(path.relative_to(layout)))
            content = path.read_bytes()
            if path.parent.name == "sha256" and content[:2] == b"\x1f\x8b":
                content += bytes(512)
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(AgentosError, match="size-mismatch"):
        store.import_("x", archive)
    assert is_empty(store)


@pytest.mark.parametrize("keep", ["half", "header", "end"])
def test_a_cut_archive(store: ImageStore, layout: Path, keep: str) -> None:
    archive = packed(layout, "tar")
    offset, size = blob(archive, 1)
    os.truncate(archive, {"half": offset + size // 2, "header": offset - 300, "end": offset + size}[keep])
    with pytest.raises(AgentosError, match="invalid-archive"):
        store.import_("x", archive)
    assert is_empty(store)


def test_of_a_name_that_is_there_twice_the_unpackers_last_counts(store: ImageStore, layout: Path) -> None:
    """As with any tar; that it is not the first shows that nobody took it for unambiguous."""
    archive = packed(layout, "tar")
    other = Made(layout.parent / "other")
    other.index(other.image([layer(("other", b"x"))]))
    tool("tar", "-rf", archive, "-C", other.path, "./index.json", "./blobs")
    image = store.import_("x", archive)
    assert (image.layers[0] / "other").exists() and len(image.layers) == 1


def test_a_pipe_gives_the_same_image(store: ImageStore, layout: Path) -> None:
    archive = packed(layout, "oci-archive")
    with subprocess.Popen(["cat", archive], stdout=subprocess.PIPE) as pipe:
        assert pipe.stdout is not None
        piped = store.import_("piped", cast(BinaryIO, pipe.stdout))
    assert store.import_("there", archive).digest == piped.digest


def test_a_reference_is_chosen_from_an_archive(store: ImageStore, layout: Path) -> None:
    archive = packed(layout, "docker-archive")
    assert store.import_("x", archive, options=ImportOptions(ref="registry.example/name:tag"))
    with pytest.raises(AgentosError, match="ref-not-found"):
        store.import_("y", archive, options=ImportOptions(ref="none"))


# -- a child that was taken over


def taken_over(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Workers begin with `code`, in which ``jobs`` is what their children do."""
    start = session._WORKER.removesuffix("worker.main()")
    assert start != session._WORKER
    imports = "import os, time\nimport agentos_native.images.unpack.jobs as jobs\nFound = jobs.Found"
    monkeypatch.setattr(session, "_WORKER", f"{start}\n{imports}\n{code}\nworker.main()")


LIES = {
    "beyond the end": "(('oci-layout', 512, 2), ('index.json', 1536, 1 << 40))",
    "a negative offset": "(('oci-layout', -512, 2), ('index.json', 1536, 3))",
    "a negative size": "(('oci-layout', 512, -2), ('index.json', 1536, 3))",
    "an enormous number": "(('oci-layout', 512, 2), ('index.json', 512 * 10**40, 3))",
    "a name twice": "(('oci-layout', 512, 2), ('index.json', 1536, 3), ('index.json', 2560, 3))",
    "a way out": "(('oci-layout', 512, 2), ('../../etc/passwd', 1536, 3))",
    "too many": "tuple(('%064d' % number, 512 * number + 512, 0) for number in range(401))",
    "far too many": "tuple(('%064d' % number, 512 * number + 512, 0) for number in range(100_000))",
    "other types": "(('oci-layout', '512', 2),)",
    "no such file": "(('oci-layout', 512, 2), ('index.json', 1536, 3))",
}


@pytest.mark.parametrize("said", LIES.values(), ids=LIES)
def test_lies_are_an_error_and_change_nothing(
    store: ImageStore, layout: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(layout, "tar")
    # this one can be: then it is no layout, is to be unpacked, and again the child only says where things are
    taken_over(monkeypatch, f"jobs.unpack = lambda *given: Found({said})")
    with pytest.raises(AgentosError, match="import-failed"):
        store.import_("x", archive)
    assert is_empty(store)


def test_other_places_of_what_is_there_are_found_by_the_digests(
    store: ImageStore, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All true but the places of two blobs, each of which is where the other is."""
    archive = packed(layout, "tar")
    with tarfile.open(archive) as tar:
        index, manifest = (tar.getmember(f"./{name}") for name in ("index.json", manifest_path(layout)))
        header = tar.getmember("./oci-layout")
        other = next(each for each in tar if "/sha256/" in each.name and each.name != manifest.name)
        said = tuple(
            (name.name.removeprefix("./"), place.offset_data, place.size)
            for name, place in ((header, header), (index, index), (manifest, other), (other, manifest))
        )
    taken_over(monkeypatch, f"jobs.find = lambda source: Found({said!r})")
    with pytest.raises(AgentosError) as caught:
        store.import_("x", archive)
    assert caught.value.code in ("digest-mismatch", "size-mismatch")
    assert is_empty(store)


def manifest_path(layout: Path) -> str:
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    return f"blobs/sha256/{entry['digest'][7:]}"


def test_a_child_that_hangs_over_the_headers_is_ended(
    store: ImageStore, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(layout, "tar")
    taken_over(monkeypatch, "jobs.find = lambda source: time.sleep(10**6)")
    with pytest.raises(AgentosError, match="import-timeout"):
        store.import_("x", archive, limits=Limits(wall_seconds=1))
    assert is_empty(store)


def test_a_child_that_does_not_know_unpacks(store: ImageStore, layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ImageStore(layout.parent / "other").import_("x", layout).digest
    taken_over(monkeypatch, "jobs.find = lambda source: None")
    assert store.import_("x", packed(layout, "tar")).digest == expected


def test_a_child_that_moves_where_the_archive_is_read_spoils_nothing(
    store: ImageStore, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found nothing that is an image, and what comes next begins where the archive begins."""
    expected = ImageStore(layout.parent / "other").import_("x", layout).digest
    taken_over(monkeypatch, "jobs.find = lambda source: os.lseek(source, 700, 0) and Found(())")
    assert store.import_("x", packed(layout, "tar")).digest == expected
