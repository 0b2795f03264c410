"""Contexts that are no directory: a tar in a file or on standard input, and a Dockerfile alone; by the command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from agentos_native.images.catalog import Catalog
from tests.builds import built, events_of, failure, said
from tests.ocilayouts import layer, tool
from tests.stores import litter
from tests.supervisors import Place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PROGRAM = [sys.executable, "-c", "import sys; from agentos_native.cli import main; sys.exit(main())"]
DOCKERFILE = "FROM box\nCOPY sub /sub\nRUN cat /sub/file > /said\nCMD cat /said\n"


def command(ground: Place, data: bytes, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "AGENTOS_SOCKET": str(ground.directory / "s.sock")}
    line = [*PROGRAM, "image", "build", "-q", *map(str, words)]
    return subprocess.run(line, env=environment, input=data, capture_output=True, check=False)


def made(ground: Place, data: bytes, *words: str | Path) -> list[str]:
    """What the image's own command says."""
    done = command(ground, data, *words)
    assert done.returncode == 0, done.stderr.decode()
    return said(ground, done.stdout.decode().strip())


def files(context: Path, dockerfile: str = "Dockerfile", content: str = "content") -> Path:
    (context / "sub").mkdir()
    (context / "sub/file").write_text(f"{content}\n")
    (context / "sub/ignored").write_text("x")
    (context / ".dockerignore").write_text("**/ignored\n")
    (context / dockerfile).parent.mkdir(exist_ok=True)
    (context / dockerfile).write_text(DOCKERFILE)
    return context


def packed(context: Path, *options: str) -> bytes:
    return subprocess.run(["tar", *options, "-c", "-C", context, "."], capture_output=True, check=True).stdout


@pytest.mark.parametrize("options", [(), ("--gzip",), ("--xz",), ("--zstd",), ("--bzip2",), ("--format=pax",)])
def test_a_tar_on_standard_input_is_the_context(ground: Place, context: Path, options: tuple[str, ...]) -> None:
    before = litter(ground_catalog(ground))
    assert made(ground, packed(files(context), *options), "-") == ["content"]
    assert litter(ground_catalog(ground)) == before == []


def ground_catalog(ground: Place) -> Catalog:
    return Catalog(ground.directory / "state/images")


def test_the_cache_does_not_care_how_the_context_came(ground: Place, context: Path) -> None:
    directory, _ = built(ground, files(context, content="once"))
    (context.parent / "c.tar").write_bytes(packed(context))
    events = events_of(ground, context.parent / "c.tar")
    assert [event.step for event in events if event.kind == "cached"] == [2, 3]
    assert events[-1].image is not None and events[-1].image.digest == directory.digest
    assert not [change for change in ground.client.diff_image(directory.digest).changes if "ignored" in change.path]


def test_a_dockerfile_in_the_tar_and_what_it_ignores(ground: Place, context: Path) -> None:
    files(context, "docker/File")
    (context / "docker/File.dockerignore").write_text("nothing\n")
    (context / "docker/File").write_text("FROM box\nCOPY sub /sub\nCMD ls /sub\n")
    assert made(ground, packed(context), "-f", "docker/File", "-") == ["file", "ignored"]
    assert made(ground, packed(context), "-f", "./docker/File", "-") == ["file", "ignored"]
    assert b"error[dockerfile-not-found]" in command(ground, packed(context), "-").stderr
    assert b"error[dockerfile-not-found]" in command(ground, packed(context), "-f", "../x", "-").stderr
    assert b"-f docker/File" in command(ground, packed(context), "-f", "/docker/File", "-").stderr


def test_a_dockerfile_alone_has_an_empty_context(ground: Place) -> None:
    assert made(ground, b"FROM box\nRUN echo alone > /said\nCMD cat /said\n", "-") == ["alone"]
    done = command(ground, b"FROM box\nCOPY . /all\nCMD ls -A /all\n", "-")
    assert done.returncode == 0 and said(ground, done.stdout.decode().strip()) == []
    assert b"error[" in command(ground, b"FROM box\nCOPY file /\n", "-").stderr
    assert b"error[usage]" in command(ground, b"FROM box\n", "-f", "Dockerfile", "-").stderr


def test_a_dockerfile_on_standard_input_for_a_directory(ground: Place, context: Path) -> None:
    files(context, "Other")
    assert made(ground, DOCKERFILE.encode(), "-f", "-", context) == ["content"]
    assert b"not both" in command(ground, DOCKERFILE.encode(), "-f", "-", "-").stderr


def hostile() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("Dockerfile"))
        link = tarfile.TarInfo("up")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("up/passwd"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("archive", "code"),
    [
        (hostile(), "hostile-archive"),
        (layer(("../Dockerfile", b"FROM box\n")), "hostile-archive"),
        (layer(("dev", b""), type=b"3"), "hostile-archive"),
        (layer(("Dockerfile", b"FROM box\n" * 200))[:1500], "invalid-archive"),
        (b"\x1f\x8bnot really gzip", "invalid-archive"),
        (layer(("other", b"")), "dockerfile-not-found"),
    ],
)
def test_a_tar_made_to_harm(ground: Place, archive: bytes, code: str) -> None:
    done = command(ground, archive, "-")
    assert done.returncode == 125 and f"error[{code}]" in done.stderr.decode(), done.stderr.decode()
    assert litter(ground_catalog(ground)) == []


def test_a_dockerfile_that_leads_out_of_the_tar(ground: Place, context: Path) -> None:
    (context / "Dockerfile").symlink_to("/etc/passwd")
    done = command(ground, packed(context), "-")
    assert b"error[dockerfile-not-found]" in done.stderr and b"root:" not in done.stderr


def test_a_context_that_is_neither(ground: Place, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert failure(events_of(ground, tmp_path / "fifo")).code == "context-not-found"
    (tmp_path / "text").write_text("FROM box\n" * 100)
    error = failure(events_of(ground, tmp_path / "text"))
    assert "the context" in error.what and error.code == "invalid-archive"
    assert failure(events_of(ground, tmp_path / "none")).code == "context-not-found"


def test_a_context_of_git_archive(ground: Place, context: Path) -> None:
    files(context)
    git = ("git", "-C", context, "-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "init.defaultBranch=m")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "all")):
        tool(*git, *words)
    data = subprocess.run([*git, "archive", "HEAD"], capture_output=True, check=True).stdout
    assert made(ground, data, "-") == ["content"]
