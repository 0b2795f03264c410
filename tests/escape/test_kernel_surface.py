"""Attacks on the kernel's own doors: mounts, capabilities, cgroups, terminals, namespaces, sockets."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agentos_native.sandbox.config import Fds, SandboxConfig
from agentos_native.sandbox.plan import Plan, start_plan
from tests.sandboxes import Node

pytestmark = pytest.mark.timeout(240)

PRELUDE = """
import ctypes, errno, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    return 0 if result >= 0 else ctypes.get_errno()
"""
"""`call` gives the errno of a system call, 0 when it worked."""


def attack(node: Node, code: str, **changes: object) -> list[str]:
    """The words that `code` prints, run by Python inside as inner root."""
    result = node.python(PRELUDE + code, **changes)
    assert result.status == 0, result.err
    return result.out.split()


def refused(words: list[str], *allowed: int) -> bool:
    """Whether every attempt gave one of `allowed` (EPERM unless said otherwise), and there was at least one."""
    return bool(words) and {int(word) for word in words} <= set(allowed or (errno.EPERM,))


# --- BoxLite CVE-2026-46695: remount,rw


def test_cve_2026_46695_remount_and_every_other_mount_call(node: Node) -> None:
    code = """
print(call(165, b"none", b"/", b"", 32, None))            # MS_REMOUNT
print(call(165, b"none", b"/sys", b"", 32 | 4096, None))
print(call(165, b"tmpfs", b"/tmp", b"tmpfs", 0, None))
print(call(165, b"/proc", b"/tmp", b"", 4096, None))
print(call(166, b"/proc/keys", 2))                         # umount2
print(call(155, b".", b"."))                               # pivot_root
for number in (428, 429, 430, 431, 432, 433, 442): print(call(number, 0, 0, 0, 0, 0))
"""
    assert refused(attack(node, code, read_only=True))


def test_cve_2026_46695_a_read_only_root_cannot_be_written(node: Node) -> None:
    script = "mount -o remount,rw / && echo REMOUNTED; touch /x && echo WRITTEN; ln -s /x /y && echo LINKED"
    assert node.shell(script, read_only=True).out == ""


# --- CVE-2022-27649, CVE-2022-24769: capability sets


def test_cve_2022_27649_inheritable_and_ambient_are_empty_whatever_is_kept(node: Node) -> None:
    out = node.run("/bin/cat", "/proc/self/status", capabilities=("CHOWN", "NET_RAW", "SYS_ADMIN")).out
    fields = dict(line.split(":\t", 1) for line in out.splitlines() if line.startswith("Cap"))
    assert int(fields["CapInh"], 16) == int(fields["CapAmb"], 16) == 0


def test_cve_2022_24769_setuid_and_file_capabilities_give_nothing(node: Node) -> None:
    """A set-user-ID program and one with file capabilities, run by an ordinary user of the agent."""
    special = node.rootfs / "special"
    special.mkdir()
    everything = bytes.fromhex("01000002ffffffff00000000ff01000000000000")  # struct vfs_cap_data: effective, permitted
    for name in ("id", "cat"):
        shutil.copyfile(node.rootfs / "bin/busybox", special / name)
        (special / name).chmod(0o6755)
        os.setxattr(special / name, "security.capability", everything)
    try:
        out = node.shell("/special/id -u; /special/cat /proc/self/status", uid=1000, gid=1000).out
    finally:
        shutil.rmtree(special)
    assert out.splitlines()[0] == "1000"
    assert [line.split()[1] for line in out.splitlines() if line.startswith(("CapPrm", "CapEff"))] == ["0" * 16] * 2


def test_no_new_privileges_and_the_filter_cannot_be_taken_off(node: Node) -> None:
    """Policy lives outside: nothing inside can switch it off."""
    code = """
