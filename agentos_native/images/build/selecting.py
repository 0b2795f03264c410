"""The files that a COPY takes: selecting them by patterns.

A tree is looked at through the fd of its root. A source that is a link is followed, but never out of the root; links
in a directory that is copied stay links. Nothing is executed, and no content is parsed.
"""

from __future__ import annotations

import difflib
import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.images.build.ignore import Ignore, PatternError, Token, expression, tokens
from agentos_native.images.build.model import Copy
from agentos_native.images.unpack.archive import show
from agentos_native.images.unpack.reading import Root, open_beneath

CONTEXT: Final = "the context"
ENTRIES_MAX: Final = 300_000
_SECONDS_MAX: Final = 60
"""Of the processor, for one COPY's selection: patterns and names can be made to take long, and nobody can end a thread.
"""
_PATH_MAX: Final = 4095
_SPECIAL: Final = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a FIFO"}


class Selected(NamedTuple):
    """One thing to copy. `destination` is relative to that of the COPY; `single`: a file that may become it itself."""

    source: bytes
    destination: bytes
    status: os.stat_result
    single: bool = False
    target: bytes = b""


class Selection(NamedTuple):
    """What a COPY takes of the tree whose root is the fd `root`: parents before what is in them."""

    root: int
    entries: tuple[Selected, ...]
    notes: tuple[str, ...]


class _Match(NamedTuple):
    """A source: as it is called (its name is what a copy of it is called), and where it is once links are followed."""

    shown: bytes
    path: bytes


class Tree:
    """A context, or (`where` says ``--from=…``) the root of a stage or an image. Nothing in it is changed."""

    def __init__(self, fd: int, ignore: Ignore | None = None, where: str = CONTEXT) -> None:
        self.fd = fd
        self.where = where
        self._ignore = ignore or Ignore(())

    def select(self, copy: Copy) -> Selection:
        """What `copy` takes.

        Raises:
            AgentosError: ``source-not-found``, ``special-file``, ``invalid-dockerfile`` (a pattern),
            ``context-too-large``, ``context-not-read``.
        """
        try:
            return _Selecting(self, copy, self._ignore).run()
        except PatternError as error:
            raise AgentosError("invalid-dockerfile", f"a pattern of COPY or ADD: {error}") from None
        except OSError as error:
            raise AgentosError("context-not-read", f"{self.where} cannot be read: {error}") from None


