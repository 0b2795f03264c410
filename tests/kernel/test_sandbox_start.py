"""Starts: what the words of a configuration do, and what a start that fails says and leaves."""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentos_native.sandbox.config import Fds, SandboxConfig
from agentos_native.sandbox.hints import failure_to_error
from agentos_native.sandbox.ops import Operation
from agentos_native.sandbox.plan import Plan, start_plan
from agentos_native.wire.launch import Failure
from tests.sandboxes import ID_BASE, Node, StartFailed

pytestmark = pytest.mark.timeout(120)

STAGES = (
    "limits", "network", "cgroup namespace", "hostname", "root", "owner", "mount /dev", "mount /dev/pts",
    "mount /dev/shm", "mount /dev/mqueue", "mount /proc", "mount /sys", "mount /sys/fs/cgroup", "mask",
    "read-only", "user namespace", "mount lock", "identity", "capabilities", "session", "stdio", "workdir",
    "command", "seccomp", "execute",
)  # fmt: skip


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host with one file in it."""
    directory = tmp_path / "volume"
    directory.mkdir()
    (directory / "file").write_text("from the host\n")
    yield directory


def failure_of(start: Callable[[], object]) -> Failure:
    """The failure of a start that must not succeed."""
    with pytest.raises(StartFailed) as caught:
        start()
    return caught.value.failure


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_exit_status(node: Node, script: str, status: int) -> None:
    assert node.shell(script).status == status


def test_kill_of_init_is_told_as_a_signal(node: Node) -> None:
    result = node.kill(node.start("/bin/sleep", "60"))
    assert (result.exited.code, result.exited.status) == (os.CLD_KILLED, 9)


def test_arguments_and_environment_arrive_unchanged(node: Node) -> None:
    words = ("", " ", "a b", "$HOME", "ü", "\n", "--", "-x")
    result = node.run(
        "/bin/sh", "-c", 'for w; do echo "<$w>"; done; echo $GREETING', "sh", *words, env=(("GREETING", "hé"),)
    )
    assert result.out == "".join(f"<{word}>\n" for word in words) + "hé\n"


def test_command_is_found_in_path(node: Node) -> None:
    assert node.run("echo", "found").out == "found\n"


def test_path_has_a_default(node: Node) -> None:
    assert (
        node.run("sh", "-c", "echo $PATH", env=()).out
        == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    )


@pytest.mark.parametrize("command", ["nothing-like-this", "/bin/nothing", "/nowhere/at/all", "./relative"])
def test_command_not_found_is_127(node: Node, command: str) -> None:
    failure = failure_of(lambda: node.run(command))
    assert failure == Failure("command", "execve", command, errno.ENOENT)
    error = failure_to_error(failure, "agent default/a")
    assert (error.exit_status, error.code, error.where) == (127, "command-not-found", "agent default/a")
    assert "PATH" in error.hint


@pytest.mark.parametrize("command", ["/etc/passwd", "/etc", "/"])
def test_command_that_cannot_be_executed_is_126(node: Node, command: str) -> None:
    failure = failure_of(lambda: node.run(command))
    assert (failure.stage, failure.errno) == ("command", errno.EACCES)
    assert failure_to_error(failure).exit_status == 126


def test_workdir(node: Node) -> None:
    assert node.shell("pwd", workdir="/tmp").out == "/tmp\n"
    failure = failure_of(lambda: node.shell("pwd", workdir="/absent"))
    assert failure == Failure("workdir", "chdir", "/absent", errno.ENOENT)
    assert "workdir" in failure_to_error(failure).hint


def test_workdir_is_entered_as_the_user_of_the_agent(node: Node) -> None:
    (node.rootfs / "root").chmod(0o700)
    failure = failure_of(lambda: node.shell("pwd", workdir="/root", uid=1000, gid=1000))
    assert (failure.stage, failure.errno) == ("workdir", errno.EACCES)


def test_umask_and_limits(node: Node) -> None:
    result = node.shell(
        "umask; ulimit -n; ulimit -c; ulimit -f", umask=0o027, rlimits=(("nofile", 64), ("fsize", 1 << 20))
    )
    assert result.out.split() == ["0027", "64", "0", "2048"]


def test_soft_limit_of_files_is_modest_by_default(node: Node) -> None:
    assert node.shell("ulimit -S -n").out == "1024\n"


def test_limit_above_the_hosts_hard_limit_is_refused_with_its_name(node: Node) -> None:
    failure = failure_of(lambda: node.shell("true", rlimits=(("nofile", 1 << 40),)))
    assert (failure.stage, failure.call, failure.errno) == ("limits", "prlimit64", errno.EPERM)


def test_volume_is_shared_with_ids_mapped(node: Node, volume: Path) -> None:
    result = node.shell(
        "cat /data/file; echo back > /data/new; stat -c %u /data/file", volumes={"/data": (volume, False)}
    )
    assert result.out == "from the host\n0\n"
    assert (volume / "new").read_text() == "back\n"
    assert (volume / "new").stat().st_uid == 0


def test_read_only_volume_and_nested_volume_and_file(node: Node, volume: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    single.write_text("one\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    volumes = {"/a/b/c": (inner, False), "/a": (volume, True), "/etc/one": (single, True)}
    (volume / "b/c").mkdir(parents=True)
    result = node.shell("echo x > /a/file; echo x > /etc/one; echo x > /a/b/c/ok; cat /etc/one", volumes=volumes)
    assert result.out == "one\n"
    assert result.err.count("Read-only file system") == 2
    assert (inner / "ok").read_text() == "x\n"
    assert (volume / "file").read_text() == "from the host\n"


def test_volume_is_nosuid_and_nodev(node: Node, volume: Path) -> None:
    line = node.shell("grep ' /data ' /proc/mounts", volumes={"/data": (volume, False)}).out
    assert {"nosuid", "nodev"} <= set(line.split()[3].split(","))


def test_what_is_made_for_a_volume_belongs_to_the_agents_root(node: Node, volume: Path) -> None:
    result = node.shell("stat -c %u:%g /made /made/for", volumes={"/made/for/it": (volume, True)})
    assert result.out.split() == ["0:0", "0:0"]


def test_read_only_root(node: Node) -> None:
    result = node.shell("touch /x || echo refused; touch /dev/shm/x && echo shm", read_only=True)
    assert result.out.split() == ["refused", "shm"]


def test_cgroup_that_was_removed_meanwhile(node: Node) -> None:
    gone = node.cgroup / "gone"
    gone.mkdir()
    fd = os.open(gone, os.O_RDONLY | os.O_DIRECTORY)
    gone.rmdir()
    try:
        failure = failure_of(lambda: node.start("true", fds={"cgroup": fd}))
    finally:
        os.close(fd)
    assert (failure.stage, failure.call) == ("clone", "clone3")
    assert failure.errno in {errno.ENODEV, errno.ENOENT}
    assert "removed" in failure_to_error(failure).hint


@pytest.mark.parametrize(
    ("name", "stage", "call"),
    [("netns", "network", "setns"), ("rootfs", "root", "move_mount"), ("userns", "user namespace", "setns"),
     ("init", "execute", "execveat")],
)  # fmt: skip
def test_wrong_fds_are_told_by_stage_and_call(node: Node, name: str, stage: str, call: str) -> None:
    wrong = os.open("/dev/null", os.O_RDONLY)
    try:
        failure = failure_of(lambda: node.start("true", fds={name: wrong}))
    finally:
        os.close(wrong)
    assert (failure.stage, failure.call) == (stage, call)
    assert failure.errno in {errno.EINVAL, errno.EACCES}


def sabotage(stage: str) -> Callable[[SandboxConfig, Fds], Plan]:
    """A planner whose plan fails at the end of `stage`."""

    def planner(config: SandboxConfig, fds: Fds) -> Plan:
        plan = start_plan(config, fds)
        operations = list(plan.operations)
        last = max(index for index, operation in enumerate(operations) if operation.stage == stage)
        operations.insert(last + (stage != "execute"), Operation(stage, "chdir", ("/no/such/directory",)))
        return replace(plan, operations=tuple(operations))

    return planner


def test_the_list_of_stages_is_complete(node: Node) -> None:
    with node.start_fds("a") as fds:
        plan = start_plan(node.config("true"), replace(fds, stdin=0, stdout=0, stderr=0))
    assert {operation.stage for operation in plan.operations} == set(STAGES)


def launcher_at_rest(node: Node) -> list[str]:
    """The launcher's open files, once the holders of user namespaces are reaped."""
    assert node.launcher is not None
    process = Path(f"/proc/{node.launcher.pid}")
    deadline = time.monotonic() + 5
    while (children := (process / f"task/{process.name}/children").read_text().split()) != [str(node.relay_pid)]:
        assert time.monotonic() < deadline, children
        time.sleep(0.005)
    return sorted(os.readlink(fd) for fd in (process / "fd").iterdir())