print(call(157, 38, 0, 0, 0, 0))   # PR_SET_NO_NEW_PRIVS 0
print(call(157, 22, 0, 0, 0, 0))   # PR_SET_SECCOMP disabled
print(call(317, 0, 0, None))       # seccomp strict with nonsense: must not replace the filter
print(call(317, 5, 0, None))
"""
    assert refused(attack(node, code), errno.EINVAL, errno.EPERM, errno.EFAULT)


def test_privilege_cannot_be_gained_by_ids(node: Node) -> None:
    code = "print(call(105, 0)); print(call(106, 0)); print(call(117, 0, 0, 0)); print(call(116, 1, b'\\0\\0\\0\\0'))"
    assert refused(attack(node, code, uid=1000, gid=1000))


# --- CVE-2022-0492: cgroup release_agent


def test_cve_2022_0492_cgroups_cannot_be_changed_or_mounted(node: Node) -> None:
    code = """
import glob
print(call(165, b"cgroup", b"/tmp", b"cgroup", 0, b"memory"))
print(call(165, b"cgroup2", b"/tmp", b"cgroup2", 0, None))
for path in ("/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/cgroup.subtree_control"):
    try: open(path, "w").write("1"); print("WRITTEN")
    except OSError as error: print(error.errno)
try: os.mkdir("/sys/fs/cgroup/mine"); print("MADE")
except OSError as error: print(error.errno)
"""
    words = attack(node, code)
    assert refused(words, errno.EPERM, errno.EROFS, errno.EACCES, errno.ENOENT)


def test_cve_2022_0492_no_other_cgroup_can_be_seen(node: Node) -> None:
    other = node.start("/bin/sleep", "60", agent="other")
    try:
        words = node.shell("grep ^0: /proc/1/cgroup; ls /sys/fs/cgroup/..; find /sys/fs/cgroup -name 'exec*'").out
        assert "0::/\n" in words
        assert "other" not in words
        assert node.cgroup.name not in words
    finally:
        node.kill(other)


# --- CVE-2017-5226: TIOCSTI


@pytest.mark.parametrize("junk", [0, 1 << 32, 0xFFFFFFFF << 32])
@pytest.mark.parametrize("request_number", [0x5412, 0x541C])
def test_cve_2017_5226_typing_into_a_terminal(node: Node, request_number: int, junk: int) -> None:
    """TIOCSTI and TIOCLINUX, also with bits set that the kernel drops."""
    code = f"print(call(16, 0, {request_number | junk}, b'x'))"
    unit = node.start("/usr/bin/python3", "-I", "-c", PRELUDE + code, volumes={"/usr": (Path("/usr"), True)}, tty=True)
    shown = b""
    while True:
        try:
            data = os.read(unit.terminal, 4096)
        except OSError as error:
            assert error.errno == errno.EIO
            break
        shown += data
    assert refused(shown.decode().split()), shown
    node.wait(unit)


def test_cve_2017_5226_the_session_is_the_agents_own(node: Node) -> None:
    unit = node.start("/bin/sleep", "60")
    try:
        session = int(Path(f"/proc/{unit.pid}/stat").read_text().rsplit(")", 1)[1].split()[3])
        assert session == unit.pid
        terminal = int(Path(f"/proc/{unit.pid}/stat").read_text().rsplit(")", 1)[1].split()[4])
        assert terminal == 0
    finally:
        node.kill(unit)


def test_the_master_of_a_terminal_is_not_inside(node: Node) -> None:
    unit = node.start("/bin/sleep", "60", tty=True)
    try:
        fcntl.ioctl(unit.terminal, 0x5414, bytes(8))  # TIOCSWINSZ works for the one who has the master
        assert "ptmx" not in node.wait(node.exec(unit, "ls", "-l", "/proc/1/fd")).out
    finally:
        node.kill(unit)


# --- io_uring, bpf, perf, keyctl, userfaultfd, nested namespaces, and neighbours


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("io_uring_setup", "call(425, 8, ctypes.create_string_buffer(256))"),
        ("io_uring_register", "call(427, -1, 0, None, 0)"),
        ("bpf", "call(321, 0, ctypes.create_string_buffer(128), 128)"),
        ("perf_event_open", "call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)"),
        ("keyctl", "call(250, 0, -3, 0)"),
        ("add_key", "call(248, b'user', b'k', b'v', 1, -3)"),
        ("request_key", "call(249, b'user', b'k', None, -3)"),
        ("userfaultfd", "call(323, 1)"),
        ("unshare user", "call(272, 0x10000000)"),
        ("unshare mount", "call(272, 0x00020000)"),
        ("unshare time", "call(272, 0x80)"),
        ("unshare with an upper half", "call(272, 0x10000000 | 1 << 40)"),
        ("clone user", "call(56, 0x10000000 | 17, 0, 0, 0, 0)"),
        ("clone with an upper half", "call(56, 0x10000000 | 17 | 1 << 40, 0, 0, 0, 0)"),
        ("setns", "call(308, os.open('/proc/1/ns/mnt', os.O_RDONLY), 0)"),
        ("open_by_handle_at", "call(304, -100, ctypes.create_string_buffer(128), 0)"),
        ("init_module", "call(175, None, 0, b'')"),
        ("kexec_load", "call(246, 0, 0, None, 0)"),
        ("iopl", "call(172, 3)"),
        ("modify_ldt", "call(154, 0, None, 0)"),
        ("reboot", "call(169, 0xfee1dead, 672274793, 0, None)"),
        ("sethostname", "call(170, b'x', 1)"),
        ("settimeofday", "call(164, None, None)"),
        ("swapon", "call(167, b'/tmp/x', 0)"),
        ("syslog", "call(103, 3, ctypes.create_string_buffer(64), 64)"),
        ("personality", "call(135, 0x0040000)"),
        ("chroot", "call(161, b'/tmp')"),
        ("fanotify_init", "call(300, 0, 0)"),
        ("pidfd_getfd", "call(438, os.pidfd_open(1), 0, 0)"),
    ],
)
def test_dangerous_calls_are_denied(node: Node, name: str, attempt: str) -> None:
    assert refused(attack(node, f"print({attempt})")), name


def test_capabilities_do_not_open_them_again(node: Node) -> None:
    code = """
