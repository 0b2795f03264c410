"""The image store: what the rest of the program asks of images. What is on disk is in `catalog`."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from agentos_native.images import rootfs
from agentos_native.images.catalog import Catalog
from agentos_native.images.diff import Change, diff
from agentos_native.images.gc import Freed, InUse
from agentos_native.images.model import Image, Limits
from agentos_native.images.oci.exporting import ExportOptions, export_image
from agentos_native.images.oci.importing import ImportOptions, Watch, import_image
from agentos_native.images.session import ProgressCallback, Session
from agentos_native.images.verify import Finding, Verification
from agentos_native.wire.images import CACHE_KEPT


class ImageStore:
    """The images below a state directory, which must be on a filesystem that supports idmapped mounts. Thread-safe."""

    def __init__(self, state: Path) -> None:
        self.path = state / "images"
        self.catalog = Catalog(self.path)

    def get(self, ref: str) -> Image:
        """See `Catalog.peek`."""
        return self.catalog.peek(ref)

    def list(self) -> list[Image]:
        """See `Catalog.list`."""
        return self.catalog.list()

    def inspect(self, ref: str) -> dict[str, object]:
        """See `Catalog.inspect`."""
        return self.catalog.inspect(ref)

    def sharing(self) -> dict[str, int]:
        """See `Catalog.sharing`."""
        return self.catalog.sharing()

    def tag(self, ref: str, name: str) -> Image:
        """See `Catalog.tag`."""
        return self.catalog.tag(ref, name)

    def remove(self, ref: str, in_use: InUse = ()) -> builtins.list[str]:
        """See `Catalog.remove`."""
        return self.catalog.remove(ref, in_use)

    def gc(self, in_use: InUse = (), *, dry_run: bool = False, older_than: float | None = CACHE_KEPT) -> Freed:
        """See `Catalog.gc`."""
        return self.catalog.gc(in_use, dry_run=dry_run, older_than=older_than)

    def verify(
        self, ref: str | None = None, report: Callable[[Finding, int, int], None] = lambda *_: None
    ) -> builtins.list[Finding]:
        """Read an image, or everything in the store, and compare it with what it was.

        Args:
            report: called with each finding, and how many bytes of how many have been read.

        Raises:
            AgentosError: ``image-not-found``, ``import-not-confined``.
        """
        findings = []
        with Session() as session:
            verification = Verification(self.catalog, session.measure)
            for finding in verification.run(ref):
                findings.append(finding)
                report(finding, verification.done, verification.total)
        return findings

    def diff(self, ref: str, against: str | None = None, limit: int | None = None) -> builtins.list[Change]:
        """What `ref` changes of the image `against`; None: what its top layer changes of those below it. At most
        `limit` changes, in no order."""
        with self.catalog.lease():
            image = self.catalog.get(ref)
            before = image.layers[:-1] if against is None else self.catalog.get(against).layers
            return [*itertools.islice(diff(before, image.layers), limit)]

    def recover(self) -> builtins.list[str]:
        """See `Catalog.recover`."""
        return self.catalog.recover()

    def import_(
        self,
        name: str,
        source: Path | BinaryIO,
        progress: ProgressCallback | None = None,
        *,
        options: ImportOptions = ImportOptions(),  # noqa: B008 - immutable
        limits: Limits = Limits(),  # noqa: B008 - immutable
        watch: Watch | None = None,
    ) -> Image:
        """Unpack a directory, a tar (plain, gzip, xz, zstd; a pipe will do), an OCI layout or a ``docker save`` archive
        and call it `name`.

        Blocks until it is on disk. An earlier image of that name stays in the store, by digest, for those who use it.

        Args:
            progress: called about ten times a second with entries and bytes so far, in the calling thread.
            watch: called with what happens, in the calling thread.

        Raises:
            AgentosError: the store is as it was.
        """
        return import_image(self.catalog, name, source, options, limits=limits, watch=watch, progress=progress)

    def export(self, ref: str, out: int, options: ExportOptions = ExportOptions()) -> None:  # noqa: B008 - immutable
        """Write an image to the fd `out`; see `oci.exporting.export_image`."""
        export_image(self.catalog, ref, out, options)

    # -- agents' root filesystems: see `rootfs`

    def prepare(self, image: Image, agent_dir: Path, id_base: int, files: Mapping[str, bytes]) -> None:
        """Make the agent's private layer; see `rootfs.prepare`."""
        rootfs.prepare(image, agent_dir, id_base, files)

    def mount(
        self,
        image: Image,
        agent_dir: Path,
        userns_fd: int,
        read_only: bool = False,
        *,
        workdir: rootfs.Workdir | None = None,
    ) -> int:
        """A detached mount of the image with the agent's private layer; see `rootfs.mount`."""
        return rootfs.mount(image, agent_dir, userns_fd, read_only, workdir=workdir)

    def release(self, agent_dir: Path) -> None:
        """Remove the agent's private layer; see `rootfs.release`."""
        rootfs.release(agent_dir)
