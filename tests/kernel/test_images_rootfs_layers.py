"""Root filesystems of several layers on the live kernel: what an upper layer hides, and whose attributes count.

The layers are made by hand, as the unpacker leaves them: whiteouts are character devices 0:0, opaque directories have
``user.overlay.opaque``.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import overlay, rootfs
from agentos_native.images.model import Image
from agentos_native.images.oci.model import LAYERS_MAX
from agentos_native.images.overlay import Style
from agentos_native.images.rootfs import Workdir
from agentos_native.images.users import resolve_user
from agentos_native.kernel import mount as kernel_mount
from tests.images import ID_BASE, needs_root, userns
from tests.kernel.test_images_rootfs import inside, mounts, open_fds, refusal
from tests.layers import WHITEOUT, Stack, file, opaque, whiteout

pytestmark = needs_root

FILES = {"/etc/hostname": b"agent\n"}


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """A base, a layer that takes things away, and one that changes attributes."""
    made = Stack(tmp_path / "layers")
    base = made.layer()
    for name, content in (("keep", "base"), ("gone", "base"), ("cache/old", "base"), ("var/a/old", "base")):
        file(base / name, content)
    file(base / "etc/passwd", "root:x:0:0::/root:/bin/sh\n")
    file(base / "etc/group", "root:x:0:\n")
    file(base / "linked", "one")
    os.link(base / "linked", base / "other-name")
    middle = made.layer()
    whiteout(middle / "gone")
    opaque(middle / "cache")
    file(middle / "cache/new", "middle")
    file(middle / "keep", "middle")
    file(middle / "etc/passwd", "root:x:0:0::/home/root:/bin/sh\nada:x:1000:1001::/home/ada:/bin/sh\n")
    file(middle / "etc/group", "root:x:0:\nada:x:1001:\naudio:x:29:ada\n")
    upper = made.layer()
    (upper / "etc").mkdir()
    (upper / "etc").chmod(0o750)
    os.chown(upper / "etc", 3, 4)
    whiteout(upper / "var/a/old")
    os.symlink("../keep", upper / "var/link")
    return made


@pytest.fixture
def namespace() -> Iterator[int]:
    with userns() as descriptor:
        yield descriptor


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    return tmp_path / "agents/0123456789ab"


@pytest.fixture(params=list(Style), ids=lambda style: style.name.lower())
def style(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, stack: Stack, namespace: int) -> Style:
    """Each way of telling overlayfs its layers, from the newest that this kernel has: it takes the older ways too."""
    monkeypatch.setattr(overlay, "_style", None)
    os.close(overlay.view(stack.paths, namespace))
    newest = overlay._style
    assert isinstance(newest, Style)
    assert isinstance(request.param, Style)
    chosen = max(newest, request.param, key=lambda style: style.value)
    monkeypatch.setattr(overlay, "_style", chosen)
    return chosen


LOOK = """
def walk(at='.'):
    found = []
    for name in sorted(os.listdir(at)):
        path = os.path.join(at, name)
        if os.path.isdir(path) and not os.path.islink(path):
            found += walk(path)
        else:
            found.append(path[2:])
    return found
result = [walk(), open('keep').read(), open('var/link').read(), os.stat('etc').st_mode & 0o7777, os.stat('etc').st_uid,
          os.stat('linked').st_ino == os.stat('other-name').st_ino, os.listxattr('cache')]