print(call(272, 0x10000000))
print(call(165, b"tmpfs", b"/tmp", b"tmpfs", 0, None))
print(call(321, 0, None, 0))
"""
    assert refused(attack(node, code, capabilities=("SYS_ADMIN", "BPF", "PERFMON")))


def test_clone3_does_not_exist_and_threads_work(node: Node) -> None:
    code = """
import threading
print(call(435, ctypes.create_string_buffer(88), 88))
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
"""
    assert refused(attack(node, code), errno.ENOSYS)


def test_unknown_calls_do_not_exist(node: Node) -> None:
    assert refused(attack(node, "[print(call(number, 0, 0, 0)) for number in range(470, 500)]"), errno.ENOSYS)


def test_foreign_call_tables_are_deadly(node: Node) -> None:
    """The x32 table of x86_64 would pass a filter that knows only the plain numbers."""
    assert node.python(PRELUDE + "call(0x40000000 + 321, 0, 0, 0); print('ALIVE')").status in {159, 128 + 31}


def test_the_launchers_session_keyring_is_not_inherited(node: Node) -> None:
    """Asked without the filter, which would refuse the question."""

    def unfiltered(config: SandboxConfig, fds: Fds) -> Plan:
        plan = start_plan(config, fds)
        return replace(plan, operations=tuple(op for op in plan.operations if op.name != "install_filter"))

    ask = "print(libc.syscall(250, 0, -3, 0))"  # KEYCTL_GET_KEYRING_ID of the session keyring
    first, second = (attack(node, ask, planner=unfiltered) for _ in range(2))
    here = ctypes.CDLL(None).syscall(250, 0, -3, 0)
    assert len({*first, *second, str(here)}) == 3
    assert int(first[0]) > 0


def test_devices_cannot_be_made(node: Node) -> None:
    code = """
import stat
for name, kind in (("/tmp/disk", stat.S_IFBLK), ("/dev/shm/mem", stat.S_IFCHR), ("/dev/kmem", stat.S_IFCHR)):
    try: os.mknod(name, 0o600 | kind, os.makedev(8, 0)); print("MADE")
    except OSError as error: print(error.errno)
