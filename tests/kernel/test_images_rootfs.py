"""An agent's root filesystem on the live kernel: owners inside and outside, what survives, what removal takes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import Image, ImageStore, volume_mount
from agentos_native.images import overlay as overlay_module
from agentos_native.images import rootfs as rootfs_module
from agentos_native.images.overlay import Style
from agentos_native.kernel import mount as kernel_mount
from agentos_native.kernel.libc import AT_FDCWD
from tests.images import ID_BASE, make_tree, needs_root, userns

pytestmark = needs_root

FILES = {"/etc/hostname": b"agent\n", "/etc/hosts": b"127.0.0.1 agent\n", "/deep/er/file": b"x"}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


@pytest.fixture
def image(store: ImageStore, tmp_path: Path) -> Image:
    return store.import_("tree", make_tree(tmp_path / "tree"))


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    return tmp_path / "agents" / "0123456789ab"


@pytest.fixture
def namespace() -> Iterator[int]:
    with userns() as descriptor:
        yield descriptor


@pytest.fixture(params=list(Style), ids=lambda style: style.name.lower())
def style(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    store: ImageStore,
    image: Image,
    tmp_path: Path,
    namespace: int,
) -> Style:
    """Each way of telling overlayfs its layers, from the newest that this kernel has: it takes the older ways too."""
    monkeypatch.setattr(overlay_module, "_style", None)
    store.prepare(image, tmp_path / "probe", ID_BASE, {})
    os.close(store.mount(image, tmp_path / "probe", namespace))
    store.release(tmp_path / "probe")
    newest = overlay_module._style
    assert isinstance(newest, Style)
    assert isinstance(request.param, Style)
    chosen = max(newest, request.param, key=lambda style: style.value)
    monkeypatch.setattr(overlay_module, "_style", chosen)
    return chosen


def inside(namespace: int, root: int, code: str) -> object:
    """Run `code` as the root of `namespace`, in the directory of the mount `root`; what it leaves in `result`."""
    program = (
        "import os, sys, json, ctypes, errno\n"
        f"assert ctypes.CDLL(None).setns({namespace}, 0x10000000) == 0\n"
        "os.setgroups([]); os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)\n"
        f"os.fchdir({root}); result = None\n{code}\nprint(json.dumps(result))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        pass_fds=(namespace, root),
        stdout=subprocess.PIPE,
        check=True,
        cwd="/",
        timeout=60,
    )
    return json.loads(done.stdout)


def refusal(action: str) -> str:
    """Code that sets `result` to the name of the errno that `action` fails with."""
    return f"try:\n  {action}\nexcept OSError as error:\n  result = errno.errorcode[error.errno]\n"


def test_the_image_is_root_s_inside_and_the_agent_s_outside(
    store: ImageStore, image: Image, agent: Path, namespace: int, style: Style
) -> None:
    store.prepare(image, agent, ID_BASE, FILES)
    root = store.mount(image, agent, namespace)
    try:
        assert os.stat("etc/passwd", dir_fd=root).st_uid == ID_BASE
        assert os.stat("home/ada/diary", dir_fd=root).st_uid == ID_BASE + 1000
        seen = inside(
            namespace,
            root,
            "result = [os.stat(p).st_uid for p in ('.', 'etc', 'etc/passwd', 'etc/hosts', 'home/ada/diary', 'empty')]\n"
            "open('home/ada/diary', 'a').write('!'); open('new', 'w').write('n')\n"
            "os.unlink('bin-su'); os.mkdir('etc/own')\n",
        )
        assert seen == [0, 0, 0, 0, 1000, 65535]
    finally:
        os.close(root)
    upper = agent / "upper"
    assert os.stat(upper / "new").st_uid == ID_BASE
    assert os.stat(upper / "home/ada/diary").st_uid == ID_BASE + 1000
    layer = image.layers[0]
    assert (layer / "home/ada/diary").read_text() == "dear"
    assert (layer / "bin-su").exists()
    assert os.stat(layer / "etc/passwd").st_uid == 0


def test_what_the_agent_wrote_is_there_at_its_next_start(
    store: ImageStore, image: Image, agent: Path, namespace: int, style: Style
) -> None:
    for turn in range(3):
        store.prepare(image, agent, ID_BASE, {"/etc/hosts": b"%d" % turn})
        root = store.mount(image, agent, namespace)
        try:
            before = inside(namespace, root, "result = [sorted(os.listdir('home')), open('etc/hosts').read()]\n"
                            f"open('home/turn-{turn}', 'w').close()")  # fmt: skip
        finally:
            os.close(root)
        assert before == [["ada", *(f"turn-{earlier}" for earlier in range(turn))], str(turn)]


def test_read_only(store: ImageStore, image: Image, agent: Path, namespace: int, style: Style) -> None:
    store.prepare(image, agent, ID_BASE, FILES)
    root = store.mount(image, agent, namespace, read_only=True)
    try:
        assert inside(namespace, root, "result = open('etc/hosts').read()") == FILES["/etc/hosts"].decode()
        assert inside(namespace, root, refusal("open('new', 'w')")) == "EROFS"
        assert inside(namespace, root, "result = os.stat('etc/passwd').st_uid") == 0
    finally:
        os.close(root)


def test_no_device_and_no_set_user_id(store: ImageStore, image: Image, agent: Path, namespace: int) -> None:
    store.prepare(image, agent, ID_BASE, FILES)
    root = store.mount(image, agent, namespace)
    try:
        flags = os.fstatvfs(root).f_flag
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV
        assert os.stat("bin-su", dir_fd=root).st_mode & 0o7777 == 0o4755
        assert inside(namespace, root, refusal("os.mknod('disk', 0o60666, os.makedev(8, 0))")) == "EPERM"
    finally:
        os.close(root)


def test_the_files_of_prepare_have_the_image_s_directories(store: ImageStore, image: Image, agent: Path) -> None:
    os.chmod(image.layers[0] / "etc", 0o750)
    rootfs_module._attributes.cache_clear()
    store.prepare(image, agent, ID_BASE, FILES)
    upper = agent / "upper"
    assert oct(os.stat(upper / "etc").st_mode) == "0o40750"
    assert oct(os.stat(upper / "deep/er").st_mode) == "0o40755"
    assert {os.stat(upper / path).st_uid for path in ("", "etc", "etc/hosts", "deep")} == {ID_BASE}
    assert (upper / "etc/hosts").read_bytes() == FILES["/etc/hosts"]


def test_an_image_s_links_do_not_lead_the_files_elsewhere(
    store: ImageStore, tmp_path: Path, agent: Path, namespace: int
) -> None:
    """etc -> /…/victim, and etc/resolv.conf -> …: the host's files stay as they are."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "hosts").write_text("kept")
    (tmp_path / "evil").mkdir()
    os.symlink(victim, tmp_path / "evil/etc")
    image = store.import_("evil", tmp_path / "evil")
    store.prepare(image, agent, ID_BASE, FILES)
    root = store.mount(image, agent, namespace)
    os.close(root)
    assert [path.name for path in victim.iterdir()] == ["hosts"]
    assert (victim / "hosts").read_text() == "kept"
    assert (agent / "upper/etc/hosts").read_bytes() == FILES["/etc/hosts"]


