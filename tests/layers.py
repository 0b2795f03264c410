"""Layers made by hand, as the unpacker leaves them, and images of them put straight into a store."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any

from agentos_native.images.catalog import Catalog
from agentos_native.images.model import Image, ImageConfig, Layer, Manifest

WHITEOUT = os.makedev(0, 0)


def file(path: Path, content: str = "", mode: int = 0o644, owner: int = 0) -> None:
    """A file, with its parents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    os.chown(path, owner, owner)


def whiteout(path: Path) -> None:
    """What hides `path` of the layers below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, 0o600 | 0o020000, WHITEOUT)


def opaque(path: Path) -> None:
    """A directory that hides what the layers below have in it."""
    path.mkdir(parents=True, exist_ok=True)
    os.setxattr(path, "user.overlay.opaque", b"y")


class Stack:
    """Layers in a directory of their own, lowest first."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.paths: list[Path] = []
        home.mkdir()

    def layer(self) -> Path:
        """A new layer, on top."""
        path = self.home / f"{len(self.paths):064x}"
        path.mkdir(mode=0o755)
        self.paths.append(path)
        return path

    def image(self, **config: Any) -> Image:
        """All of it as an image that no store knows."""
        return Image(
            digest=f"sha256:{len(self.paths):064x}", name="stack", names=("stack",), created=0.0, size=0, entries=0,
            config=ImageConfig(**config), layers=tuple(self.paths),
        )  # fmt: skip

    def into(self, catalog: Catalog, name: str, below: Image | None = None, **config: Any) -> Image:
        """Move the layers into a store, on top of the image `below`; their digests are made up."""
        layers = list(below.stack) if below else []
        with catalog.lease():
            for path in self.paths:
                with catalog.staging() as staged:
                    staged.path.rmdir()
                    path.rename(staged.path)
                    layer = Layer(digest=f"sha256:{secrets.token_hex(32)}", size=0, entries=0)
                    layers.append(catalog.add_layer(staged, layer))
            self.paths = []
            manifest = Manifest(config=ImageConfig(**config), layers=tuple(layers), created=time.time())
            return catalog.commit(name, manifest)
