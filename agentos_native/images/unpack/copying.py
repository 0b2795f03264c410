"""COPY and ADD: selected files become part of a stage, as Docker (BuildKit) does it.

The tree that is filled becomes a layer on top of `base`, so whatever it has to bring along of the base's directories
gets the attributes that they have there. Where things go:

* The destination is resolved in the base, links too, which lead nowhere but to places in the base. What is missing of
  it is made, 0755, with the owner that ``--chown`` says, else root.
* A directory's content goes into the destination, which keeps its attributes; a file becomes the destination unless
  there is a directory, or has to be one, and then goes into it.
* Below the destination no link is followed: a directory where the base has anything else is an error, and so is
  anything else where the base has a directory. A directory in a directory's place gives it its own attributes.

Everything here runs in a confined child (`images.worker`), with the right to read any file, but only below two fds.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.confine import ID_RANGE
from agentos_native.images.unpack.archive import Entry, check_path, entry_of, hostile, show
from agentos_native.images.unpack.chmod import parse_mode
from agentos_native.images.unpack.jobs import Report
from agentos_native.images.unpack.messages import CopyItem, Job, Written
from agentos_native.images.unpack.reading import Found, Reading, Root, open_beneath, read_xattrs, stamp_of
from agentos_native.images.unpack.writer import TreeWriter

_OVERLAY: Final = "user.overlay."

Kind = Literal["file", "directory", "symlink", "fifo"]


def copy(job: Job, descriptors: Mapping[str, int], report: Report) -> Written:
    """The job "copy": `descriptors` has the directories ``source`` (if an item needs it), ``tree`` and ``base`` (if
    there is one).

    Raises:
        AgentosError: ``copy-failed``, ``context-changed``, and as `TreeWriter.add`.
    """
    writer = TreeWriter(descriptors["tree"], job.limits, report)
    copier = _Copier(job, descriptors.get("source", -1), Root(descriptors.get("base", -1)), writer)
    for item in job.items:
        copier.add(item)
    copier.finish()
    report(writer.entries, writer.bytes)
    return Written(notes=copier.notes() + writer.notes(), rooted=True)


def _fail(what: str, path: bytes, hint: str = "") -> AgentosError:
    return AgentosError("copy-failed", what, show(b"/" + path), hint)


def _own(attributes: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    """Without overlayfs' marks, which are made by those who mean them."""
    return tuple((name, value) for name, value in attributes if not name.startswith(_OVERLAY))


