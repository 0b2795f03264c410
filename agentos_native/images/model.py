"""What the store keeps of an image, and the limits of an import. Sizes in bytes, times in seconds since the epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:  # a worker's start has no time for what it does not use
    from pathlib import Path

DEFAULT_COMMAND: Final = ("/bin/sh",)
"""What runs in an image that names no command of its own: a directory and a plain tar carry no configuration."""


class Healthcheck(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """HEALTHCHECK of an image, kept and exported; `test` as Docker writes it (``NONE``, ``CMD`` …, ``CMD-SHELL`` …).

    Times in nanoseconds, as in the image's own configuration; 0 for the default.
    """

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    retries: int = 0


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a program of the image is started; the words are OCI's.

    `env` holds name and value pairs in order; `user` is as in ``--user`` and is looked up in the image by
    `resolve_user`; `shell` is what a build runs a shell form with.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    workdir: str = "/"
    labels: dict[str, str] = {}
    exposed: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck: Healthcheck | None = None
    shell: tuple[str, ...] = ()
    on_build: tuple[str, ...] = ()


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step that an image was made by, OCI's words; `created` is RFC 3339, `empty` means that it made no layer."""

    created_by: str = ""
    created: str = ""
    comment: str = ""
    author: str = ""
    empty: bool = False


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A tree in the store: its digest (see `unpack.digest`), the bytes in its files (hard links once), its entries."""

    digest: str
    size: int
    entries: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one image in the store, ``manifests/<hex>.json``.

    The image's digest is taken over `config` and the digests of `layers` only (see `store.manifest_digest`), so that
    the same tree imported twice is the same image; the other fields describe it.

    Args:
        layers: lowest first.
        history: oldest first; its steps that are not `empty` belong to `layers`, in order.
        architecture: as OCI has it ("amd64"); "" where nobody said.
        notes: what the import left out, in words.
    """

    config: ImageConfig
    layers: tuple[Layer, ...]
    created: float
    history: tuple[History, ...] = ()
    architecture: str = ""
    author: str = ""
    notes: tuple[str, ...] = ()


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image as the rest of the program sees it.

    `name` is the name that it was asked for by ("" for a digest); `names` are all that point to it; `layers` are the
    unpacked trees, lowest first, which nobody may write to, and `stack` what the store knows of each of them. `size`
    and `entries` are sums over the stack.
    """

    digest: str
    name: str
    names: tuple[str, ...]
    created: float
    size: int
    entries: int
    config: ImageConfig
    layers: tuple[Path, ...]
    stack: tuple[Layer, ...] = ()
    history: tuple[History, ...] = ()
    architecture: str = ""
    author: str = ""
    notes: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one import may use. `ratio`: decompressed to compressed bytes, once more than `ratio_from` bytes have come
    out.

    A root filesystem compresses to between a third and a tenth; 200 to 1 is only reached by an archive made to fill a
    disk. `idle_seconds`: how long a pipe may give nothing; `wall_seconds`: how long one archive or directory may take.
    """

    entries: int = 1_000_000
    bytes: int = 64 << 30
    path: int = 4095
    name: int = 255
    depth: int = 256
    xattr_bytes: int = 64 << 10
    ratio: int = 200
    ratio_from: int = 256 << 20
    cpu_seconds: int = 1800
    wall_seconds: float = 6 * 3600
    idle_seconds: float = 900
    memory: int = 1 << 30
