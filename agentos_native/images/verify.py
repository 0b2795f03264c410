"""Whether the store still is what was put into it: records, keys, and every byte, owner and attribute of the layers.

A layer is named by the digest of what is in it, so reading it again tells (`unpack.digest` says what counts; times do
not). The reading is the confined worker's; here its result is compared. A layer that is not what it was is marked, so
that the next import of it replaces it (`damage`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.catalog import Catalog
from agentos_native.images.disk import DIRECTORY, names_in
from agentos_native.images.model import Layer, Manifest


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at: a record (`layer` is "") or a layer of `image`, its names or its digest, "" for
    what only the build cache has. `problem` is "" when it is as it was made."""

    image: str
    layer: str = ""
    problem: str = ""


class Measured(Protocol):
    """What a tree is found to be."""

    @property
    def digest(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def entries(self) -> int: ...


Measure = Callable[[int], Measured]
"""Reads the tree below a directory fd; `session.Session.measure`."""


class _Look(NamedTuple):
    """What is wrong with a layer, "" for nothing, and whether it is the layer itself."""

    problem: str = ""
    damaged: bool = False


class Verification:
    """Of one image, or of the whole store. `total` and `done` count bytes in the files of layers."""

    def __init__(self, catalog: Catalog, measure: Measure) -> None:
        self._catalog = catalog
        self._measure = measure
        self.total = self.done = 0

    def run(self, ref: str | None) -> Iterator[Finding]:
        """One finding for each record and each layer, as they are looked at; also for each key that leads wrong.

        Raises:
            AgentosError: ``image-not-found``; the worker fails.
        """
        with self._catalog.lease() as lease:
            with self._catalog.disk.locked():
                findings, layers, owners = self._plan(ref)
                lease.hold("layer", [*layers])
            yield from findings
            self.total = sum(layer.size for layer in layers.values())
            for digest, layer in layers.items():
                found = self._look_at(layer)
                self._note(digest, found.damaged)
                self.done += layer.size
                yield Finding(image=", ".join(sorted(owners[digest])), layer=digest, problem=found.problem)

    def _plan(self, ref: str | None) -> tuple[list[Finding], dict[str, Layer], dict[str, list[str]]]:
        """What there is to say of records and keys; the layers to read; which images have them."""
        records = self._catalog.records
        by_digest = records.names()
        asked = records.digests(by_digest) if ref is None else [records.find(ref, by_digest)[0]]
        findings: list[Finding] = []
        layers: dict[str, Layer] = {}
        owners: dict[str, list[str]] = {}
        for digest in asked:
            label = ", ".join(by_digest.get(digest, [])) or digest
            try:
                manifest: Manifest | None = records.read(digest)
            except AgentosError as error:
                manifest = None
                findings.append(Finding(image=label, problem=error.what))
            else:
                findings.append(Finding(image=label))
            for layer in manifest.layers if manifest else ():
                layers[layer.digest] = layer
                if label not in owners.setdefault(layer.digest, []):
                    owners[layer.digest].append(label)
        if ref is None:
            findings += [Finding(image="", problem=f"{path} is no name of an image") for path in records.aliens()]
            findings += self._look_at_keys(layers)
        for digest in layers:
            owners.setdefault(digest, [])
        return findings, layers, owners

    def _look_at_keys(self, layers: dict[str, Layer]) -> list[Finding]:
        """Add the layers that no image has to `layers`; keys that lead wrong."""
        findings = []
        present = {f"sha256:{name}" for name in names_in(self._catalog.disk.layers)}
        for path, entry in self._catalog.index.all():
            if entry is None:
                findings.append(Finding(image="", problem=f"the key {path.name[:12]} cannot be read"))
            elif entry.digest in present and layers.setdefault(entry.digest, entry.layer) != entry.layer:
                problem = f"the key {entry.key[:26]} says another size than the images"
                findings.append(Finding(image="", layer=entry.digest, problem=problem))
        for digest in sorted(present - set(layers)):
            layers[digest] = Layer(digest=digest, size=-1, entries=-1)
        return findings

    def _note(self, digest: str, damaged: bool) -> None:
        """So that it is replaced when there is occasion, or is not any more."""
        catalog = self._catalog
        if damaged == catalog.damage.marked(digest):
            return
        with catalog.disk.locked():
            if damaged and catalog.layer_path(digest).exists():  # what is gone needs no mark
                catalog.damage.mark(digest)
            elif not damaged:
                catalog.damage.clear(digest)

    def _look_at(self, layer: Layer) -> _Look:
        try:
            tree = os.open(self._catalog.layer_path(layer.digest), DIRECTORY)
        except OSError as error:
            return _Look(f"the layer cannot be opened: {error.strerror}", True)
        try:
            found = self._measure(tree)
        except AgentosError as error:
            if error.code != "tree-not-read":
                raise
            return _Look(f"the layer cannot be read: {error.what}", True)
        finally:
            os.close(tree)
        if found.digest != layer.digest:
            return _Look(f"the layer was changed: what is in it has the digest {found.digest[:19]}", True)
        if layer.size >= 0 and (found.size, found.entries) != (layer.size, layer.entries):
            said = f"{layer.size} bytes in {layer.entries} entries"
            return _Look(f"the record says {said}, there are {found.size} in {found.entries}")
        return _Look()
