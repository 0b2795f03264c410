"""Reading the JSON of images that strangers made: bytes to typed answers, nothing opened and nothing fetched.

`survey` runs in the unprivileged child of a `Session` (``session.ask("oci-survey", …)``). What it answers are names,
digests and sizes that the asking side checks again where it uses them: a digest when a blob is read, a name by how it
is opened.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.model import Healthcheck, History, ImageConfig
from agentos_native.images.oci import documents, model
from agentos_native.images.oci.model import Contents, Description, Descriptor, Platform

T = TypeVar("T")
_LISTED: Final = 20


# -- the task


def survey(request: bytes) -> bytes:
    """Answer one `model.Question`; both sides in MessagePack, for documents are bytes.

    Raises:
        AgentosError: ``invalid-layout`` (what is written makes no sense), ``unsupported-layout`` (it does, but not
            here), ``platform-not-found``, ``ref-not-found``, ``ambiguous-ref``.
    """
    question = msgspec.msgpack.decode(request, type=model.Question)
    answer: msgspec.Struct
    if isinstance(question, model.AskIndex):
        answer = _choose(question)
    elif isinstance(question, model.AskManifest):
        answer = _contents(question)
    elif isinstance(question, model.AskConfig):
        answer = _description(question)
    else:
        answer = _saved(question)
    return msgspec.msgpack.encode(answer)


def invalid(what: str, where: str = "") -> AgentosError:
    """The layout contradicts the specification or itself."""
    return AgentosError("invalid-layout", what, where, "nothing of it was kept; was it changed or cut off on its way?")


def unsupported(what: str, hint: str) -> AgentosError:
    """The layout asks for what this project does not do."""
    return AgentosError("unsupported-layout", what, hint=hint)


def _parse(content: bytes, kind: type[T], called: str) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise invalid(f"the {called} cannot be understood: {error}") from None


# -- indexes


def _choose(question: model.AskIndex) -> Descriptor:
    if question.layout:
        version = _parse(question.layout, documents.Header, "oci-layout").image_layout_version
        if version.split(".")[0] != "1":
            raise unsupported(f"a layout of version {_quoted(version)}", "version 1 is read")
    index = _parse(question.content, documents.Index, "index")
    if index.schema_version != 2:
        raise unsupported(f"an index of schema version {index.schema_version}", "schema version 2 is read")
    if index.layers is not msgspec.UNSET or index.config is not msgspec.UNSET:
        raise invalid("a document is index and manifest at once")  # CVE-2021-41190: each reader would see another image
    if index.media_type and index.media_type not in model.INDEX_TYPES:
        raise invalid(f"the index calls itself {_quoted(index.media_type)}")
    images = [entry for entry in index.manifests if _is_image(entry)]
    if not images:
        raise AgentosError("platform-not-found", "there is no image in the index", _kinds(index.manifests))
    if question.ref and question.layout:
        images = _named(images, question.ref)
    elif question.layout:
        _check_one(images)
    return _for_platform(images, question.platform)


def _is_image(entry: documents.Descriptor) -> bool:
    annotations = entry.annotations or {}
    if model.REFERENCE_TYPE in annotations or entry.artifact_type:
        return False
    if entry.platform is not None and entry.platform.os == entry.platform.architecture == "unknown":
        return False
    return entry.media_type in model.INDEX_TYPES | model.MANIFEST_TYPES


def _kinds(entries: Iterable[documents.Descriptor]) -> str:
    return ", ".join(sorted({_quoted(entry.media_type) for entry in entries})[:_LISTED]) or "it is empty"


def _names(entry: documents.Descriptor) -> list[str]:
    """What an image of a layout is called: by most tools its tag or whole name, by Docker both."""
    annotations = entry.annotations or {}
    return [annotations[key] for key in (model.CONTAINERD_NAME, model.REF_NAME) if annotations.get(key)]


def _named(images: Sequence[documents.Descriptor], ref: str) -> list[documents.Descriptor]:
    found = [entry for entry in images if ref in (entry.digest, *_names(entry))]
    if not found:
        raise AgentosError(
            "ref-not-found", f"no image {_quoted(ref)} in the layout", hint=f"there are: {_list(images)}"
        )
    return found


def _check_one(images: Sequence[documents.Descriptor]) -> None:
    """Several entries are one image when they have one name and differ in what they are for."""
    names = {tuple(_names(entry)) for entry in images}
    platforms = [_platform(entry) for entry in images]
    if len(images) > 1 and (len(names) > 1 or len(set(platforms)) < len(platforms)):
        raise AgentosError(
            "ambiguous-ref",
            f"the layout holds {len(images)} images",
            hint=f"choose one with --ref: {_list(images)}",
        )


def _list(images: Sequence[documents.Descriptor]) -> str:
    shown = [_quoted((_names(entry) or [entry.digest])[0]) for entry in images[:_LISTED]]
    return ", ".join(shown) + (f" and {len(images) - _LISTED} more" if len(images) > _LISTED else "")


def _platform(entry: documents.Descriptor) -> Platform:
    said = entry.platform or documents.Platform()
    return Platform(os=said.os or "", architecture=said.architecture or "", variant=said.variant or "")


def _for_platform(images: Sequence[documents.Descriptor], wanted: str) -> Descriptor:
    want = parse_platform(wanted)
    ranked = sorted(
        ((rank, number) for number, entry in enumerate(images) if (rank := suits(_platform(entry), want)) is not None)
    )
    if not ranked:
        there = ", ".join(_quoted(str(_platform(entry))) for entry in images[:_LISTED])
        raise AgentosError(
            "platform-not-found",
            f"the image is not made for {want}",
            hint=f"it is there for {there}; --platform takes one of them",
        )
    entry = images[ranked[0][1]]
    return _descriptor(entry, "an image in the index")


def parse_platform(text: str) -> Platform:
    """``os/architecture[/variant]`` as a `Platform`.

    Raises:
        AgentosError: ``invalid-platform``.
    """
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(part.isascii() and part.isprintable() and part for part in parts):
        raise AgentosError("invalid-platform", f"{_quoted(text)} is not a platform", hint="os/architecture[/variant]")
    return Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else "")


_ARM_VARIANTS: Final = ("v5", "v6", "v7", "v8")
_PLAIN_VARIANTS: Final[Mapping[str, frozenset[str]]] = {"arm64": frozenset({"", "v8"}), "amd64": frozenset({"", "v1"})}
"""Variants that every processor of the architecture has."""


def suits(there: Platform, want: Platform) -> int | None:
    """How well an image for `there` suits a machine that is `want`: 0 best, None not at all.

    An image that says nothing of its platform is taken last; its config has the last word.
    """
    if not there.architecture:
        return 100
    if (there.os or want.os, there.architecture) != (want.os, want.architecture):
        return None
    if there.variant == want.variant:
        return 0
    if want.architecture == "arm":
        return _suits_arm(there.variant, want.variant)
    return 1 if there.variant in _PLAIN_VARIANTS.get(want.architecture, frozenset({""})) else None


def _suits_arm(there: str, want: str) -> int | None:
    """32-bit Arm processors run what was made for their forebears; the youngest is the fastest."""
    run = [variant for variant in _ARM_VARIANTS if variant <= (want or "v5")]
    if there in run:
        return len(run) - run.index(there)
    return None if there else 10


# -- manifests


def _contents(question: model.AskManifest) -> Contents:
    manifest = _parse(question.content, documents.Manifest, "manifest")
    if manifest.schema_version != 2:
        raise unsupported(
            f"a manifest of schema version {manifest.schema_version}",
            "`skopeo copy` makes one of schema version 2 of it",
        )
    if manifest.manifests is not msgspec.UNSET:
        raise invalid("a document is index and manifest at once")
    said = {kind for kind in (manifest.media_type, question.media_type) if kind}
    if len(said) > 1 or not said <= model.MANIFEST_TYPES:
        raise invalid(f"the manifest is called {' and '.join(map(_quoted, sorted(said)))}")
    if manifest.config.media_type not in model.CONFIG_TYPES:
        raise unsupported(
            f"this is no image: its config is {_quoted(manifest.config.media_type)}",
            "signatures, charts and other artifacts have no root filesystem",
        )
    if len(manifest.layers) > model.LAYERS_MAX:
        raise unsupported(
            f"the image has {len(manifest.layers)} layers", f"{model.LAYERS_MAX} can be stacked; squash some of them"
        )
    layers = tuple(_layer(number, entry) for number, entry in enumerate(manifest.layers, 1))
    return Contents(config=_descriptor(manifest.config, "the config"), layers=layers)


def _layer(number: int, entry: documents.Descriptor) -> Descriptor:
    kind = entry.media_type
    if kind not in model.LAYER_TYPES:
        if "+encrypted" in kind:
            raise unsupported(f"layer {number} is encrypted", "decrypt the image first: `skopeo copy --decryption-key`")
        if "nondistributable" in kind or "foreign" in kind:
            raise unsupported(
                f"layer {number} is not in the image but at an address ({_quoted(kind)})",
                "only what comes with the image is used; nothing is fetched from elsewhere",
            )
        raise unsupported(
            f"layer {number} is of the unknown kind {_quoted(kind)}", "tars, plain, gzip or zstd, are read"
        )
    return _descriptor(entry, f"layer {number}")


def _descriptor(entry: documents.Descriptor, called: str) -> Descriptor:
    if not model.is_digest(entry.digest):
        raise invalid(f"{called} has no usable digest: {_quoted(entry.digest)}")
    return Descriptor(media_type=entry.media_type, digest=entry.digest, size=entry.size)


# -- configs


def _description(question: model.AskConfig) -> Description:
    config = _parse(question.content, documents.Config, "image config")
    diff_ids = tuple(config.rootfs.diff_ids or ())
    if config.rootfs.type != "layers":
        raise unsupported(f"a root filesystem of type {_quoted(config.rootfs.type)}", "layers are read")
    if len(diff_ids) != question.layers:
        raise invalid(f"the config describes {len(diff_ids)} layers, the manifest has {question.layers}")
    for number, diff_id in enumerate(diff_ids, 1):
        if not diff_id.startswith("sha256:") or not model.is_digest(diff_id):
            raise invalid(f"layer {number} has no usable diff id: {_quoted(diff_id)}")
    platform = Platform(os=config.os or "", architecture=config.architecture or "", variant=config.variant or "")
    want = parse_platform(question.platform)
    if suits(msgspec.structs.replace(platform, variant=""), msgspec.structs.replace(want, variant="")) is None:
        raise AgentosError(
            "platform-not-found",
            f"the image is not made for {want}",
            hint=f"it is for {_quoted(str(platform))}; --platform with that imports it all the same",
        )
    history = tuple(map(_history, config.history or ()))
    made = sum(not step.empty for step in history)
    return Description(
        config=_settings(config.config or documents.Settings()),
        platform=platform,
        diff_ids=diff_ids,
        history=history if made == len(diff_ids) else (),
        author=_text(config.author),
    )


def _history(step: documents.History) -> History:
    return History(
        created_by=_text(step.created_by),
        created=_text(step.created),
        comment=_text(step.comment),
        author=_text(step.author),
        empty=bool(step.empty_layer),
    )


def _settings(said: documents.Settings) -> ImageConfig:
    health = said.healthcheck
    config = ImageConfig(
        entrypoint=tuple(said.entrypoint or ()),
        cmd=tuple(said.cmd or ()),
        env=tuple(_pair(line) for line in said.env or ()),
        user=said.user or "",
        workdir=_directory(said.working_dir or "/"),
        labels=said.labels or {},
        exposed=tuple(sorted(said.exposed_ports or ())),
        volumes=tuple(sorted(said.volumes or ())),
        stop_signal=said.stop_signal or "",
        healthcheck=None
        if health is None
        else Healthcheck(
            test=tuple(health.test or ()),
            interval=health.interval,
            timeout=health.timeout,
            start_period=health.start_period,
            retries=health.retries,
        ),
        shell=tuple(said.shell or ()),
        on_build=tuple(said.on_build or ()),
    )
    for word in (*config.entrypoint, *config.cmd, *map("=".join, config.env), config.user, config.workdir):
        if "\0" in word:
            raise invalid("the image config has a NUL byte in what a program is started with", _quoted(word))
    return config


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    if not name:
        raise invalid("the image config has a variable without a name", _quoted(line))
    return name, value


def _directory(path: str) -> str:
    # two leading slashes are kept by POSIX, and by normpath
    return "/" + posixpath.normpath("/" + path).lstrip("/")


# -- docker save


def _saved(question: model.AskDocker) -> Contents:
    images = _parse(question.content, list[documents.Saved], "manifest.json")
    if question.ref:
        images = _tagged(images, question.ref)
    elif len(images) > 1:
        raise AgentosError(
            "ambiguous-ref",
            f"the archive holds {len(images)} images",
            hint="choose one with --ref: " + _enumerated(_tags(images)),
        )
    if not images:
        raise invalid("manifest.json names no image")
    image = images[0]
    layers = image.layers or []
    if len(layers) > model.LAYERS_MAX:
        raise unsupported(f"the image has {len(layers)} layers", f"{model.LAYERS_MAX} can be stacked")
    return Contents(
        config=Descriptor(media_type=model.DOCKER_CONFIG, digest="", size=-1, path=_relative(image.config)),
        layers=tuple(
            Descriptor(media_type=model.DOCKER_LAYER, digest="", size=-1, path=_relative(path)) for path in layers
        ),
    )


def _tags(images: Iterable[documents.Saved]) -> list[str]:
    return [tag for image in images for tag in image.repo_tags or [image.config]]


def _tagged(images: Sequence[documents.Saved], ref: str) -> list[documents.Saved]:
    found = [image for image in images if ref in (*(image.repo_tags or ()), image.config)]
    if not found:
        raise AgentosError(
            "ref-not-found",
            f"no image {_quoted(ref)} in the archive",
            hint=f"there are: {_enumerated(_tags(images))}",
        )
    return found[:1]


def _enumerated(words: Sequence[str]) -> str:
    shown = ", ".join(map(_quoted, words[:_LISTED]))
    return shown + (f" and {len(words) - _LISTED} more" if len(words) > _LISTED else "")


def _relative(path: str) -> str:
    if not path or path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise invalid("manifest.json names a file outside the archive", _quoted(path))
    return path


# -- texts


def _quoted(text: str) -> str:
    return repr(text[:200])


def _text(text: str | None) -> str:
    """`text` without what a terminal would obey: history and authors are printed as they are."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text or "")


TASK: Final = "oci-survey"
Ask = Callable[[str, bytes], bytes]
"""`Session.ask`."""


def ask(how: Ask, question: model.Question, answer: type[T]) -> T:
    """The asking side of `survey`."""
    return msgspec.msgpack.decode(how(TASK, msgspec.msgpack.encode(question)), type=answer)