@pytest.mark.parametrize("stage", STAGES)
def test_failure_at_any_stage_is_told_and_leaves_nothing(node: Node, stage: str) -> None:
    node.run("true")  # the first start of a launcher makes what later ones reuse
    before = launcher_at_rest(node)
    failure = failure_of(lambda: node.start("true", planner=sabotage(stage)))
    assert failure == Failure(stage, "chdir", "/no/such/directory", errno.ENOENT)
    assert "populated 0" in (node.cgroup / "a/main/cgroup.events").read_text()
    assert launcher_at_rest(node) == before
    assert node.run("echo", "still works").out == "still works\n"


def test_damaged_plan_is_refused_before_anything_runs(node: Node) -> None:
    good = start_plan(node.config("true"), Fds(0, 0, 0, 0, 0, stdin=0, stdout=0, stderr=0)).encode()
    fd_beyond = bytearray(good)
    network = 16 + 56 * 2 + 8  # header, umask, prlimit64; then setns, whose first argument is an index of the fds
    fd_beyond[network : network + 8] = (99).to_bytes(8, "little")
    for program in (b"", b"x" * 64, good[:-8], good[:100], b"\0" + good[1:], bytes(fd_beyond)):
        failure = failure_of(functools.partial(send_raw, node, program))
        assert (failure.stage, failure.call, failure.errno) == ("clone", "start", errno.EINVAL)


def send_raw(node: Node, program: bytes) -> None:
    """A clone request whose program is `program`."""

    class Raw(Plan):
        def encode(self) -> bytes:
            return program

    leaf = node.leaf("raw")
    try:
        node.clone("raw", Raw((), [leaf], 0, 0))
    finally:
        os.close(leaf)


def test_uid_range_is_the_one_that_was_asked_for(node: Node) -> None:
    userns = node.make_userns(ID_BASE + 65536, 65536)
    child = os.fork()
    if child == 0:
        from agentos_native.kernel import ns

        ns.setns(userns, ns.CLONE_NEWUSER)
        mapping = Path("/proc/self/uid_map").read_text().split()
        os._exit(0 if mapping[1:] == [str(ID_BASE + 65536), "65536"] else 1)
    os.close(userns)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_impossible_mapping_is_a_failure(node: Node) -> None:
    failure = failure_of(lambda: node.make_userns(0xFFFFFFFF, 65536))
    assert (failure.stage, failure.errno) == ("user namespace", errno.EINVAL)
    assert failure.path.endswith("/uid_map")
    assert node.run("true").status == 0
