"""COPY, ADD and WORKDIR by the real confined worker: where things go, whose they are, and what is refused."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import socket
import stat
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import zstandard

from agentos_native.errors import AgentosError
from agentos_native.images import overlay
from agentos_native.images.build import apply, context, dockerfile
from agentos_native.images.build.model import Copy
from agentos_native.images.session import Session, Unpacked
from tests.images import needs_root

pytestmark = needs_root

CAPABILITY = struct.pack("<IIIIII", 0x03000001, 1 << 10, 0, 0, 0, 0)
"""cap_net_bind_service=ep, version 3, of root 0."""


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session() as started:
        yield started


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The context."""
    root = tmp_path / "context"
    (root / "dir/sub").mkdir(parents=True)
    (root / "dir").chmod(0o750)
    (root / "dir/sub").chmod(0o700)
    os.chown(root / "dir/sub", 77, 77)
    for name in ("one.txt", "two.txt", "dir/file", "dir/sub/deep"):
        (root / name).write_text(name)
        (root / name).chmod(0o640)
        os.chown(root / name, 77, 77)
        os.utime(root / name, ns=(10**18 + 1, 10**18 + 1))
    (root / "dir/link").symlink_to("file")
    (root / "dir/sub/out").symlink_to("/etc/passwd")
    return root


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """What is below: one layer."""
    root = tmp_path / "base"
    for name in ("etc", "app/sub", "run", "data", "usr/lib"):
        (root / name).mkdir(parents=True)
    (root / "app").chmod(0o2775)
    os.chown(root / "app", 5, 6)
    os.setxattr(root / "app", "user.note", b"kept")
    os.utime(root / "app", ns=(10**18, 10**18))
    (root / "etc/passwd").write_text("root:x:0:0::/:\nada:x:1000:1001::/:\n")
    (root / "etc/group").write_text("staff:x:50:\n")
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "lib").symlink_to("usr/lib")
    (root / "escape").symlink_to("../../../../../../outside")
    (root / "round").symlink_to("round")
    return root


class Stage:
    """Copies something onto `base` and looks at the layer that comes of it."""

    def __init__(self, session: Session, where: Path, base: Path | None) -> None:
        self._session = session
        self._base = base
        self.tree = where / "tree"
        self.tree.mkdir()
        self.tree.chmod(0o755)

    def copy(self, source: Path, copy: Copy, between: Callable[[], object] = lambda: None) -> Unpacked:
        """`between` happens after the files are selected."""
        with self._fds(source) as (source_fd, tree_fd, base_fd):
            tree = context.Tree(source_fd, where="--from") if copy.origin else context.open_context(source_fd)
            selection = tree.select(copy)
            between()
            layers = [self._base] if self._base else []
            return apply.copy_files(
                self._session,
                copy,
                selection,
                source_fd=source_fd,
                tree_fd=tree_fd,
                base_fd=base_fd,
                layers=layers,
            )

    def workdir(self, path: str) -> Unpacked | None:
        with self._fds(self.tree) as (_, tree_fd, base_fd):
            return apply.make_workdir(self._session, path, tree_fd=tree_fd, base_fd=base_fd)

    @contextlib.contextmanager
    def _fds(self, source: Path) -> Iterator[tuple[int, int, int]]:
        with contextlib.ExitStack() as stack:
            found = [os.open(source, os.O_RDONLY), os.open(self.tree, os.O_RDONLY)]
            found.append(overlay.view([self._base], None) if self._base else -1)
            for descriptor in found:
                if descriptor >= 0:
                    stack.callback(os.close, descriptor)
            yield found[0], found[1], found[2]

    def listing(self) -> dict[str, str]:
        """Path → "mode owner:group content" of everything in the layer."""
        found = {}
        for path in sorted(self.tree.rglob("*")):
            status = path.lstat()
            content = ""
            if path.is_symlink():
                content = f" -> {os.readlink(path)}"
            elif path.is_file():
                content = f" {path.read_text()}"
            owner = f"{status.st_uid}:{status.st_gid}"
            found[str(path.relative_to(self.tree))] = f"{stat.S_IMODE(status.st_mode):o} {owner}{content}"
        return found