"""
MERGED = ["cache/new", "etc/group", "etc/passwd", "keep", "linked", "other-name", "var/link"]


@pytest.mark.parametrize("read_only", [False, True])
def test_as_many_layers_as_an_image_may_have(tmp_path: Path, agent: Path, namespace: int, read_only: bool) -> None:
    many = Stack(tmp_path / "layers")
    for _ in range(LAYERS_MAX):
        many.layer()
    image = many.image()
    rootfs.prepare(image, agent, ID_BASE, {})
    os.close(rootfs.mount(image, agent, namespace, read_only))


def test_what_the_agent_sees(stack: Stack, agent: Path, namespace: int, style: Style) -> None:
    image = stack.image()
    rootfs.prepare(image, agent, ID_BASE, {})
    root = rootfs.mount(image, agent, namespace)
    try:
        assert inside(namespace, root, LOOK) == [MERGED, "middle", "middle", 0o750, 3, True, []]
        change = (
            "import shutil\nshutil.rmtree('etc'); os.mkdir('etc'); open('gone', 'w').close(); os.unlink('keep')\n"
            "os.mkdir('cache/sub'); os.rmdir('cache/sub'); os.rename('linked', 'renamed')\n"
        )
        inside(namespace, root, change)
    finally:
        os.close(root)
    root = rootfs.mount(image, agent, namespace)
    try:
        seen = inside(namespace, root, "result = [sorted(os.listdir('.')), os.listdir('etc'), os.listdir('cache')]")
        assert seen == [["cache", "etc", "gone", "other-name", "renamed", "var"], [], ["new"]]
    finally:
        os.close(root)
    assert (stack.paths[0] / "linked").read_text() == "one"
    assert (stack.paths[1] / "etc/passwd").exists()


def test_read_only(stack: Stack, agent: Path, namespace: int, style: Style) -> None:
    image = stack.image()
    rootfs.prepare(image, agent, ID_BASE, FILES)
    root = rootfs.mount(image, agent, namespace, read_only=True)
    try:
        seen = inside(namespace, root, "result = [sorted(os.listdir('etc')), os.listdir('cache')]")
        assert seen == [["group", "hostname", "passwd"], ["new"]]
        assert inside(namespace, root, refusal("open('new', 'w')")) == "EROFS"
    finally:
        os.close(root)


def test_a_view(stack: Stack, namespace: int, style: Style) -> None:
    for which, owner in ((None, 0), (namespace, ID_BASE)):
        fd = overlay.view(stack.paths, which)
        try:
            here = f"/proc/self/fd/{fd}"
            assert sorted(os.listdir(here)) == ["cache", "etc", "keep", "linked", "other-name", "var"]
            assert os.listdir(f"{here}/cache") == ["new"]
            assert os.stat("keep", dir_fd=fd).st_uid == owner
            assert os.stat("etc", dir_fd=fd).st_uid == owner + 3
            assert os.listxattr(f"{here}/cache") == []
            flags = os.fstatvfs(fd).f_flag
            wanted = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_RDONLY
            assert flags & wanted == wanted
            with pytest.raises(OSError, match="Read-only"):
                os.mkdir("new", dir_fd=fd)
        finally:
            os.close(fd)


def test_a_view_of_one_layer_shows_its_marks(stack: Stack, namespace: int) -> None:
    fd = overlay.view(stack.paths[1:2], namespace)
    try:
        assert os.stat("gone", dir_fd=fd, follow_symlinks=False).st_rdev == WHITEOUT
        assert os.listxattr(f"/proc/self/fd/{fd}/cache") == ["user.overlay.opaque"]
    finally:
        os.close(fd)


def test_an_agent_forges_no_marks(stack: Stack, agent: Path, namespace: int) -> None:
    image = stack.image()
    rootfs.prepare(image, agent, ID_BASE, {})
    root = rootfs.mount(image, agent, namespace)
    try:
        inside(namespace, root, "os.setxattr('var', 'user.overlay.opaque', b'y')\nos.mkdir('etc/own')")
    finally:
        os.close(root)
    root = rootfs.mount(image, agent, namespace)
    try:
        seen = inside(namespace, root, "result = [sorted(os.listdir('var')), os.listxattr('var')]")
        assert seen == [["a", "link"], ["user.overlay.opaque"]]
    finally:
        os.close(root)


def test_forty_layers(tmp_path: Path, agent: Path, namespace: int, style: Style) -> None:
    stack = Stack(tmp_path / "forty")
    for number in range(40):
        file(stack.layer() / "top", str(number))
        file(stack.paths[-1] / f"of/{number}")
    image = stack.image()
    rootfs.prepare(image, agent, ID_BASE, FILES)
    root = rootfs.mount(image, agent, namespace)
    try:
        assert inside(namespace, root, "result = [open('top').read(), len(os.listdir('of'))]") == ["39", 40]
    finally:
        os.close(root)


def test_nothing_is_left_open_or_mounted(stack: Stack, agent: Path, namespace: int, style: Style) -> None:
    image = stack.image()
    rootfs.prepare(image, agent, ID_BASE, FILES)
    before = open_fds(), mounts(), threading.active_count()
    for _ in range(2):
        os.close(rootfs.mount(image, agent, namespace))
        os.close(overlay.view(stack.paths, namespace))
    stack.paths[1].rename(stack.home / "away")
    with pytest.raises(AgentosError, match="gone"):
        rootfs.mount(image, agent, namespace)
    assert (open_fds(), mounts(), threading.active_count()) == before


def test_a_mount_under_way_is_seen_by_nobody(
    stack: Stack, agent: Path, namespace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.15 the layers are attached meanwhile; a crash right then must leave nothing behind."""
    monkeypatch.setattr(overlay, "_style", Style.ATTACHED)
    image = stack.image()
    rootfs.prepare(image, agent, ID_BASE, FILES)
    before, during = mounts(), []
    create = kernel_mount.fsconfig_create

    def look(context: int) -> None:
        during.append((Path("/proc/self/mountinfo").read_text(), Path("/proc/thread-self/mountinfo").read_text()))
        create(context)

    monkeypatch.setattr(kernel_mount, "fsconfig_create", look)
    os.close(rootfs.mount(image, agent, namespace))
    (ours, theirs), *_ = during
    assert ours.splitlines() == before
    assert f" {stack.home} " in theirs


