"""What an OCI layout or a ``docker save`` archive says, typed; and what the confined `survey` is asked and answers.

The words are those of the OCI image specification (descriptor, index, manifest, config, diff id); Docker's schema 2
has the same shapes under other media types.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from agentos_native.images.model import History, ImageConfig

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

INDEX_TYPES: Final = frozenset({INDEX, DOCKER_INDEX})
MANIFEST_TYPES: Final = frozenset({MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({CONFIG, DOCKER_CONFIG})
LAYER_TYPES: Final = frozenset(
    {LAYER, f"{LAYER}+gzip", f"{LAYER}+zstd", DOCKER_LAYER, f"{DOCKER_LAYER}.gzip", f"{DOCKER_LAYER}.zstd"}
)

REF_NAME: Final = "org.opencontainers.image.ref.name"
CONTAINERD_NAME: Final = "io.containerd.image.name"
"""The full name that Docker writes beside `REF_NAME`, which then holds the tag only."""
REFERENCE_TYPE: Final = "vnd.docker.reference.type"
"""On what BuildKit attaches to an image (``attestation-manifest``): no image, whatever its media type says."""

DOCUMENT_MAX: Final = 4 << 20
"""Bytes of an index, manifest or config: what registries agree to take at least, and hardly any takes more."""
LAYERS_MAX: Final = 499
"""Layers of an image: overlayfs stacks 500 (OVL_MAX_STACK), one of which are the files of an agent whose root is
read-only.
"""
DEPTH_MAX: Final = 4
"""Indexes inside indexes."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def is_digest(text: str) -> bool:
    """Whether `text` is a digest of an algorithm that is verified here; such a text is also safe in a path."""
    return _DIGEST.fullmatch(text) is not None


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is for, as Go has it: ``linux``, ``arm``, ``v7``; "" where nobody said."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A blob: what it is, its digest and its size in bytes (both to be verified by whoever reads it).

    `path` names the file in a ``docker save`` archive, whose blobs are not at their digests; `digest` is "" and `size`
    -1 where it says nothing of them.
    """

    media_type: str
    digest: str
    size: int
    path: str = ""


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What an image manifest leads to: layers lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What an image config says. `diff_ids` are the digests of the layers' plain tars, lowest first."""

    config: ImageConfig
    platform: Platform
    diff_ids: tuple[str, ...]
    history: tuple[History, ...] = ()
    author: str = ""


# -- what `survey` is asked; each question has one document


class AskIndex(msgspec.Struct, frozen=True, kw_only=True, tag="index"):
    """Which entry of an index is meant? → `Descriptor` of an index or manifest.

    Args:
        content: the document.
        platform: ``os/architecture[/variant]``.
        ref: a name or digest in a layout; "" for the only image there is.
        layout: of a layout's ``index.json``, its ``oci-layout``; its entries are different images, not one for several
            machines.
    """

    content: bytes
    platform: str
    ref: str = ""
    layout: bytes = b""


class AskManifest(msgspec.Struct, frozen=True, kw_only=True, tag="manifest"):
    """What does a manifest lead to? → `Contents`. `media_type`: as whoever named the manifest called it."""

    content: bytes
    media_type: str = ""


class AskConfig(msgspec.Struct, frozen=True, kw_only=True, tag="config"):
    """What does a config say? → `Description`. `layers`: how many the manifest has."""

    content: bytes
    layers: int
    platform: str


class AskDocker(msgspec.Struct, frozen=True, kw_only=True, tag="docker"):
    """What does ``manifest.json`` of a ``docker save`` archive lead to? → `Contents`."""

    content: bytes
    ref: str = ""


Question = AskIndex | AskManifest | AskConfig | AskDocker
