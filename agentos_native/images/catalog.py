"""What is on disk of the images: unpacked trees by digest, manifests by digest, and names that point to manifests.

::

    <state>/images/            0700: set-user-ID files of an image are for nobody on the host
      lock                     flock: held for the moment in which names, manifests, layers and leases change
      layers/<hex>/            a tree, named by the digest of what is in it; never written to
      damaged/<hex>            the mark of a layer that is not what it was, see `damage`
      index/<hex of key>       what a key that stands for a layer was unpacked to, see `Catalog.known` and `index`
      manifests/<hex>.json     `Manifest`; the image's digest is that of its configuration and layers, see `records`
      refs/<name>              "sha256:<hex>"
      leases/<random>          what an import or build under way holds (its flock held), see `leases`
      tmp/<random>             a layer under way (its own flock held), or something on its way out
      downloads/<name>/        part of a pull (its flock held while it is under way), kept for the next try

Nothing becomes visible by halves: a tree is renamed from tmp after syncfs, the order is layer, index, manifest, name,
and a name is renamed from tmp when the disk has all that it leads to. Whatever a crash leaves is in tmp, or a layer
that nothing reaches; `recover` removes both. What may be removed is decided in `gc`.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import os
import secrets
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agentos_native import faults
from agentos_native.errors import AgentosError
from agentos_native.images import gc, leases, names
from agentos_native.images.damage import Damage
from agentos_native.images.disk import DIRECTORY, Disk
from agentos_native.images.gc import Freed, InUse
from agentos_native.images.index import Index
from agentos_native.images.leases import Lease
from agentos_native.images.model import Image, ImageConfig, Layer, Manifest
from agentos_native.images.records import Records, hex_of, manifest_digest
from agentos_native.wire.images import CACHE_KEPT

__all__ = ["Catalog", "InUse", "Lease", "Staging", "manifest_digest"]

_TRIES: Final = 5
_NAMED: Final = 3
_PATHS_KEPT: Final = 4096
"""Every start asks for all layers of an image; making a path takes longer than looking whether it is there."""


class Staging(NamedTuple):
    """An empty directory of the store to make a layer in; `fd` holds its lock, also in a worker that inherits it."""

    path: Path
    fd: int
    lease: Lease


class Catalog:
    """The files of the store. Thread-safe, and safe beside other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.disk = Disk(path)
        self.records = Records(self.disk)
        self.index = Index(self.disk)
        self.damage = Damage(self.disk, self.records)
        self._paths: dict[str, Path] = {}
        self._parts = gc.Parts(self.disk, self.records, self.index)

    # -- finding

    def get(self, ref: str, *, lease: Lease | None = None) -> Image:
        """The image of a name, of ``sha256:<hex>`` or of a unique beginning of it, or of ``name@sha256:<hex>``.

        Under a lease (`lease`, else this context's) that holds the image then; otherwise it takes no lock.

        Raises:
            AgentosError: ``image-not-found`` (its hint lists what there is), ``ambiguous-digest``,
            ``invalid-image-name``, ``image-damaged``.
        """
        holder = lease or leases.current(self.disk)
        if holder is None:
            return self.peek(ref)
        with self.disk.locked():
            image = self.peek(ref)
            holder.hold("image", [image.digest])
            holder.hold("layer", [layer.digest for layer in image.stack])
            return image

    def peek(self, ref: str) -> Image:
        """`get` without any lock, and held by no lease: for an agent, whose image is in use once it has it. Whoever
        removes images has the store's lock when he asks for those in use, so that must not be waited for here."""
        for _ in range(_TRIES):
            by_digest = self.records.names()
            digest, name = self.records.find(ref, by_digest)
            try:
                return self._sound(self._image(digest, name, by_digest))
            except AgentosError:
                if self.records.find(ref, self.records.names())[0] != digest:
                    continue  # it was removed or replaced between the two looks
                raise
        raise AgentosError("image-not-found", f"image {ref!r} is replaced again and again")

    def list(self) -> builtins.list[Image]:
        """One `Image` for each name, in the order of names, then those without a name.

        An image whose record is damaged, or of which a layer is gone, is listed too, with no layers and the reason as a
        note.
        """
        with self.disk.locked(shared=True):
            by_digest = self.records.names()
            asked = sorted((name, digest) for digest, held in by_digest.items() for name in held)
            unnamed = [("", digest) for digest in self.records.digests(by_digest) if digest not in by_digest]
            return [self._image_or_note(digest, name, by_digest) for name, digest in [*asked, *unnamed]]

    def sharing(self) -> dict[str, int]:
        """Digest of a layer → how many images have it."""
        with self.disk.locked(shared=True):
            counted: Counter[str] = Counter()
            for digest in self.records.digests(self.records.names()):
                with contextlib.suppress(AgentosError):
                    counted.update({layer.digest for layer in self.records.read(digest).layers})
            return dict(counted)

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

    # -- work under way

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """Hold what is looked up and added meanwhile (in this context, or where the lease is given) against removal.

        Every import, pull and build works under one, from its first look to its last `commit`. Layers that were added
        under it and that neither an image nor a step of the build cache names at its end are removed. Inside another
        lease of this store it is that one.
        """
        outer = leases.current(self.disk)
        if outer is not None:
            yield outer
            return
        with self.disk.locked():
            lease = Lease(self.disk)
        token = leases.enter(lease)
        try:
            yield lease
        finally:
            leases.leave(token)
            with self.disk.locked():
                lease.end()
                faults.point("store.lease-ended")
                aside = gc.sweep(self._parts, lease.loose) if lease.loose else []
            self.disk.discard(aside)

    @contextlib.contextmanager
    def staging(self, lease: Lease | None = None) -> Iterator[Staging]:
        """An empty directory below tmp, gone at the end unless `add_layer` took it. Without a lease, neither given nor
        of this context, it has its own, and ends with it what `add_layer` added and nobody committed."""
        with contextlib.ExitStack() as opened:
            holder = lease or leases.current(self.disk) or opened.enter_context(self.lease())
            staged = self.disk.tmp / secrets.token_hex(8)
            with self.disk.locked():  # so that `recover` never sees it before it is locked
                staged.mkdir(0o755)
                tree = os.open(staged, DIRECTORY)
                fcntl.flock(tree, fcntl.LOCK_EX)
            faults.point("store.staged")
            try:
                os.fchmod(tree, 0o755)
                yield Staging(staged, tree, holder)
            finally:
                os.close(tree)
                self.disk.discard([staged.name])

    def add_layer(self, staged: Staging, layer: Layer, keys: Collection[str] = ()) -> Layer:
        """Keep a staged tree, which must be on disk already (syncfs), as `layer`; `keys` are what it is known by.

        One that is there stays, unless it is known to be damaged: then this one takes its place.

        Raises:
            AgentosError: ``disk-full``, ``layer-in-use`` (see `damage`).
        """
        with self.disk.locked():
            staged.lease.hold("layer", [layer.digest])
            staged.lease.loose.add(layer.digest)
            place = self.layer_path(layer.digest)
            if not place.exists():
                os.rename(staged.path, place)  # on the disk before a name leads to it: `Records.add`
                faults.point("store.layer-added")
            elif self.damage.marked(layer.digest):
                held = layer.digest in leases.live(self.disk, but=staged.lease).layers
                self.damage.replace(layer.digest, staged.path, place, held)
            self.damage.clear(layer.digest)
            for key in keys:
                self.index.put(key, layer)
        return layer

    def known(self, key: str, *, lease: Lease | None = None) -> Layer | None:
        """The layer that `key` stands for, when it is in the store and not known to be damaged; the lease (given, or
        this context's) holds it.

        Keys: ``diff:sha256:…`` for a layer's uncompressed tar where the tree depends on nothing else,
        ``chain:sha256:…`` (OCI's chain id) where it depends on the layers below, ``step:sha256:…`` for a step of a
        build.
        """
        holder = lease or leases.current(self.disk)
        with contextlib.nullcontext() if holder is None else self.disk.locked():
            layer = self.index.look_up(key)
            if layer is None or not self.layer_path(layer.digest).is_dir() or self.damage.marked(layer.digest):
                return None
            if holder is not None:
                holder.hold("layer", [layer.digest])
            if key.startswith("step:"):
                self.index.touch(key)
            return layer

    def layer_path(self, digest: str) -> Path:
        """Where the tree of a layer is."""
        path = self._paths.get(digest)
        if path is None:
            if len(self._paths) >= _PATHS_KEPT:
                self._paths.clear()
            path = self._paths[digest] = self.disk.layers / hex_of(digest)
        return path

    # -- images

    def commit(self, name: str | None, manifest: Manifest, *, lease: Lease | None = None) -> Image:
        """Make an image of layers that are in the store, and point `name` to it (None: it has none).

        An earlier image of that name stays in the store, by digest, for those who use it. The lease (given, or this
        context's) holds the image.

        Raises:
            AgentosError: ``layer-missing``, ``image-too-large``, ``disk-full``, ``invalid-image-name``.
        """
        checked = names.parse_name(name) if name is not None else None
        holder = lease or leases.current(self.disk)
        with self._changing():
            for layer in manifest.layers:
                if not self.layer_path(layer.digest).is_dir():
                    raise AgentosError(
                        "layer-missing",
                        f"layer {layer.digest[:19]} of the new image is not in the store",
                        hint="it was removed meanwhile, by `image rm` or `image gc`: try again",
                    )
            digest = manifest_digest(manifest.config, [layer.digest for layer in manifest.layers])
            if holder is not None:
                holder.hold("image", [digest])
            self.records.add(manifest, checked)
            return self._image(digest, checked or "", self.records.names())

    def tag(self, ref: str, name: str) -> Image:
        """Let `name` mean the image `ref`, too; what it meant before stays by digest.

        Raises:
            AgentosError: as `get`, ``disk-full``.
        """
        checked = names.parse_name(name)
        with self._changing():
            digest, _ = self.records.find(ref, self.records.names())
            self.records.read(digest)
            self.records.point(checked, digest)
            return self._image(digest, checked, self.records.names())

    # -- removing

    def remove(self, ref: str, in_use: InUse = ()) -> builtins.list[str]:
        """Remove a name, and with its last name the image; with a digest, the image and all its names. One whose
        record is damaged goes, too.

        Layers stay that another image, a step of the build cache or work under way needs. What is removed under a
        lease may be held by that lease.

        Args:
            in_use: digests of images that agents have, or these agents by digest; they are refused unless another name
                keeps the image.

        Returns:
            What is gone: names, then perhaps the digest.

        Raises:
            AgentosError: ``image-not-found``, ``image-in-use``.
        """
        with self._changing():
            by_digest = self.records.names()
            digest, name = self.records.find(ref, by_digest)
            held = by_digest.get(digest, [])
            going = [name] if name else [*held]
            if len(going) < len(held):
                self.records.unpoint(name)
                return going
            try:
                layers = {layer.digest for layer in self.records.read(digest).layers}
            except AgentosError:
                layers = None
            elsewhere = leases.live(self.disk, but=leases.current(self.disk)).images
            with gc.used(in_use) as busy:
                if digest in busy or digest in elsewhere:
                    raise _used(ref, digest in busy, busy.get(digest, ()) if isinstance(busy, Mapping) else ())
                self.records.retire(digest)
            self.records.settle()
            aside = gc.sweep(self._parts, layers)
        self.disk.discard(aside)
        return [*going, digest]

    def recover(self) -> builtins.list[str]:
        """Remove what killed imports and removals left; imports under way, in whatever process, are left alone.

        Returns:
            What was removed, as entries of tmp.
        """
        with self._changing():
            self.records.modernize()
            aside = gc.sweep(self._parts)
        self.disk.discard(aside)
        return aside

    def gc(self, in_use: InUse = (), *, dry_run: bool = False, older_than: float | None = CACHE_KEPT) -> Freed:
        """Remove images without a name that nobody uses, layers that nothing reaches, old steps of the build cache,
        and what killed processes left, partial downloads too. What runs or is under way stays.

        Args:
            in_use: digests of images that agents have.
            dry_run: only say what would go.
            older_than: seconds since a step of the build cache was last used; None takes all of the cache.
        """
        with self._changing():
            freed, aside = gc.collect(self._parts, in_use, dry_run, older_than)
        self.disk.discard(aside)
        return freed

    # -- inside

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self.disk.locked():
            self.records.settle()
            yield

    def _image_or_note(self, digest: str, name: str, by_digest: Mapping[str, Sequence[str]]) -> Image:
        try:
            image = self._image(digest, name, by_digest)
        except AgentosError as error:
            return Image(
                digest=digest,
                name=name,
                names=tuple(by_digest.get(digest, ())),
                created=0,
                size=0,
                entries=0,
                config=ImageConfig(),
                layers=(),
                notes=(error.what,),
            )
        try:
            return self._sound(image)
        except AgentosError as error:
            return msgspec.structs.replace(image, layers=(), stack=(), notes=(*image.notes, error.what))

    def _sound(self, image: Image) -> Image:
        """`image`, the layers of which are there; what is in them is for `verify` to see.

        Raises:
            AgentosError: ``image-damaged``.
        """
        gone = next((layer for layer in image.layers if not os.path.isdir(layer)), None)
        if gone is None:
            return image
        shown = image.name or image.digest[:19]
        hint = (
            "import, pull or build it again: that brings back what is missing;\n"
            f"`agentos-native image verify {shown}` says what else is wrong"
        )
        raise AgentosError("image-damaged", f"layer {gone.name[:12]} of image {shown} is gone", str(gone), hint)

    def _image(self, digest: str, name: str, by_digest: Mapping[str, Sequence[str]]) -> Image:
        manifest = self.records.read(digest)
        return Image(
            digest=digest,
            name=name,
            names=tuple(by_digest.get(digest, ())),
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


def _used(ref: str, by_agents: bool, agents: Sequence[str]) -> AgentosError:
    if by_agents:
        hint = "remove those agents first: `agentos-native ps -a` shows all"
        named = ", ".join(sorted(agents)[:_NAMED])
        more = f" and {len(agents) - _NAMED} more" if len(agents) > _NAMED else ""
        what = f"image {ref!r} is used by agents{': ' if named else ''}{named}{more}"
        return AgentosError("image-in-use", what, hint=hint)
    return AgentosError("image-in-use", f"image {ref!r} is used by a build or an export", hint="wait for its end")
