"""Attacks on what is executed, what is open, and where a start walks; named after the threats that they try."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import ImageStore
from agentos_native.sandbox.config import SandboxConfig
from agentos_native.sandbox.plan import start_plan
from tests.sandboxes import ID_BASE, Node, StartFailed

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host that no agent was given."""
    directory = tmp_path / "secret"
    directory.mkdir()
    (directory / "key").write_text("of the host")
    yield directory


@pytest.fixture
def image(node: Node) -> Iterator[Path]:
    """The root file system, put back after a test has tampered with it."""
    saved = node.rootfs.with_name("saved")
    shutil.copytree(node.rootfs, saved, symlinks=True)
    yield node.rootfs
    shutil.rmtree(node.rootfs)
    saved.rename(node.rootfs)


# --- CVE-2019-5736: the runtime overwritten through /proc


def test_cve_2019_5736_init_of_the_host_cannot_be_opened_for_writing(node: Node) -> None:
    code = """
import os
for path in ("/proc/1/exe", "/proc/self/exe"):
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        try: os.open(path, flags); print("OPENED", path)
        except OSError as error: print(error.errno)
"""
    before = Path("/usr/bin/tini-static").read_bytes()
    result = node.python(code)
    assert result.status == 0
    assert set(result.out.split()) <= {str(errno.EACCES), str(errno.ETXTBSY), str(errno.EROFS)}
    assert Path("/usr/bin/tini-static").read_bytes() == before


WATCHER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
mine = {1, os.getpid()}
seen = set()

def look(pid, what):
    path = f"/proc/{pid}/{what}"
    if what in ("exe", "cwd", "root", "fd/3", "fd/4"):
        return os.readlink(path)
    if what == "mem":
        open(path, "r+b").close()
        return "writable memory of " + os.readlink(f"/proc/{pid}/exe")
    return repr(open(path, "rb").read(4096))

print("ready", flush=True)
while not os.path.exists("/dev/shm/stop"):
    for pid in {int(name) for name in os.listdir("/proc") if name.isdigit()} - mine:
        seen.add(pid)
        for what in ("exe", "cwd", "root", "fd/3", "fd/4", "maps", "environ", "mem"):
            try:
                found = look(pid, what)
            except OSError:
                continue
            if any(word in found for word in ("python", "agentos", "launcher")):
                print("SAW", what, found, flush=True)
print("watched", len(seen), flush=True)
"""
"""Looks at every other process of its agent, and tells when one turns out to be the launcher's."""


def test_cve_2019_5736_the_launcher_cannot_be_seen_through_an_exec(node: Node) -> None:
    """The child of an exec shares the launcher's memory while it is already in the agent's pid namespace.

    The agent even has CAP_SYS_PTRACE over itself.
    """
    privileged = ("SYS_PTRACE", "DAC_OVERRIDE", "DAC_READ_SEARCH")
    agent = node.start(
        "/usr/bin/python3", "-I", "-c", WATCHER, volumes={"/usr": (Path("/usr"), True)}, capabilities=privileged
    )  # fmt: skip
    for number in range(100):
        node.wait(node.exec(agent, "/bin/true", unit=f"exec-{number % 10}", capabilities=privileged))
    node.wait(node.exec(agent, "touch", "/dev/shm/stop"))
    result = node.wait(agent)
    assert result.status == 0, result.err
    assert "SAW" not in result.out
    assert int(result.out.split()[-1]) >= 5  # it has had some of them in sight


# --- CVE-2024-21626: leaked files, directory outside


@pytest.mark.parametrize("number", range(3, 26))
def test_cve_2024_21626_workdir_through_an_open_file(node: Node, number: int) -> None:
    """Either the directory is refused, or it is the agent's own."""
    script = "pwd; ls -d ../../../../../../etc/passwd; cat ../../../../etc/passwd"
    try:
        result = node.shell(script, workdir=f"/proc/self/fd/{number}")
    except StartFailed as refused:
        assert refused.failure.stage == "workdir"
        assert refused.failure.errno in {errno.ENOENT, errno.ENOTDIR, errno.EXDEV, errno.EACCES}
    else:
        assert result.out.startswith("/")
        assert "root:x:0:0:root:/root:/bin/sh\nuser" in result.out  # the image's, not the host's


def test_cve_2024_21626_an_exec_too_checks_where_it_is(node: Node) -> None:
    agent = node.start("/bin/sleep", "60")
    try:
        for number in range(3, 20):
            with pytest.raises(StartFailed):
                node.wait(node.exec(agent, "pwd", workdir=f"/proc/self/fd/{number}"))
    finally:
        node.kill(agent)


def test_cve_2024_21626_nothing_is_open_beyond_stdio(node: Node) -> None:
    code = "import os\nfor fd in range(3, 1024):\n  try: print(fd, os.fstat(fd))\n  except OSError: pass"
    assert node.python(code).out == ""


