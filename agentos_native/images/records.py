"""Manifests and names on disk: what images there are and what they are called.

::

    manifests/<hex>.json     a `Manifest`; <hex> is the digest of the image
    manifests/<hex>.next     the same of an image that is being made
    manifests/<hex>.gone     the same of an image that is being removed
    refs/<name>              "sha256:<hex>"

Each change has one moment, a single rename or unlink, before which nothing has happened and after which all has:

- an image gets its record as ``.next``; **its name is put in place**; the record becomes ``.json``. A ``.next`` counts
  when a name leads to it, and is rubbish otherwise.
- an image goes when **its record becomes** ``.gone``; then its names are unlinked, then the record. A name that leads
  to a ``.gone`` does not count.

Neither needs space on the disk to remove something. What a kill leaves of it the next change finishes (`settle`). Only
`read`, `find` and `names` work without the store's lock.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agentos_native import faults
from agentos_native.errors import AgentosError
from agentos_native.images import names
from agentos_native.images.disk import Disk, Draft, names_in, sync_directory
from agentos_native.images.model import ImageConfig, Manifest

_MANIFEST_MAX: Final = 1 << 20
_DAMAGED_HINT: Final = "remove the image and import it again"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HEX: Final = 64
_ALIEN: Final = "it is not agentos-native's: move it away"
_NOWHERE: Final = "sha256:" + "0" * _HEX


def manifest_digest(config: ImageConfig, layers: Sequence[str]) -> str:
    """The digest of an image: of what runs, not of when or under which name it was imported."""
    body = msgspec.json.encode({"config": msgspec.to_builtins(config), "layers": list(layers)}, order="sorted")
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def hex_of(digest: str) -> str:
    """The digits of a digest."""
    return digest.removeprefix("sha256:")


class Records:
    """The records of one store."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def _path(self, digest: str, suffix: str = ".json") -> Path:
        return self._disk.manifests / f"{hex_of(digest)}{suffix}"

    # -- reading

    def names(self) -> dict[str, list[str]]:
        """Digest → names in order, of all names that count; also of those that lead nowhere."""
        found: dict[str, list[str]] = {}
        for file_name in names_in(self._disk.refs):
            with _skipping():
                found.setdefault(self._target(file_name), []).append(names.from_file_name(file_name))
        gone = {name.removesuffix(".gone") for name in names_in(self._disk.manifests) if name.endswith(".gone")}
        return {digest: sorted(held) for digest, held in found.items() if hex_of(digest) not in gone}

    def _target(self, file_name: str) -> str:
        """The digest that a name leads to; one that no image has where that cannot be read."""
        descriptor = os.open(f"{self._disk.refs}/{file_name}", _READ)  # each look at a name reads all: no Path, no file
        try:
            written = os.read(descriptor, 80).decode("ascii", "replace")
        finally:
            os.close(descriptor)
        return written if _DIGEST.fullmatch(written) else _NOWHERE

    def aliens(self) -> list[Path]:
        """What is among the names and is no file: nothing here makes that, so it is passed over and left alone."""
        found = (self._disk.refs / file_name for file_name in names_in(self._disk.refs))
        return [path for path in found if path.is_dir() or path.is_symlink()]

    def digests(self, by_digest: Mapping[str, Sequence[str]]) -> list[str]:
        """All images, damaged ones too, in the order of their digests; `by_digest` as `names` gives it."""
        found = {f"sha256:{Path(name).stem}" for name in names_in(self._disk.manifests) if name.endswith(".json")}
        return sorted(found | set(by_digest))

    def read(self, digest: str) -> Manifest:
        """The record of an image.

        Raises:
            AgentosError: ``image-damaged``.
        """
        path = self._path(digest)
        try:
            content = self._content(digest)
            if len(content) > _MANIFEST_MAX:
                raise msgspec.ValidationError("too long")
            manifest = msgspec.json.decode(content, type=Manifest)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeError) as error:
            why = "it is gone" if isinstance(error, FileNotFoundError) else str(error)
            what = f"the record of image {digest[:19]} cannot be read: {why}"
            raise AgentosError("image-damaged", what, str(path), _DAMAGED_HINT) from None
        if manifest_digest(manifest.config, [layer.digest for layer in manifest.layers]) != digest:
            what = f"the record of image {digest[:19]} was changed"
            raise AgentosError("image-damaged", what, str(path), _DAMAGED_HINT)
        return manifest

    def _content(self, digest: str) -> bytes:
        for suffix in (".json", ".next", ".json"):  # it may become .json just now
            with contextlib.suppress(FileNotFoundError), self._path(digest, suffix).open("rb") as file:
                return file.read(_MANIFEST_MAX + 1)
        raise FileNotFoundError

    def find(self, ref: str, by_digest: Mapping[str, Sequence[str]]) -> tuple[str, str]:
        """The digest that `ref` means, and the name that it is ("" for a digest); `by_digest` as `names` gives it.

        Raises:
            AgentosError: ``image-not-found``, ``ambiguous-digest``, ``invalid-image-name``.
        """
        digits = names.parse_digest(ref)
        if digits is None:
            name = names.parse_name(ref)
            for digest, held in by_digest.items():
                if name in held:
                    return digest, name
            digits = hex_of(names.split(name).digest)
            if not digits:
                raise _not_found(ref, by_digest)
        if len(digits) == _HEX and self._path(f"sha256:{digits}").exists():
            return f"sha256:{digits}", ""
        found = [digest for digest in self.digests(by_digest) if hex_of(digest).startswith(digits)]
        if not found:
            raise _not_found(ref, by_digest)
        if len(found) > 1:
            what = f"{ref!r} is the beginning of {len(found)} images"
            raise AgentosError("ambiguous-digest", what, hint="give more digits")
        return found[0], ""

    # -- changing: the caller holds the lock and has called `settle`

    def settle(self) -> None:
        """Finish what a kill interrupted."""
        interrupted = [name for name in names_in(self._disk.manifests) if name.endswith((".gone", ".next"))]
        if not interrupted:
            return
        named = self.names()
        for name in interrupted:
            path = self._disk.manifests / name
            if name.endswith(".gone"):
                self._unpoint_all(f"sha256:{path.stem}")
                os.unlink(path)
            elif f"sha256:{path.stem}" in named:
                os.rename(path, path.with_suffix(".json"))
            else:
                os.unlink(path)
        sync_directory(self._disk.manifests)

    def add(self, manifest: Manifest, name: str | None) -> str:
        """Make an image, with a name unless it is None; its digest. One that exists keeps its record.

        Raises:
            AgentosError: ``image-too-large``, what `read` would not take.
        """
        digest = manifest_digest(manifest.config, [layer.digest for layer in manifest.layers])
        content = msgspec.json.encode(manifest)
        if len(content) > _MANIFEST_MAX:
            what = f"the image's configuration and history have {len(content)} bytes; {_MANIFEST_MAX} are kept of one"
            raise AgentosError("image-too-large", what, hint="fewer or shorter variables, labels, ports or steps")
        sound = self._is_sound(digest)
        if name is not None and not sound and not self._path(digest).exists():
            self._add_named(digest, content, name)
            return digest
        sync_directory(self._disk.layers)
        if not sound:
            self._disk.write(self._path(digest), content)
        if name is not None:
            self.point(name, digest)
        return digest

    def _add_named(self, digest: str, content: bytes, name: str) -> None:
        """All that the name leads to is on the disk before the name is in its place. The first of these calls waits for
        the journal, which then has what the others ask for; when the record becomes .json does not matter."""
        made = self._path(digest, ".next")
        with self._disk.draft(content) as record, self._disk.draft(digest.encode()) as pointer:
            os.rename(record.path, made)
            faults.point("store.manifest-written")
            try:
                for file in (record, pointer):
                    os.fsync(file.fd)
                for directory in (self._disk.layers, self._disk.manifests):
                    sync_directory(directory)
                self._place(pointer, name)
            except (OSError, AgentosError):
                os.unlink(made)
                raise
        os.rename(made, self._path(digest))
        faults.point("store.manifest-settled")

    def point(self, name: str, digest: str) -> None:
        """Let `name` mean an image."""
        with self._disk.draft(digest.encode()) as pointer:
            os.fsync(pointer.fd)
            self._place(pointer, name)

    def _place(self, pointer: Draft, name: str) -> None:
        path = self._disk.refs / names.to_file_name(name)
        try:
            os.rename(pointer.path, path)
        except IsADirectoryError:
            raise AgentosError(
                "store-damaged", "there is a directory where a name is kept", str(path), _ALIEN
            ) from None
        sync_directory(self._disk.refs)
        faults.point("store.name-written")

    def unpoint(self, name: str) -> None:
        """Forget a name."""
        os.unlink(self._disk.refs / names.to_file_name(name))
        faults.point("store.name-removed")
        sync_directory(self._disk.refs)

    def retire(self, digest: str) -> None:
        """The moment in which an image goes, with all its names; `settle` does the rest."""
        try:
            os.rename(self._path(digest), self._path(digest, ".gone"))
        except FileNotFoundError:
            self._unpoint_all(digest)  # there are only names, which lead nowhere
        faults.point("store.manifest-gone")

    def _unpoint_all(self, digest: str) -> None:
        for file_name in names_in(self._disk.refs):
            with _skipping():
                if self._target(file_name) == digest:
                    os.unlink(self._disk.refs / file_name)
                    faults.point("store.names-removed")
        sync_directory(self._disk.refs)

    def modernize(self) -> None:
        """Give names that version 0.1 wrote percent-encoded the file names that they have now."""
        for file_name in names_in(self._disk.refs):
            if "%" in file_name:
                new = names.to_file_name(names.from_file_name(file_name))
                os.rename(self._disk.refs / file_name, self._disk.refs / new)

    def _is_sound(self, digest: str) -> bool:
        try:
            self.read(digest)
        except AgentosError:
            return False
        return True


@contextlib.contextmanager
def _skipping() -> Iterator[None]:
    """Over a name that was removed meanwhile, and over what is none: a directory, a symbolic link."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EISDIR, errno.ELOOP):
            raise


def known_names(by_digest: Mapping[str, Iterable[str]]) -> list[str]:
    """All names, in order."""
    return sorted(name for held in by_digest.values() for name in held)


def _not_found(ref: str, by_digest: Mapping[str, Iterable[str]]) -> AgentosError:
    known = known_names(by_digest)
    some = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    hint = (
        f"there are: {some}"
        if known
        else "there is none yet: `agentos-native image import NAME PATH` makes one from a directory or a tar"
    )
    return AgentosError("image-not-found", f"no image {ref!r}", hint=hint)
