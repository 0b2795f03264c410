"""From a source to an image of the store: a directory, a tar, an OCI layout or a ``docker save`` archive.

What a source is shows in what lies at its root. Of a plain archive in a file the headers tell, which the confined
unpacker looks at before it unpacks anything (`members`): when they are those of an image, only what the store has not
is read of it. Any other archive, such as one from a pipe or a compressed one, is unpacked first, whatever it is, and
its blobs are read from there when it turns out to be a layout. A layer that the store has already, by its diff id or
chain id, is neither read nor hashed: what the image's config says of it was verified by the config's digest.
"""

from __future__ import annotations

import hashlib
import os
import platform as machine
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images import names
from agentos_native.images.catalog import Catalog
from agentos_native.images.model import DEFAULT_COMMAND, Image, ImageConfig, Layer, Limits, Manifest
from agentos_native.images.oci import members, model
from agentos_native.images.oci.answers import Asking, LateSession
from agentos_native.images.oci.layout import Blobs, Directory, DockerArchive, Layout, Opened, recognise, wrong_size
from agentos_native.images.oci.model import Contents, Description, Descriptor
from agentos_native.images.oci.survey import invalid, parse_platform, unsupported
from agentos_native.images.overlay import view
from agentos_native.images.session import Expect, ProgressCallback, Session, Unpacked
from agentos_native.images.sources import open_source
from agentos_native.images.unpack.messages import Found, Progress
from agentos_native.wire.images import ImageEvent

Watch = Callable[[ImageEvent], None]
_GO_NAMES: Final[Mapping[str, str]] = {
    "x86_64": "amd64",
    "i686": "386",
    "aarch64": "arm64",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "loongarch64": "loong64",
}
"""Machines that Go calls otherwise; ppc64le, s390x and riscv64 are called the same."""
_RECORD_MAX: Final = 1 << 20


class ImportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an import is told beside its source.

    Args:
        ref: which image of a layout or archive; "" for the only one.
        platform: ``os/architecture[/variant]``; "" for this machine's.
        entrypoint, cmd, workdir, user: instead of what the image says; None leaves that. With an entrypoint alone,
            there are no further words.
        env, labels: beside what the image says.
    """

    ref: str = ""
    platform: str = ""
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: Mapping[str, str] = {}
    workdir: str | None = None
    user: str | None = None
    labels: Mapping[str, str] = {}

    def applied(self, config: ImageConfig) -> ImageConfig:
        """`config` with what was asked for."""
        cmd = self.cmd
        if cmd is None:
            cmd = config.cmd if self.entrypoint is None else ()
        return msgspec.structs.replace(
            config,
            entrypoint=config.entrypoint if self.entrypoint is None else self.entrypoint,
            cmd=cmd,
            env=tuple((dict(config.env) | dict(self.env)).items()) if self.env else config.env,
            workdir=config.workdir if self.workdir is None else self.workdir,
            user=config.user if self.user is None else self.user,
            labels=config.labels | dict(self.labels),
        )


def this_platform() -> str:
    """What images must be made for to run here, as Go has it."""
    kind = machine.machine()
    return f"linux/{_GO_NAMES.get(kind, kind)}"


class Importer:
    """One import under way.

    Args:
        watch: called with what happens, in the calling thread.
        progress: called about ten times a second with entries and bytes so far.
    """

    def __init__(
        self,
        catalog: Catalog,
        session: Session | LateSession,
        options: ImportOptions,
        *,
        watch: Watch | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self._catalog = catalog
        self._given = session
        self._asking = Asking(session)
        self._options = options
        self._platform = str(parse_platform(options.platform or this_platform()))
        self._watch = watch or (lambda _event: None)
        self._progress = progress
        self._entries = 0
        self._bytes = 0

    @property
    def _session(self) -> Session:
        return self._given if isinstance(self._given, Session) else self._given.session

    # -- what a source may be

    def directory(self, name: str, source: int) -> Image:
        """Import what is in the directory fd `source`."""
        found = recognise(os.listdir(source), Directory(source))
        if found is not None:
            return self.layout(name, found)
        self._refuse_choice()
        with self._catalog.staging() as staged:
            unpacked = self._session.unpack(source, staged.fd, kind="directory", progress=self._reporter("", source))
            self._dismiss()
            layer = self._catalog.add_layer(staged, unpacked.measured.layer())
        return self._plain(name, layer, unpacked)

    def archive(self, name: str, source: int) -> Image:
        """Import the archive that the fd `source` gives."""
        place = members.Place.of(source)
        there = members.recall(place, source)
        if there is not None and (known := recognise(there.at_root, there)) is not None:
            return self.layout(name, known)
        with self._catalog.staging() as staged:
            report = self._reporter("", source)
            unpacked = self._session.find_or_unpack(source, staged.fd, report)
            if isinstance(unpacked, Found):
                lying = self._where_it_lies(place, source, unpacked)
                if lying is not None:
                    return self.layout(name, lying)
                unpacked = self._session.unpack(source, staged.fd, kind="tar", progress=report)
            found = recognise(os.listdir(staged.fd), Directory(staged.fd))
            if found is not None:
                return self.layout(name, found)
            self._refuse_choice()
            self._dismiss()
            layer = self._catalog.add_layer(staged, unpacked.measured.layer())
        return self._plain(name, layer, unpacked)

    def _where_it_lies(self, place: members.Place | None, source: int, found: Found) -> Layout | DockerArchive | None:
        """What the archive `source` is, by what the child found in it; None when it is to be unpacked after all."""
        if place is None:
            raise members.lie("files in a pipe")
        there = members.Members(source, place.begin, found)
        members.remember(place, found)
        os.lseek(source, place.begin, os.SEEK_SET)  # the child has the same open file
        return recognise(there.at_root, there)

    def layout(self, name: str | None, source: Layout | DockerArchive) -> Image:
        """Import the image that the options mean."""
        if isinstance(source, DockerArchive):
            contents = source.choose(self._asking, self._options.ref)
        else:
            chosen = source.choose(self._asking, self._options.ref, self._platform)
            contents = self.contents(source, chosen)
        return self.image(name, source, contents)

    # -- the way from a descriptor to an image, for whoever has the blobs

    def contents(self, blobs: Blobs, chosen: Descriptor) -> Contents:
        """What the image at `chosen`, a manifest or an index for several machines, consists of."""
        for _ in range(model.DEPTH_MAX):
            if chosen.media_type in model.MANIFEST_TYPES:
                question = model.AskManifest(content=blobs.read(chosen), media_type=chosen.media_type)
                return self._asking.about(question, Contents)
            if chosen.media_type not in model.INDEX_TYPES:
                raise unsupported(
                    f"{chosen.media_type!r} is no image", "an index or a manifest of OCI or Docker is one"
                )
            index = model.AskIndex(content=blobs.read(chosen), platform=self._platform)
            chosen = self._asking.about(index, Descriptor)
        raise invalid(f"indexes are nested more than {model.DEPTH_MAX} deep")

    def image(self, name: str | None, blobs: Blobs, contents: Contents) -> Image:
        """Unpack what the store has not, and make the image; None gives it no name."""
        content = blobs.read(contents.config)
        question = model.AskConfig(content=content, layers=len(contents.layers), platform=self._platform)
        described = self._asking.about(question, Description)
        if (
            len(contents.layers) > model.LAYERS_MAX
        ):  # `survey` looks at it, too, but as one who may have been taken over
            raise invalid(f"the image has {len(contents.layers)} layers")
        if not contents.layers:
            raise unsupported("the image has no layers", "there is nothing in it that could run")
        stack: list[Layer] = []
        notes: list[str] = []
        chain = ""
        for number, (blob, diff_id) in enumerate(zip(contents.layers, described.diff_ids, strict=True), 1):
            chain = f"sha256:{_sha256(f'{chain} {diff_id}')}" if chain else diff_id
            known = self._catalog.known(f"chain:{chain}") or self._catalog.known(f"diff:{diff_id}")
            step = ImageEvent(
                kind="step", step=number, steps=len(contents.layers), text=f"layer {blob.digest or diff_id}"
            )
            self._watch(step)
            if known is None:
                known, said = self._layer(blobs, blob, f"layer {number}", stack, diff_id, chain)
                notes += [f"layer {number}: {note}" for note in said]
            else:
                self._watch(msgspec.structs.replace(step, kind="cached"))
            stack.append(known)
        self._dismiss()
        manifest = Manifest(
            config=self._options.applied(described.config),
            layers=tuple(stack),
            created=time.time(),
            history=described.history,
            architecture=described.platform.architecture,
            author=described.author,
            notes=tuple(notes),
        )
        return self._commit(name, manifest)

    def _layer(
        self, blobs: Blobs, blob: Descriptor, called: str, below: list[Layer], diff_id: str, chain: str
    ) -> tuple[Layer, tuple[str, ...]]:
        """Unpack one layer; with what was left out of it."""
        source = blobs.open(blob)
        base = -1
        try:
            if blob.size not in (-1, source.size):
                raise wrong_size(blob.digest or blob.path, blob.size, source.size)
            self._check_other_digest(source, blob)
            if below:
                base = view([self._catalog.layer_path(layer.digest) for layer in below], self._session.userns_fd)
            expect = Expect(
                digest=blob.digest if blob.digest.startswith("sha256:") else "",
                size=source.size if source.within else blob.size,
                within=source.within,
                diff_id=diff_id,
            )
            with self._catalog.staging() as staged:
                unpacked = self._session.unpack(
                    source.fd,
                    staged.fd,
                    kind="layer",
                    base_fd=base,
                    expect=expect,
                    progress=self._reporter(called, source.fd, source.size),
                )
                key = f"chain:{chain}" if unpacked.rooted else f"diff:{diff_id}"
                layer = self._catalog.add_layer(staged, unpacked.measured.layer(), [key])
        except AgentosError as error:
            raise _placed(error, called) from None
        finally:
            os.close(source.fd)
            if base >= 0:
                os.close(base)
        self._entries += layer.entries
        self._bytes += layer.size
        return layer, unpacked.notes

    def _check_other_digest(self, source: Opened, blob: Descriptor) -> None:
        """A digest that the unpacker does not verify on the way (sha512, which hardly anybody uses, and `members` does
        not take) is verified before; the diff id holds for what is read afterwards."""
        algorithm = blob.digest.partition(":")[0]
        if algorithm in ("", "sha256"):
            return
        with open(os.dup(source.fd), "rb") as file:
            found = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
        os.lseek(source.fd, 0, os.SEEK_SET)
        if found != blob.digest:
            raise AgentosError("digest-mismatch", "a blob is not what its digest says", f"{blob.digest} is {found}")

    # -- inside

    def _dismiss(self) -> None:
        """The worker is not needed any more: it ends while the store writes its records."""
        if isinstance(self._given, LateSession):
            self._given.dismiss()

    def _refuse_choice(self) -> None:
        if self._options.ref:
            raise AgentosError(
                "ref-not-found",
                f"no image {self._options.ref!r} in the source",
                hint="it is an ordinary tree; --ref chooses from an OCI layout or a docker save archive",
            )

    def _plain(self, name: str, layer: Layer, unpacked: Unpacked) -> Image:
        return self._commit(
            name,
            Manifest(
                config=self._options.applied(ImageConfig(cmd=DEFAULT_COMMAND)),
                layers=(layer,),
                created=time.time(),
                notes=unpacked.notes,
            ),
        )

    def _commit(self, name: str | None, manifest: Manifest) -> Image:
        size = len(msgspec.json.encode(manifest))
        if size > _RECORD_MAX:
            raise unsupported(
                f"the image's configuration and history have {size} bytes", f"{_RECORD_MAX} are kept of an image"
            )
        return self._catalog.commit(name, manifest)

    def _reporter(self, called: str, source: int, size: int = 0) -> ProgressCallback:
        """How far one unpacking is, by where its source is read: the worker has the same open file. `size`: bytes that
        are read of it, when that is known."""
        status = os.fstat(source)
        seekable = stat.S_ISREG(status.st_mode)
        total = size or (status.st_size if seekable else 0)
        start = os.lseek(source, 0, os.SEEK_CUR) if seekable else 0

        def report(so_far: Progress) -> None:
            if self._progress is not None:
                self._progress(Progress(self._entries + so_far.entries, self._bytes + so_far.bytes))
            done = os.lseek(source, 0, os.SEEK_CUR) - start if seekable else so_far.bytes
            self._watch(ImageEvent(kind="progress", what=called, done=done, total=total))

        return report


def import_image(
    catalog: Catalog,
    name: str,
    source: Path | BinaryIO,
    options: ImportOptions = ImportOptions(),  # noqa: B008 - immutable
    *,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    watch: Watch | None = None,
    progress: ProgressCallback | None = None,
) -> Image:
    """Import `source` (a path, or a stream that an archive comes out of) and call it `name`; see `Importer`.

    Raises:
        AgentosError: the store is as it was.
    """
    name = names.parse_name(name)
    with open_source(source) as (descriptor, directory), catalog.lease(), LateSession(limits) as session:
        importer = Importer(catalog, session, options, watch=watch, progress=progress)
        return importer.directory(name, descriptor) if directory else importer.archive(name, descriptor)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _placed(error: AgentosError, called: str) -> AgentosError:
    """`error` with the layer in which it happened."""
    where = f"{called}, {error.where}" if error.where else called
    return AgentosError(error.code, error.what, where, error.hint, details=error.details)
