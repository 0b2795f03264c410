"""Stores for tests: layers put in by hand, what readers see of a store, and what must never be on its disk."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from agentos_native.images.catalog import Catalog
from agentos_native.images.disk import explained
from agentos_native.images.model import Image, ImageConfig, Layer, Manifest
from agentos_native.images.unpack.digest import measure
from agentos_native.images.unpack.messages import Measured

Seen = frozenset[tuple[str, str, tuple[tuple[str, bool], ...]]]
"""Name ("" for none), digest, and of each layer its digest and whether it is there."""


def measured(tree: int) -> Measured:
    """`unpack.digest.measure` as `verify` wants it, without a worker."""
    found = measure(tree)
    return Measured(digest=found.digest, size=found.size, entries=found.entries)


def add_layer(catalog: Catalog, files: Mapping[str, bytes], keys: Collection[str] = ()) -> Layer:
    """Put a tree of plain files into the store."""
    with catalog.staging() as staged, explained():
        for name, content in files.items():
            path = staged.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)
        return catalog.add_layer(staged, measured(staged.fd).layer(), keys)


def manifest(*layers: Layer, cmd: str = "/bin/sh") -> Manifest:
    """The record of an image."""
    return Manifest(config=ImageConfig(cmd=(cmd,)), layers=layers, created=1.0)


def make_image(catalog: Catalog, name: str | None, *contents: bytes, key: str = "diff") -> Image:
    """An image with one layer for each of `contents`, known by ``<key>:<content>``."""
    with catalog.lease():
        layers = [add_layer(catalog, {"file": content}, [f"{key}:{content.decode()}"]) for content in contents]
        return catalog.commit(name, manifest(*layers))


def seen(catalog: Catalog) -> Seen:
    """What readers see, who do not take part in any repair."""
    return frozenset(
        (
            image.name,
            image.digest,
            tuple((layer.digest, catalog.layer_path(layer.digest).is_dir()) for layer in image.stack),
        )
        for image in catalog.list()
    )


def litter(catalog: Catalog) -> list[str]:
    """Whatever should not be on the disk of a store in which nothing is under way."""
    disk = catalog.disk
    found = [f"{part.name}/{name}" for part in (disk.tmp, disk.leases) for name in os.listdir(part)]
    found += [f"manifests/{path.name}" for path in disk.manifests.iterdir() if path.suffix != ".json"]
    kept = {layer.digest for image in catalog.list() for layer in image.stack}
    for path, entry in catalog.index.all():
        if entry is None or not catalog.layer_path(entry.digest).is_dir():
            found.append(f"index/{path.name}")
        elif entry.is_step:
            kept.add(entry.digest)
    found += [f"layers/{path.name}" for path in disk.layers.iterdir() if f"sha256:{path.name}" not in kept]
    return found


def flip_one_bit(path: Path) -> None:
    """In the middle of a file, with its times kept."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)[0]
        file.seek(status.st_size // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