@pytest.fixture
def stage(session: Session, tmp_path: Path, base: Path) -> Stage:
    return Stage(session, tmp_path, base)


SUB = {"app": "2775 5:6", "app/file": "640 0:0 dir/file", "app/link": "777 0:0 -> file"} | {
    "app/sub": "700 0:0",
    "app/sub/deep": "640 0:0 dir/sub/deep",
    "app/sub/out": "777 0:0 -> /etc/passwd",
}


@pytest.mark.parametrize(
    ("copy", "layer"),
    [
        # a directory's content; the destination keeps its attributes, what is in it takes the source's
        (Copy(sources=("dir",), destination="/app"), SUB),
        (Copy(sources=("dir/",), destination="/app/"), SUB),
        (
            Copy(sources=("dir/sub",), destination="/new/x"),
            {"new": "755 0:0", "new/x": "755 0:0", "new/x/deep": "640 0:0 dir/sub/deep"}
            | {"new/x/out": "777 0:0 -> /etc/passwd"},
        ),
        # a file: as the destination, or into it
        (Copy(sources=("one.txt",), destination="/x"), {"x": "640 0:0 one.txt"}),
        (Copy(sources=("one.txt",), destination="/x/"), {"x": "755 0:0", "x/one.txt": "640 0:0 one.txt"}),
        (Copy(sources=("one.txt",), destination="/data"), {"data": "755 0:0", "data/one.txt": "640 0:0 one.txt"}),
        (Copy(sources=("one.txt",), destination="/"), {"one.txt": "640 0:0 one.txt"}),
        (
            Copy(sources=("one.txt",), destination="/app/sub/x"),
            {"app": "2775 5:6", "app/sub": "755 0:0", "app/sub/x": "640 0:0 one.txt"},
        ),
        (Copy(sources=("one.txt",), destination="/etc/passwd"), {"etc": "755 0:0", "etc/passwd": "640 0:0 one.txt"}),
        # several
        (
            Copy(sources=("*.txt", "dir/sub/deep"), destination="/data/"),
            {"data": "755 0:0", "data/one.txt": "640 0:0 one.txt", "data/two.txt": "640 0:0 two.txt"}
            | {"data/deep": "640 0:0 dir/sub/deep"},
        ),
        (
            Copy(sources=("*.txt",), destination="/data"),
            {"data": "755 0:0", "data/one.txt": "640 0:0 one.txt", "data/two.txt": "640 0:0 two.txt"},
        ),
        (Copy(sources=("nothing*",), destination="/x/"), {}),
        # through links of the base, and never out of it
        (Copy(sources=("one.txt",), destination="/var/run/x"), {"run": "755 0:0", "run/x": "640 0:0 one.txt"}),
        (Copy(sources=("one.txt",), destination="/lib/"), {"usr": "755 0:0", "usr/lib": "755 0:0"}
         | {"usr/lib/one.txt": "640 0:0 one.txt"}),
        (Copy(sources=("one.txt",), destination="/escape"), {"outside": "640 0:0 one.txt"}),
        (
            Copy(sources=("one.txt",), destination="/escape/"),
            {"outside": "755 0:0", "outside/one.txt": "640 0:0 one.txt"},
        ),
        # owners and modes
        (
            Copy(sources=("one.txt",), destination="/n/x", chown="ada:staff"),
            {"n": "755 1000:50", "n/x": "640 1000:50 one.txt"},
        ),
        (Copy(sources=("one.txt",), destination="/x", chown="ada"), {"x": "640 1000:1001 one.txt"}),
        (Copy(sources=("one.txt",), destination="/x", chown="12"), {"x": "640 12:12 one.txt"}),
        (Copy(sources=("one.txt",), destination="/x", chown="12:staff"), {"x": "640 12:50 one.txt"}),
        (Copy(sources=("one.txt",), destination="/x", chmod="4711"), {"x": "4711 0:0 one.txt"}),
        (
            Copy(sources=("dir/sub",), destination="/x", chmod="u=rwX,go=rX", exclude=("out",)),
            {"x": "755 0:0", "x/deep": "644 0:0 dir/sub/deep"},
        ),
        (
            Copy(sources=("dir",), destination="/x", chmod="g=u", exclude=("*/out", "link", "file")),
            {"x": "755 0:0", "x/sub": "770 0:0", "x/sub/deep": "660 0:0 dir/sub/deep"},
        ),
        # heredocs
        (Copy(sources=(), destination="/x", files=(("EOF", "hi\n"),)), {"x": "644 0:0 hi\n"}),
        (
            Copy(sources=("one.txt",), destination="/x/", files=(("a", "1"), ("b", "")), chmod="600", chown="1"),
            {"x": "755 1:1", "x/a": "600 1:1 1", "x/b": "600 1:1 ", "x/one.txt": "600 1:1 one.txt"},
        ),
        # --parents
        (
            Copy(sources=("dir/./sub/deep",), destination="/x/", parents=True),
            {"x": "755 0:0", "x/sub": "700 0:0", "x/sub/deep": "640 0:0 dir/sub/deep"},
        ),
    ],
)  # fmt: skip
def test_where_things_go(stage: Stage, files: Path, copy: Copy, layer: dict[str, str]) -> None:
    stage.copy(files, copy)
    assert stage.listing() == layer


