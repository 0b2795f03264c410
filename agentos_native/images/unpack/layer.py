"""The archive of an OCI layer as an overlay's layer: what it says about the layers below becomes whiteouts and marks.

An archive speaks of the merged tree: ``.wh.NAME`` takes NAME away, ``.wh..wh..opq`` all that a directory had, and a
path may lead through directories and links that only lower layers have. `LayerWriter` asks `base`, the merged view of
those layers, and writes down what overlayfs needs for the same result:

* NAME is hidden by a character device 0:0 where the base has it, and by an opaque directory where the layer has a
  directory of that name. As the specification has it, a whiteout hides only what is below, so the order in one layer
  does not matter; whiteouts are therefore written at the end.
* A directory that the layer goes through without bringing it gets the attributes that it has in the base.
* A parent that is a symbolic link of the base is followed inside the root; one of the layer itself is refused.
* A hard link to a file that only the base has takes a copy of it.

Where the base is asked the tree is `rooted`: over other layers it could be another one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from agentos_native.images.model import Limits
from agentos_native.images.unpack.archive import Entry, Kind, entry_of, hostile, show
from agentos_native.images.unpack.reading import Found, Reading, Root, open_beneath, read_xattrs
from agentos_native.images.unpack.writer import Data, TreeWriter, explained

_WHITEOUT: Final = b".wh."
_META: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"
_LINKS_MAX: Final = 40
_KINDS: Final[dict[int, Kind]] = {stat.S_IFREG: "file", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}


class LayerWriter(TreeWriter):
    """A `TreeWriter` on top of `base`; `whiteouts`: whether ``.wh.`` names mean something."""

    def __init__(
        self,
        root: int,
        limits: Limits,
        progress: Callable[[int, int], None],
        finished: Callable[[bytes, int], None],
        *,
        base: Root,
        whiteouts: bool,
    ) -> None:
        super().__init__(root, limits, progress, finished)
        self._base = base
        self._whiteouts = whiteouts
        self._reading = Reading()
        self._real: dict[bytes, bytes] = {b"": b""}
        self._hidden: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._metadata = 0
        self.rooted = False

    def add(self, entry: Entry, data: Data = ()) -> None:
        """See `TreeWriter.add`; names are those of the merged tree."""
        if self._whiteouts and _WHITEOUT in entry.path and self._is_mark(entry):
            self._count_entry()
            return
        if not entry.path:
            super().add(entry, data)
            return
        directory, _, name = entry.path.rpartition(b"/")
        with explained(entry):
            real = self._resolve(directory, entry)
            path = real + b"/" + name if real else name
            if entry.kind == "hardlink":
                entry = msgspec.structs.replace(entry, target=self._link_target(entry))
        if path in self._real and (entry.kind != "directory" or self._real[path] != path):
            self._forget(path)
        super().add(entry if path == entry.path else msgspec.structs.replace(entry, path=path), data)

    def finish(self) -> None:
        """See `TreeWriter.finish`; writes the whiteouts and marks before."""
        if b"" in self._opaque:  # overlayfs looks at no mark on a layer's root
            self._opaque.discard(b"")
            if self._base.descriptor >= 0:
                names = _names(self._base.descriptor)
                self._hidden.update(names)
        for make, paths in ((self._hide, self._hidden), (self._make_opaque, self._opaque)):
            for path in sorted(paths):
                if not self._is_hidden(path.rpartition(b"/")[0]):
                    with explained(_whiteout(path)):
                        self._unless_covered(make, path)
        super().finish()

    def notes(self) -> tuple[str, ...]:
        """See `TreeWriter.notes`."""
        return super().notes() + ((f"left out {self._metadata} entries of AUFS's own",) if self._metadata else ())

    # -- marks

    def _is_mark(self, entry: Entry) -> bool:
        """Take note of a whiteout or an opaque directory, and of what AUFS keeps beside them."""
        *parents, name = entry.path.split(b"/")
        if any(part.startswith(_META) for part in parents) or (name.startswith(_META) and name != _OPAQUE):
            self._metadata += 1
            return True
        if any(part.startswith(_WHITEOUT) for part in parents):
            raise hostile("something inside a whiteout", entry.path)
        if not name.startswith(_WHITEOUT):
            return False
        self.rooted = True
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in (b"", b".", b".."):
            raise hostile(f"a whiteout of {show(hidden)}", entry.path)
        with explained(entry):
            directory = self._marked(b"/".join(parents), entry)
        if directory is None:
            return True
        if name == _OPAQUE:
            self._opaque.add(directory)
        else:
            self._hidden.add(directory + b"/" + hidden if directory else hidden)
        return True

    def _marked(self, path: bytes, entry: Entry) -> bytes | None:
        """The directory that a mark is in; None where the layer itself has no directory there: umoci takes away each
        file of a directory that it makes a file."""
        parts = path.split(b"/")
        for number in range(1, len(parts) + 1):
            status = self._status(b"/".join(parts[:number]))
            if status is not None and not stat.S_ISDIR(status.st_mode):
                return None
        return self._resolve(path, entry)

    def _is_hidden(self, path: bytes) -> bool:
        """Whether the base's `path` is not seen any more, or what is in it is not."""
        if not self._hidden and not self._opaque:
            return False
        while path:
            if path in self._hidden or path in self._opaque:
                return True
            path = path.rpartition(b"/")[0]
        return b"" in self._opaque

    def _below(self, path: bytes) -> Found | None:
        """What the base has at `path`, as far as this layer lets it be seen."""
        self.rooted = True
        if path in self._hidden or self._is_hidden(path.rpartition(b"/")[0]):
            return None
        return self._base.find(path)

    def _unless_covered(self, make: Callable[[bytes], None], path: bytes) -> None:
        """`make(path)`; nothing where the layer has something else than a directory in place of a parent."""
        try:
            make(path)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise

    def _hide(self, path: bytes) -> None:
        found = self._base.find(path)
        if found is None:
            return
        here = self._status(path)
        if here is None:
            self._add_checked(_whiteout(path))
        elif stat.S_ISDIR(here.st_mode) and found.is_directory:
            self._opaque.add(path)

    def _make_opaque(self, path: bytes) -> None:
        found = self._base.find(path)
        if found is None or not found.is_directory:
            return
        here = self._status(path)
        if here is None:
            self._parent(path)
        elif not stat.S_ISDIR(here.st_mode):
            return
        known = self._directories.get(path) or entry_of(path, "directory", found.status)
        self._directories[path] = msgspec.structs.replace(known, opaque=True)

    def _replaced(self, entry: Entry) -> None:
        if entry.kind == "directory":  # what was replaced had hidden the base's directory
            self._hidden.add(entry.path)

    # -- parents

    def _resolve(self, path: bytes, entry: Entry) -> bytes:
        """Where the directory `path` of the merged tree is, without links; it need not be there yet."""
        known = self._real.get(path)
        if known is not None:
            return known
        waiting = deque(path.split(b"/"))
        done = b""
        links = 0
        while waiting:
            part = waiting.popleft()
            if part in (b"", b"."):
                continue
            if part == b"..":
                done = done.rpartition(b"/")[0]
                continue
            here = done + b"/" + part if done else part
            target = self._link_at(here, entry)
            if not target:
                done = here
                continue
            links += 1
            if links > _LINKS_MAX:
                raise hostile("its parent leads through too many symbolic links", entry.path)
            if target.startswith(b"/"):
                done = b""
            waiting.extendleft(reversed(target.split(b"/")))
        self._real[path] = done
        return done

    def _link_at(self, path: bytes, entry: Entry) -> bytes:
        """The target of the base's symbolic link `path`; b"" where there is a directory, or can be one."""
        here = self._status(path)
        if here is None:
            found = self._below(path)
            if found is None or found.is_directory:
                return b""
            if found.target:
                return found.target
        elif stat.S_ISDIR(here.st_mode):
            return b""
        raise hostile("its parent is not a directory of the image (a symbolic link, perhaps)", entry.path)

    def _forget(self, path: bytes) -> None:
        """`path` is about to become something else: what was found through it does not hold."""
        for known in [each for each in self._real if each == path or each.startswith(path + b"/")]:
            del self._real[known]

    def _implied(self, path: bytes) -> None:
        found = self._below(path)
        if found is None or not found.is_directory:
            return
        with self._reading.opened(self._base.descriptor, path) as (descriptor, status):
            self._directories[path] = entry_of(path, "directory", status, xattrs=_xattrs(descriptor))

    def real(self, path: bytes) -> bytes:
        """Where the directory `path` is, without links."""
        entry = _whiteout(path)
        with explained(entry):
            return self._resolve(path, entry)

    # -- hard links

    def _link_target(self, entry: Entry) -> bytes:
        """Where the target of a hard link is; copied from the base when only that has it."""
        directory, _, name = entry.target.rpartition(b"/")
        real = self._resolve(directory, entry)
        path = real + b"/" + name if real else name
        if self._status(path) is None:
            found = self._below(path)
            if found is not None and not found.is_directory:
                self._copy_up(path, found)
        return path

    def _copy_up(self, path: bytes, found: Found) -> None:
        kind = _KINDS.get(stat.S_IFMT(found.status.st_mode))
        if kind is None:
            raise hostile("a hard link to a device of a lower layer", path)
        with self._reading.opened(self._base.descriptor, path) as (descriptor, status):
            if kind != "file":
                self._add_checked(entry_of(path, kind, status, target=found.target))
                return
            segments = self._reading.segments(descriptor, status)
            entry = entry_of(path, kind, status, segments=segments, xattrs=_xattrs(descriptor))
            self._add_checked(entry, self._reading.data(descriptor, segments))

    def _add_checked(self, entry: Entry, data: Data = ()) -> None:
        super().add(entry, data)


def _names(root: int) -> list[bytes]:
    descriptor = open_beneath(root, b"", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return [os.fsencode(name) for name in os.listdir(descriptor)]
    finally:
        os.close(descriptor)


def _whiteout(path: bytes) -> Entry:
    return Entry(path=path, kind="whiteout", mode=0, uid=0, gid=0, mtime_ns=0)


def _xattrs(descriptor: int) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value) for name, value in read_xattrs(descriptor) if not name.startswith("user.overlay."))
