"""What a program sees of the machine from inside a sandbox, and what it does not."""

from __future__ import annotations

import ctypes
import errno
import os
import time

import pytest

from agentos_native.kernel import ns
from tests.sandboxes import ID_BASE, Node

pytestmark = pytest.mark.timeout(120)


def status_fields(text: str) -> dict[str, str]:
    """/proc/<pid>/status as a mapping."""
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_every_namespace_is_the_agents_own(node: Node) -> None:
    unit = node.start("/bin/sleep", "60")
    try:
        same = [name for name in ns.NAMES if ns.inode(unit.pid, name) == ns.inode("self", name)]
        assert same == []
        assert len(ns.NAMES) == 7
    finally:
        node.kill(unit)


def test_no_capabilities_no_new_privileges_and_a_filter(node: Node) -> None:
    fields = status_fields(node.run("/bin/cat", "/proc/self/status").out)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert fields["SigBlk"] == fields["SigIgn"] == "0000000000000000"


def test_capabilities_that_are_asked_for_are_the_only_ones(node: Node) -> None:
    fields = status_fields(node.shell("cat /proc/self/status", capabilities=("CHOWN", "cap_kill")).out)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 1 << 0 | 1 << 5
    assert int(fields["CapInh"], 16) == int(fields["CapAmb"], 16) == 0


def test_only_three_files_are_open(node: Node) -> None:

    result = node.python("import os\nfor fd in range(3, 4096):\n  try: os.fstat(fd); print(fd)\n  except OSError: pass")
    assert (result.status, result.out) == (0, "")


def test_init_too_has_only_three_files(node: Node) -> None:
    unit = node.start("/bin/sleep", "60")
    try:
        deadline = time.monotonic() + 5  # exec tells vfork's caller before it closes files
        while (found := sorted(os.listdir(f"/proc/{unit.pid}/fd"))) != ["0", "1", "2"]:
            assert time.monotonic() < deadline, found
    finally:
        node.kill(unit)


def test_ids_are_mapped_to_a_range_of_their_own(node: Node) -> None:
    result = node.shell("cat /proc/self/uid_map /proc/self/gid_map; id -u; touch /tmp/mine; stat -c %u /tmp/mine")
    words = result.out.split()
    assert words == ["0", str(ID_BASE), "65536"] * 2 + ["0", "0"]
    unit = node.start("/bin/sleep", "60", uid=1000, gid=1000, groups=(7,))
    try:
        assert os.stat(f"/proc/{unit.pid}").st_uid == ID_BASE + 1000
    finally:
        node.kill(unit)


def test_user_group_and_supplementary_groups(node: Node) -> None:
    result = node.shell("id -u; id -g; id -G", uid=1000, gid=1001, groups=(5, 44))
    assert result.out.split() == ["1000", "1001", "1001", "5", "44"]


def test_pid_one_is_init_and_nothing_of_the_host_is_listed(node: Node) -> None:
    result = node.shell("cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l; echo $PPID")
    comm, count, parent = result.out.split()
    assert comm == "tini-static"
    assert int(count) <= 4  # init, sh, ls, wc
    assert parent == "1"


def test_host_name_and_cgroup_are_the_agents(node: Node) -> None:
    result = node.shell("hostname; grep ^0: /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.procs", hostname="thermostat")
    assert result.out.split() == ["thermostat", "0::/", "/sys/fs/cgroup/cgroup.procs"]


def test_network_is_the_given_namespace(node: Node) -> None:
    assert node.shell("ls /sys/class/net").out.split() == ["lo"]


def test_dev_is_fresh_and_minimal(node: Node) -> None:
    found = set(node.shell("ls /dev").out.split())
    links = {"fd", "stdin", "stdout", "stderr", "ptmx"}
    assert found == {"null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "mqueue"} | links
    result = node.shell(
        "echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c;"
        "echo x > /dev/full || echo full; echo s > /dev/shm/s && cat /dev/shm/s; ls /dev/pts"
    )
    assert result.out.split() == ["4", "4", "full", "s", "ptmx"]


def test_shm_has_the_size_that_was_asked_for(node: Node) -> None:
    result = node.shell("dd if=/dev/zero of=/dev/shm/big bs=64k count=64; stat -c %s /dev/shm/big", shm_bytes=1 << 20)
    assert result.out.split() == [str(1 << 20)]


@pytest.mark.parametrize(
    "path", ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/sched_debug"]
)
def test_files_of_proc_are_masked(node: Node, path: str) -> None:
    result = node.shell(f"if [ -e {path} ]; then head -c 100 {path} | wc -c; else echo 0; fi")
    assert result.out.split() == ["0"]


@pytest.mark.parametrize("path", ["/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"])
def test_directories_are_masked(node: Node, path: str) -> None:
    assert node.shell(f"ls {path} 2>/dev/null | wc -l").out.split() == ["0"]


def test_sysctls_and_sysfs_and_cgroupfs_are_read_only(node: Node) -> None:
    attempts = {
        "/proc/sys/kernel/hostname": "x",
        "/proc/sys/net/ipv4/ip_forward": "1",
        "/proc/sysrq-trigger": "h",
        "/sys/kernel/profiling": "1",
        "/sys/fs/cgroup/cgroup.procs": "1",
    }
    script = "".join(f"if echo {value} > {path}; then echo {path}; fi;" for path, value in attempts.items())
    result = node.shell(script)
    assert result.out == ""
    assert "Read-only file system" in result.err


def test_the_hosts_mounts_are_not_there(node: Node) -> None:
    sources = {line.split()[2] for line in node.shell("mount").out.splitlines()}
    kernel_made = ("/dev", "/proc", "/sys")
    assert {path for path in sources if not path.startswith(kernel_made)} == {"/"}


def in_namespaces(pid: int, attempt: str) -> int:
    """errno of `attempt` by an unfiltered process with all capabilities *in the agent's user namespace*."""
    namespaces = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in ("user", "mnt")]
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for fd in namespaces:
            ns.setns(fd)
        action, path = attempt.split()
        if action == "umount":
            failed = libc.umount2(path.encode(), 2)
        else:
            failed = libc.mount(None, path.encode(), None, 32 | 4096, None)  # MS_REMOUNT | MS_BIND, without MS_RDONLY
        os._exit(ctypes.get_errno() if failed else 0)
    for fd in namespaces:
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("path", ["/proc/keys", "/sys/firmware", "/proc", "/sys", "/dev"])
def test_mounts_are_locked_against_the_agents_own_root(node: Node, path: str) -> None:
    unit = node.start("/bin/sleep", "60")
    try:
        assert in_namespaces(unit.pid, f"umount {path}") == errno.EINVAL  # MNT_LOCKED
    finally:
        node.kill(unit)


@pytest.mark.parametrize("path", ["/proc/sys", "/sys", "/sys/fs/cgroup"])
def test_read_only_mounts_stay_read_only(node: Node, path: str) -> None:
    unit = node.start("/bin/sleep", "60")
    try:
        assert in_namespaces(unit.pid, f"remount {path}") == errno.EPERM
    finally:
        node.kill(unit)


def test_root_mount_is_nosuid_and_nodev(node: Node) -> None:
    root = next(line for line in node.shell("mount").out.splitlines() if line.split()[2] == "/")
    assert {"nosuid", "nodev"} <= set(root.split("(")[1].rstrip(")").split(","))
