"""What is imported, by us and by others: a real root filesystem as a tar, and the same as an OCI layout of layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentos_native.images import ImageStore
from tools.benches.image_disk import Filesystem, sync
from tools.benches.place import TREE, BenchError, Place, find_program

Figures = tuple[float, float, tuple[float, ...]]
"""Microseconds until it was durable, until the program was through, and of the stages."""
SMALL_LAYERS: Final = 4
_MEDIA: Final = "application/vnd.oci.image"


@dataclass(frozen=True)
class Sources:
    """The root filesystem as `tar`; `layout` is an OCI layout with the tag ``bench``, of `layers` layers, and
    `layout_tar` the same in a tar."""

    tar: Path
    tar_mib: float
    layout: Path
    layout_tar: Path
    layers: int


def prepare(here: Place, tar: Path) -> Sources:
    """The sources, in memory, so that nobody reads them from a disk."""
    copy = here.directory / "rootfs.tar"
    copy.write_bytes(tar.read_bytes())
    layout = here.directory / "layout"
    layers = write_layout(layout, [copy.read_bytes(), *small_layers(SMALL_LAYERS)])
    packed = here.directory / "layout.tar"
    subprocess.run(["tar", "-C", str(layout), "-cf", str(packed), "."], check=True)
    return Sources(copy, copy.stat().st_size / (1 << 20), layout, packed, layers)


def python_rootfs() -> Path:
    """Debian with Python, from the cache or built. Raises BenchError when it cannot be built."""
    done = subprocess.run([str(TREE / "rootfs/build"), "python"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"rootfs/build python failed:\n{done.stderr[-500:]}")
    return Path(done.stdout.strip())


# -- an OCI layout, by hand


def small_layers(count: int) -> list[bytes]:
    """Tars of layers as a Dockerfile makes them: a few files each, and a whiteout of a file of the layer before."""
    return [_small_layer(number) for number in range(count)]


def _small_layer(number: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("app", f"app/{number}"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        files = {f"app/{number}/{file}": bytes([number, file]) * 2000 for file in range(50)}
        if number:
            files[f"app/{number - 1}/.wh.0"] = b""
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def write_layout(target: Path, layers: list[bytes]) -> int:
    """An OCI layout of `layers` (tars, lowest first) with the tag ``bench``; how many they are."""
    (target / "blobs/sha256").mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (target / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": f"{_MEDIA}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    described = [blob(gzip.compress(layer, 6, mtime=0), "layer.v1.tar+gzip") for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": described,
    }
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "bench"}
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return len(layers)


# -- turns


def _microseconds(since: float) -> float:
    return (time.perf_counter() - since) * 1e6


def imported(filesystem: Filesystem, source: Path) -> Figures:
    """A store's import of `source`, in this process and its confined worker; it ends with the tree on the disk."""
    with filesystem() as root:
        store = ImageStore(root / "state")
        sync(root)
        begun = time.perf_counter()
        store.import_("bench", source)
        taken = _microseconds(begun)
    return taken, taken, ()


def imported_twice(filesystem: Filesystem, source: Path) -> Figures:
    """The same, and the same again under another name; the stages are the two."""
    with filesystem() as root:
        store = ImageStore(root / "state")
        sync(root)
        begun = time.perf_counter()
        store.import_("bench", source)
        first = _microseconds(begun)
        begun = time.perf_counter()
        store.import_("again", source)
        second = _microseconds(begun)
    return first, first, (first, second)


def imported_thrice(filesystem: Filesystem, source: Path) -> Figures:
    """An archive, the same again, and the same bytes in another file: three stages."""
    copy = source.with_name(f"copy-{source.name}")
    with filesystem() as root:
        store = ImageStore(root / "state")
        sync(root)
        stages = []
        for number, path in enumerate((source, source, copy)):
            if path is copy:
                shutil.copyfile(source, copy)
            begun = time.perf_counter()
            store.import_(f"bench{number}", path)
            stages.append(_microseconds(begun))
        copy.unlink()
    return stages[0], stages[0], tuple(stages)


def extracted(filesystem: Filesystem, source: Path) -> Figures:
    """GNU tar, with owners and modes; as the archive has no attributes it is not asked for any."""
    return _program(filesystem, ["tar", "--numeric-owner", "-xpf", str(source), "-C"])


def unpacked(filesystem: Filesystem, layout: Path) -> Figures:
    """umoci, as root."""
    return _program(filesystem, [find_program("umoci"), "unpack", "--image", f"{layout}:bench"])


def _program(filesystem: Filesystem, command: list[str]) -> Figures:
    with filesystem() as root:
        target = root / "tree"
        if command[0] == "tar":
            target.mkdir()
        sync(root)
        begun = time.perf_counter()
        subprocess.run([*command, str(target)], check=True, stdout=subprocess.DEVNULL)
        through = _microseconds(begun)
        sync(root)
        durable = _microseconds(begun)
    return durable, through, ()
