"""The image store: what the rest of the program asks of images. What is on disk is in `catalog`."""

from __future__ import annotations

import builtins
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from agentos_native.images import names, rootfs
from agentos_native.images.catalog import Catalog
from agentos_native.images.model import DEFAULT_COMMAND, Image, ImageConfig, Layer, Limits, Manifest
from agentos_native.images.session import ProgressCallback, new_job, open_source, run_worker


class ImageStore:
    """The images below a state directory, which must be on a filesystem that supports idmapped mounts. Thread-safe."""

    def __init__(self, state: Path) -> None:
        self.path = state / "images"
        self.catalog = Catalog(self.path)

    def get(self, ref: str) -> Image:
        """See `Catalog.get`."""
        return self.catalog.get(ref)

    def list(self) -> list[Image]:
        """See `Catalog.list`."""
        return self.catalog.list()

    def inspect(self, ref: str) -> dict[str, object]:
        """See `Catalog.inspect`."""
        return self.catalog.inspect(ref)

    def remove(self, ref: str, in_use: Collection[str] = ()) -> builtins.list[str]:
        """See `Catalog.remove`."""
        return self.catalog.remove(ref, in_use)

    def recover(self) -> builtins.list[str]:
        """See `Catalog.recover`."""
        return self.catalog.recover()

    def import_(
        self,
        name: str,
        source: Path | BinaryIO,
        progress: ProgressCallback | None = None,
        *,
        entrypoint: Sequence[str] = (),
        cmd: Sequence[str] = DEFAULT_COMMAND,
        env: Mapping[str, str] | None = None,
        workdir: str = "/",
        user: str = "",
        labels: Mapping[str, str] | None = None,
        limits: Limits = Limits(),  # noqa: B008 - immutable
    ) -> Image:
        """Unpack a directory or a tar (plain, gzip, xz, zstd; a pipe will do) and call it `name`.

        Blocks until it is on disk. An earlier image of that name stays in the store, by digest, for those who use it.

        Args:
            progress: called about ten times a second with entries and bytes so far, in the calling thread.
            entrypoint, cmd, env, workdir, user, labels: what neither a directory nor a plain tar says about itself.

        Raises:
            AgentosError: the store is as it was.
        """
        name = names.parse_name(name)
        config = ImageConfig(
            entrypoint=tuple(entrypoint),
            cmd=tuple(cmd),
            env=tuple((env or {}).items()),
            workdir=workdir,
            user=user,
            labels=dict(labels or {}),
        )
        with open_source(source) as (descriptor, directory), self.catalog.staging() as staged:
            measured, notes = run_worker(new_job(descriptor, directory, staged.fd, limits), progress)
            layer = Layer(digest=measured.digest, size=measured.size, entries=measured.entries)
            self.catalog.add_layer(staged, layer)
            manifest = Manifest(config=config, layers=(layer,), created=time.time(), notes=notes)
            return self.catalog.commit(name, manifest)

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