def test_times_and_attributes(stage: Stage, files: Path) -> None:
    stage.copy(files, Copy(sources=("dir",), destination="/app"))
    assert (stage.tree / "app/file").stat().st_mtime_ns == 10**18 + 1
    assert (stage.tree / "app").stat().st_mtime_ns == 10**18
    assert os.getxattr(stage.tree / "app", "user.note") == b"kept"


@pytest.mark.parametrize(
    ("copy", "code", "where"),
    [
        (Copy(sources=("dir",), destination="/etc/passwd"), "copy-failed", "'/etc/passwd'"),
        (Copy(sources=("one.txt",), destination="/etc/passwd/"), "copy-failed", "'/etc/passwd'"),
        (Copy(sources=("one.txt",), destination="/etc/passwd/x"), "copy-failed", "'//etc/passwd/x'"),
        (Copy(sources=("one.txt",), destination="/round/x"), "copy-failed", "'//round/x'"),
        (Copy(sources=("*.txt",), destination="/x"), "copy-failed", "'/x'"),
        (Copy(sources=("one.txt",), destination="/x", chown="bob"), "user-not-found", "/etc/passwd"),
        (Copy(sources=("one.txt",), destination="/x", chown="0:bob"), "user-not-found", "/etc/group"),
        (Copy(sources=("one.txt",), destination="/x", chown="70000"), "invalid-user", ""),
        (Copy(sources=("one.txt",), destination="/x", chown="1:"), "invalid-user", ""),
    ],
)
def test_what_cannot_be_done(stage: Stage, files: Path, copy: Copy, code: str, where: str) -> None:
    with pytest.raises(AgentosError) as caught:
        stage.copy(files, copy)
    assert (caught.value.code, caught.value.where) == (code, where)


def test_below_the_destination_kinds_are_kept_and_links_not_followed(stage: Stage, files: Path, tmp_path: Path) -> None:
    (files / "tree").mkdir()
    (files / "tree/lib").mkdir()
    with pytest.raises(AgentosError) as caught:
        stage.copy(files, Copy(sources=("tree",), destination="/"))
    assert (caught.value.code, caught.value.where) == ("copy-failed", "'/lib'")
    assert "it is a link to 'usr/lib'" in caught.value.hint
    (files / "tree/lib").rmdir()
    (files / "tree/etc").write_text("")
    with pytest.raises(AgentosError) as caught:
        stage.copy(files, Copy(sources=("tree",), destination="/"))
    assert (caught.value.code, caught.value.where) == ("copy-failed", "'/etc'")


def test_on_nothing(session: Session, tmp_path: Path, files: Path) -> None:
    stage = Stage(session, tmp_path, None)
    stage.copy(files, Copy(sources=("one.txt",), destination="/a/b", chown="3:4"))
    assert stage.listing() == {"a": "755 3:4", "a/b": "640 3:4 one.txt"}
    with pytest.raises(AgentosError) as caught:
        stage.copy(files, Copy(sources=("one.txt",), destination="/c", chown="ada"))
    assert caught.value.code == "user-not-found"


