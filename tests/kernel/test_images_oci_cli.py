"""``image import`` and ``image export`` as a user has them: command, client, API, supervisor."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentos_native.client import Client
from agentos_native.errors import AgentosError
from agentos_native.wire.images import ImageEvent, ImportSettings
from tests.images import make_tar, make_tree, needs_root
from tests.ocilayouts import tool
from tests.supervisors import Place, eventually

pytestmark = needs_root

PROGRAM = [sys.executable, "-c", "import sys; from agentos_native.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("oci"), f"oci{os.getpid()}")
    try:
        made.start()
        make_tree(made.directory / "tree")
        made.client.import_image("tree", str(made.directory / "tree"))
        yield made
    finally:
        made.close()


@pytest.fixture
def client(place: Place) -> Client:
    return place.client


def image(place: Place, *words: str | Path, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "AGENTOS_SOCKET": str(place.directory / "s.sock")}
    return subprocess.run(
        [*PROGRAM, "image", *map(str, words)], env=environment, input=data, capture_output=True, check=False
    )


def succeeded(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def refused(done: subprocess.CompletedProcess[bytes], code: str) -> str:
    said = done.stderr.decode()
    assert done.returncode == 125 and said.startswith(f"error[{code}]: "), said
    return said


def test_a_layout_in_a_directory_goes_out_and_comes_back(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeeded(image(place, "export", "tree", out))
    assert sorted(os.listdir(out)) == ["blobs", "index.json", "oci-layout"]
    tool("skopeo", "inspect", f"oci:{out}:latest")
    back = json.loads(succeeded(image(place, "import", "back", out, "-o", "json")))
    assert back["digest"] == place.client.image("tree").digest
    refused(image(place, "export", "tree", out), "already-there")
    first = (out / "index.json").read_bytes()
    succeeded(image(place, "export", "tree", out, "--force"))
    assert (out / "index.json").read_bytes() == first
    assert os.listdir(tmp_path) == ["out"]


def test_archives_and_pipes(place: Place, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    succeeded(image(place, "export", "tree", archive, "--tag", "v2", "--compress", "zstd"))
    piped = image(place, "export", "tree", "-", "--tag", "v2", "--compress", "zstd")
    assert piped.returncode == 0 and piped.stdout == archive.read_bytes()
    digest = place.client.image("tree").digest
    assert succeeded(image(place, "import", "piped", "-", "--ref", "v2", data=piped.stdout)) == digest
    assert succeeded(image(place, "import", "file", archive)) == digest
    succeeded(image(place, "export", "tree", tmp_path / "d.tar", "--format", "docker", "--tag", "some/name:v3"))
    tool("skopeo", "inspect", f"docker-archive:{tmp_path}/d.tar:some/name:v3")
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "d.tar"]


def test_a_failing_export_leaves_nothing_and_touches_nothing(place: Place, tmp_path: Path) -> None:
    (tmp_path / "tree/.wh.x").mkdir(parents=True)
    place.client.import_image("wh", str(tmp_path / "tree"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there/precious").write_text("x")
    before = sorted(os.listdir(tmp_path))
    for dest in ("new", "new.tar"):
        assert ".wh.x" in refused(image(place, "export", "wh", tmp_path / dest), "image-not-exportable")
    refused(image(place, "export", "tree", tmp_path / "there", "--force"), "cannot-write")
    refused(image(place, "export", "tree", tmp_path / "no/where"), "cannot-write")
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "there/precious").read_text() == "x"


def test_an_import_is_told_what_the_source_does_not_say(place: Place, tmp_path: Path) -> None:
    words = ["--entrypoint", "/init 'a b'", "--cmd", "c", "-e", "K=v=w", "-w", "/etc", "-u", "1:2", "--label", "l="]
    config = json.loads(succeeded(image(place, "import", "own", place.directory / "tree", *words, "-o", "json")))[
        "config"
    ]
    assert (config["entrypoint"], config["cmd"], config["workdir"], config["user"]) == (
        ["/init", "a b"],
        ["c"],
        "/etc",
        "1:2",
    )
    refused(image(place, "import", "own", tmp_path, "--env", "nothing"), "invalid-value")
    refused(image(place, "import", "own", tmp_path / "missing"), "cannot-read")
    for code, settings in (
        ("invalid-platform", ImportSettings(platform="x")),
        ("ref-not-found", ImportSettings(ref="x")),
    ):
        with pytest.raises(AgentosError, match=code):
            place.client.import_image("own", str(tmp_path), settings)
    with pytest.raises(AgentosError, match="image-not-found"):
        list(place.client.export_image("nothing"))


def test_followed_imports_tell_their_steps(client: Client, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("a layer of its own")
    digest = client.import_image("other", str(tmp_path / "other")).digest
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"".join(client.export_image("other")))
    cached: list[str] = []
    for source in (str(archive), io.BytesIO(archive.read_bytes())):
        events: list[ImageEvent] = []
        made = client.import_image("followed", source, ImportSettings(), watch=events.append)
        assert made.digest == digest
        assert [event.kind for event in events if event.kind != "progress"] == ["step", *cached]
        cached = ["cached"]
    with pytest.raises(AgentosError, match="ref-not-found"):
        client.import_image("x", str(archive), ImportSettings(ref="no"), watch=events.append)


class _Broken(io.BytesIO):
    """A source that fails in the middle."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise InterruptedError("the source is gone")
        return super().read(size)


def test_a_client_that_goes_away_ends_its_import(client: Client, place: Place, tmp_path: Path) -> None:
    content = make_tar(place.directory / "tree", tmp_path / "t.tar").read_bytes()
    with pytest.raises((AgentosError, InterruptedError)):
        client.import_image("cut", _Broken(content * 100))
    with pytest.raises(AgentosError, match="invalid-archive"):
        client.import_image("cut", io.BytesIO(content[: len(content) // 2]))
    eventually(lambda: not os.listdir(place.directory / "state/images/tmp"), "the staging directory is gone")
    assert "cut" not in {name for row in client.images() for name in row.names}
