"""Which file is read as a Dockerfile: one of the context, or the plain file that is named; never more than its size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.supervisor.building.workshop import DOCKERFILE_MAX, read_dockerfile
from agentos_native.wire.images import BuildRequest


@pytest.fixture
def context(tmp_path: Path) -> Path:
    made = tmp_path / "context"
    made.mkdir()
    return made


def read(context: Path, file: str = "") -> tuple[bytes, str]:
    directory = os.open(context, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return read_dockerfile(BuildRequest(context=str(context), file=file), directory)
    finally:
        os.close(directory)


def refused(context: Path, file: str = "") -> AgentosError:
    with pytest.raises(AgentosError) as caught:
        read(context, file)
    return caught.value


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "/proc/self/environ"])
def test_the_context_has_its_own(context: Path, target: str) -> None:
    (context.parent / "secret").write_text("secret")
    (context / "Dockerfile").symlink_to(target)
    error = refused(context)
    assert (error.code, error.what) == ("dockerfile-not-found", "it leads out of the context")


def test_a_link_inside_the_context(context: Path) -> None:
    (context / "other").write_text("FROM x")
    (context / "Dockerfile").symlink_to("other")
    assert read(context) == (b"FROM x", "Dockerfile")


def test_the_file_that_is_named_may_be_elsewhere(context: Path) -> None:
    (context.parent / "mine").write_text("FROM x")
    (context.parent / "link").symlink_to("mine")
    assert read(context, str(context.parent / "link")) == (b"FROM x", "link")


def test_only_plain_files_are_read(context: Path) -> None:
    pipe = context / "pipe"
    os.mkfifo(pipe)
    for path in ("/dev/zero", str(pipe), str(context)):
        error = refused(context, path)
        assert (error.code, error.what) == ("dockerfile-not-found", "it is no plain file")
    with open(context / "large", "wb") as large:
        large.truncate(DOCKERFILE_MAX + 1)
    assert refused(context, str(context / "large")).code == "too-large"


@pytest.mark.parametrize("path", ["/proc/kmsg", "/proc/self/environ"])
def test_what_the_kernel_makes_up_is_not_read(context: Path, path: str) -> None:
    assert read(context, path)[0] == b""
