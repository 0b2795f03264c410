"""What OCI and Docker documents mean: selection, refusals, and that export says what import read."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import msgspec
import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.model import Healthcheck, History, ImageConfig
from agentos_native.images.oci import describing, model, tarball
from agentos_native.images.oci.model import (
    AskConfig,
    AskDocker,
    AskIndex,
    AskManifest,
    Contents,
    Description,
    Descriptor,
)
from agentos_native.images.oci.survey import ask, parse_platform, suits, survey

HEX = "a" * 64
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


def how(_task: str, request: bytes) -> bytes:
    return survey(request)


def descriptor(kind: str = model.MANIFEST, digit: str = "a", **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{digit * 64}", "size": 7} | more


def platform(architecture: str, variant: str = "", system: str = "linux") -> dict[str, Any]:
    said = {"os": system, "architecture": architecture}
    return {"platform": said | ({"variant": variant} if variant else {})}


def tagged(name: str) -> dict[str, Any]:
    return {"annotations": {model.REF_NAME: name}}


def choose(*entries: dict[str, Any], wanted: str = "linux/amd64", ref: str = "", layout: bytes = LAYOUT) -> Descriptor:
    content = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return ask(how, AskIndex(content=content, platform=wanted, ref=ref, layout=layout), Descriptor)


def refused(code: str, question: model.Question) -> AgentosError:
    with pytest.raises(AgentosError) as caught:
        ask(how, question, msgspec.Raw)
    assert caught.value.code == code
    return caught.value


def manifest(**changed: Any) -> AskManifest:
    said = {
        "schemaVersion": 2,
        "mediaType": model.MANIFEST,
        "config": descriptor(model.CONFIG),
        "layers": [descriptor(f"{model.LAYER}+gzip", "b"), descriptor(f"{model.LAYER}+zstd", "c")],
    }
    return AskManifest(content=json.dumps(said | changed).encode(), media_type=model.MANIFEST)


def config(layers: int = 1, wanted: str = "linux/amd64", **changed: Any) -> AskConfig:
    said = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{HEX}"]},
        "config": {"Cmd": ["a"], "Labels": None, "Env": ["PATH=/bin", "EMPTY="]},
    }
    return AskConfig(content=json.dumps(said | changed).encode(), layers=layers, platform=wanted)


# -- which image


def test_the_machine_s_own_is_chosen_from_an_index_for_several() -> None:
    entries = [
        descriptor(digit="1", **platform("arm64", "v8")),
        descriptor(digit="2", **platform("amd64", "v3")),
        descriptor(digit="3", **platform("amd64")),
        descriptor(digit="4", **platform("unknown", system="unknown")),
        descriptor(digit="5", **platform("amd64"), annotations={model.REFERENCE_TYPE: "attestation-manifest"}),
    ]
    assert choose(*entries, layout=b"").digest == "sha256:" + "3" * 64
    assert choose(*entries, layout=b"", wanted="linux/arm64").digest == "sha256:" + "1" * 64
    assert choose(*entries, layout=b"", wanted="linux/amd64/v3").digest == "sha256:" + "2" * 64


def test_what_there_is_is_listed_when_nothing_suits() -> None:
    with pytest.raises(AgentosError) as caught:
        choose(descriptor(**platform("s390x")), descriptor(**platform("arm", "v7")), layout=b"")
    assert caught.value.code == "platform-not-found"
    assert "'linux/s390x', 'linux/arm/v7'" in caught.value.hint


@pytest.mark.parametrize(
    ("there", "want", "better"),
    [
        ("linux/arm/v7", "linux/arm/v7", "linux/arm/v6"),
        ("linux/arm/v6", "linux/arm/v7", "linux/arm/v5"),
        ("linux/arm64", "linux/arm64", "linux/arm64/v8"),
        ("linux/amd64/v2", "linux/amd64/v2", "linux/amd64"),
    ],
)
def test_the_nearest_variant_is_best(there: str, want: str, better: str) -> None:
    first, second = (
        suits(parse_platform(there), parse_platform(want)),
        suits(parse_platform(better), parse_platform(want)),
    )
    assert first is not None and second is not None and first < second


@pytest.mark.parametrize(
    ("there", "want"),
    [("linux/arm/v7", "linux/arm/v6"), ("linux/amd64/v3", "linux/amd64"), ("windows/amd64", "linux/amd64")],
)
def test_what_the_machine_cannot_run_does_not_suit(there: str, want: str) -> None:
    assert suits(parse_platform(there), parse_platform(want)) is None


def test_several_images_of_a_layout_are_chosen_by_name_or_digest() -> None:
    entries = [
        descriptor(digit="1", **tagged("one")),
        descriptor(digit="2", annotations={model.REF_NAME: "2", model.CONTAINERD_NAME: "registry.example/a/b:2"}),
    ]
    with pytest.raises(AgentosError) as caught:
        choose(*entries)
    assert caught.value.code == "ambiguous-ref"
    assert "'one', 'registry.example/a/b:2'" in caught.value.hint
    for ref, digit in (("one", "1"), ("2", "2"), ("registry.example/a/b:2", "2"), ("sha256:" + "1" * 64, "1")):
        assert choose(*entries, ref=ref).digest == "sha256:" + digit * 64
    with pytest.raises(AgentosError) as caught:
        choose(*entries, ref="three")
    assert caught.value.code == "ref-not-found"


def test_entries_of_one_name_for_several_machines_are_one_image() -> None:
    entries = [descriptor(digit=d, **tagged("x"), **platform(a)) for d, a in (("1", "arm64"), ("2", "amd64"))]
    assert choose(*entries).digest == "sha256:" + "2" * 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"manifests": "x"}',
        b'{"manifests": [{"mediaType": "x", "digest": 1, "size": 2}]}',
        b'{"manifests": [{"mediaType": "x", "digest": "y", "size": -2}]}',
        b'{"manifests": [{"mediaType": "x", "digest": "y", "size": 1e400}]}',
        b'{"manifests":' + b"[" * 100_000,
        b'{"manifests": [], "x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"manifests": [], "layers": []}',
        json.dumps({"manifests": [descriptor() | {"digest": "sha256:../../etc/passwd"}]}).encode(),
        json.dumps({"manifests": [descriptor() | {"digest": "md5:" + "a" * 32}]}).encode(),
        json.dumps({"manifests": [descriptor()], "mediaType": model.MANIFEST}).encode(),
    ],
    ids=range(14),
)
def test_an_index_that_makes_no_sense_is_refused(content: bytes) -> None:
    refused("invalid-layout", AskIndex(content=content, platform="linux/amd64", layout=LAYOUT))


def test_a_layout_of_another_version_and_an_empty_one_are_refused() -> None:
    entry = json.dumps({"manifests": [descriptor()]}).encode()
    refused("unsupported-layout", AskIndex(content=entry, platform="linux/amd64", layout=b'{"imageLayoutVersion":"2"}'))
    refused("platform-not-found", AskIndex(content=b'{"manifests":[]}', platform="linux/amd64", layout=LAYOUT))


# -- what it consists of


def test_layers_of_all_compressions_and_of_docker_are_taken() -> None:
    found = ask(how, manifest(), Contents)
    assert [layer.digest[7] for layer in found.layers] == ["b", "c"]
    docker = AskManifest(
        content=json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": model.DOCKER_MANIFEST,
                "config": descriptor(model.DOCKER_CONFIG),
                "layers": [descriptor(f"{model.DOCKER_LAYER}.gzip")],
            }
        ).encode(),
        media_type=model.DOCKER_MANIFEST,
    )
    assert len(ask(how, docker, Contents).layers) == 1


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("unsupported-layout", {"schemaVersion": 1}),
        ("unsupported-layout", {"config": descriptor("application/vnd.oci.empty.v1+json")}),
        ("unsupported-layout", {"layers": [descriptor(f"{model.LAYER}+gzip+encrypted")]}),
        (
            "unsupported-layout",
            {"layers": [descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")]},
        ),
        ("unsupported-layout", {"layers": [descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]}),
        ("unsupported-layout", {"layers": [descriptor("application/vnd.in-toto+json")]}),
        ("unsupported-layout", {"layers": [descriptor(model.LAYER)] * (model.LAYERS_MAX + 1)}),
        ("invalid-layout", {"manifests": []}),
        ("invalid-layout", {"mediaType": model.INDEX}),
        ("invalid-layout", {"layers": None}),
        ("invalid-layout", {"layers": [descriptor(model.LAYER) | {"digest": "sha256:" + "A" * 64}]}),
        ("invalid-layout", {"config": descriptor(model.CONFIG) | {"size": 1 << 60}}),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(code: str, changed: dict[str, Any]) -> None:
    refused(code, manifest(**changed))


# -- what it says of itself


def test_a_config_of_go_has_null_for_what_is_empty() -> None:
    found = ask(how, config(history=None, author=None), Description)
    assert found.config == ImageConfig(cmd=("a",), env=(("PATH", "/bin"), ("EMPTY", "")))
    assert found.diff_ids == (f"sha256:{HEX}",)


@pytest.mark.parametrize(("said", "workdir"), [("", "/"), ("srv", "/srv"), ("//a/../b/", "/b"), ("/../..", "/")])
def test_a_working_directory_is_absolute(said: str, workdir: str) -> None:
    assert ask(how, config(config={"WorkingDir": said}), Description).config.workdir == workdir


@pytest.mark.parametrize(
    ("code", "question"),
    [
        ("invalid-layout", config(layers=2)),
        ("invalid-layout", config(rootfs={"type": "layers", "diff_ids": ["sha256:short"]})),
        ("unsupported-layout", config(rootfs={"type": "tree", "diff_ids": []}, layers=0)),
        ("invalid-layout", config(config={"Cmd": "sh -c x"})),
        ("invalid-layout", config(config={"Cmd": ["a\0b"]})),
        ("invalid-layout", config(config={"Env": ["=x"]})),
        ("platform-not-found", config(architecture="s390x")),
        ("platform-not-found", config(os="windows")),
        ("invalid-platform", config(wanted="linux")),
    ],
    ids=range(9),
)
def test_a_config_that_cannot_be_used_is_refused(code: str, question: AskConfig) -> None:
    refused(code, question)


def test_history_cannot_talk_to_a_terminal_and_must_fit_the_layers() -> None:
    said = [{"created_by": "RUN \x1b[31mred"}, {"created_by": "ENV A=b", "empty_layer": True}]
    found = ask(how, config(history=said), Description)
    assert [step.created_by for step in found.history] == ["RUN \ufffd[31mred", "ENV A=b"]
    assert ask(how, config(history=said[1:]), Description).history == ()


# -- docker save


def test_an_image_of_a_docker_archive_is_chosen_by_its_tag() -> None:
    images = [
        {"Config": "1.json", "RepoTags": ["a:1", "b:2"], "Layers": ["1/layer.tar"]},
        {"Config": "2.json", "RepoTags": None, "Layers": ["x/layer.tar", "y/layer.tar"]},
    ]
    content = json.dumps(images).encode()
    assert "'a:1', 'b:2', '2.json'" in refused("ambiguous-ref", AskDocker(content=content)).hint
    assert ask(how, AskDocker(content=content, ref="b:2"), Contents).config.path == "1.json"
    assert len(ask(how, AskDocker(content=content, ref="2.json"), Contents).layers) == 2
    refused("ref-not-found", AskDocker(content=content, ref="c"))


@pytest.mark.parametrize("path", ["../x", "/etc/shadow", "a/../../x", "a\0b", ""])
def test_a_docker_archive_names_only_its_own_files(path: str) -> None:
    for image in ({"Config": path, "Layers": []}, {"Config": "c", "Layers": [path]}):
        refused("invalid-layout", AskDocker(content=json.dumps([image]).encode()))


# -- what export writes


FULL = ImageConfig(
    entrypoint=("/init",),
    cmd=("a", "b c"),
    env=(("A", "1=2"), ("B", "")),
    user="ada:mail",
    workdir="/srv",
    labels={"x": "y", "a": ""},
    exposed=("53/udp", "80/tcp"),
    volumes=("/data",),
    stop_signal="SIGINT",
    healthcheck=Healthcheck(test=("CMD", "true"), interval=5, retries=3),
    shell=("/bin/bash", "-c"),
    on_build=("RUN x",),
)


def test_import_reads_what_export_says() -> None:
    layers = tuple(
        describing.Packed(
            media_type=f"{model.LAYER}+gzip", digest=f"sha256:{d * 64}", size=3, diff_id=f"sha256:{d * 64}"
        )
        for d in "12"
    )
    history = (History(created_by="x", created="2026-01-01T00:00:00Z"), History(created_by="y"), History(empty=True))
    image = describing.Described(config=FULL, history=history, architecture="amd64", author="me", layers=layers)
    (_, first), (path, second), (_, index) = image.documents("v1")
    chosen = ask(how, AskIndex(content=index, platform="linux/amd64", ref="v1", layout=describing.LAYOUT), Descriptor)
    assert path.endswith(chosen.digest.removeprefix("sha256:")) and chosen.size == len(second)
    contents = ask(how, AskManifest(content=second, media_type=chosen.media_type), Contents)
    found = ask(how, AskConfig(content=first, layers=len(contents.layers), platform="linux/amd64"), Description)
    dated = tuple(msgspec.structs.replace(step, created=step.created or "1970-01-01T00:00:00Z") for step in history)
    assert (found.config, found.history, found.author) == (FULL, dated, "me"), "umoci needs a date of each step"
    assert list(image.documents("v1")) == list(image.documents("v1"))


def test_headers_say_what_other_readers_read() -> None:
    attributes = (("security.capability", b"\x01\0\n\xff="), ("user.note", b""))
    members = [
        tarball.Member(path=b"d" * 150 + b"/caf\xe9", uid=65535, mode=0o4755, size=3, mtime=-5, xattrs=attributes),
        tarball.Member(path=b"l", kind=b"2", target=b"t" * 300),
        tarball.Member(path=b"big", size=9 << 30),
    ]
    content = tarball.header(members[0]) + b"abc" + tarball.padding(3) + b"".join(map(tarball.header, members[1:]))
    with tarfile.open(fileobj=io.BytesIO(content), errors="surrogateescape", encoding="utf-8") as tar:
        first, link, big = (tar.next() for _ in members)
        assert first is not None and link is not None and big is not None
        assert first.name.encode("utf-8", "surrogateescape") == members[0].path
        assert (first.uid, first.mode, first.size, first.mtime) == (65535, 0o4755, 3, -5)
        found = first.pax_headers["SCHILY.xattr.security.capability"]
        assert found.encode("utf-8", "surrogateescape") == attributes[0][1]
        assert (link.linkname, big.size) == ("t" * 300, 9 << 30)


def test_capabilities_lose_the_id_of_their_root() -> None:
    version_3 = bytes.fromhex("01000003") + bytes(range(16)) + bytes(4)
    assert tarball.version_2(version_3) == bytes.fromhex("01000002") + bytes(range(16))
    assert tarball.version_2(version_3[:20]) == version_3[:20]
