"""Configuration, plan and encoding, without privilege: what is refused, the order of operations, the bytes."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from typing import Any

import pytest

from agentos_native.errors import AgentosError
from agentos_native.kernel import caps, ns
from agentos_native.sandbox import _child, ops
from agentos_native.sandbox.config import DEFAULT_PATH, BindMount, Fds, SandboxConfig, check
from agentos_native.sandbox.hints import failure_to_error, hint_of
from agentos_native.sandbox.ops import Fd, Operation, Register, encode
from agentos_native.sandbox.plan import Plan, exec_plan, start_plan
from agentos_native.wire.launch import Failure

CONFIG = SandboxConfig("0123456789ab", "agent", ("python3", "a.py"), (("A", "1"),), "/", 1000, 1000, (5,), 0x40000000)
FDS = Fds(cgroup=10, rootfs=11, netns=12, userns=13, init=14, stdin=15, stdout=16, stderr=16)
EXEC_FDS = Fds(cgroup=10, agent=20, pidns=21, stdin=15, stdout=16, stderr=17)


def plan(**changes: Any) -> Plan:
    """A start with some fields of the configuration changed."""
    return start_plan(replace(CONFIG, **changes), FDS)


def place(operations: tuple[Operation, ...], stage: str) -> int:
    """Where a stage begins."""
    return next(index for index, operation in enumerate(operations) if operation.stage == stage)


@pytest.mark.parametrize(
    "changes",
    [
        {"hostname": ""}, {"hostname": "a\0b"}, {"hostname": "a" * 65}, {"hostname": "a b"}, {"hostname": "-a"},
        {"argv": ()}, {"argv": ("",)}, {"argv": ("a\0",)}, {"workdir": "relative"}, {"workdir": "/a\0"},
        {"env": (("", "x"),)}, {"env": (("A=B", "x"),)}, {"env": (("A", "x\0"),)},
        {"uid": -1}, {"uid": 65536}, {"gid": 70000}, {"groups": (65536,)}, {"id_base": 0}, {"id_base": 1000},
        {"umask": 0o1777}, {"capabilities": ("ALL",)}, {"capabilities": ("",)},
        {"rlimits": (("nofiles", 1),)}, {"rlimits": (("nofile", -2),)}, {"rlimits": (("nofile", 1 << 63),)},
        {"mounts": (BindMount("data", False, "v"),)}, {"mounts": (BindMount("/", False, "v"),)},
        {"mounts": (BindMount("/a/../b", False, "v"),)}, {"mounts": (BindMount("/a//b", False, "v"),)},
        {"mounts": (BindMount("/proc/x", False, "v"),)}, {"mounts": (BindMount("/dev", False, "v"),)},
        {"mounts": (BindMount("/data", False, "missing"),)}, {"mounts": (BindMount("/a\0b", False, "v"),)},
    ],
)  # fmt: skip
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(AgentosError) as caught:
        check(replace(CONFIG, **changes), replace(FDS, volumes={"v": 30}))
    assert caught.value.code == "invalid-sandbox"


def test_stdio_is_needed_without_a_terminal() -> None:
    with pytest.raises(AgentosError):
        check(CONFIG, replace(FDS, stdout=-1))
    check(replace(CONFIG, tty=True), replace(FDS, stdin=-1, stdout=-1, stderr=-1))


def test_plan_of_a_start() -> None:
    made = plan()
    assert made.namespaces == ns.CLONE_NEWNS | ns.CLONE_NEWPID | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS
    assert made.fds[made.cgroup] == FDS.cgroup
    assert made.pidns == -1
    assert sorted(made.fds) == [10, 11, 12, 13, 14, 15, 16]  # 16 is sent once


def test_order_that_security_rests_on() -> None:
    operations = plan().operations
    order = ["network", "root", "mount /dev", "mount /proc", "mask", "user namespace", "mount lock", "identity",
             "capabilities", "session", "stdio", "workdir", "command", "seccomp", "execute"]  # fmt: skip
    places = [place(operations, stage) for stage in order]
    assert places == sorted(places)
    calls = [operation.name for operation in operations]
    assert calls.index("setresgid") < calls.index("setresuid")
    assert calls.index("setgroups") < calls.index("setresgid")
    assert calls.index("setresuid") < calls.index("capset") < calls.index("install_filter")
    assert calls[-1] == "execute"
    assert calls[-2] == "install_filter"
    no_new_privileges = Operation("capabilities", "prctl", (38, 1, 0, 0, 0))
    assert operations.index(no_new_privileges) < calls.index("install_filter")


def test_files_are_closed_before_anything_of_the_image_is_touched_as_the_user() -> None:
    calls = [operation.name for operation in plan().operations]
    assert calls.index("close_range") < calls.index("check_cwd")


def test_the_death_signal_is_set_again_after_the_change_of_ids() -> None:
    calls = [(operation.name, operation.arguments[:2]) for operation in plan().operations]
    assert calls.index(("prctl", (1, 9))) > [name for name, _ in calls].index("setresuid")


def test_capabilities_become_masks() -> None:
    operations = plan(capabilities=("NET_BIND_SERVICE", "cap_chown")).operations
    kept = 1 << 10 | 1
    assert next(operation for operation in operations if operation.name == "drop_bounding").arguments == (kept,)
    data = next(operation for operation in operations if operation.name == "capset").arguments[1]
    assert isinstance(data, bytes)
    assert struct.unpack("=6I", data) == (kept, kept, 0, 0, 0, 0)


def test_numbers_of_capabilities() -> None:
    assert (caps.number("CHOWN"), caps.number("CAP_SYS_ADMIN"), caps.number("checkpoint_restore")) == (0, 21, 40)
    with pytest.raises(KeyError):
        caps.number("EVERYTHING")


def test_volumes_come_outermost_first() -> None:
    mounts = (BindMount("/a/b", True, "x"), BindMount("/a", False, "y"))
    operations = start_plan(replace(CONFIG, mounts=mounts), replace(FDS, volumes={"x": 30, "y": 31})).operations
    assert place(operations, "volume /a") < place(operations, "volume /a/b") < place(operations, "user namespace")


def test_path_and_candidates() -> None:
    operations = plan(env=()).operations
    execute = operations[-1]
    assert f"PATH={DEFAULT_PATH}" in list(execute.arguments[2])  # type: ignore[arg-type]
    find = next(operation for operation in operations if operation.name == "find_command")
    assert next(iter(find.arguments[1])) == "/usr/local/sbin/python3"  # type: ignore[arg-type]
    find = next(op for op in plan(argv=("./x",)).operations if op.name == "find_command")
    assert find.arguments == ("./x", ("./x",))


def test_init_gets_the_command_after_a_double_dash() -> None:
    assert plan(argv=("--help",)).operations[-1].arguments[1] == ("init", "--", "--help")


def test_plan_of_an_exec() -> None:
    made = exec_plan(CONFIG, EXEC_FDS)
    assert made.namespaces == 0
    assert made.fds[made.pidns] == EXEC_FDS.pidns
    setns = next(operation for operation in made.operations if operation.name == "setns")
    everything = sum(ns.NAMES.values()) - ns.CLONE_NEWPID
    assert setns.arguments == (Fd("agent", made.fds.index(20)), everything)
    assert not [operation for operation in made.operations if operation.name in {"new_mount", "attach", "pivot_root"}]
    assert made.operations[-1].arguments[0] == ops.NO_FD


def test_description_has_a_line_for_each_operation() -> None:
    made = plan(capabilities=("CHOWN",))
    lines = made.describe().splitlines()
    assert len(lines) == len(made.operations) + 1
    assert "mnt|pid|ipc|uts" in lines[0]
    assert any("mount /proc: new_mount(<fresh mount>, 'proc', [], 14)  # nosuid,nodev,noexec" in line for line in lines)
    assert any("network: setns(<netns>" in line for line in lines)


def decode(program: bytes) -> list[tuple[str, str, tuple[int, ...]]]:
    """Stage, call and raw arguments of an encoded plan."""
    magic, count, size, _ = struct.unpack_from("=4I", program)
    assert magic == 0x31706F61
    assert len(program) == 16 + 56 * count + size
    pool = program[16 + 56 * count :]
    assert pool[-1] == 0
    names = {number: name for name, (number, _) in _child.OPS.items()}
    found = []
    for index in range(count):
        code, stage, *arguments = struct.unpack_from("=2I6q", program, 16 + 56 * index)
        text = pool[stage : pool.index(0, stage)].decode()
        found.append((text, names[code], tuple(arguments)))
    return found


def test_encoding_keeps_every_operation_in_order() -> None:
    for made in (plan(), exec_plan(CONFIG, EXEC_FDS)):
        assert [(stage, name) for stage, name, _ in decode(made.encode())] == [
            (o.stage, o.name) for o in made.operations
        ]


def test_encoding_of_arguments() -> None:
    program = encode(
        [
            Operation("one", "setns", (Fd("n", 3), 7)),
            Operation("two", "mknodat", (Register("r", 2), "null", 5, -1)),
            Operation("three", "execute", (ops.NO_FD, ("a", ""), ())),
        ]
    )
    one, two, three = decode(program)
    pool = program[16 + 56 * 3 :]
    assert one == ("one", "setns", (3, 7, 0, 0, 0, 0))
    assert two[2][0] == -1002
    assert pool[two[2][1] :].startswith(b"null\0")
    assert two[2][2:4] == (5, -1)
    assert three[2][0] == -1
    first, second, end = struct.unpack_from("=3q", pool, three[2][1])
    assert (pool[first : first + 2], pool[second : second + 1], end) == (b"a\0", b"\0", 0)
    assert struct.unpack_from("=q", pool, three[2][2]) == (0,)


@pytest.mark.parametrize(
    "operation",
    [
        Operation("s", "setns", (1, 2)),
        Operation("s", "setns", (Fd("n", 1),)),
        Operation("s", "setns", (Fd("n", 1), "x")),
        Operation("s", "new_mount", (Fd("n", 1), "tmpfs", (), 0)),
        Operation("s", "chdir", (b"/",)),
    ],
)
def test_operations_that_do_not_fit_the_table(operation: Operation) -> None:
    with pytest.raises(TypeError):
        encode([operation])


def test_unknown_operations() -> None:
    with pytest.raises(KeyError):
        encode([Operation("s", "format_disk", ())])


@pytest.mark.parametrize(
    ("failure", "code", "status"),
    [
        (Failure("command", "execve", "x", errno.ENOENT), "command-not-found", 127),
        (Failure("command", "execve", "x", errno.EACCES), "command-not-executable", 126),
        (Failure("execute", "execveat", "x", errno.ENOEXEC), "command-not-executable", 126),
        (Failure("network", "setns", "", errno.EPERM), "start-failed", 125),
    ],
)
def test_errors_for_users(failure: Failure, code: str, status: int) -> None:
    error = failure_to_error(failure, "agent home/x")
    assert (error.code, error.exit_status, error.where) == (code, status, "agent home/x")
    assert error.hint
    assert error.details["stage"] == failure.stage
    assert error.details["errno"] in errno.errorcode.values()


def test_errors_name_stage_call_path_and_errno() -> None:
    text = str(failure_to_error(Failure("mount /dev", "openat2", "/dev", errno.ELOOP)))
    assert "mount /dev: openat2(/dev): Too many levels of symbolic links" in text
    assert "symbolic link" in hint_of(Failure("mount /dev", "openat2", "/dev", errno.ELOOP))


def test_refusal_without_errno() -> None:
    error = failure_to_error(Failure("workdir", "getcwd", "", 0, "killed before it could execute"))
    assert "killed before it could execute" in error.what
