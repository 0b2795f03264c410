"""Which images and layers may go, and taking them.

Roots are the names, the images that agents use, and what leases hold. From those, and from the images that stay for
another reason, layers are reached; a key ``step:…`` of the build cache reaches its layer too, until a collection drops
the key. Everything that is decided is decided under the store's lock; trees are only renamed into tmp there and deleted
afterwards. The order is images, keys, layers, so that a kill at any point leaves things that nobody reaches, never
something that leads nowhere.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import msgspec

from agentos_native import faults
from agentos_native.errors import AgentosError
from agentos_native.images import caches, leases
from agentos_native.images.disk import Disk, is_abandoned, names_in, sync_directory
from agentos_native.images.index import Entry, Index
from agentos_native.images.records import Records, hex_of

InUse = Collection[str] | Callable[[], AbstractContextManager[Collection[str]]]
"""Digests of images that agents have; a function gives them for a moment in which no agent can be given an image."""


@contextlib.contextmanager
def used(in_use: InUse) -> Iterator[Collection[str]]:
    """The digests of `in_use`."""
    if callable(in_use):
        with in_use() as digests:
            yield digests
    else:
        yield in_use


class Freed(msgspec.Struct, frozen=True, kw_only=True):
    """What a collection took, or would take: digests of images and layers, how many steps of the build cache and how
    many directories that RUNs keep (`caches`), and the bytes in all those files; `kept_steps` of the cache stay, and
    with them `kept_bytes` in files that nothing else needs; `notes` say in words why something stayed.
    """

    images: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    steps: int = 0
    caches: int = 0
    bytes: int = 0
    kept_steps: int = 0
    kept_bytes: int = 0
    notes: tuple[str, ...] = ()


class Parts(NamedTuple):
    """One store."""

    disk: Disk
    records: Records
    keys: Index


class Doomed(NamedTuple):
    """What may go: layers, files of keys, files of leases; entries of tmp, of downloads, of caches."""

    layers: list[str]
    keys: list[Path]
    leases: list[Path]
    tmp: list[str]
    downloads: list[str]
    caches: list[str] = []  # noqa: RUF012 - never changed


# -- what is reached


def _of_images(parts: Parts, images: Collection[str]) -> tuple[set[str], list[str]]:
    """The layers of `images`, and the damaged ones among those, whose layers nobody knows."""
    layers: set[str] = set()
    damaged = []
    for digest in images:
        try:
            layers |= {layer.digest for layer in parts.records.read(digest).layers}
        except AgentosError:
            damaged.append(digest)
    return layers, damaged


def unreached(parts: Parts, candidates: Collection[str] | None = None) -> list[str]:
    """Layers (of `candidates`, or all) that nothing reaches; none while a record is damaged. Under the lock."""
    return _unreached(parts, parts.records.digests(parts.records.names()), set(), candidates)[0]


def _unreached(
    parts: Parts, images: Collection[str], dropped: set[str], candidates: Collection[str] | None
) -> tuple[list[str], list[str]]:
    """As `unreached`, where only `images` stay, and the keys `dropped` are gone; and the damaged ones."""
    reached, damaged = _of_images(parts, images)
    if damaged:
        return [], damaged
    reached |= leases.live(parts.disk).layers
    for _, entry in parts.keys.all():
        if entry is not None and entry.is_step and entry.key not in dropped:
            reached.add(entry.digest)
    present = [f"sha256:{name}" for name in names_in(parts.disk.layers)]
    return [d for d in present if d not in reached and (candidates is None or d in candidates)], []


def _litter(parts: Parts, layers: list[str], dropped: set[str], *, downloads: bool) -> Doomed:
    """`layers` with the keys that lead to them or nowhere, and what killed processes left."""
    disk = parts.disk
    keys = []
    for path, entry in parts.keys.all():
        nowhere = entry is None or entry.digest in layers or not (disk.layers / hex_of(entry.digest)).is_dir()
        if nowhere or (entry is not None and entry.key in dropped):
            keys.append(path)
    tmp = [name for name in names_in(disk.tmp) if is_abandoned(disk.tmp / name)]
    partial = [name for name in names_in(disk.downloads) if is_abandoned(disk.downloads / name)] if downloads else []
    return Doomed(layers, keys, leases.live(disk).abandoned, tmp, partial)


# -- taking it


def take(parts: Parts, doomed: Doomed) -> list[str]:
    """Put it out of sight, under the lock; what `Disk.discard` must delete afterwards."""
    disk = parts.disk
    for path in (*doomed.leases, *doomed.keys):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        faults.point("store.key-removed")
    if doomed.keys:
        sync_directory(disk.index)
    aside = [*doomed.tmp]
    for path in (
        *(disk.layers / hex_of(digest) for digest in doomed.layers),
        *(disk.downloads / name for name in doomed.downloads),
    ):
        if name := disk.put_aside(path):
            aside.append(name)
        faults.point("store.layer-aside")
    aside += filter(None, [caches.put_aside(disk, name) for name in doomed.caches])
    for digest in doomed.layers:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(disk.damaged / hex_of(digest))
    if doomed.layers:
        sync_directory(disk.layers)
    return aside


def sweep(parts: Parts, candidates: Collection[str] | None = None) -> list[str]:
    """Take what nothing reaches, of `candidates` or all, with the litter of killed processes in the second case; for
    `Disk.discard`. Under the lock."""
    layers = unreached(parts, candidates)
    if candidates is None:
        return take(parts, _litter(parts, layers, set(), downloads=False))
    if not layers:
        return []
    keys = [path for path, entry in parts.keys.all() if entry is not None and entry.digest in layers]
    return take(parts, Doomed(layers, keys, [], [], []))


def collect(parts: Parts, in_use: InUse, dry_run: bool, older_than: float | None) -> tuple[Freed, list[str]]:
    """See `catalog.Catalog.gc`; what is freed, and what `Disk.discard` must delete. Under the lock."""
    by_digest = parts.records.names()
    held = leases.live(parts.disk)
    everything = parts.records.digests(by_digest)
    sizes = _sizes(parts, everything)
    with used(in_use) as busy:  # starts wait meanwhile
        going = [d for d in everything if d not in by_digest and d not in held.images and d not in busy]
        if not dry_run:
            for digest in going:
                parts.records.retire(digest)
    if not dry_run:
        parts.records.settle()
    steps = _old_steps(parts, held.layers, older_than)
    kept = _old_steps(parts, held.layers, None) - steps
    staying = [digest for digest in everything if digest not in going]
    layers, damaged = _unreached(parts, staying, steps, None)
    doomed = _litter(parts, layers, steps, downloads=True)._replace(caches=caches.unused(parts.disk.path, older_than))
    cached = set(_unreached(parts, staying, steps | kept, None)[0]) - set(layers)
    freed = Freed(
        images=tuple(going),
        layers=tuple(doomed.layers),
        steps=len(steps),
        caches=len(doomed.caches),
        bytes=_bytes(parts.disk, doomed, sizes),
        kept_steps=len(kept),
        kept_bytes=sum(sizes.get(digest, 0) for digest in cached),
        notes=tuple(
            f"the record of image {digest[:19]} is damaged: no layer is freed before it is removed"
            for digest in damaged
        ),
    )
    return freed, [] if dry_run else take(parts, doomed)


def _old_steps(parts: Parts, held: Collection[str], older_than: float | None) -> set[str]:
    """Keys of the build cache that nobody needs: none that a build under way has just looked up or made."""
    limit = None if older_than is None else time.time() - older_than

    def is_old(path: Path, entry: Entry) -> bool:
        return limit is None or path.stat().st_mtime < limit

    return {
        entry.key
        for path, entry in parts.keys.all()
        if entry is not None and entry.is_step and entry.digest not in held and is_old(path, entry)
    }


def _sizes(parts: Parts, images: Collection[str]) -> dict[str, int]:
    """What the records say of layers: it saves the reading of whole trees."""
    sizes = {entry.digest: entry.size for _, entry in parts.keys.all() if entry is not None}
    for digest in images:
        with contextlib.suppress(AgentosError):
            sizes.update((layer.digest, layer.size) for layer in parts.records.read(digest).layers)
    return sizes


def _bytes(disk: Disk, doomed: Doomed, sizes: Mapping[str, int]) -> int:
    """Bytes in the files of what goes; hard links once."""
    unknown = [disk.layers / hex_of(digest) for digest in doomed.layers if digest not in sizes]
    unknown += [disk.tmp / name for name in doomed.tmp] + [disk.downloads / name for name in doomed.downloads]
    unknown += [disk.path / caches.CACHES / name for name in doomed.caches]
    return sum(sizes.get(digest, 0) for digest in doomed.layers) + sum(map(_bytes_below, unknown))


def _bytes_below(path: Path) -> int:
    seen: set[int] = set()
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(directory, name))
                if status.st_ino not in seen:
                    seen.add(status.st_ino)
                    total += status.st_size
    return total
