"""What the two sides of a pull say to each other. Sizes in bytes, times in seconds."""

from __future__ import annotations

from typing import Final

import msgspec

from agentos_native.images.registry.proxy import Proxies

MESSAGE_MAX: Final = 1 << 20
"""Bytes of one message: a `Plan` of as many layers as there may be has less than a tenth of it."""


class PullLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one pull may use.

    Args:
        connect: for each address that is tried.
        head: from the beginning of a request to the end of its answer's headers, TLS included.
        quiet: without one byte of the body.
        rate, window: bytes a second that a body must bring on average over each `window` seconds.
        total: for the whole pull.
        attempts: tries of one blob in a row; one that brought `progress` bytes begins a new row.
        backoff: before the second attempt, doubled before each further one, up to `backoff_max`.
        document: bytes of a manifest, an index or a configuration; `token` of a token server's answer.
    """

    connect: float = 15.0
    head: float = 30.0
    quiet: float = 30.0
    rate: int = 1024
    window: float = 20.0
    total: float = 6 * 3600.0
    attempts: int = 5
    progress: int = 1 << 20
    backoff: float = 0.5
    backoff_max: float = 8.0
    redirects: int = 5
    document: int = 4 << 20
    token: int = 64 << 10
    layers: int = 499
    bytes: int = 64 << 30
    parallel: int = 3
    memory: int = 1 << 30
    cpu_seconds: int = 3600


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How a registry is spoken to. `ca` is PEM text; `token_host` a further host that may be given the password."""

    username: str = ""
    password: str = ""
    plain_http: bool = False
    verify_tls: bool = True
    ca: str = ""
    token_host: str = ""
    proxies: Proxies = Proxies()

    def __repr__(self) -> str:
        """Without the password: what is printed may be kept."""
        return f"Access(username={self.username!r}, plain_http={self.plain_http}, verify_tls={self.verify_tls})"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image is in a registry: `name` is the canonical reference, `target` its digest or else its tag."""

    name: str
    host: str
    port: int | None
    path: str
    target: str


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """What a fetcher is to do; read from a memory file, because it holds a password.

    Args:
        platform: ``os/architecture[/variant]``, chosen from an index.
        parent: the pid without which the fetcher does not live.
    """

    place: Place
    access: Access
    limits: PullLimits
    platform: str
    parent: int = 0


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A blob as a manifest names it, its digest well-formed."""

    digest: str
    size: int


class Plan(msgspec.Struct, frozen=True, kw_only=True, tag="plan"):
    """From the fetcher: what there is; it waits for a `Choice`.

    `manifest` is that of the image for the platform; `diff_ids` are those of `layers`, lowest first.
    """

    manifest: Blob
    layers: tuple[Blob, ...]
    diff_ids: tuple[str, ...]


class Advance(msgspec.Struct, frozen=True, tag="advance"):
    """From the fetcher: `done` bytes of `total` are here; `resumed` of them were before this pull."""

    done: int
    total: int
    resumed: int = 0


class Remark(msgspec.Struct, frozen=True, tag="remark"):
    """From the fetcher: something that a user wants to know while it goes on."""

    text: str


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """From the fetcher, its last word: `AgentosError.to_dict`; `resumable` when another pull may get further."""

    error: dict[str, object]
    resumable: bool = False


class Complete(msgspec.Struct, frozen=True, tag="complete"):
    """From the fetcher, its last word: all that was chosen is in the directory, verified."""

    fetched: int


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """To the fetcher: the layers, by index, that the store has not."""

    wanted: tuple[int, ...]


Message = Plan | Advance | Remark | Broken | Complete
