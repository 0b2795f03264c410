"""The JSON documents of a layout and of a ``docker save`` archive, as they are written: only `survey` decodes them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Header(msgspec.Struct, frozen=True, rename="camel"):
    """``oci-layout``."""

    image_layout_version: str


class Platform(msgspec.Struct, frozen=True):
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: str
    size: _Size
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str | None = None


class Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: list[Descriptor]
    schema_version: int = 2
    media_type: str | None = None
    layers: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    config: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    config: Descriptor
    layers: list[Descriptor]
    schema_version: int = 2
    media_type: str | None = None
    artifact_type: str | None = None
    manifests: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Healthcheck(msgspec.Struct, frozen=True, rename="pascal"):
    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    retries: int = 0


class Settings(msgspec.Struct, frozen=True, rename="pascal"):
    """``config`` of a config; Go writes null for what is empty."""

    user: str | None = None
    exposed_ports: dict[str, Any] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    healthcheck: Healthcheck | None = None
    shell: list[str] | None = None
    on_build: list[str] | None = None


class RootFs(msgspec.Struct, frozen=True):
    type: str
    diff_ids: list[str] | None = None


class History(msgspec.Struct, frozen=True):
    created: str | None = None
    created_by: str | None = None
    comment: str | None = None
    author: str | None = None
    empty_layer: bool | None = None


class Config(msgspec.Struct, frozen=True):
    rootfs: RootFs
    architecture: str | None = None
    os: str | None = None
    variant: str | None = None
    author: str | None = None
    config: Settings | None = None
    history: list[History] | None = None


class Saved(msgspec.Struct, frozen=True, rename="pascal"):
    """One image of a ``manifest.json``."""

    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None
