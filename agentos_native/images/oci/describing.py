"""The JSON documents of an image that leaves the store: pure functions of the image, the same bytes each time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from agentos_native.images.model import History, ImageConfig
from agentos_native.images.oci import model

LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """A layer in the archive: its blob, and the digest of the plain tar."""

    media_type: str
    digest: str
    size: int
    diff_id: str

    def path(self, form: str) -> str:
        """Where it is in an archive of the format `form`."""
        if form == "oci":
            return _blob_path(self.digest)
        return self.diff_id.removeprefix("sha256:") + ".tar"


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """An image whose layers are packed."""

    config: ImageConfig
    history: tuple[History, ...]
    architecture: str
    author: str
    layers: tuple[Packed, ...]

    def documents(self, ref: str) -> Iterator[tuple[str, bytes]]:
        """Path and content of the config, the manifest and the index of an OCI layout; `ref` is the tag, "" none."""
        config = _encode(self._config())
        yield _blob_path(_digest(config)), config
        manifest = _encode(
            {
                "schemaVersion": 2,
                "mediaType": model.MANIFEST,
                "config": _descriptor(model.CONFIG, _digest(config), len(config)),
                "layers": [_descriptor(layer.media_type, layer.digest, layer.size) for layer in self.layers],
            }
        )
        yield _blob_path(_digest(manifest)), manifest
        entry = _descriptor(model.MANIFEST, _digest(manifest), len(manifest))
        entry["platform"] = {"architecture": self.architecture, "os": "linux"}
        if ref:
            entry["annotations"] = {model.REF_NAME: ref}
        yield "index.json", _encode({"schemaVersion": 2, "mediaType": model.INDEX, "manifests": [entry]})

    def docker_documents(self, ref: str) -> Iterator[tuple[str, bytes]]:
        """Path and content of the config and ``manifest.json`` of a ``docker save`` archive; `ref` is a whole name."""
        config = _encode(self._config())
        name = _digest(config).removeprefix("sha256:") + ".json"
        yield name, config
        image = {
            "Config": name,
            "RepoTags": [ref] if ref else None,
            "Layers": [layer.path("docker") for layer in self.layers],
        }
        yield "manifest.json", _encode([image])

    def _config(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "architecture": self.architecture,
            "os": "linux",
            "config": _settings(self.config),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
        }
        if self.author:
            found["author"] = self.author
        if self.history:
            found["history"] = [_step(step) for step in self.history]
            found["created"] = next((step.created for step in reversed(self.history) if step.created), "")
        return {key: value for key, value in found.items() if value != ""}


def _settings(config: ImageConfig) -> dict[str, Any]:
    """``config`` of an image config, with Docker's additions (Healthcheck, Shell, OnBuild), which others skip."""
    health = config.healthcheck
    said: dict[str, Any] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed},
        "Env": [f"{name}={value}" for name, value in config.env],
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "Volumes": {path: {} for path in config.volumes},
        "WorkingDir": config.workdir,
        "Labels": config.labels,
        "StopSignal": config.stop_signal,
        "Healthcheck": None if health is None else _filled(_pascal(msgspec.to_builtins(health))),
        "Shell": config.shell,
        "OnBuild": config.on_build,
    }
    return _filled(said)


def _pascal(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"".join(map(str.capitalize, name.split("_"))): value for name, value in fields.items()}


_UNDATED: Final = "1970-01-01T00:00:00Z"
"""Of a step that does not say when: `created` is optional in the format, but umoci 0.4.7 ends without it."""


def _step(step: History) -> dict[str, Any]:
    return _filled(
        {
            "created": step.created or _UNDATED,
            "created_by": step.created_by,
            "author": step.author,
            "comment": step.comment,
            "empty_layer": step.empty,
        }
    )


def _filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is empty, as Go leaves it out."""
    return {name: value for name, value in fields.items() if value}


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _encode(document: object) -> bytes:
    return msgspec.json.encode(document, order="sorted")


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"
