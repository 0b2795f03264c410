"""Images: unpacked root filesystems, known by digest, mounted as file descriptors.

`ImageStore` imports and keeps them, and gives an agent its root filesystem; `resolve_user` looks a user up in one;
`volume_mount` is the same kind of mount for a directory of the host. See `store` for what is on disk and `worker` for
how untrusted archives are unpacked.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentos_native.images.model import Image, ImageConfig, Limits
    from agentos_native.images.store import ImageStore
    from agentos_native.images.unpack.messages import Progress
    from agentos_native.images.users import resolve_user
    from agentos_native.images.volume import volume_mount

__all__ = ["Image", "ImageConfig", "ImageStore", "Limits", "Progress", "resolve_user", "volume_mount"]

_PLACES = {
    "Image": "model",
    "ImageConfig": "model",
    "ImageStore": "store",
    "Limits": "model",
    "Progress": "unpack.messages",
    "resolve_user": "users",
    "volume_mount": "volume",
}


def __getattr__(name: str) -> object:
    """Import what is asked for (PEP 562): the worker of an import is in this package, and needs hardly any of it."""
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{place}"), name)
