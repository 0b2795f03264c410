"""The HTTP API's bodies about images: see `wire.api` for how they are written.

Long work (a build, a pull, an import) answers with lines of JSON as it goes, each an `ImageEvent`; the last one is
``done`` with the image, or ``failed`` with the error.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

CACHE_KEPT: Final = 7 * 86400.0
"""Seconds for which `image gc` keeps a step of the build cache after its last use, unless it is told otherwise."""


class LayerBody(msgspec.Struct, kw_only=True):
    """One layer; `shared` by how many other images."""

    digest: str
    size: int
    entries: int
    shared: int = 0


class HistoryBody(msgspec.Struct, kw_only=True):
    """One step of an image's making; `layer` and `size` are those of the layer that it made, "" and 0 when none."""

    created_by: str = ""
    created: str = ""
    comment: str = ""
    layer: str = ""
    size: int = 0


class ImageBody(msgspec.Struct, kw_only=True):
    """One image. `size` is the sum over its layers; `own_size` is of the layers that no other image has, which going
    it would free, `shared_size` of the others. `type` is that of its agents unless they say another, "" when it says
    none."""

    digest: str
    name: str
    names: list[str] = msgspec.field(default_factory=list)
    created: float
    size: int
    entries: int
    own_size: int = 0
    shared_size: int = 0
    architecture: str = ""
    author: str = ""
    type: str = ""
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    layers: list[LayerBody] = msgspec.field(default_factory=list)
    history: list[HistoryBody] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)


class ImageList(msgspec.Struct, kw_only=True):
    images: list[ImageBody]


class TagRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A further name for an image."""

    name: str


class GcRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`older_than`: seconds since a step of the build cache was last used; None (null) takes all of the cache."""

    dry_run: bool = False
    older_than: float | None = CACHE_KEPT


class GcResult(msgspec.Struct, kw_only=True):
    """What is gone, or would be: images without a name, layers, steps of the build cache, directories that
    ``RUN --mount=type=cache`` keeps (`caches`); `bytes` in files; `notes` say why something stayed. `kept_steps` of the
    cache stay, and `kept_bytes` in files with them alone.
    """

    images: list[str]
    layers: list[str]
    steps: int
    bytes: int
    caches: int = 0
    kept_steps: int = 0
    kept_bytes: int = 0
    notes: list[str] = msgspec.field(default_factory=list)


class Finding(msgspec.Struct, kw_only=True):
    """One thing that `image verify` looked at; `problem` is "" when it is as it was made."""

    image: str
    layer: str
    problem: str = ""


class VerifyEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of a verification: ``finding`` for each record and layer, then ``done`` or ``failed``.

    Args:
        done, total: bytes in the files of layers that have been read, and of all.
    """

    kind: Literal["finding", "done", "failed"]
    finding: Finding | None = None
    done: int = 0
    total: int = 0
    error: dict[str, Any] | None = None


class ChangeBody(msgspec.Struct, kw_only=True):
    """A path in which two images differ: A added, C changed, D deleted."""

    kind: Literal["A", "C", "D"]
    path: str


class DiffResult(msgspec.Struct, kw_only=True):
    """In the order of paths; `truncated` when there are more than an answer holds."""

    changes: list[ChangeBody]
    truncated: bool = False


class BuildRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`context` and `file` are paths that the supervisor reads.

    Args:
        context: absolute, of a directory or of a tar of one (compressed perhaps), which a confined worker unpacks.
        file: absolute, or below the context; "" means its ``Dockerfile``.
        args: ARG name → value.
        target: the stage to build; "" the last.
        network: of RUN, "none" or "egress".
        keep_failed: keep the state of a failing RUN as an image without a name, for ``--debug-shell``.
        cpu_limit, memory_limit: of each RUN, as in a spec ("2", "1Gi"); "" none.
    """

    context: str
    file: str = ""
    names: list[str] = msgspec.field(default_factory=list)
    args: dict[str, str] = msgspec.field(default_factory=dict)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    target: str = ""
    network: Literal["none", "egress"] = "none"
    no_cache: bool = False
    keep_failed: bool = False
    tenant: str = "default"
    cpu_limit: str = ""
    memory_limit: str = ""


class PullRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`reference`: ``host[:port]/path[:tag][@sha256:…]``; `name` is what the image is called here, "" the reference.

    Args:
        plain_http: no TLS.
        verify_tls: false accepts any certificate.
        ca_file: absolute path of further certificates to trust, read by the supervisor.
        platform: ``linux/architecture[/variant]``; "" for this machine's.
        token_host: a further host that may be given the password, as the registry's token server.
    """

    reference: str
    name: str = ""
    username: str = ""
    password: str = ""
    plain_http: bool = False
    verify_tls: bool = True
    ca_file: str = ""
    platform: str = ""
    token_host: str = ""

    def __repr__(self) -> str:
        """Without the password: what is printed may be kept."""
        return f"PullRequest(reference={self.reference!r}, name={self.name!r}, username={self.username!r})"


class ImportSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an import is told beside its source, as JSON in the query parameter ``options``.

    Args:
        ref: which image of a layout or archive; "" for the only one.
        platform: ``os/architecture[/variant]``; "" for the supervisor's machine.
        entrypoint, cmd, workdir, user: instead of what the image says; None leaves that.
        env, labels: beside what the image says.
    """

    ref: str = ""
    platform: str = ""
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class ImageEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of progress.

    Args:
        kind: ``step`` (a step of a build begins), ``cached`` (it need not be done), ``log`` (a line of its output),
            ``progress`` (`done` of `total` bytes of `what`; total 0 when unknown), ``note``, then ``done`` or
            ``failed``.
        step, steps: number of this step and of all.
        line: of the Dockerfile.
        text: the instruction, the line of output or the note.
        failed_image: with ``failed``: the image that a debug shell can look around in (`BuildRequest.keep_failed`).
        shell: with `failed_image`: the command that failed.
    """

    kind: Literal["step", "cached", "log", "progress", "note", "done", "failed"]
    step: int = 0
    steps: int = 0
    line: int = 0
    text: str = ""
    stream: Literal["stdout", "stderr"] = "stdout"
    what: str = ""
    done: int = 0
    total: int = 0
    image: ImageBody | None = None
    error: dict[str, Any] | None = None
    failed_image: str = ""
    shell: list[str] = msgspec.field(default_factory=list)