# -- attributes and users


def test_the_files_of_prepare_have_the_merged_directories(stack: Stack, agent: Path) -> None:
    rootfs.prepare(stack.image(), agent, ID_BASE, FILES)
    status = os.stat(agent / "upper/etc")
    assert (oct(status.st_mode), status.st_uid, status.st_gid) == ("0o40750", ID_BASE + 3, ID_BASE + 4)


def test_a_directory_that_was_made_anew_has_the_new_attributes(tmp_path: Path, agent: Path) -> None:
    stack = Stack(tmp_path / "anew")
    file(stack.layer() / "etc/old")
    (stack.paths[0] / "etc").chmod(0o700)
    whiteout(stack.layer() / "etc")
    rootfs.prepare(stack.image(), agent, ID_BASE, FILES)
    assert oct(os.stat(agent / "upper/etc").st_mode) == "0o40755"


def test_users_of_an_upper_layer(stack: Stack) -> None:
    image = stack.image(user="ada")
    assert resolve_user(image, None) == (1000, 1001, (29,), "/home/ada")
    assert resolve_user(image, "0")[3] == "/home/root"
    lower = Image(**{**{name: getattr(image, name) for name in image.__struct_fields__}, "layers": (stack.paths[0],)})
    with pytest.raises(AgentosError, match="user-not-found"):
        resolve_user(lower, "ada")


def test_users_that_an_upper_layer_takes_away(stack: Stack) -> None:
    whiteout(stack.layer() / "etc/passwd")
    with pytest.raises(AgentosError, match="user-not-found"):
        resolve_user(stack.image(), "ada")
    opaque(stack.layer() / "etc")
    assert resolve_user(stack.image(), "1000:1000")[:3] == (1000, 1000, ())
    with pytest.raises(AgentosError, match="user-not-found"):
        resolve_user(stack.image(), "root:root")


def test_a_passwd_that_links_into_a_layer_below(stack: Stack) -> None:
    """As where /etc/passwd is a link to /usr/share/…: the link is above, the file below."""
    file(stack.paths[0] / "usr/passwd", "eve:x:5:6::/eve:/bin/sh\n")
    top = stack.layer() / "etc"
    top.mkdir()
    os.symlink("../../../../usr/passwd", top / "passwd")
    assert resolve_user(stack.image(), "eve")[:2] == (5, 6)