"""
    assert refused(attack(node, code, capabilities=("MKNOD", "SYS_ADMIN")))


def test_ptrace_reaches_only_the_agents_own(node: Node) -> None:
    other = node.start("/bin/sleep", "60", agent="victim")
    try:
        words = attack(node, f"print(call(101, 16, {other.pid}, 0, 0)); print(call(101, 16, {os.getpid()}, 0, 0))")
        assert refused(words, errno.ESRCH, errno.EPERM)
    finally:
        node.kill(other)


# --- AF_VSOCK, AF_ALG, AF_PACKET, AF_CAN, and the rest


def test_socket_families(node: Node) -> None:
    """Only UNIX, INET, INET6 and NETLINK's ROUTE; never a connection to anywhere."""
    code = """
for family in range(0, 64):
    for kind in (1, 2, 3, 5):
        answer = call(41, family, kind, 0)
        if answer == 0 or answer not in (97, 22, 93, 94, 95, 1, 13): print(family)
for protocol in range(0, 32):
    if call(41, 16, 3, protocol) == 0: print(f"netlink{protocol}")
for family in range(0, 64):
    if call(53, family, 1, 0, ctypes.create_string_buffer(8)) == 0: print(f"pair{family}")
"""
    assert sorted(set(attack(node, code))) == ["1", "10", "16", "2", "netlink0", "pair1"]


@pytest.mark.parametrize("family", [17, 29, 38, 40])
def test_families_that_have_been_holes(node: Node, family: int) -> None:
    """AF_PACKET, AF_CAN, AF_ALG, AF_VSOCK; also with bits set that the kernel drops."""
    code = f"print(call(41, {family}, 2, 0)); print(call(41, {family} | 1 << 32, 2, 0))"
    assert refused(attack(node, code), errno.EAFNOSUPPORT)


def test_raw_sockets_need_a_capability_that_nothing_inside_gives(node: Node) -> None:
    """The network namespace belongs to the host's user namespace."""
    code = "print(call(41, 2, 3, 1)); print(call(41, 10, 3, 58))"
    assert refused(attack(node, code, capabilities=("NET_RAW", "NET_ADMIN")))


def test_abstract_sockets_of_the_host_are_out_of_reach(node: Node) -> None:
    name = f"agentos-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        code = f"""
s = socket.socket(socket.AF_UNIX)
try: s.connect("\\0{name}"); print(0)
except OSError as error: print(error.errno)
"""
        assert refused(attack(node, code), errno.ECONNREFUSED)


# --- policy and neighbours


def test_policy_cannot_be_read_or_written_from_the_workspace(node: Node) -> None:
    """What an agent writes where programs look for configuration changes nothing about its next process."""
    script = (
        "mkdir -p /etc/agentos /root/.config/agentos;"
        "for f in /etc/agentos/seccomp.json /root/.config/agentos/policy.yaml; do echo 'allow: all' > $f; done;"
        "echo ready; sleep 60"
    )
    agent = node.start("/bin/sh", "-c", script)
    try:
        deadline = time.monotonic() + 10
        while agent.output[0] != b"ready\n":
            assert time.monotonic() < deadline
        fields = node.wait(node.exec(agent, "cat", "/proc/self/status")).out
        assert "Seccomp:\t2" in fields
        assert "CapEff:\t0000000000000000" in fields
    finally:
        node.kill(agent)


def test_system_v_ipc_and_message_queues_are_the_agents_own(node: Node) -> None:
    code = "print(call(29, 0x5eed, 4096, 0o1666))"  # shmget with IPC_CREAT
    assert attack(node, code) == ["0"]
    assert attack(node, "print(call(29, 0x5eed, 4096, 0))") == [str(errno.ENOENT)]  # another agent


def test_the_hosts_processes_cannot_be_signalled_or_seen(node: Node) -> None:
    code = f"""
for pid in ({os.getpid()}, {os.getppid()}):
    try: os.kill(pid, 0); print("SEEN")
    except OSError as error: print(error.errno)
"""
    assert refused(attack(node, code), errno.ESRCH)
