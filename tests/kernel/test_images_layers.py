"""OCI layers become overlay layers: whiteouts, opaque directories, parents and links that only lower layers have."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.images import overlay
from agentos_native.images.session import Expect, Session, Unpacked
from tests.images import needs_root

pytestmark = needs_root

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service=ep, as a tar made on any host has it (revision 2)."""


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session() as session:
        yield session


class Stack:
    """Layers on disk, one unpacked on top of the other."""

    def __init__(self, session: Session, path: Path) -> None:
        self.session = session
        self.path = path
        self.layers: list[Path] = []

    def add(self, archive: bytes, **options: object) -> Unpacked:
        """Unpack `archive` over what is there."""
        place = self.path / str(len(self.layers))
        place.mkdir()
        base = overlay.view(self.layers, self.session.userns_fd) if self.layers else -1
        tree = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        source = os.memfd_create("layer")
        try:
            os.write(source, archive)
            os.lseek(source, 0, os.SEEK_SET)
            arguments = {"kind": "layer", "base_fd": base} | options
            unpacked = self.session.unpack(source, tree, **arguments)  # type: ignore[arg-type]
        finally:
            for descriptor in (base, tree, source):
                if descriptor >= 0:
                    os.close(descriptor)
        self.layers.append(place)
        return unpacked

    def merged(self) -> dict[str, str]:
        """Path → "dir", "-> target" or content, of what an agent would see."""
        view = overlay.view(self.layers, None)
        try:
            return read(view)
        finally:
            os.close(view)

    def top(self, path: str = "") -> Path:
        return self.layers[-1] / path


def read(root: int) -> dict[str, str]:
    found = {}
    top = f"/proc/self/fd/{root}/."
    for directory, names, files in os.walk(top):
        for name in names + files:
            full = os.path.join(directory, name)
            key = os.path.relpath(full, top)
            if os.path.islink(full):
                found[key] = f"-> {os.readlink(full)}"
            elif os.path.isdir(full):
                found[key] = "dir"
            else:
                found[key] = Path(full).read_text()
    return found


@pytest.fixture
def stack(session: Session, tmp_path: Path) -> Stack:
    return Stack(session, tmp_path)