class _Selecting:
    """One COPY at work on one tree."""

    def __init__(self, tree: Tree, copy: Copy, ignore: Ignore) -> None:
        self._tree = tree
        self._root = Root(tree.fd)
        self._copy = copy
        self._ignore = ignore
        self._exclude = Ignore(copy.exclude, "--exclude")
        self._found: list[Selected] = []
        self._seen: set[bytes] = set()
        self._notes: list[str] = []
        self._end = time.thread_time() + _SECONDS_MAX

    def run(self) -> Selection:
        for source in self._copy.sources:
            matches = list(self._matches(source))
            if not matches and not _is_pattern(source):
                raise self._not_found(source)
            if not matches:
                self._notes.append(f"nothing in {self._tree.where} matches {source!r}")
            for match in matches:
                self._take(match, source)
        return Selection(self._tree.fd, tuple(self._found), tuple(self._notes))

    # -- which

    def _matches(self, source: str) -> Iterator[_Match]:
        """What a source means: itself, or all that its wildcards match."""
        parts = [part for part in source.split("/") if part not in ("", ".")]
        plain: list[str] = []
        while parts and not _is_pattern(parts[0]):
            part = parts.pop(0)
            if part == "..":
                del plain[-1:]  # never above the root
            else:
                plain.append(_unescaped(part))
        start = os.fsencode("/".join(plain))
        if not parts:
            match = self._follow(start)
            if match is not None:
                yield match
            return
        base = self._follow(start)
        if base is not None:
            yield from self._match_below(base, parts)

    def _match_below(self, base: _Match, parts: list[str]) -> Iterator[_Match]:
        """Everything below `base` that the components `parts` match; links on the way are not followed."""
        found = self._root.find(base.path)
        if found is None or not found.is_directory:
            return
        anywhere = parts[0] == "**" and self._copy.parents
        if anywhere and len(parts) > 1:
            yield from self._match_below(base, parts[1:])
        wanted = expression(_component(parts[0]))
        for name in self._names(base.path):
            if not wanted.fullmatch(name):
                continue
            child = _Match(_join(base.shown, os.fsencode(name)), _join(base.path, os.fsencode(name)))
            if anywhere:
                yield from self._match_below(child, parts)
            if len(parts) == 1:
                followed = self._follow(child.shown)
                if followed is not None:
                    yield followed
            elif not anywhere:
                yield from self._match_below(child, parts[1:])

    def _names(self, path: bytes) -> list[str]:
        descriptor = open_beneath(self._tree.fd, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def _follow(self, path: bytes) -> _Match | None:
        """Where `path` leads; None when there is nothing, or nothing that may be taken."""
        try:
            real = self._root.resolve(path)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                return None
            raise
        found = self._root.find(real)
        if found is None:
            return None
        for each in {path, real} - {b""}:
            text = os.fsdecode(each)
            if self._ignore.takes(text) and not (found.is_directory and self._ignore.may_bring_back_below(text)):
                return None
        return _Match(path, real)

    def _not_found(self, source: str) -> AgentosError:
        hint = ""
        path = os.path.normpath(f"/{source}").lstrip("/")
        directory, _, name = path.rpartition("/")
        if self._ignore.takes(path):
            hint = f"{self._ignore.where} takes it out"
        elif self._tree.where != CONTEXT:
            hint = "a source of --from is looked up from the root of that stage or image"
        elif source.startswith(".."):
            hint = "what is above the context cannot be copied: build with a directory further up as the context"
        else:
            try:
                near = difflib.get_close_matches(name, self._names(os.fsencode(directory))[:2000], 1)
            except OSError:
                near = []
            hint = f"is {'/'.join(filter(None, [directory, *near]))} meant?" if near else ""
        return AgentosError("source-not-found", f"{source!r} is not in {self._tree.where}", hint=hint)

    # -- what is in it

    def _take(self, match: _Match, source: str) -> None:
        found = self._root.find(match.path)
        assert found is not None, "_follow has seen it"
        above, name = self._place(match, source)
        if found.is_directory:
            self._directory(match.path, _join(above, name) if self._copy.parents else b"")
            if not self._found and self._ignore.takes(os.fsdecode(match.path)):
                raise self._not_found(source)
            return
        if self._excluded(os.fsdecode(match.shown), os.fsdecode(match.shown.rpartition(b"/")[2])):
            return
        self._check(match.path, found.status)
        self._add(Selected(match.path, _join(above, name), found.status, not self._copy.parents, found.target))

    def _place(self, match: _Match, source: str) -> tuple[bytes, bytes]:
        """With ``--parents`` the directories that a source keeps, which are taken first; and its name."""
        above, _, name = match.shown.rpartition(b"/")
        if not self._copy.parents:
            return b"", name
        pivot = source.find("/./")
        kept = match.shown
        if pivot >= 0:
            skipped = [part for part in source[:pivot].split("/") if part not in ("", ".")]
            kept = b"/".join(match.shown.split(b"/")[len(skipped) :])
        above, _, name = kept.rpartition(b"/")
        start = match.shown[: len(match.shown) - len(kept)].rstrip(b"/")
        parts = above.split(b"/") if above else []
        for count in range(1, len(parts) + 1):
            directory = b"/".join(parts[:count])
            real = self._root.resolve(_join(start, directory))
            found = self._root.find(real)
            if found is not None:
                self._add(Selected(real, directory, found.status))
        return above, name

    def _directory(self, root: bytes, destination: bytes) -> None:
        """The directory `root` and all below it that is neither ignored nor excluded."""
        top = self._root.find(root)
        assert top is not None, "_follow has seen it"
        taken = bool(root) and self._ignore.takes(os.fsdecode(root))
        waiting = [(Selected(root, destination, top.status), b"", taken)]
        pending: dict[bytes, tuple[Selected, bytes]] = {}
        while waiting:
            here, relative, taken = waiting.pop()
            if taken:
                pending[relative] = (here, relative.rpartition(b"/")[0])
            else:
                self._ancestors(relative.rpartition(b"/")[0], pending)
                self._add(here)
            below = []
            for name, status, target in self._children(here.source):
                path, inner = _join(here.source, name), _join(relative, name)
                is_directory = stat.S_ISDIR(status.st_mode)
                out = self._is_out(path, inner, parents_stay=not taken)
                if out and not (is_directory and self._may_return(path, inner)):
                    continue
                child = Selected(path, _join(destination, inner), status, target=target)
                if is_directory:
                    below.append((child, inner, out))
                    continue
                self._check(path, status)
                if taken:
                    self._ancestors(relative, pending)
                self._add(child)
            waiting += reversed(below)

    def _ancestors(self, relative: bytes, pending: dict[bytes, tuple[Selected, bytes]]) -> None:
        """Directories that were taken out, but have something in them that was not."""
        chain = []
        while relative in pending:
            here, relative = pending.pop(relative)
            chain.append(here)
        for here in reversed(chain):
            self._add(here)

    def _children(self, path: bytes) -> list[tuple[bytes, os.stat_result, bytes]]:
        """Names in order, with their status and, of links, their target."""
        descriptor = open_beneath(self._tree.fd, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(descriptor) as listing:
                found = sorted((entry.name, entry.stat(follow_symlinks=False)) for entry in listing)
            return [
                (
                    os.fsencode(name),
                    status,
                    os.fsencode(os.readlink(name, dir_fd=descriptor)) if stat.S_ISLNK(status.st_mode) else b"",
                )
                for name, status in found
            ]
        finally:
            os.close(descriptor)

    def _is_out(self, path: bytes, relative: bytes, *, parents_stay: bool) -> bool:
        if time.thread_time() > self._end:
            hint = "fewer patterns in .dockerignore and --exclude, or fewer files"
            raise AgentosError("context-too-large", f"selecting took {_SECONDS_MAX} s", show(path), hint)
        text = os.fsdecode(path)
        if self._ignore and self._ignore.takes(text, parents_stay=parents_stay):
            return True
        return bool(self._exclude) and self._excluded(text, os.fsdecode(relative))

    def _excluded(self, path: str, relative: str) -> bool:
        """``--exclude`` is looked up from the source as well as from the root."""
        return bool(self._exclude) and (self._exclude.takes(relative) or self._exclude.takes(path))

    def _may_return(self, path: bytes, relative: bytes) -> bool:
        texts = os.fsdecode(path), os.fsdecode(relative)
        return any(each.may_bring_back_below(text) for each in (self._ignore, self._exclude) for text in texts)

    def _check(self, path: bytes, status: os.stat_result) -> None:
        kind = _SPECIAL.get(stat.S_IFMT(status.st_mode))
        if kind is None or (kind == "a FIFO" and self._tree.where != CONTEXT):
            return
        hint = "take it out: a line in .dockerignore" if self._tree.where == CONTEXT else "remove it in that stage"
        raise AgentosError("special-file", f"{kind} cannot be copied", show(path), hint)

    def _add(self, selected: Selected) -> None:
        if len(self._found) >= ENTRIES_MAX:
            hint = "name what is needed, or take the rest out by a .dockerignore"
            raise AgentosError(
                "context-too-large", f"a COPY of more than {ENTRIES_MAX} files from {self._tree.where}", hint=hint
            )
        if len(selected.source) > _PATH_MAX:
            raise AgentosError("context-too-large", f"a path of more than {_PATH_MAX} bytes", show(selected.source))
        if self._copy.parents and stat.S_ISDIR(selected.status.st_mode):
            if selected.destination in self._seen:
                return
            self._seen.add(selected.destination)
        self._found.append(selected)


def _join(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above and name else above or name


def _is_pattern(text: str) -> bool:
    return any(part.kind != "char" for part in tokens(text))


def _unescaped(text: str) -> str:
    return "".join(part.text for part in tokens(text))


def _component(text: str) -> list[Token]:
    """A component of a source; ``**`` is a plain wildcard there (filepath.Match)."""
    return [Token("star") if part.kind in ("rest", "directories") else part for part in tokens(text)]
