"""What the tests of OCI images share: trees compared as other programs unpacked them, and layouts made by hand."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentos_native.images.oci import model

KEPT = ("user.", "security.capability")


def tool(*words: str | Path, cwd: Path | None = None) -> str:
    """Run a program that nobody here wrote; what it says."""
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Path → kind, mode, owner, content or target, attributes, and the other names of the same file."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, list[str]] = {}
    for directory, below, files in os.walk(root):
        for name in ["", *files, *(entry for entry in below if os.path.islink(os.path.join(directory, entry)))]:
            full = os.path.join(directory, name or ".")  # the root may be a link of /proc
            status = os.lstat(full)
            path = os.path.relpath(full, root)
            content: object = os.readlink(full) if stat.S_ISLNK(status.st_mode) else ""
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(full).read_bytes()).hexdigest()
                names.setdefault(status.st_ino, []).append(path)
            found[path] = (oct(status.st_mode), status.st_uid, status.st_gid, content, attributes(full))
    groups = {path: tuple(sorted(group)) for group in names.values() for path in group}
    return {path: (*said, groups.get(path)) for path, said in found.items()}


def attributes(path: str) -> dict[str, bytes]:
    """What an image keeps of a file's extended attributes; not of a link's, which has none of these."""
    if os.path.islink(path):
        return {}
    return {
        name: os.getxattr(path, name)
        for name in os.listxattr(path)
        if name.startswith(KEPT) and not name.startswith("user.overlay.")
    }


def layer(*entries: tuple[str, bytes | None], **fields: Any) -> bytes:
    """A tar of files and directories (None)."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.mode = 0o755
            info.size = len(data or b"")
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data or b""))
    return content.getvalue()


class Made:
    """An OCI layout made by hand, with whatever is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, content: bytes, media_type: str, algorithm: str = "sha256", **more: Any) -> dict[str, Any]:
        """A blob and its descriptor."""
        digits = hashlib.new(algorithm, content).hexdigest()
        home = self.path / "blobs" / algorithm
        home.mkdir(exist_ok=True)
        (home / digits).write_bytes(content)
        return {"mediaType": media_type, "digest": f"{algorithm}:{digits}", "size": len(content)} | more

    def document(self, content: object, media_type: str, **more: Any) -> dict[str, Any]:
        """A JSON document as a blob."""
        return self.blob(json.dumps(content).encode(), media_type, **more)

    def image(
        self,
        layers: Sequence[bytes],
        *,
        config: dict[str, Any] | None = None,
        diff_ids: Sequence[str] | None = None,
        architecture: str = "amd64",
        algorithm: str = "sha256",
        **more: Any,
    ) -> dict[str, Any]:
        """An image of gzipped layers; the descriptor of its manifest."""
        found = diff_ids or [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in layers]
        said = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": found},
        }
        blobs = [
            self.blob(gzip.compress(content, mtime=0), f"{model.LAYER}+gzip", algorithm=algorithm) for content in layers
        ]
        manifest = {"schemaVersion": 2, "config": self.document(said, model.CONFIG), "layers": blobs}
        return self.document(manifest, model.MANIFEST, **more)

    def index(self, *entries: dict[str, Any]) -> Path:
        """Write ``index.json``; the layout."""
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        return self.path


def blob_of(layout: Path, descriptor: dict[str, Any]) -> Path:
    """The file of a descriptor."""
    algorithm, _, digits = str(descriptor["digest"]).partition(":")
    return layout / "blobs" / algorithm / digits
