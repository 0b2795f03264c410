"""The wrappers of system calls, on the live kernel: what they give, and what their errors say."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agentos_native.kernel import keys, mount, ns, process, sched
from agentos_native.kernel.libc import AT_EMPTY_PATH, AT_FDCWD, SyscallError, libc_call, syscall


def child_that(action: Callable[[], None]) -> int:
    """The exit code of a child that performs `action`: 0, or the errno it failed with."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


def test_an_error_names_call_arguments_path_and_errno() -> None:
    with pytest.raises(SyscallError) as caught:
        mount.open_tree(AT_FDCWD, "/no/such/thing", 0)
    error = caught.value
    assert (error.call, error.path, error.errno) == ("open_tree", "/no/such/thing", errno.ENOENT)
    assert "open_tree(-100, '/no/such/thing', 0)" in str(error)
    assert "No such file" in str(error)
    assert isinstance(error, OSError)


def test_libc_calls_fail_the_same_way() -> None:
    with pytest.raises(SyscallError) as caught:
        libc_call("umount2", "/no/such/thing", 0, path="/no/such/thing")
    assert caught.value.call == "umount2"


def test_a_nul_byte_never_reaches_the_kernel() -> None:
    with pytest.raises(ValueError, match="NUL"):
        mount.open_tree(AT_FDCWD, "/etc\0/passwd", 0)


def test_large_numbers_keep_their_upper_half() -> None:
    with pytest.raises(SyscallError) as caught:
        syscall("clone3", 435, 1 << 40, 88)  # an address beyond everything that is mapped
    assert caught.value.errno == errno.EFAULT


def test_pidfd_signal_and_exit() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    pidfd = process.pidfd_open(pid)
    assert process.wait_pidfd(pidfd) is None
    process.pidfd_send_signal(pidfd, signal.SIGKILL)
    kept = process.wait_pidfd(pidfd, block=True, keep=True)
    info = process.wait_pidfd(pidfd, block=True)
    assert info is not None
    assert kept is not None
    assert (info.pid, info.code, info.status) == (kept.pid, kept.code, kept.status) == (pid, os.CLD_KILLED, 9)
    assert info.max_rss_bytes > 0
    with pytest.raises(ChildProcessError):
        process.wait_pidfd(pidfd)
    with pytest.raises(SyscallError) as caught:
        process.pidfd_send_signal(pidfd, signal.SIGTERM)
    assert caught.value.errno == errno.ESRCH
    os.close(pidfd)


def test_exit_status_of_a_reaped_process_agrees_with_the_probe() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(5)
    pidfd = process.pidfd_open(pid)
    os.waitpid(pid, 0)
    status = process.exit_status_of(pidfd)
    os.close(pidfd)
    if process.has_pidfd_exit_info():
        assert status is not None
        assert os.waitstatus_to_exitcode(status) == 5
    else:
        assert status is None


def test_close_range() -> None:
    def action() -> None:
        read, write = os.pipe()
        os.set_inheritable(read, True)
        process.close_range(read, write, process.CLOSE_RANGE_CLOEXEC)
        assert not os.get_inheritable(read)
        process.close_range(min(read, write), max(read, write))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(read)

    assert child_that(action) == 0


def test_namespaces_of_a_thread() -> None:
    needs_root()
    before = ns.inode("thread-self", "uts")
    seen: list[int] = []

    def other() -> None:
        home = ns.open_own("uts")
        ns.unshare(ns.CLONE_NEWUTS)
        seen.append(ns.inode("thread-self", "uts"))
        ns.setns(home, ns.CLONE_NEWUTS)
        seen.append(ns.inode("thread-self", "uts"))
        os.close(home)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen[0] != before
    assert seen[1] == before == ns.inode("thread-self", "uts")


def test_mounts_by_file_descriptor(tmp_path: Path) -> None:
    needs_root()

    def action() -> None:
        ns.unshare(ns.CLONE_NEWNS)
        mount.make_private("/")
        context = mount.fsopen("tmpfs")
        mount.fsconfig_set_string(context, "mode", "700")
        mount.fsconfig_set_string(context, "size", "64k")
        mount.fsconfig_create(context)
        fd = mount.fsmount(context, mount.FSMOUNT_CLOEXEC, mount.MOUNT_ATTR_NODEV)
        mount.move_mount(fd, "", AT_FDCWD, str(tmp_path), mount.MOVE_MOUNT_F_EMPTY_PATH)
        (tmp_path / "file").write_text("x")
        copy = mount.open_tree(AT_FDCWD, str(tmp_path), mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC)
        mount.mount_setattr(copy, "", AT_EMPTY_PATH, attr_set=mount.MOUNT_ATTR_RDONLY)
        with pytest.raises(OSError, match="Read-only"):
            os.open("file", os.O_WRONLY, dir_fd=copy)
        mount.umount2(str(tmp_path), mount.MNT_DETACH)
        assert not (tmp_path / "file").exists()

    assert child_that(action) == 0
    assert list(tmp_path.iterdir()) == []


def test_wrong_mount_options_are_named() -> None:
    needs_root()
    context = mount.fsopen("tmpfs")
    with pytest.raises(SyscallError) as caught:
        mount.fsconfig_set_string(context, "colour", "red")
    assert (caught.value.call, caught.value.path, caught.value.errno) == ("fsconfig", "colour", errno.EINVAL)
    os.close(context)


def test_priority_is_not_inherited() -> None:
    needs_root()

    def action() -> None:
        sched.set_nice_of_this_thread(-5)
        assert os.getpriority(os.PRIO_PROCESS, 0) == -5
        assert child_that(lambda: os._exit(os.getpriority(os.PRIO_PROCESS, 0) & 0xFF)) == 0

    assert child_that(action) == 0


def test_keyrings_are_probed_not_assumed() -> None:
    assert keys.have_keyrings() == Path("/proc/keys").exists()
