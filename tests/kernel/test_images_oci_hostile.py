"""Layouts and archives made to do harm: each gets an error with a code, and the store stays as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import ImageStore, Limits
from agentos_native.images.oci import model
from agentos_native.images.oci.importing import Importer, ImportOptions
from agentos_native.images.session import Session
from agentos_native.images.sources import open_source
from tests.images import needs_root
from tests.ocilayouts import Made, blob_of, layer, tool

pytestmark = needs_root


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """One worker for all of them: each must leave it as it was, too."""
    with Session() as ready:
        yield ready


GOOD = layer(("etc", None), ("etc/here", b"x"))
SECRET = "not for images"


def entry_of(made: Made, kind: str) -> Path:
    """The file of the manifest, the config or the layer of the only image."""
    (manifest,) = json.loads((made.path / "index.json").read_text())["manifests"]
    if kind == "manifest":
        return blob_of(made.path, manifest)
    said = json.loads(blob_of(made.path, manifest).read_text())
    return blob_of(made.path, said["config"] if kind == "config" else said["layers"][0])


def good(made: Made) -> None:
    made.index(made.image([GOOD]))


def missing(kind: str) -> Callable[[Made], None]:
    def prepare(made: Made) -> None:
        good(made)
        entry_of(made, kind).unlink()

    return prepare


def replaced(kind: str) -> Callable[[Made], None]:
    """Another content of the same length."""

    def prepare(made: Made) -> None:
        good(made)
        path = entry_of(made, kind)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return prepare


def longer(kind: str) -> Callable[[Made], None]:
    def prepare(made: Made) -> None:
        good(made)
        path = entry_of(made, kind)
        path.write_bytes(path.read_bytes() + b" ")

    return prepare


def linked(kind: str, target: str) -> Callable[[Made], None]:
    """A blob that is a link, to itself elsewhere or to a file of the host."""

    def prepare(made: Made) -> None:
        good(made)
        path = entry_of(made, kind)
        if target == "inside":
            path.rename(path.parent / "moved")
            path.symlink_to("moved")
        else:
            path.unlink()
            path.symlink_to(target)

    return prepare


def linked_directory(made: Made) -> None:
    good(made)
    (made.path / "blobs/sha256").rename(made.path.parent / "elsewhere")
    (made.path / "blobs/sha256").symlink_to(made.path.parent / "elsewhere")


def linked_index(made: Made) -> None:
    good(made)
    (made.path / "index.json").rename(made.path.parent / "index.json")
    (made.path / "index.json").symlink_to("../index.json")


def fifo(made: Made) -> None:
    good(made)
    path = entry_of(made, "manifest")
    path.unlink()
    os.mkfifo(path)


def escaping_digest(made: Made) -> None:
    made.index(made.image([GOOD]) | {"digest": "sha256:../../../../etc/passwd"})


def huge_index(made: Made) -> None:
    good(made)
    with open(made.path / "index.json", "ab") as file:
        file.truncate(1 << 30)


def huge_manifest(made: Made) -> None:
    made.index(made.document({"x": "y" * (5 << 20)}, model.MANIFEST))


def size_that_lies(made: Made) -> None:
    image = made.image([GOOD])
    made.index(image | {"size": image["size"] + 1})


def layer_size_that_lies(made: Made) -> None:
    manifest = json.loads(blob_of(made.path, made.image([GOOD])).read_text())
    manifest["layers"][0]["size"] = 1
    made.index(made.document(manifest, model.MANIFEST))


def nested(made: Made) -> None:
    inner = made.image([GOOD])
    for _ in range(6):
        inner = made.document({"schemaVersion": 2, "manifests": [inner]}, model.INDEX)
    made.index(inner)


def other_diff_id(made: Made) -> None:
    made.index(made.image([GOOD], diff_ids=["sha256:" + "0" * 64]))


def too_many_diff_ids(made: Made) -> None:
    made.index(made.image([GOOD], diff_ids=["sha256:" + "0" * 64] * 2))


def no_layers(made: Made) -> None:
    made.index(made.image([]))


def other_platform(made: Made) -> None:
    made.index(made.image([GOOD], architecture="pdp11"))


def encrypted(made: Made) -> None:
    manifest = json.loads(blob_of(made.path, made.image([GOOD])).read_text())
    manifest["layers"][0]["mediaType"] += "+encrypted"
    made.index(made.document(manifest, model.MANIFEST))


def foreign(made: Made) -> None:
    manifest = json.loads(blob_of(made.path, made.image([GOOD])).read_text())
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    manifest["layers"][0] |= {"mediaType": kind, "urls": ["http://127.0.0.1:9/layer"]}
    made.index(made.document(manifest, model.MANIFEST))


def escaping_entry(made: Made) -> None:
    made.index(made.image([GOOD, layer(("../escaped", b"x"))]))


def escaping_whiteout(made: Made) -> None:
    made.index(made.image([GOOD, layer(("etc/.wh...", b""))]))


def device(made: Made) -> None:
    made.index(made.image([layer(("dev", None)), layer(("dev/sda", b""), type=b"4")]))


def big_configuration(made: Made) -> None:
    made.index(made.image([GOOD], config={"Labels": {str(n): "x" * 1000 for n in range(1500)}}))


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (missing("manifest"), "blob-missing"),
        (missing("config"), "blob-missing"),
        (missing("layer"), "blob-missing"),
        (replaced("manifest"), "digest-mismatch"),
        (replaced("config"), "digest-mismatch"),
        (longer("manifest"), "size-mismatch"),
        (longer("config"), "size-mismatch"),
        (longer("layer"), "size-mismatch"),
        (linked("manifest", "inside"), "invalid-layout"),
        (linked("config", "/etc/hostname"), "invalid-layout"),
        (linked("layer", "/etc/hostname"), "invalid-layout"),
        (linked_directory, "invalid-layout"),
        (linked_index, "invalid-layout"),
        (fifo, "invalid-layout"),
        (escaping_digest, "invalid-layout"),
        (huge_index, "invalid-layout"),
        (huge_manifest, "invalid-layout"),
        (size_that_lies, "size-mismatch"),
        (layer_size_that_lies, "size-mismatch"),
        (nested, "invalid-layout"),
        (other_diff_id, "digest-mismatch"),
        (too_many_diff_ids, "invalid-layout"),
        (no_layers, "unsupported-layout"),
        (other_platform, "platform-not-found"),
        (encrypted, "unsupported-layout"),
        (foreign, "unsupported-layout"),
        (escaping_entry, "hostile-archive"),
        (escaping_whiteout, "hostile-archive"),
        (device, "hostile-archive"),
        (big_configuration, "unsupported-layout"),
    ],
    ids=lambda value: "" if isinstance(value, str) else getattr(value, "__qualname__", "").split(".")[0],
)
def test_a_layout_made_to_harm(tmp_path: Path, session: Session, prepare: Callable[[Made], None], code: str) -> None:
    store = ImageStore(tmp_path / "state")
    made = Made(tmp_path / "layout")
    prepare(made)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(AgentosError) as caught, open_source(made.path) as (source, _), store.catalog.lease():
        Importer(store.catalog, session, ImportOptions()).directory("x", source)
    assert caught.value.code == code, caught.value
    assert store.list() == []
    assert [path for path in store.path.glob("*/*") if path.parent.name != "index"] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_layer_replaced_in_a_layout_is_found_although_it_is_a_good_archive(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "state")
    made = Made(tmp_path / "layout")
    good(made)
    other = Made(tmp_path / "other")
    other.index(other.image([layer(("etc", None), ("etc/here", b"y"))]))
    entry_of(made, "layer").write_bytes(entry_of(other, "layer").read_bytes())
    with pytest.raises(AgentosError) as caught:
        store.import_("x", made.path)
    assert caught.value.code in ("digest-mismatch", "size-mismatch")
    assert not list((store.path / "layers").iterdir())


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname", "out/secret", "up"])
@pytest.mark.parametrize("what", ["Config", "Layers"])
def test_a_docker_archive_that_names_a_file_of_the_host(tmp_path: Path, path: str, what: str) -> None:
    (tmp_path / "secret").write_text(SECRET)
    source = tmp_path / "saved"
    source.mkdir()
    (source / "out.tar").symlink_to(tmp_path)
    (source / "up.tar").symlink_to("../secret")
    named = {"out/secret": "out.tar/secret", "up": "up.tar"}.get(path, path)
    (source / "c.json").write_text('{"rootfs": {"type": "layers", "diff_ids": ["sha256:%s"]}}' % ("0" * 64))
    image = {"Config": "c.json", "RepoTags": None, "Layers": ["up.tar"]}
    image[what] = [named] if what == "Layers" else named
    (source / "manifest.json").write_text(json.dumps([image]))
    with pytest.raises(AgentosError) as caught:
        ImageStore(tmp_path / "state").import_("x", source)
    assert caught.value.code == "invalid-layout"
    assert SECRET not in str(caught.value)


def test_a_layout_in_a_tar_that_escapes_is_refused_by_the_unpacker(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "state")
    made = Made(tmp_path / "layout")
    good(made)
    tool("tar", "-cf", tmp_path / "t.tar", "--transform", "s,index.json,../index.json,", "-C", made.path, ".")
    with pytest.raises(AgentosError, match="hostile-archive"):
        store.import_("x", tmp_path / "t.tar")
    assert not list((store.path / "layers").iterdir()) and not list((store.path / "tmp").iterdir())


def test_limits_hold_for_each_layer(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "state")
    made = Made(tmp_path / "layout")
    made.index(made.image([layer(("big", bytes(2 << 20)))]))
    with pytest.raises(AgentosError, match="image-too-large"):
        store.import_("x", made.path, limits=Limits(bytes=1 << 20))
    assert not list((store.path / "layers").iterdir())


def test_a_tree_that_only_looks_like_a_layout_is_a_tree(tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "etc").mkdir(parents=True)
    for name in ("oci-layout", "index.json", "manifest.json"):
        (source / name).write_text("{}")
    (source / "blobs").mkdir()
    assert ImageStore(tmp_path / "state").import_("x", source).entries == 6