def layer(*entries: str | tarfile.TarInfo) -> bytes:
    """A tar: "d/" a directory, "l -> t" a symbolic link, "h => t" a hard link, "f=content" or "f" a file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info, content = (entry, b"") if isinstance(entry, tarfile.TarInfo) else _info(entry)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _info(entry: str) -> tuple[tarfile.TarInfo, bytes]:
    for sign, kind in ((" -> ", tarfile.SYMTYPE), (" => ", tarfile.LNKTYPE)):
        name, found, target = entry.partition(sign)
        if found:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            return info, b""
    name, _, content = entry.partition("=")
    info = tarfile.TarInfo(name.rstrip("/"))
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    info.size = len(content)
    return info, content.encode()


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def opaque(path: Path) -> bool:
    return "user.overlay.opaque" in os.listxattr(path)


# -- whiteouts


def test_a_whiteout_hides_and_only_what_is_there(stack: Stack) -> None:
    stack.add(layer("etc/", "etc/motd=hi", "etc/keep=k", "usr/", "usr/lib/", "usr/lib/x=x"))
    unpacked = stack.add(layer("etc/", "etc/.wh.motd", ".wh.usr", ".wh.nothing", "none/.wh.x"))
    assert stack.merged() == {"etc": "dir", "etc/keep": "k"}
    assert is_whiteout(stack.top("etc/motd"))
    assert is_whiteout(stack.top("usr"))
    assert sorted(os.listdir(stack.top())) == ["etc", "usr"]
    assert unpacked.rooted


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_whiteout_and_the_same_name_in_one_layer(stack: Stack, order: str) -> None:
    stack.add(layer("d/", "d/old=o", "f=old", "g/", "g/old=o"))
    new = ["d/", "d/new=n", "f=new", "g=now a file"]
    marks = [".wh.d", ".wh.f", ".wh.g"]
    stack.add(layer(*(marks + new if order == "first" else new + marks)))
    assert stack.merged() == {"d": "dir", "d/new": "n", "f": "new", "g": "now a file"}
    assert opaque(stack.top("d"))


@pytest.mark.parametrize("order", ["first", "last"])
def test_opaque_directories_in_either_order(stack: Stack, order: str) -> None:
    stack.add(layer("d/", "d/old=o", "d/sub/", "d/sub/deep=x", "e/", "e/f=e"))
    mark = ["d/.wh..wh..opq", "only-here/.wh..wh..opq"]
    new = ["d/", "d/new=n", "d/sub/", "d/sub/here=h"]
    stack.add(layer(*(mark + new if order == "first" else new + mark)))
    assert stack.merged() == {"d": "dir", "d/new": "n", "d/sub": "dir", "d/sub/here": "h", "e": "dir", "e/f": "e"}
    assert not stack.top("only-here").exists()


def test_an_opaque_root_hides_everything(stack: Stack) -> None:
    stack.add(layer("a=a", "d/", "d/x=x", "e/"))
    stack.add(layer(".wh..wh..opq", "d/", "d/y=y"))
    assert stack.merged() == {"d": "dir", "d/y": "y"}


def test_a_link_in_place_of_a_directory_and_a_directory_again(stack: Stack) -> None:
    stack.add(layer("d/", "d/old=o"))
    stack.add(layer("d -> /etc", "d/", "d/new=n"))
    assert stack.merged() == {"d": "dir", "d/new": "n"}


def test_whiteouts_below_a_hidden_directory_are_not_made(stack: Stack) -> None:
    stack.add(layer("d/", "d/old=o", "f/", "f/x=x"))
    stack.add(layer("d/.wh.old", ".wh.d", "d/", "f/.wh.x", "f=file"))
    assert stack.merged() == {"d": "dir", "f": "file"}
    assert os.listdir(stack.top("d")) == []


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "etc/.wh...", ".wh.x/inside"])
def test_whiteouts_of_nothing_are_refused(stack: Stack, name: str) -> None:
    with pytest.raises(AgentosError) as caught:
        stack.add(layer(name))
    assert caught.value.code == "hostile-archive"


def test_what_aufs_kept_is_left_out(stack: Stack) -> None:
    unpacked = stack.add(layer("f=f", ".wh..wh.plnk/", ".wh..wh.plnk/12.34=x", ".wh..wh.aufs"))
    assert stack.merged() == {"f": "f"}
    assert any("3 entries of AUFS" in note for note in unpacked.notes)
    assert not unpacked.rooted


def test_marks_of_overlayfs_in_an_archive_mean_nothing(stack: Stack) -> None:
    stack.add(layer("d/", "d/old=o"))
    info, _ = _info("d/")
    info.pax_headers = {"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.kept": "k"}
    unpacked = stack.add(layer(info))
    assert stack.merged() == {"d": "dir", "d/old": "o"}
    assert os.listxattr(stack.top("d")) == ["user.kept"]
    assert any("user.overlay.opaque" in note for note in unpacked.notes)


def test_in_a_plain_tar_the_names_of_whiteouts_are_names(stack: Stack) -> None:
    unpacked = stack.add(layer("a=a", ".wh.a=b"), kind="tar")
    assert stack.merged() == {"a": "a", ".wh.a": "b"}
    assert not unpacked.rooted
    assert unpacked.diff_id == ""


# -- parents


def test_directories_that_only_the_base_has_keep_their_attributes(stack: Stack) -> None:
    info, _ = _info("home/ada/")
    info.uid = info.gid = 1000
    info.mode = 0o2750
    info.pax_headers = {"SCHILY.xattr.user.note": "hers"}
    stack.add(layer("home/", info))
    unpacked = stack.add(layer("home/ada/diary=dear"))
    status = stack.top("home/ada").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1000, 0o2750)
    assert os.getxattr(stack.top("home/ada"), "user.note") == b"hers"
    assert unpacked.rooted


def test_a_layer_that_brings_its_parents_is_not_rooted(stack: Stack) -> None:
    stack.add(layer("d/", "d/f=1"))
    assert not stack.add(layer("d/", "d/f=2")).rooted


def test_links_of_the_base_are_followed_inside_the_root(stack: Stack) -> None:
    stack.add(
        layer(
            "usr/",
            "usr/lib/",
            "usr/lib/old=o",
            "lib -> usr/lib",
            "abs -> /usr/lib",
            "out -> ../../../../usr",
            "two -> abs",
        )
    )
    stack.add(layer("lib/a=a", "abs/b=b", "out/lib/c=c", "two/d=d", "lib/.wh.old"))
    assert {name: what for name, what in stack.merged().items() if name.startswith("usr/lib/")} == {
        f"usr/lib/{name}": name for name in "abcd"
    }
    assert os.listdir(stack.top()) == ["usr"]
    assert is_whiteout(stack.top("usr/lib/old"))


def test_a_link_that_this_layer_hid_is_not_followed(stack: Stack) -> None:
    stack.add(layer("usr/", "lib -> usr", "k -> usr"))
    stack.add(layer(".wh.lib", "lib/x=x", "k/", "k/y=y"))
    assert stack.merged() == {"usr": "dir", "lib": "dir", "lib/x": "x", "k": "dir", "k/y": "y"}


def test_a_dangling_link_of_the_base_leads_to_a_new_directory_inside(stack: Stack) -> None:
    stack.add(layer("l -> /agentos-not-there"))
    stack.add(layer("l/x=x"))
    assert stack.merged() == {"l": "-> /agentos-not-there", "agentos-not-there": "dir", "agentos-not-there/x": "x"}
    assert not os.path.exists("/agentos-not-there")


@pytest.mark.parametrize(
    "entries",
    [["own -> /etc", "own/x"], ["loop/x"], ["file/x"], ["file/.wh.x"], ["h => loop/x"]],
    ids=["own-link", "loop", "file", "file-whiteout", "hard-link"],
)
def test_parents_that_lead_nowhere_are_refused(stack: Stack, entries: Sequence[str]) -> None:
    stack.add(layer("d/", "d/x", "loop -> loop", "file"))
    with pytest.raises(AgentosError) as caught:
        stack.add(layer(*entries))
    assert caught.value.code == "hostile-archive"


def test_whiteouts_inside_what_the_layer_makes_a_link_or_a_file_mean_nothing(stack: Stack) -> None:
    """umoci writes them: it takes away each file of a directory that becomes something else."""
    stack.add(layer("d/", "d/x=x", "e/", "e/y=y", "e/sub/"))
    stack.add(layer("d -> e", "d/.wh.x", "d/.wh.y", "e=file", "e/sub/.wh..wh..opq"))
    assert stack.merged() == {"d": "-> e", "e": "file"}
    assert sorted(os.listdir(stack.top())) == ["d", "e"]


# -- links and attributes


def test_a_hard_link_to_what_only_the_base_has_takes_a_copy(stack: Stack) -> None:
    info, content = _info("d/a=content")
    info.uid, info.mode = 7, 0o640
    info.pax_headers = {"SCHILY.xattr.user.note": "n"}
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content))
    stack.add(whole.getvalue())
    unpacked = stack.add(layer("b => d/a"))
    assert unpacked.rooted
    assert stack.top("b").stat().st_ino == stack.top("d/a").stat().st_ino
    status = stack.top("b").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode), stack.top("b").read_text()) == (7, 0o640, "content")
    assert os.getxattr(stack.top("b"), "user.note") == b"n"


def test_a_hard_link_to_what_the_layer_hid_is_refused(stack: Stack) -> None:
    stack.add(layer("a=a"))
    with pytest.raises(AgentosError) as caught:
        stack.add(layer(".wh.a", "b => a"))
    assert caught.value.code == "hostile-archive"


def test_file_capabilities_are_kept_as_those_of_the_images_root(stack: Stack, session: Session, tmp_path: Path) -> None:
    info, _ = _info("ping")
    info.pax_headers = {"SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape")}
    unpacked = stack.add(layer(info))
    # the kernel shows revision 3 with rootid 0 as revision 2 to those whose root is that root
    assert os.getxattr(stack.top("ping"), "security.capability") == CAPABILITY
    shown = subprocess.run(["getcap", stack.top("ping")], check=True, capture_output=True, text=True).stdout
    assert "cap_net_bind_service" in shown
    copy = tmp_path / "copy"
    copy.mkdir()
    source, tree = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (stack.top(), copy))
    try:
        again = session.unpack(source, tree, kind="directory")
    finally:
        os.close(source)
        os.close(tree)
    assert again.measured.digest == unpacked.measured.digest
    assert unpacked.notes == again.notes == ()


# -- uppers


def test_an_upper_directory_becomes_a_layer(session: Session, tmp_path: Path) -> None:
    upper, tree = tmp_path / "upper", tmp_path / "tree"
    for path in (upper / "d/sub", upper / "skipped/deep", tree):
        path.mkdir(parents=True)
    (upper / "d/new").write_text("n")
    os.mknod(upper / "gone", stat.S_IFCHR, 0)
    os.link(upper / "gone", upper / "also-gone")
    os.setxattr(upper / "d", "user.overlay.opaque", b"y")
    os.setxattr(upper / "d/sub", "user.overlay.origin", b"\x00\xfb")
    os.setxattr(upper / "d/sub", "user.kept", b"k")
    source, out = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (upper, tree))
    try:
        unpacked = session.unpack(source, out, kind="upper", exclude=["skipped", "d/none"])
    finally:
        os.close(source)
        os.close(out)
    assert sorted(os.listdir(tree)) == ["also-gone", "d", "gone"]
    assert is_whiteout(tree / "gone") and is_whiteout(tree / "also-gone")
    assert opaque(tree / "d")
    assert os.listxattr(tree / "d/sub") == ["user.kept"]
    assert unpacked.notes == ()


def test_a_directory_of_the_host_with_a_whiteout_is_refused(session: Session, tmp_path: Path) -> None:
    source_path, tree = tmp_path / "source", tmp_path / "tree"
    source_path.mkdir()
    tree.mkdir()
    os.mknod(source_path / "gone", stat.S_IFCHR, 0)
    source, out = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source_path, tree))
    try:
        with pytest.raises(AgentosError, match="device"):
            session.unpack(source, out, kind="directory")
    finally:
        os.close(source)
        os.close(out)


# -- below another directory


def test_an_archive_unpacked_below_a_directory_of_the_base(stack: Stack) -> None:
    stack.add(layer("srv/", "opt -> srv"))
    stack.add(layer("./", "a=a", "b => a"), kind="tar", prefix="opt/x")
    assert stack.merged() == {"srv": "dir", "opt": "-> srv", "srv/x": "dir", "srv/x/a": "a", "srv/x/b": "a"}
    assert stack.top("srv/x/a").stat().st_nlink == 2


# -- what was promised


def test_what_is_expected_of_an_archive_is_checked(stack: Stack) -> None:
    plain = layer("f=" + "x" * 5000, "g=" + os.urandom(300_000).hex())
    packed = gzip.compress(plain)
    digest, diff_id = (f"sha256:{hashlib.sha256(data).hexdigest()}" for data in (packed, plain))
    right = Expect(digest=digest, size=len(packed), diff_id=diff_id)
    assert stack.add(packed, expect=right).diff_id == diff_id
    other = "sha256:" + "0" * 64
    for archive, expect, code in (
        (packed, Expect(digest=other, size=len(packed)), "digest-mismatch"),
        (packed, Expect(digest=digest, size=len(packed) - 1), "size-mismatch"),
        (packed, Expect(digest=digest, size=len(packed) + 1), "size-mismatch"),
        (packed, Expect(diff_id=other), "digest-mismatch"),
        (packed[:-20], right, "size-mismatch"),
        (packed + bytes(8), right, "size-mismatch"),
        (packed[:2000] + bytes([packed[2000] ^ 1]) + packed[2001:], right, "digest-mismatch"),
        (packed + b"trailing", Expect(), "invalid-archive"),
        (plain + b"trailing", Expect(), "invalid-archive"),
        (packed[:-20], Expect(), "invalid-archive"),
    ):
        with pytest.raises(AgentosError) as caught:
            Stack(stack.session, _fresh(stack.path)).add(archive, expect=expect)
        assert caught.value.code == code, (expect, caught.value)
        assert caught.value.hint


def _fresh(path: Path) -> Path:
    fresh = path / f"x{len(os.listdir(path))}"
    fresh.mkdir()
    return fresh


# -- against a model

_NAMES = st.sampled_from(["a", "b", "a/x", "a/y", "a/x/1", "b/x", "b/x/1"])
_ENTRY = st.one_of(
    st.tuples(st.sampled_from(["file", "dir", "whiteout", "opaque"]), _NAMES),
)
_LAYERS = st.lists(st.lists(_ENTRY, max_size=6), min_size=1, max_size=3)
"""Names that cross: files where others have directories are refused in one layer, and replace those of another."""


def without(tree: dict[str, str], entries: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What of the lower layers is seen through the marks of a layer."""

    def gone(path: str) -> bool:
        return any(
            path.startswith(name + "/") or (kind == "whiteout" and path == name)
            for kind, name in entries
            if kind in ("whiteout", "opaque")
        )

    return {path: what for path, what in tree.items() if not gone(path)}