# --- CVE-2025-31133, CVE-2025-52565, CVE-2026-41579: devices and mount points as symbolic links


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("target", ["/etc", "/proc/self", "../../../../../tmp", "nowhere"])
def test_cve_2025_31133_mount_points_as_symbolic_links_end_the_start(
    node: Node, image: Path, name: str, target: str
) -> None:
    (image / name).rmdir()
    (image / name).symlink_to(target)
    with pytest.raises(StartFailed) as caught:
        node.run("true")
    assert (caught.value.failure.stage, caught.value.failure.errno) == (f"mount /{name}", errno.ELOOP)


def test_cve_2025_31133_dev_null_of_the_image_is_not_used(node: Node, image: Path) -> None:
    (image / "dev/null").symlink_to("/proc/sysrq-trigger")
    (image / "dev/pts").symlink_to("/proc")
    (image / "dev/ptmx").symlink_to("/etc/passwd")
    result = node.shell("cat /proc/keys | wc -c; echo x > /dev/null; ls -l /dev/null; ls /dev/pts")
    assert result.out.split()[0] == "0"
    assert "1,   3" in result.out
    assert result.out.rstrip().endswith("ptmx")


def test_cve_2025_52565_the_terminal_is_the_kernels(node: Node, image: Path) -> None:
    (image / "dev/pts").mkdir()
    (image / "dev/pts/ptmx").symlink_to("/etc/passwd")
    unit = node.start("/bin/sh", "-c", "tty", tty=True)
    assert b"/dev/pts/0" in os.read(unit.terminal, 100)
    node.wait(unit)


# --- CVE-2025-52881, CVE-2019-19921: procfs writes redirected


def test_cve_2025_52881_procfs_of_the_image_is_covered_and_never_written(node: Node, image: Path) -> None:
    planted = ["proc/sys/kernel", "proc/self/attr", "proc/thread-self"]
    for directory in planted:
        (image / directory).mkdir(parents=True)
    for name in ("proc/self/oom_score_adj", "proc/self/attr/exec", "proc/sys/kernel/hostname", "proc/self/uid_map"):
        (image / name).write_text("planted")
    result = node.shell("cat /proc/sys/kernel/hostname; grep ^proc /proc/mounts | wc -l; stat -f -c %T /proc")
    assert result.out.split()[0] == "agent"
    assert result.out.split()[-1] == "proc"
    for name in ("proc/self/oom_score_adj", "proc/self/attr/exec", "proc/sys/kernel/hostname"):
        assert (image / name).read_text() == "planted"


# --- CVE-2021-30465, CVE-2024-45310, CVE-2018-15664, CVE-2026-23954: root walks paths of the root file system


@pytest.mark.parametrize("link", ["/", "/proc", "../../../../../../../..", "/etc"])
def test_cve_2021_30465_volume_target_through_a_symbolic_link(node: Node, image: Path, secret: Path, link: str) -> None:
    (image / "data").symlink_to(link)
    with pytest.raises(StartFailed) as caught:
        node.run("true", volumes={"/data/inside": (secret, True)})
    assert (caught.value.failure.stage, caught.value.failure.errno) == ("volume /data/inside", errno.ELOOP)


def test_cve_2021_30465_symbolic_link_exchanged_during_starts(node: Node, secret: Path, tmp_path: Path) -> None:
    """A shared volume in which somebody swaps a directory for a link while another start mounts beneath it."""
    shared = tmp_path / "shared"
    directory, link, spot = shared / "directory", shared / "link", shared / "spot"
    spot.mkdir(parents=True)
    link.symlink_to("/")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            try:
                spot.rename(directory)
                link.rename(spot)
                spot.rename(link)
                directory.rename(spot)
            except OSError:  # a start has made the missing directory in between
                spot.rmdir()
                (link if link.is_symlink() and not directory.exists() else directory).rename(spot)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(40):
            try:
                result = node.shell(
                    "ls /key /bin/sh 2>/dev/null", volumes={"/s": (shared, False), "/s/spot": (secret, True)}
                )
            except StartFailed as refused:
                assert refused.failure.errno in {errno.ELOOP, errno.ENOENT, errno.EEXIST, errno.EOVERFLOW}
            else:
                assert result.out == "/bin/sh\n"
    finally:
        stop.set()
        thread.join()


# --- CVE-2025-4517, -4138, -4330: archives that escape; CVE-2026-40251: archives that crash whoever reads them


