"""In which paths two stacks of layers differ, as overlayfs would show them, without mounting anything.

Both are walked side by side, directory by directory. A directory's content comes from a list of layers: those that
have it, from the top down to the first that is opaque there. Where both sides have the same list there is nothing to
compare, so images that share layers cost only what they do not share. Links are never followed, and no path leaves its
layer (openat2).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from agentos_native.images.unpack.writer import STRICT
from agentos_native.kernel.openat2 import openat2

Kind = Literal["A", "C", "D"]
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK: Final = 1 << 18
_OPAQUE: Final = "user.overlay.opaque"


class Change(NamedTuple):
    """A path that was added (A), changed (C) or deleted (D), from "/"; a deleted directory stands for what was in it,
    a directory is changed when its own owner, mode or attributes are."""

    kind: Kind
    path: bytes


@dataclass
class _Found:
    """A name in a merged directory: its topmost layer and what it is there; of a directory all layers that it is
    merged from, and whether further ones below could be."""

    layer: int
    status: os.stat_result
    merged: list[int]
    open: bool


class _Stack:
    """Layers, lowest first, with their roots opened."""

    def __init__(self, layers: Sequence[Path], opened: contextlib.ExitStack) -> None:
        self.layers = layers
        self._roots = []
        for layer in layers:
            self._roots.append(os.open(layer, _READ | os.O_DIRECTORY))
            opened.callback(os.close, self._roots[-1])

    def top(self) -> list[int]:
        """The layers that the root is merged from."""
        return [*range(len(self.layers))][::-1]

    def identity(self, merged: Sequence[int]) -> list[Path]:
        """What a directory is merged from, to be compared with that of another stack."""
        return [self.layers[number] for number in merged]

    def open(self, layer: int, path: bytes, flags: int = 0) -> int:
        """An fd of something that is neither a link nor reached by one."""
        return openat2(self._roots[layer], path or b".", _READ | flags, resolve=STRICT)

    def content(self, merged: Sequence[int], path: bytes) -> dict[bytes, _Found]:
        """The names in the directory `path`."""
        found: dict[bytes, _Found] = {}
        for layer in merged:
            directory = self.open(layer, path, os.O_DIRECTORY)
            try:
                for name in map(os.fsencode, os.listdir(directory)):
                    self._see(found, layer, directory, name)
            finally:
                os.close(directory)
        return {name: entry for name, entry in found.items() if not _is_whiteout(entry.status)}

    def _see(self, found: dict[bytes, _Found], layer: int, directory: int, name: bytes) -> None:
        above = found.get(name)
        if above is not None and not above.open:
            return
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        is_directory = stat.S_ISDIR(status.st_mode)
        if above is None:
            above = found[name] = _Found(layer, status, [], True)
        if is_directory:
            above.merged.append(layer)
        above.open = is_directory and not (layer and _is_opaque(directory, name))

    def attributes(self, layer: int, path: bytes) -> dict[str, bytes]:
        """Extended attributes of a file or directory, but overlayfs' own."""
        descriptor = self.open(layer, path)
        try:
            listed = [name for name in os.listxattr(descriptor) if ".overlay." not in name]
            return {name: os.getxattr(descriptor, name) for name in listed}
        finally:
            os.close(descriptor)

    def target(self, layer: int, path: bytes) -> bytes:
        """What a symbolic link says."""
        parent, _, name = path.rpartition(b"/")
        directory = self.open(layer, parent, os.O_DIRECTORY)
        try:
            return os.readlink(name, dir_fd=directory)
        finally:
            os.close(directory)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(directory: int, name: bytes) -> bool:
    descriptor = os.open(name, _READ | os.O_DIRECTORY, dir_fd=directory)
    try:
        return _OPAQUE in os.listxattr(descriptor) and os.getxattr(descriptor, _OPAQUE) == b"y"
    finally:
        os.close(descriptor)


def diff(before: Sequence[Path], after: Sequence[Path]) -> Iterator[Change]:
    """The changes from one stack of trees to another, both lowest first, in no order that means anything."""
    with contextlib.ExitStack() as opened:
        yield from _Comparison(_Stack(before, opened), _Stack(after, opened)).run()


class _Comparison:
    def __init__(self, before: _Stack, after: _Stack) -> None:
        self._before = before
        self._after = after

    def run(self) -> Iterator[Change]:
        tops = self._before.top(), self._after.top()
        if all(tops) and self._roots_differ(*tops):
            yield Change("C", b"/")
        waiting = [(b"", *tops)]
        while waiting:
            path, before, after = waiting.pop()
            if self._before.identity(before) == self._after.identity(after):
                continue
            old = self._before.content(before, path)
            new = self._after.content(after, path)
            for name in sorted(old.keys() | new.keys()):
                full = path + b"/" + name if path else name
                one, other = old.get(name), new.get(name)
                if (kind := self._kind(full, one, other)) is not None:
                    yield Change(kind, b"/" + full)
                if other is not None and (other.merged or (one is not None and one.merged)):
                    waiting.append((full, one.merged if one else [], other.merged))

    def _kind(self, path: bytes, old: _Found | None, new: _Found | None) -> Kind | None:
        if old is None:
            return "A"
        if new is None:
            return "D"
        same_layer = self._before.layers[old.layer] == self._after.layers[new.layer]
        return None if same_layer or self._same(path, old, new) else "C"

    def _same(self, path: bytes, old: _Found, new: _Found) -> bool:
        one, other = old.status, new.status
        if (one.st_mode, one.st_uid, one.st_gid, one.st_rdev) != (
            other.st_mode,
            other.st_uid,
            other.st_gid,
            other.st_rdev,
        ):
            return False
        if stat.S_ISLNK(one.st_mode):
            return self._before.target(old.layer, path) == self._after.target(new.layer, path)
        if not (stat.S_ISREG(one.st_mode) or stat.S_ISDIR(one.st_mode)):
            return True
        if self._before.attributes(old.layer, path) != self._after.attributes(new.layer, path):
            return False
        return stat.S_ISDIR(one.st_mode) or (one.st_size == other.st_size and self._same_content(path, old, new))

    def _same_content(self, path: bytes, old: _Found, new: _Found) -> bool:
        with (
            open(self._before.open(old.layer, path), "rb", buffering=0) as one,
            open(self._after.open(new.layer, path), "rb", buffering=0) as other,
        ):
            while chunk := one.read(_CHUNK):
                if chunk != other.read(_CHUNK):
                    return False
        return True

    def _roots_differ(self, before: Sequence[int], after: Sequence[int]) -> bool:
        def look(stack: _Stack, layer: int) -> tuple[int, int, int, dict[str, bytes]]:
            descriptor = stack.open(layer, b"")
            try:
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            return status.st_mode, status.st_uid, status.st_gid, stack.attributes(layer, b"")

        return look(self._before, before[0]) != look(self._after, after[0])