def test_an_agent_s_links_do_not_lead_the_files_elsewhere(
    store: ImageStore, image: Image, tmp_path: Path, agent: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "hosts").write_text("kept")
    store.prepare(image, agent, ID_BASE, FILES)
    upper = agent / "upper"
    (upper / "etc/hosts").unlink()
    os.symlink(victim / "hosts", upper / "etc/hosts")
    store.prepare(image, agent, ID_BASE, FILES)
    assert (upper / "etc/hosts").read_bytes() == FILES["/etc/hosts"]
    for path in ("etc/hosts", "etc/hostname"):
        (upper / path).unlink()
    (upper / "etc").rmdir()
    os.symlink(victim, upper / "etc")
    store.prepare(image, agent, ID_BASE, FILES)
    assert (victim / "hosts").read_text() == "kept"
    assert [path.name for path in victim.iterdir()] == ["hosts"]


def test_a_layer_of_another_range_is_refused(store: ImageStore, image: Image, agent: Path) -> None:
    store.prepare(image, agent, ID_BASE, FILES)
    with pytest.raises(AgentosError) as caught:
        store.prepare(image, agent, ID_BASE + 65536, FILES)
    assert caught.value.code == "rootfs-foreign"


def test_a_half_made_layer_is_made_anew(store: ImageStore, image: Image, agent: Path) -> None:
    (agent / "upper.new/etc").mkdir(parents=True)
    (agent / "upper.new/junk").touch()
    store.prepare(image, agent, ID_BASE, FILES)
    assert sorted(os.listdir(agent)) == ["upper", "work"]
    assert not (agent / "upper/junk").exists()


def test_a_missing_layer_says_so(store: ImageStore, image: Image, agent: Path, namespace: int) -> None:
    store.prepare(image, agent, ID_BASE, FILES)
    image.layers[0].rename(image.layers[0].with_name("gone"))
    with pytest.raises(AgentosError) as caught:
        store.mount(image, agent, namespace)
    assert caught.value.code == "image-damaged"


def test_a_layer_that_is_missing_from_the_beginning_says_so(store: ImageStore, image: Image, agent: Path) -> None:
    image.layers[0].rename(image.layers[0].with_name("gone"))
    with pytest.raises(AgentosError) as caught:
        store.prepare(image, agent, ID_BASE, FILES)
    assert (caught.value.code, "image verify" in caught.value.hint) == ("image-damaged", True)


def test_a_filesystem_that_cannot_map_ids_says_so(image: Image, agent: Path, store: ImageStore, namespace: int) -> None:
    store.prepare(image, agent, ID_BASE, FILES)
    bad = Image(**{**{name: getattr(image, name) for name in image.__struct_fields__}, "layers": (Path("/proc/sys"),)})
    with pytest.raises(AgentosError) as caught:
        store.mount(bad, agent, namespace)
    assert caught.value.code == "rootfs-not-mounted"
    assert "idmapped" in caught.value.hint


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def test_nothing_is_left_open_or_mounted(
    store: ImageStore, image: Image, agent: Path, namespace: int, style: Style
) -> None:
    before = open_fds(), mounts()
    for _ in range(3):
        store.prepare(image, agent, ID_BASE, FILES)
        os.close(store.mount(image, agent, namespace))
    with pytest.raises(AgentosError):
        store.mount(image, agent / "none", namespace)
    store.release(agent)
    assert (open_fds(), mounts()) == before
    assert not agent.exists()