def archive(*members: tarfile.TarInfo) -> io.BytesIO:
    """A tar of empty members."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    data.seek(0)
    return data


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, target, size, 0o755
    return info


def escaping_archives(secret: Path) -> dict[str, io.BytesIO]:
    long = "d" * 200
    deep = "/".join([long] * 20)
    return {
        "parent": archive(member("../../../../../../escaped", size=1)),
        "absolute": archive(member(f"{secret}/escaped", size=1)),
        "link": archive(member("a", tarfile.SYMTYPE, str(secret)), member("a/escaped", size=1)),
        "hard": archive(member("h", tarfile.LNKTYPE, f"{secret}/key"), member("h", size=1)),
        "long": archive(member("l", tarfile.SYMTYPE, deep + "/../" * 30 + str(secret)), member("l/escaped", size=1)),
        "dotted": archive(member("x", tarfile.SYMTYPE, "."),
                          member("x/y", tarfile.SYMTYPE, "../" * 40 + str(secret)[1:]),
                          member("x/y/escaped", size=1)),
        "device": archive(member("disk", tarfile.BLKTYPE)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["parent", "absolute", "link", "hard", "long", "dotted", "device"])
def test_cve_2025_4517_an_archive_cannot_write_outside(secret: Path, tmp_path: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in secret.iterdir()}
    store = ImageStore(tmp_path / "state")
    try:
        store.import_("evil", escaping_archives(secret)[name])
    except AgentosError as refused:
        assert refused.code
    assert {path: path.read_bytes() for path in secret.iterdir()} == before
    assert not list(tmp_path.rglob("escaped")) or all("state" in str(path) for path in tmp_path.rglob("escaped"))
    assert not [path for path in (tmp_path / "state").rglob("*") if path.is_block_device()]


@pytest.mark.parametrize("damage", ["truncated", "noise", "sizes", "empty"])
def test_cve_2026_40251_a_malformed_archive_is_an_error_not_a_crash(tmp_path: Path, damage: str) -> None:
    good = bytearray(archive(member("a", size=4096), member("b", size=10)).getvalue())
    data = {
        "truncated": bytes(good[:700]),
        "noise": bytes(range(256)) * 64,
        "sizes": bytes(good[:124]) + b"77777777777\0" + bytes(good[136:]),
        "empty": b"",
    }[damage]
    store = ImageStore(tmp_path / "state")
    with pytest.raises(AgentosError) as caught:
        store.import_("broken", io.BytesIO(data))
    assert caught.value.exit_status == 125
    assert store.list() == []


# --- CVE-2022-31214, 2020-17368, 2021-26910: setuid helpers, shell strings, pids of users


def test_cve_2022_31214_nothing_in_the_package_is_setuid() -> None:
    package = Path(__file__).parents[2] / "agentos_native"
    assert [path for path in package.rglob("*") if path.lstat().st_mode & 0o6000] == []


def test_cve_2020_17368_words_are_never_a_shell_string(node: Node, tmp_path: Path) -> None:
    word = f"$(touch {tmp_path}/pwned); `touch {tmp_path}/pwned`; touch {tmp_path}/pwned #"
    result = node.run("echo", word, hostname="x", env=(("X", word), ("PATH", "/bin")))
    assert result.out == word + "\n"
    assert not (tmp_path / "pwned").exists()


def test_cve_2021_26910_exec_takes_a_pidfd_never_a_number(node: Node) -> None:
    """A pidfd of a process that has ended enters nothing, whoever has its number now."""
    agent = node.start("/bin/sleep", "60")
    stale = os.dup(agent.pidfd)
    node.kill(agent)
    other = node.start("/bin/sleep", "60", agent="b")
    try:
        with pytest.raises(StartFailed) as caught:
            agent.pid, agent.pidfd = other.pid, stale
            node.exec(agent, "true", unit="exec-9")
        assert caught.value.failure.errno == errno.ESRCH
    finally:
        os.close(stale)
        node.kill(other)


# --- NUL bytes, empty lists, filters that fail open


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        ("true\0x", {}),
        ("true", {"hostname": "a\0b"}),
        ("true", {"workdir": "/tmp\0x"}),
        ("true", {"env": (("A", "\0"),)}),
    ],
)
def test_a_nul_byte_is_refused_before_anything_is_made(node: Node, command: str, changes: dict[str, Any]) -> None:
    with pytest.raises(AgentosError) as caught:
        node.start(command, **changes)
    assert caught.value.code == "invalid-sandbox"


def test_a_filter_that_cannot_be_installed_ends_the_start(node: Node) -> None:
    from dataclasses import replace

    from agentos_native.sandbox.config import Fds
    from agentos_native.sandbox.plan import Plan

    def planner(config: SandboxConfig, fds: Fds) -> Plan:
        plan = start_plan(config, fds)
        operations = tuple(
            operation._replace(arguments=(b"\xff" * 16, 16)) if operation.name == "install_filter" else operation
            for operation in plan.operations
        )
        return replace(plan, operations=operations)

    with pytest.raises(StartFailed) as caught:
        node.start("true", planner=planner)
    assert (caught.value.failure.stage, caught.value.failure.errno) == ("seccomp", errno.EINVAL)


# --- ids shared between agents


def test_agents_have_disjoint_ids_and_cannot_reach_each_other(node: Node, tmp_path: Path) -> None:
    first = node.start("/bin/sleep", "60", agent="first")
    userns = node.make_userns(ID_BASE + 65536)
    try:
        second = node.start(
            "/bin/sh", "-c", f"kill -9 {first.pid} && echo KILLED; ls /proc/{first.pid} && echo SEEN; sleep 60",
            agent="second", fds={"userns": userns}, id_base=ID_BASE + 65536,
        )  # fmt: skip
        ids = [os.stat(f"/proc/{unit.pid}").st_uid for unit in (first, second)]
        assert abs(ids[0] - ids[1]) >= 65536
        assert "KILLED" not in second.output[0].decode()
        assert Path(f"/proc/{first.pid}").exists()
        result = node.kill(second)
        assert result.out == ""
    finally:
        os.close(userns)
        node.kill(first)