@pytest.mark.parametrize("trick", ["root-link", "fifo", "device", "passwd-link", "directory"])
def test_tricks_stay_in_the_image(stack: Stack, tmp_path: Path, agent: Path, namespace: int, trick: str) -> None:
    """A layer on top whose etc leads to the host's /, or whose passwd is no file."""
    (tmp_path / "victim").mkdir()
    file(tmp_path / "victim/passwd", "mallory:x:7:7:::\n")
    top = stack.layer()
    if trick == "root-link":
        os.symlink("/", top / "etc")
    else:
        (top / "etc").mkdir()
    if trick == "fifo":
        os.mkfifo(top / "etc/passwd")
    elif trick == "device":
        os.mknod(top / "etc/passwd", 0o666 | 0o020000, os.makedev(1, 5))  # zero: never ends
    elif trick == "passwd-link":
        os.symlink(tmp_path / "victim/passwd", top / "etc/passwd")
    elif trick == "directory":
        (top / "etc/passwd").mkdir()
    image = stack.image()
    with pytest.raises(AgentosError, match="user-not-found"):
        resolve_user(image, "mallory")
    before = os.stat("/"), sorted(os.listdir("/"))
    rootfs.prepare(image, agent, ID_BASE, {"/etc/agentos-trick": b"x"})
    os.close(rootfs.mount(image, agent, namespace))
    assert (agent / "upper/etc/agentos-trick").read_bytes() == b"x"
    assert (os.stat("/").st_mode, sorted(os.listdir("/"))) == (before[0].st_mode, before[1])
    assert not Path("/agentos-trick").exists()
    assert os.listdir(tmp_path / "victim") == ["passwd"]


# -- WORKDIR


@pytest.mark.parametrize("read_only", [False, True])
def test_a_working_directory_is_made(stack: Stack, agent: Path, namespace: int, read_only: bool) -> None:
    image = stack.image()
    rootfs.prepare(image, agent, ID_BASE, FILES)
    for _ in range(2):
        root = rootfs.mount(image, agent, namespace, read_only, workdir=Workdir("/srv/app/data", ID_BASE))
        try:
            code = "result = [[os.stat(p).st_uid, os.stat(p).st_mode] for p in ('srv', 'srv/app/data')]"
            assert inside(namespace, root, code) == [[0, 0o40755], [0, 0o40755]]
        finally:
            os.close(root)
    assert (agent / "upper/srv/app/data").is_dir()
    assert not (stack.paths[-1] / "srv").exists()


def test_a_working_directory_that_is_there_is_left_alone(stack: Stack, agent: Path, namespace: int) -> None:
    image = stack.image()
    rootfs.prepare(image, agent, ID_BASE, {})
    os.close(rootfs.mount(image, agent, namespace, workdir=Workdir("/var/a", ID_BASE)))
    assert os.listdir(agent / "upper") == []


def test_a_working_directory_behind_links_of_the_image(
    stack: Stack, tmp_path: Path, agent: Path, namespace: int
) -> None:
    """A link to / leads to the agent's own; one to nowhere is refused."""
    top = stack.layer()
    os.symlink("/", top / "host")
    os.symlink("/nowhere", top / "dangling")
    image = stack.image()
    rootfs.prepare(image, agent, ID_BASE, {})
    root = rootfs.mount(image, agent, namespace, workdir=Workdir(f"/host{tmp_path}/made", ID_BASE))
    os.close(root)
    assert not (tmp_path / "made").exists()
    assert Path(f"{agent}/upper{tmp_path}/made").is_dir()
    before = open_fds()
    for path in ("/dangling/x", "/dangling", "/keep/x"):
        with pytest.raises(AgentosError, match="workdir-not-made"):
            rootfs.mount(image, agent, namespace, workdir=Workdir(path, ID_BASE))
    assert open_fds() == before


def test_the_unpacker_s_marks_need_no_privilege(stack: Stack, agent: Path, namespace: int) -> None:
    """Both kinds of marks made by the root of a user namespace, as the unpacker makes them."""
    top = stack.layer()
    os.chown(top, ID_BASE, ID_BASE)
    root = os.open(top, os.O_RDONLY)
    try:
        code = "os.mknod('keep', 0o020600, 0); os.mkdir('etc'); os.setxattr('etc', 'user.overlay.opaque', b'y')"
        inside(namespace, root, code)
    finally:
        os.close(root)
    subprocess.run(["chown", "-hR", "0:0", top], check=True)
    fd = overlay.view(stack.paths, None)
    try:
        assert sorted(os.listdir(f"/proc/self/fd/{fd}")) == ["cache", "etc", "linked", "other-name", "var"]
        assert os.listdir(f"/proc/self/fd/{fd}/etc") == []
    finally:
        os.close(fd)
