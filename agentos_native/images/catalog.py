"""What is on disk of the images: unpacked trees by digest, manifests by digest, and names that point to manifests.

::

    <state>/images/            0700: set-user-ID files of an image are for nobody on the host
      lock                     flock: held for the moment in which names, manifests and layers change
      layers/<hex>/            a tree, named by the digest of what is in it; never written to
      index/<hex of key>       a `Layer`: what a key that stands for a layer was unpacked to, see `Catalog.known`
      manifests/<hex>.json     `Manifest`; the image's digest is that of its configuration and layers
      refs/<name>              "sha256:<hex>"
      tmp/<random>             a layer under way (its own flock held), or something on its way out

Nothing becomes visible by halves: a tree is renamed from tmp after syncfs, a file is written beside, synced and
renamed, and the order is layer, index, manifest, name. Whatever a crash leaves is in tmp, or a layer without a
manifest; `recover` removes both.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images import names
from agentos_native.images.model import Image, ImageConfig, Layer, Manifest
from agentos_native.images.remove import remove_tree

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MANIFEST_MAX: Final = 1 << 20


class Staging(NamedTuple):
    """An empty directory of the store to make a layer in; `fd` holds its lock, also in a worker that inherits it."""

    path: Path
    fd: int


def manifest_digest(config: ImageConfig, layers: Sequence[str]) -> str:
    """The digest of an image: of what runs, not of when or under which name it was imported."""
    body = msgspec.json.encode({"config": msgspec.to_builtins(config), "layers": list(layers)}, order="sorted")
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


class Catalog:
    """The files of the store. Thread-safe, and safe beside other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for part in ("layers", "index", "manifests", "refs", "tmp"):
            (self.path / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self._tmp = self.path / "tmp"

    # -- finding

    def get(self, ref: str) -> Image:
        """The image of a name, of ``sha256:<hex>`` or of a unique beginning of it.

        Raises:
            AgentosError: ``image-not-found`` (its hint lists what there is), ``ambiguous-digest``,
            ``invalid-image-name``.
        """
        by_digest = self._names()
        digest, name = self._find(ref, by_digest)
        return self._image(digest, name, by_digest)

    def list(self) -> list[Image]:
        """One `Image` for each name, in the order of names, then those without a name.

        An image whose record is damaged is listed too, with no layers and the reason as a note.
        """
        by_digest = self._names()
        stems = sorted(path.stem for path in (self.path / "manifests").glob("*.json"))
        unnamed = [f"sha256:{stem}" for stem in stems if f"sha256:{stem}" not in by_digest]
        asked = sorted((name, digest) for digest, held in by_digest.items() for name in held)
        return [
            self._image_or_note(digest, name, by_digest)
            for name, digest in [*asked, *(("", digest) for digest in unnamed)]
        ]

    def inspect(self, ref: str) -> dict[str, object]:
        """`get` as plain data for a program to print."""
        image = self.get(ref)
        described: dict[str, object] = msgspec.to_builtins(image, enc_hook=str)
        described["config"] = {
            "entrypoint": list(image.config.entrypoint),
            "cmd": list(image.config.cmd),
            "env": dict(image.config.env),
            "user": image.config.user,
            "workdir": image.config.workdir,
            "labels": image.config.labels,
        }
        return described

    # -- layers

    @contextlib.contextmanager
    def staging(self) -> Iterator[Staging]:
        """An empty directory below tmp, gone at the end unless `add_layer` took it."""
        staged = self._tmp / secrets.token_hex(8)
        with self._locked():  # so that `recover` never sees it before it is locked
            staged.mkdir(0o755)
            tree = os.open(staged, _DIRECTORY)
            fcntl.flock(tree, fcntl.LOCK_EX)
        try:
            os.fchmod(tree, 0o755)
            yield Staging(staged, tree)
        finally:
            os.close(tree)
            self._discard([staged.name])

    def add_layer(self, staged: Staging, layer: Layer, keys: Collection[str] = ()) -> Layer:
        """Keep a staged tree, which must be on disk already (syncfs), as `layer`; `keys` are what it is known by."""
        with self._locked():
            place = self.layer_path(layer.digest)
            if not place.exists():
                os.rename(staged.path, place)
                _sync_directory(place.parent)
            for key in keys:
                self._write(self._index_path(key), msgspec.json.encode(layer))
        return layer

    def known(self, key: str) -> Layer | None:
        """The layer that `key` stands for, when it is in the store.

        Keys: ``diff:sha256:…`` for a layer's uncompressed tar where the tree depends on nothing else,
        ``chain:sha256:…`` (OCI's chain id) where it depends on the layers below, ``step:sha256:…`` for a step of a
        build.
        """
        try:
            layer = msgspec.json.decode(self._index_path(key).read_bytes(), type=Layer)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return layer if self.layer_path(layer.digest).is_dir() else None

    def layer_path(self, digest: str) -> Path:
        """Where the tree of a layer is."""
        return self.path / "layers" / _hex(digest)

    def _index_path(self, key: str) -> Path:
        return self.path / "index" / hashlib.sha256(key.encode()).hexdigest()

    # -- images

    def commit(self, name: str | None, manifest: Manifest) -> Image:
        """Make an image of layers that are in the store, and point `name` to it (None: it has none).

        An earlier image of that name stays in the store, by digest, for those who use it.
        """
        digest = manifest_digest(manifest.config, [layer.digest for layer in manifest.layers])
        with self._locked():
            path = self.path / "manifests" / f"{_hex(digest)}.json"
            if not path.exists():
                self._write(path, msgspec.json.encode(manifest))
            if name is not None:
                self._write(self.path / "refs" / names.to_file_name(name), digest.encode())
            return self._image(digest, name or "", self._names())

    # -- removing

    def remove(self, ref: str, in_use: Collection[str] = ()) -> builtins.list[str]:
        """Remove a name, and with its last name the image; with a digest, the image and all its names.

        Args:
            in_use: digests of images that agents have; they are refused unless another name keeps the image.

        Returns:
            What is gone: names, then perhaps the digest.

        Raises:
            AgentosError: ``image-not-found``, ``image-in-use``.
        """
        with self._locked():
            by_digest = self._names()
            digest, name = self._find(ref, by_digest)
            held = by_digest.get(digest, [])
            going = [name] if name else [*held]
            last = len(going) == len(held)
            if last and digest in in_use:
                raise AgentosError(
                    "image-in-use",
                    f"image {ref!r} is used by agents",
                    hint="remove those agents first: `agentos-native ps -a` names them",
                )
            for gone in going:
                (self.path / "refs" / names.to_file_name(gone)).unlink(missing_ok=True)
            if not last:
                return going
            (self.path / "manifests" / f"{_hex(digest)}.json").unlink(missing_ok=True)
            doomed = self._unreferenced_layers()
        self._discard(doomed)
        return [*going, digest]

    def recover(self) -> builtins.list[str]:
        """Remove what killed imports and removals left; imports under way, in whatever process, are left alone."""
        with self._locked():
            self._unreferenced_layers()
            stale = []
            for name in sorted(os.listdir(self._tmp)):
                if self._is_abandoned(name):
                    stale.append(name)
        self._discard(stale)
        return stale

    # -- inside

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, path: Path, content: bytes) -> None:
        beside = self._tmp / secrets.token_hex(8)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(beside, path)
        _sync_directory(path.parent)

    def _names(self) -> dict[str, builtins.list[str]]:
        """Digest → names, of all refs."""
        found: dict[str, builtins.list[str]] = {}
        for path in sorted((self.path / "refs").iterdir()):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found.setdefault(path.read_text(encoding="ascii"), []).append(names.from_file_name(path.name))
        return found

    def _manifest(self, digest: str) -> Manifest:
        path = self.path / "manifests" / f"{_hex(digest)}.json"
        try:
            if path.stat().st_size > _MANIFEST_MAX:
                raise msgspec.ValidationError("too long")
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeError) as error:
            raise AgentosError(
                "image-damaged",
                f"the record of image {digest[:19]} cannot be read: {error}",
                str(path),
                "remove the image and import it again",
            ) from None
        if manifest_digest(manifest.config, [layer.digest for layer in manifest.layers]) != digest:
            raise AgentosError(
                "image-damaged",
                f"the record of image {digest[:19]} was changed",
                str(path),
                "remove the image and import it again",
            )
        return manifest

    def _find(self, ref: str, by_digest: Mapping[str, Sequence[str]]) -> tuple[str, str]:
        """The digest that `ref` means, and the name that it is ("" for a digest)."""
        digits = names.parse_digest(ref)
        if digits is None:
            name = names.parse_name(ref)
            for digest, held in by_digest.items():
                if name in held:
                    return digest, name
            raise self._not_found(ref, by_digest)
        found = [path.stem for path in (self.path / "manifests").glob(f"{digits}*.json")]
        if not found:
            raise self._not_found(ref, by_digest)
        if len(found) > 1:
            raise AgentosError(
                "ambiguous-digest", f"{ref!r} is the beginning of {len(found)} images", hint="give more digits"
            )
        return f"sha256:{found[0]}", ""

    def _image_or_note(self, digest: str, name: str, by_digest: Mapping[str, Sequence[str]]) -> Image:
        try:
            return self._image(digest, name, by_digest)
        except AgentosError as error:
            held = tuple(by_digest.get(digest, ()))
            return Image(
                digest=digest,
                name=name,
                names=held,
                created=0,
                size=0,
                entries=0,
                config=ImageConfig(),
                layers=(),
                notes=(error.what,),
            )

    def _image(self, digest: str, name: str, by_digest: Mapping[str, Sequence[str]]) -> Image:
        manifest = self._manifest(digest)
        return Image(
            digest=digest,
            name=name,
            names=tuple(sorted(by_digest.get(digest, ()))),
            created=manifest.created,
            size=sum(layer.size for layer in manifest.layers),
            entries=sum(layer.entries for layer in manifest.layers),
            config=manifest.config,
            layers=tuple(self.layer_path(layer.digest) for layer in manifest.layers),
            stack=manifest.layers,
            history=manifest.history,
            architecture=manifest.architecture,
            author=manifest.author,
            notes=manifest.notes,
        )

    def _not_found(self, ref: str, by_digest: Mapping[str, Sequence[str]]) -> AgentosError:
        known = sorted(name for held in by_digest.values() for name in held)
        some = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        hint = (
            f"there are: {some}"
            if known
            else "there is none yet: `agentos-native image import NAME PATH` makes one from a directory or a tar"
        )
        return AgentosError("image-not-found", f"no image {ref!r}", hint=hint)

    def _unreferenced_layers(self) -> builtins.list[str]:
        """Move the layers that no manifest names to tmp, and say under which names. The caller holds the lock."""
        used = set()
        for path in (self.path / "manifests").glob("*.json"):
            try:
                used |= {_hex(layer.digest) for layer in msgspec.json.decode(path.read_bytes(), type=Manifest).layers}
            except msgspec.MsgspecError:
                return []  # a damaged record may name any of them
        moved = []
        for layer in (self.path / "layers").iterdir():
            if layer.name not in used:
                moved.append(secrets.token_hex(8))
                os.rename(layer, self._tmp / moved[-1])
        return moved

    def _is_abandoned(self, name: str) -> bool:
        """Whether nobody holds the lock of the entry `name` of tmp."""
        try:
            descriptor = os.open(self._tmp / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _discard(self, entries_of_tmp: Sequence[str]) -> None:
        tmp = os.open(self._tmp, _DIRECTORY)
        try:
            for name in entries_of_tmp:
                remove_tree(tmp, name)
        finally:
            os.close(tmp)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