def test_release_takes_everything_the_agent_made_and_nothing_else(
    store: ImageStore, image: Image, agent: Path, namespace: int, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    (outside / "kept").touch()
    store.prepare(image, agent, ID_BASE, FILES)
    (agent / "stdout").touch()
    root = store.mount(image, agent, namespace)
    try:
        inside(
            namespace,
            root,
            f"os.symlink({str(outside)!r}, 'link'); os.symlink('/', 'home/slash')\n"
            "os.mkdir('closed'); open('closed/f', 'w'); os.chmod('closed', 0)\n"
            "os.mkdir(b'\\xff\\n'); os.mkfifo('pipe')\n"
            "os.unlink('etc/passwd'); os.rename('home/ada/diary', 'd2')\n"
            "for _ in range(300):\n os.mkdir('d' * 200); os.chdir('d' * 200); open('f', 'w').close()\n",
        )
    finally:
        os.close(root)
    store.release(agent)
    assert os.listdir(agent) == ["stdout"]
    assert (outside / "kept").exists()
    assert (image.layers[0] / "etc/passwd").exists()
    store.release(agent)
    (agent / "stdout").unlink()
    store.release(agent)
    assert not agent.exists()


def test_release_does_not_cross_a_mount(store: ImageStore, image: Image, agent: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    store.prepare(image, agent, ID_BASE, FILES)
    (agent / "upper/mnt").mkdir()
    subprocess.run(["mount", "--bind", kept, agent / "upper/mnt"], check=True)
    try:
        with pytest.raises(AgentosError) as caught:
            store.release(agent)
        assert caught.value.code == "not-removed"
        assert "mounted" in caught.value.hint
        assert (kept / "file").exists()
    finally:
        subprocess.run(["umount", agent / "upper/mnt"], check=True)
    store.release(agent)
    assert not agent.exists()


# -- volumes


def test_a_volume_has_the_agent_s_owners(tmp_path: Path, namespace: int) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v/file").write_text("host")
    volume = volume_mount(str(tmp_path / "v"), namespace, False)
    try:
        assert os.fstatvfs(volume).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV
        code = "result = [os.stat('file').st_uid]; open('file', 'a').write('+'); os.mkdir('d'); os.chown('d', 5, 6)"
        assert inside(namespace, volume, code) == [0]
    finally:
        os.close(volume)
    assert (tmp_path / "v/file").read_text() == "host+"
    assert (os.stat(tmp_path / "v/d").st_uid, os.stat(tmp_path / "v/d").st_gid) == (5, 6)


def test_a_read_only_volume_and_a_single_file(tmp_path: Path, namespace: int) -> None:
    (tmp_path / "v").mkdir()
    volume = volume_mount(str(tmp_path / "v"), namespace, True)
    try:
        assert inside(namespace, volume, refusal("open('new', 'w')")) == "EROFS"
    finally:
        os.close(volume)
    (tmp_path / "single").write_text("x")
    (tmp_path / "point").touch()
    single = volume_mount(str(tmp_path / "single"), namespace, True)
    try:
        kernel_mount.move_mount(single, "", AT_FDCWD, str(tmp_path / "point"), kernel_mount.MOVE_MOUNT_F_EMPTY_PATH)
        assert os.stat(tmp_path / "point").st_uid == ID_BASE
        with pytest.raises(OSError) as caught:
            (tmp_path / "point").write_text("y")
        assert caught.value.errno == errno.EROFS
    finally:
        os.close(single)
        kernel_mount.umount2(str(tmp_path / "point"), kernel_mount.MNT_DETACH)


def test_what_is_mounted_below_a_volume_stays_out(tmp_path: Path, namespace: int) -> None:
    (tmp_path / "v/secret").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "agentos-test", tmp_path / "v/secret"], check=True)
    try:
        (tmp_path / "v/secret/key").touch()
        volume = volume_mount(str(tmp_path / "v"), namespace, True)
        try:
            assert inside(namespace, volume, "result = os.listdir('secret')") == []
        finally:
            os.close(volume)
    finally:
        subprocess.run(["umount", tmp_path / "v/secret"], check=True)


def test_a_volume_on_a_filesystem_without_idmapping(tmp_path: Path, namespace: int) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "agentos-test", tmp_path / "merged"], check=True)
    before = open_fds()
    try:
        with pytest.raises(AgentosError) as caught:
            volume_mount(str(tmp_path / "merged"), namespace, False)
        assert caught.value.code == "volume-not-idmappable"
        assert "ext4" in caught.value.hint
        assert open_fds() == before
    finally:
        subprocess.run(["umount", tmp_path / "merged"], check=True)