class _Copier:
    def __init__(self, job: Job, source: int, base: Root, writer: TreeWriter) -> None:
        self._job = job
        self._source = source
        self._base = base
        self._writer = writer
        self._change = parse_mode(job.chmod) if job.chmod else None
        self._made: dict[bytes, bool] = {}
        """What this job has made: path → whether it is a directory."""
        self._links: dict[tuple[int, int], bytes] = {}
        self._reading = Reading()
        self._sockets: list[bytes] = []
        self._now = time.time_ns()
        try:
            self._root = check_path(base.resolve(job.prefix), job.limits)
        except OSError as error:
            raise _fail(f"the destination cannot be found: {error.strerror}", job.prefix) from None

    def finish(self) -> None:
        """The directories' attributes, and what every layer has: its root as the base's."""
        self._enter(b"" if self._job.items else self._root)
        self._writer.finish()

    def notes(self) -> tuple[str, ...]:
        """What was left out, in words."""
        return tuple(f"left out the socket {show(path)}" for path in self._sockets[:20])

    def add(self, item: CopyItem) -> None:
        """Copy one thing."""
        if item.content is not None:
            path = self._place(item)
            self._leave(path)
            content = memoryview(item.content)
            entry = self._new(path, "file", 0o644, size=len(content))
            self._writer.add(entry, [content])
            return
        try:
            self._add(item)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise _changed(item.source) from None
            raise AgentosError(
                "copy-failed", f"the source cannot be read: {error.strerror}", show(item.source)
            ) from None

    # -- where to

    def _place(self, item: CopyItem) -> bytes:
        """Where a thing goes that is no directory."""
        if item.single and not self._is_directory(self._root):
            if not self._job.prefix.endswith(b"/"):
                if self._root in self._made:
                    hint = "let the destination end with /"
                    raise _fail("several sources need a directory as destination", self._root, hint)
                return self._root
            self._enter(self._root)
        return _join(self._root, check_path(item.destination, self._job.limits))

    def _is_directory(self, path: bytes) -> bool:
        if path in self._made:
            return self._made[path]
        found = self._base.find(path)
        return (found is not None and found.is_directory) or not path

    def _leave(self, path: bytes) -> None:
        """`path` can be something that is no directory: its parents are there, and nothing is lost that is in it."""
        if not path or self._is_directory(path):
            hint = "remove the directory first, or copy the files into it: let the destination end with /"
            raise _fail("a directory cannot be replaced by something else", path, hint)
        self._enter(path.rpartition(b"/")[0])
        if path in self._made:  # what had this name is replaced, and nothing can be a further name of it
            self._links = {key: first for key, first in self._links.items() if first != path}
        self._made[path] = False

    def _enter(self, path: bytes) -> None:
        """The directory `path` is in the tree, with the attributes of the base's, or as a new one."""
        missing = []
        while path not in self._made:
            missing.append(path)
            if not path:
                break
            path = path.rpartition(b"/")[0]
        if path in self._made and not self._made[path]:
            raise _no_directory(path, None)
        for each in reversed(missing):
            self._made[each] = True
            found = self._base.find(each)
            if found is None:
                self._writer.add(self._new(each, "directory", 0o755))
                continue
            status = found.status
            if not found.is_directory:
                raise _no_directory(each, found)
            kept = self._attributes_below(each)
            self._writer.add(entry_of(each, "directory", status, xattrs=kept))

    def _attributes_below(self, path: bytes) -> tuple[tuple[str, bytes], ...]:
        """The extended attributes of a directory of the base."""
        descriptor = open_beneath(self._base.descriptor, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            return _own(read_xattrs(descriptor))
        finally:
            os.close(descriptor)

    def _new(self, path: bytes, kind: Kind, mode: int, size: int = 0) -> Entry:
        """Something that has no source; ``--chmod`` is for what is copied, heredocs among it."""
        uid, gid = self._job.chown or (0, 0)
        if kind == "file" and self._change is not None:
            mode = self._change(mode, False)
        return Entry(path=path, kind=kind, mode=mode, uid=uid, gid=gid, mtime_ns=self._now, size=size)

    # -- what

    def _add(self, item: CopyItem) -> None:
        with self._reading.opened(self._source, item.source) as (descriptor, status):
            if item.stamp and stamp_of(status) != item.stamp:
                raise _changed(item.source)
            if stat.S_ISDIR(status.st_mode):
                self._directory(item, descriptor, status)
            elif stat.S_ISSOCK(status.st_mode):
                self._sockets.append(item.source)
            else:
                path = self._place(item)
                self._leave(path)
                self._other(item, path, descriptor, status)

    def _directory(self, item: CopyItem, descriptor: int, status: os.stat_result) -> None:
        path = _join(self._root, check_path(item.destination, self._job.limits))
        if not item.destination:
            self._enter(path)  # the destination itself: what is there keeps its attributes
            return
        self._enter(path.rpartition(b"/")[0])
        found = self._base.find(path)
        if self._made.get(path) is False or (found is not None and not found.is_directory):
            raise _no_directory(path, found)
        self._made[path] = True
        self._writer.add(self._copied(path, "directory", status, descriptor))

    def _other(self, item: CopyItem, path: bytes, descriptor: int, status: os.stat_result) -> None:
        if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                self._writer.add(Entry(path=path, kind="hardlink", mode=0, uid=0, gid=0, mtime_ns=0, target=first))
                return
        if stat.S_ISLNK(status.st_mode):
            self._writer.add(self._copied(path, "symlink", status, -1, target=os.readlink(b"", dir_fd=descriptor)))
        elif stat.S_ISFIFO(status.st_mode):
            self._writer.add(self._copied(path, "fifo", status, -1))
        elif stat.S_ISREG(status.st_mode):
            segments = self._reading.segments(descriptor, status)
            entry = self._copied(path, "file", status, descriptor, segments=segments)
            self._writer.add(entry, self._reading.data(descriptor, segments))
            after = os.fstat(descriptor)
            if item.stamp and stamp_of(after) != item.stamp:
                raise _changed(item.source)
        else:
            raise hostile("a device node", item.source, "leave it out: every agent gets its own /dev")

    def _copied(
        self,
        path: bytes,
        kind: Kind,
        status: os.stat_result,
        descriptor: int,
        *,
        target: bytes = b"",
        segments: tuple[tuple[int, int], ...] | None = None,
    ) -> Entry:
        mode = stat.S_IMODE(status.st_mode)
        if self._change is not None and kind != "symlink":
            mode = self._change(mode, kind == "directory")
        kept = _own(read_xattrs(descriptor)) if descriptor >= 0 else ()
        made = entry_of(path, kind, status, target=target, segments=segments, xattrs=kept)
        made = msgspec.structs.replace(made, mode=mode)
        if self._job.chown is not None:
            uid, gid = self._job.chown
            return msgspec.structs.replace(made, uid=uid, gid=gid)
        if not (made.uid < ID_RANGE and made.gid < ID_RANGE):
            raise hostile(f"owner {made.uid}:{made.gid}; an image has ids 0 to {ID_RANGE - 1}", path)
        return made


def _join(root: bytes, path: bytes) -> bytes:
    return root + b"/" + path if root and path else root or path


def _changed(source: bytes) -> AgentosError:
    return AgentosError(
        "context-changed",
        "a file changed while the build read it",
        show(source),
        "build again when nothing writes there",
    )


def _no_directory(path: bytes, found: Found | None) -> AgentosError:
    hint = ""
    if found is not None and found.target:
        hint = f"it is a link to {show(found.target)} there: copy to where it leads"
    return _fail("a directory cannot take the place of something else", path, hint)