def apply(tree: dict[str, str], entries: Sequence[tuple[str, str]], number: int) -> dict[str, str] | None:
    """The specification's meaning, on a dictionary; None for a layer that contradicts itself or what is below."""
    own: dict[str, str] = {}
    below = without(tree, entries)
    for kind, name in entries:
        parents = [name[:index] for index, char in enumerate(name) if char == "/"]
        through = [*parents, name] if kind == "opaque" else parents
        lower = below if kind in ("file", "dir") else tree
        if any(own.get(each, lower.get(each, "dir")) != "dir" for each in through):
            return None
        if kind in ("file", "dir"):
            if kind == "file" and own.get(name) == "dir":
                return None
            own |= dict.fromkeys(parents, "dir")
            own[name] = "dir" if kind == "dir" else f"{number}"
    for name, what in own.items():
        if what != "dir" or below.get(name, "dir") != "dir":
            below = {path: each for path, each in below.items() if path != name and not path.startswith(name + "/")}
        below[name] = what
    return below


def archive_of(entries: Sequence[tuple[str, str]], number: int) -> bytes:
    made = []
    for kind, name in entries:
        directory, _, last = name.rpartition("/")
        prefix = directory + "/" if directory else ""
        made.append(
            {
                "file": f"{name}={number}",
                "dir": f"{name}/",
                "whiteout": f"{prefix}.wh.{last}",
                "opaque": f"{name}/.wh..wh..opq",
            }[kind]
        )
    return layer(*made)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(_LAYERS)
def test_layers_mean_what_the_specification_says(
    session: Session, tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[str, str]]]
) -> None:
    stack = Stack(session, tmp_path_factory.mktemp("model"))
    expected: dict[str, str] = {}
    stack.add(layer("./"))
    for number, entries in enumerate(layers):
        after = apply(expected, entries, number)
        if after is None:
            return
        stack.add(archive_of(entries, number))
        expected = after
    assert stack.merged() == expected