def test_another_stages_files_keep_everything(stage: Stage, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "bin").mkdir()
    (origin / "bin/program").write_text("#!")
    os.chown(origin / "bin/program", 7, 8)
    (origin / "bin/program").chmod(0o4755)
    os.setxattr(origin / "bin/program", "user.note", b"\0\xff")
    os.link(origin / "bin/program", origin / "bin/twin")
    os.chown(origin / "bin", 9, 10)
    os.mkfifo(origin / "bin/queue", 0o620)
    (origin / "bin/server").write_text("")
    os.setxattr(origin / "bin/server", "security.capability", CAPABILITY)
    with open(origin / "bin/sparse", "wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
    (origin / "here").symlink_to("/bin")
    stage.copy(origin, Copy(sources=("/here",), destination="/data/", origin="0"))
    data = stage.tree / "data"
    program = (data / "program").stat()
    assert (program.st_uid, program.st_gid, stat.S_IMODE(program.st_mode)) == (7, 8, 0o4755)
    assert os.getxattr(data / "program", "user.note") == b"\0\xff"
    assert (data / "twin").stat().st_ino == program.st_ino
    assert stat.S_ISFIFO((data / "queue").stat().st_mode)
    assert os.getxattr(data / "server", "security.capability")[4:12] == CAPABILITY[4:12]
    sparse = (data / "sparse").stat()
    assert sparse.st_size == (8 << 20) + 3
    assert sparse.st_blocks * 512 < 1 << 20
    assert (data / "sparse").read_bytes()[-3:] == b"end"
    assert data.stat().st_uid == 0


def test_a_link_is_only_a_further_name_of_what_is_still_there(stage: Stage, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    (origin / "a").mkdir(parents=True)
    (origin / "b").mkdir()
    (origin / "a/x").write_text("first")
    os.link(origin / "a/x", origin / "z")
    (origin / "b/x").write_text("second")
    stage.copy(origin, Copy(sources=("a/x", "b/x", "z"), destination="/data/"))
    assert (stage.tree / "data/x").read_text() == "second"
    assert (stage.tree / "data/z").read_text() == "first"


def test_overlayfs_marks_are_not_copied(stage: Stage, files: Path) -> None:
    os.setxattr(files / "dir/sub", "user.overlay.opaque", b"y")
    os.setxattr(files / "dir/sub", "user.other", b"z")
    stage.copy(files, Copy(sources=("dir",), destination="/app"))
    assert os.listxattr(stage.tree / "app/sub") == ["user.other"]


def test_sockets_are_left_out(stage: Stage, files: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(files / "dir/socket"))
    copied = stage.copy(files, Copy(sources=("dir",), destination="/x"))
    assert copied.notes == ("left out the socket 'dir/socket'",)
    assert not (stage.tree / "x/socket").exists()


@pytest.mark.parametrize("how", ["content", "gone", "link", "directory"])
def test_what_changes_meanwhile_is_not_taken(stage: Stage, files: Path, how: str) -> None:
    place = files / "dir/file"

    def change() -> None:
        if how == "content":
            place.write_text("other")
            return
        place.unlink()
        if how == "link":
            place.symlink_to("/etc/passwd")
        elif how == "directory":
            place.mkdir()

    with pytest.raises(AgentosError) as caught:
        stage.copy(files, Copy(sources=("dir",), destination="/x"), change)
    assert (caught.value.code, caught.value.where) == ("context-changed", "'dir/file'")


def test_a_directory_that_becomes_a_link_leads_nowhere(stage: Stage, files: Path) -> None:
    def change() -> None:
        (files / "dir/sub").rename(files / "sub")
        (files / "dir/sub").symlink_to("/etc")

    with pytest.raises(AgentosError) as caught:
        stage.copy(files, Copy(sources=("dir",), destination="/x"), change)
    assert caught.value.code == "context-changed"


# -- ADD


def make_tar(entries: Mapping[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid, info.mode = len(content), 21, 22, 0o604
            archive.addfile(info, io.BytesIO(content.encode()))
    return out.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "tar": lambda data: data,
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("kind", sorted(COMPRESS))
def test_add_unpacks_archives(stage: Stage, files: Path, kind: str) -> None:
    (files / "a").write_bytes(COMPRESS[kind](make_tar({"x/y": "content"})))
    stage.copy(files, Copy(sources=("a", "one.txt"), destination="/var/run/", unpack=True))
    assert stage.listing() == {
        "run": "755 0:0",
        "run/one.txt": "640 0:0 one.txt",
        "run/x": "755 0:0",
        "run/x/y": "604 21:22 content",
    }


def test_an_archive_on_nothing_is_a_root_filesystem(session: Session, tmp_path: Path, files: Path) -> None:
    (files / "rootfs.tar.xz").write_bytes(lzma.compress(make_tar({"etc/x": "1"})))
    stage = Stage(session, tmp_path, None)
    stage.copy(files, Copy(sources=("rootfs.tar.xz",), destination="/", unpack=True))
    assert stage.listing() == {"etc": "755 0:0", "etc/x": "604 21:22 1"}


@pytest.mark.parametrize(
    ("content", "unpack"),
    [
        (gzip.compress(b"no tar"), True),
        (b"\x1f\x8b broken", True),
        (b"x" * 512, True),
        (b"", True),
        (bz2.compress(b"none"), True),
        (make_tar({"x": "y"}), False),
    ],
)
def test_what_is_no_archive_is_copied(stage: Stage, files: Path, content: bytes, unpack: bool) -> None:
    (files / "a").write_bytes(content)
    stage.copy(files, Copy(sources=("a",), destination="/x", unpack=unpack))
    assert (stage.tree / "x").read_bytes() == content


def test_an_archive_in_a_directory_is_copied(stage: Stage, files: Path) -> None:
    (files / "dir/a.tar").write_bytes(make_tar({"x": "y"}))
    stage.copy(files, Copy(sources=("dir",), destination="/x/", unpack=True))
    assert (stage.tree / "x/a.tar").is_file()


def test_a_hostile_archive_is_refused(stage: Stage, files: Path) -> None:
    (files / "a").write_bytes(make_tar({"../../x": "y"}))
    with pytest.raises(AgentosError) as caught:
        stage.copy(files, Copy(sources=("a",), destination="/x/", unpack=True))
    assert caught.value.code == "hostile-archive"
    (files / "a").write_bytes(make_tar({"x": "y"}))
    with pytest.raises(AgentosError) as caught:
        stage.copy(files, Copy(sources=("a",), destination="/x/", unpack=True, chown="1"))
    assert caught.value.code == "copy-failed"


# -- WORKDIR, and the Dockerfile itself


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("/w/x", {"w": "755 0:0", "w/x": "755 0:0"}),
        ("/app/x", {"app": "2775 5:6", "app/x": "755 0:0"}),
        ("/var/run/x", {"run": "755 0:0", "run/x": "755 0:0"}),
        ("/app", None),
        ("/var/run", None),
        ("/", None),
    ],
)
def test_workdir(stage: Stage, path: str, layer: dict[str, str] | None) -> None:
    made = stage.workdir(path)
    assert (made is None) == (layer is None)
    assert stage.listing() == (layer or {})


def test_a_workdir_that_is_a_file(stage: Stage) -> None:
    with pytest.raises(AgentosError) as caught:
        stage.workdir("/etc/passwd")
    assert caught.value.code == "copy-failed"
    with pytest.raises(AgentosError) as caught:
        stage.workdir("/etc/passwd/x")
    assert caught.value.code == "copy-failed"
    assert os.strerror(errno.ENOTDIR) in caught.value.what


def test_a_dockerfile_is_read_in_the_worker(session: Session) -> None:
    text = b"FROM a\nRUN <<E\n1\nE\n"
    assert dockerfile.read(session, text) == dockerfile.parse(text)
    with pytest.raises(AgentosError) as caught:
        dockerfile.read(session, b"FROM a\n\nRUX x\n", "My.Dockerfile")
    assert (caught.value.code, caught.value.where) == ("invalid-dockerfile", "My.Dockerfile:3")
    assert caught.value.hint == "is RUN meant?"
