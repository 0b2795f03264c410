"""What keys stand for: ``index/<sha256 of the key>`` says which layer a key was unpacked or built to.

Kinds of keys: see `catalog.Catalog.known`. A key is worth nothing but time, so a file that cannot be read is no key;
the time of a file's last change is when its key was last used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agentos_native import faults
from agentos_native.images.disk import Disk, names_in
from agentos_native.images.model import Layer


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The content of one file, see `Layer`."""

    key: str
    digest: str
    size: int
    entries: int

    @property
    def layer(self) -> Layer:
        return Layer(digest=self.digest, size=self.size, entries=self.entries)

    @property
    def is_step(self) -> bool:
        """Whether it is of the build cache, whose layers stay without an image."""
        return self.key.startswith("step:")


class Index:
    """The keys of one store."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def _path(self, key: str) -> Path:
        return self._disk.index / hashlib.sha256(key.encode()).hexdigest()

    def look_up(self, key: str) -> Layer | None:
        """The layer that `key` stands for; whether the store has it is another question."""
        entry = _read(self._path(key))
        return entry.layer if entry is not None and entry.key == key else None

    def touch(self, key: str) -> None:
        """It is used now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path(key))

    def put(self, key: str, layer: Layer) -> None:
        """Under the store's lock."""
        entry = Entry(key=key, digest=layer.digest, size=layer.size, entries=layer.entries)
        self._disk.write(self._path(key), msgspec.json.encode(entry))
        faults.point("store.key-written")

    def all(self) -> Iterator[tuple[Path, Entry | None]]:
        """All files with what is in them; None where that is nothing."""
        for name in names_in(self._disk.index):
            path = self._disk.index / name
            entry = _read(path)
            sound = entry is not None and self._path(entry.key) == path
            yield path, entry if sound else None


def _read(path: Path) -> Entry | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Entry)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeError):
        return None
