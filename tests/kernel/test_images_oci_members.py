"""Archives whose blobs are read where they lie: of skopeo and tar, once and again, and what was made to harm."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import ImageStore
from agentos_native.images.oci import answers
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
        tool("skopeo", "copy", f"oci:{layout}", f"{form}:{made}:name:tag")
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
    first = store.import_("first", archive)
    assert len(staged) == 2  # a tree for each layer, none for the archive
    assert first.digest == ImageStore(layout.parent / "other").import_("x", layout).digest

    for number in range(2):
        damage(archive, number)
    # no worker is asked for anything: all that it would say is known
    monkeypatch.setattr(answers, "Session", None)
    events: list[ImageEvent] = []
    assert store.import_("second", archive, watch=events.append).digest == first.digest
    assert [event.kind for event in events] == ["step", "cached"] * 2
    assert len(staged) == 2


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
    assert store.import_("x", archive, options=ImportOptions(ref="docker.io/library/name:tag"))
    with pytest.raises(AgentosError, match="ref-not-found"):
        store.import_("y", archive, options=ImportOptions(ref="none"))
