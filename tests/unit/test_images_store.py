"""Names, digests, users and the removal of trees: what needs no privilege."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import Image, ImageConfig, ImageStore, resolve_user
from agentos_native.images import names as image_names
from agentos_native.images.catalog import manifest_digest
from agentos_native.images.remove import remove_path, remove_tree
from agentos_native.images.session import printable
from agentos_native.images.sources import open_source
from agentos_native.images.unpack.digest import measure
from agentos_native.images.volume import refuse_private, volume_mount


def image_of(*layers: Path, user: str = "") -> Image:
    return Image(
        digest="sha256:" + "0" * 64,
        name="test",
        names=("test",),
        created=0,
        size=0,
        entries=0,
        config=ImageConfig(user=user),
        layers=layers,
    )


def digest_of(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return measure(descriptor).digest
    finally:
        os.close(descriptor)


# -- names


@pytest.mark.parametrize("name", ["python", "python:3.8", "a/b/c:V1.0_x", "task-agent", "a__b", "python:latest"])
def test_names_survive_the_way_to_a_file_and_back(name: str) -> None:
    parsed = image_names.parse_name(name)
    file_name = image_names.to_file_name(parsed)
    assert "/" not in file_name
    assert len(file_name) <= 255
    assert image_names.from_file_name(file_name) == parsed


def test_latest_is_no_tag() -> None:
    assert image_names.parse_name("python:latest") == image_names.parse_name("python")


@pytest.mark.parametrize(
    "name", ["", "/", "..", "a/../b", "a//b", "A", "a:", "a:b:c", "a\0b", "a" * 300, "-a", "a b", "a/", ".a", "é"]
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(AgentosError) as caught:
        image_names.parse_name(name)
    assert caught.value.code == "invalid-image-name"
    assert len(str(caught.value)) < 300


def test_the_longest_name_fits_a_file_name() -> None:
    name = "/".join(["a"] * 60)
    assert len(image_names.to_file_name(image_names.parse_name(name))) <= 255


def test_an_unknown_image_is_named_with_what_there_is(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    with pytest.raises(AgentosError) as caught:
        store.get("nothing")
    assert (caught.value.code, caught.value.exit_status) == ("image-not-found", 125)
    assert "image import" in caught.value.hint
    with pytest.raises(AgentosError, match="sha256"):
        store.get("sha256:abcdef")


def test_the_manifest_digest_is_of_what_runs_only() -> None:
    layers = ("sha256:" + "1" * 64,)
    base = manifest_digest(ImageConfig(cmd=("/bin/sh",)), layers)
    assert manifest_digest(ImageConfig(cmd=("/bin/sh",)), layers) == base
    assert manifest_digest(ImageConfig(cmd=("/bin/bash",)), layers) != base
    assert manifest_digest(ImageConfig(cmd=("/bin/sh",)), ("sha256:" + "2" * 64,)) != base


# -- digests


def make_tree(path: Path) -> None:
    path.mkdir()
    (path / "bin").mkdir(mode=0o755)
    (path / "bin/sh").write_bytes(b"#!shell")
    (path / "bin/sh").chmod(0o755)
    os.link(path / "bin/sh", path / "bin/dash")
    os.symlink("bin/sh", path / "sh")
    os.mkfifo(path / "queue")
    path.chmod(0o755)


def test_the_same_tree_has_the_same_digest_whatever_its_times(tmp_path: Path) -> None:
    make_tree(tmp_path / "a")
    make_tree(tmp_path / "b")
    os.utime(tmp_path / "b/bin/sh", (1, 1))
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b")


def _set_attribute(tree: Path) -> None:
    os.setxattr(tree / "bin/sh", "user.note", b"x")


def _break_hard_link(tree: Path) -> None:
    (tree / "bin/dash").unlink()
    (tree / "bin/dash").write_bytes(b"#!shell")
    (tree / "bin/dash").chmod(0o755)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "bin/sh").chmod(0o4755),
        lambda tree: (tree / "bin").chmod(0o700),
        lambda tree: (tree / "bin/sh").write_bytes(b"#!shelk"),
        lambda tree: (tree / "sh").unlink(),
        lambda tree: (tree / "bin/sh").rename(tree / "bin/ssh"),
        lambda tree: (tree / "empty").mkdir(),
        lambda tree: tree.chmod(0o711),
        _set_attribute,
        _break_hard_link,
    ],
)
def test_every_change_changes_the_digest(tmp_path: Path, change: object) -> None:
    make_tree(tmp_path / "a")
    before = digest_of(tmp_path / "a")
    assert callable(change)
    change(tmp_path / "a")
    assert digest_of(tmp_path / "a") != before


# -- sources


def test_sources_that_are_no_image(tmp_path: Path) -> None:
    with pytest.raises(AgentosError) as caught, open_source(tmp_path / "none"):
        pass
    assert caught.value.code == "source-not-found"
    with pytest.raises(AgentosError) as caught, open_source(Path("/dev/zero")):
        pass
    assert caught.value.code == "unsupported-source"


def test_a_stream_without_an_fd_comes_through_a_pipe() -> None:
    content = os.urandom(300_000)
    with open_source(io.BytesIO(content)) as (descriptor, directory):
        with open(descriptor, "rb", closefd=False) as pipe:
            assert pipe.read() == content
        assert not directory


def test_a_stream_that_nobody_reads_to_its_end_stops_nobody() -> None:
    with open_source(io.BytesIO(bytes(5 << 20))) as (descriptor, _):
        assert os.read(descriptor, 10) == bytes(10)


def test_what_a_terminal_would_obey_is_taken_out() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c"


# -- users

PASSWD = "root:x:0:0:root:/root:/bin/sh\nbroken\nada:x:1000:1001::/home/ada:/bin/sh\nbig:x:70000:0:::\n"
GROUP = "root:x:0:\nada:x:1001:\naudio:x:29:ada,bob\nvideo:x:44:ada\nhuge:x:99999:ada\n"


@pytest.fixture
def image(tmp_path: Path) -> Image:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return image_of(tmp_path)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, (0, 0, ())),
        ("", (0, 0, ())),
        ("root", (0, 0, ())),
        ("ada", (1000, 1001, (29, 44))),
        ("1000", (1000, 1001, (29, 44))),
        ("1000:0", (1000, 0, ())),
        ("ada:audio", (1000, 29, ())),
        ("4242", (4242, 0, ())),
        ("4242:4243", (4242, 4243, ())),
    ],
)
def test_users(image: Image, user: str | None, expected: tuple[int, int, tuple[int, ...]]) -> None:
    assert resolve_user(image, user)[:3] == expected


@pytest.mark.parametrize(
    ("user", "code"),
    [
        ("bob", "user-not-found"),
        ("ada:nogroup", "user-not-found"),
        ("65536", "invalid-user"),
        ("0:65536", "invalid-user"),
        ("big", "invalid-user"),
        ("-1", "user-not-found"),
        (":0", "invalid-user"),
        ("ada:", "invalid-user"),
        ("a\0b", "invalid-user"),
    ],
)
def test_bad_users(image: Image, user: str, code: str) -> None:
    with pytest.raises(AgentosError) as caught:
        resolve_user(image, user)
    assert caught.value.code == code


def test_the_images_own_user_is_the_default(image: Image) -> None:
    assert resolve_user(image_of(*image.layers, user="ada"), None)[0] == 1000


def test_a_passwd_that_links_out_of_the_image_stays_in_it(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("evil:x:7:7:::\n")
    (tmp_path / "image/etc").mkdir(parents=True)
    os.symlink("../../outside", tmp_path / "image/etc/passwd")
    with pytest.raises(AgentosError):
        resolve_user(image_of(tmp_path / "image"), "evil")
    (tmp_path / "image/etc/passwd").unlink()
    os.symlink("/outside", tmp_path / "image/etc/passwd")
    (tmp_path / "image/outside").write_text("good:x:8:8:::\n")
    assert resolve_user(image_of(tmp_path / "image"), "good")[:3] == (8, 8, ())


def test_a_passwd_that_is_a_pipe_or_endless_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    assert resolve_user(image_of(tmp_path), "0")[:3] == (0, 0, ())
    (tmp_path / "etc/passwd").unlink()
    with open(tmp_path / "etc/passwd", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(AgentosError, match="more than"):
        resolve_user(image_of(tmp_path), "ada")


# -- volumes: what is refused before any mount is made


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("relative", "invalid-volume"),
        ("/nul\0", "invalid-volume"),
        ("/no/such/place", "volume-not-found"),
        ("/dev/null", "invalid-volume"),
        ("/proc/sys", "invalid-volume"),
        ("/sys/kernel", "invalid-volume"),
        ("/proc/self/fd/0", "invalid-volume"),
    ],
)
def test_volumes_that_are_none(source: str, code: str) -> None:
    with pytest.raises(AgentosError) as caught:
        volume_mount(source, -1, False)
    assert caught.value.code == code


def test_the_supervisors_own_state_is_no_volume(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "agents").mkdir(parents=True)
    (tmp_path / "link").symlink_to(state)
    for source in (state, state / "agents", tmp_path / "link", tmp_path, Path("/")):
        with pytest.raises(AgentosError, match="supervisor's own state") as caught:
            volume_mount(str(source), -1, False, str(state))
        assert caught.value.code == "invalid-volume"
    with pytest.raises(AgentosError):
        refuse_private(str(state), "s", True, str(tmp_path / "link"))
    refuse_private(str(tmp_path), "s", True, str(state))
    refuse_private(str(tmp_path / "state2"), "s", False, str(state))


# -- removal


def test_a_hostile_tree_is_removed_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    tree = tmp_path / "tree"
    tree.mkdir()
    os.symlink(outside, tree / "link")
    os.symlink(outside / "kept", tree / "file-link")
    os.link(outside / "kept", tree / "hard")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b"n" * 255, b" "):
        os.mkdir(os.fsencode(tree) + b"/" + name)
        with open(os.fsencode(tree) + b"/" + name + b"/file", "w"):
            pass
    remove_path(tree)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside"]
    assert (outside / "kept").read_text() == "kept"


def test_a_tree_deeper_than_any_path_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    current = os.open(tmp_path / "tree", os.O_RDONLY | os.O_DIRECTORY)
    for number in range(3000):
        with open(f"f{number}", "w", opener=lambda path, flags: os.open(path, flags, dir_fd=current)):  # noqa: B023
            pass
        os.mkdir("d" * 20, dir_fd=current)
        below = os.open("d" * 20, os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)
    remove_path(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_what_is_not_there_is_removed_already(tmp_path: Path) -> None:
    remove_path(tmp_path / "none")
    remove_path(tmp_path / "none/either")
    (tmp_path / "file").touch()
    remove_path(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_the_tree_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    os.symlink(tmp_path / "kept", tmp_path / "tree")
    descriptor = os.open(tmp_path, os.O_PATH)
    try:
        remove_tree(descriptor, "tree")
    finally:
        os.close(descriptor)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
