"""Taking power away from the processes of an import: namespaces, an empty root, capabilities, limits, seccomp.

Everything here is for a process of its own with one thread (see `worker`), and every step that fails ends the import.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import resource
import signal
from collections.abc import Iterable
from typing import Final

from agentos_native.images.model import Limits
from agentos_native.kernel import mount, ns
from agentos_native.kernel.libc import AT_EMPTY_PATH, AT_FDCWD, libc_call
from agentos_native.kernel.mount import (
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
)

ID_RANGE: Final = 65536
"""Ids that an image may use: 0 … 65535, as many as an agent has."""
UNPACKER_BASE: Final = 0x40000000 - ID_RANGE
"""Host id of the unpacker's root: the range below those of the agents, which owns nothing and is given to nobody."""

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP = 0, 1, 2, 3, 4, 27, 31
FILE_CAPABILITIES: Final = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_SETFCAP)
"""What making files with their owners, modes and capabilities takes; in an unprivileged child they count only for its
own id range."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_CAPABILITY_VERSION_3: Final = 0x20080522
_CLONE_THREAD: Final = 0x10000

_FILE_CALLS: Final = """
    read readv pread64 write writev pwrite64 lseek close fstat newfstatat statx openat openat2 getdents64 fcntl
    ioctl dup mkdirat mknodat symlinkat linkat unlinkat renameat fchown fchownat fchmod fchmodat utimensat ftruncate
    fallocate readlinkat preadv pwritev fadvise64 fsetxattr flistxattr fgetxattr copy_file_range syncfs
"""
_INTERPRETER_CALLS: Final = """
    munmap mprotect mremap madvise brk futex set_robust_list rseq gettid getpid exit exit_group
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack tgkill restart_syscall sched_yield sched_getaffinity
    membarrier clock_gettime clock_nanosleep nanosleep poll ppoll select pselect6 getrandom getrusage sysinfo
    prlimit64 wait4
"""
"""What CPython itself needs: memory, threads, signals and time."""


def prctl(option: int, argument: int = 0) -> None:
    """prctl(2) with one argument."""
    libc_call("prctl", option, argument, 0, 0, 0)


def die_with_parent() -> None:
    """SIGKILL when the thread that made this process ends; neither inherited nor kept over a change of ids."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def make_userns(base: int) -> int:
    """A user namespace that maps 0 … 65535 to the host's `base` …; an fd, the only thing that keeps it alive."""
    ready_r, ready_w = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            ns.unshare(ns.CLONE_NEWUSER)
            die_with_parent()  # or it would hold the parent's sockets and pipes open for ever
            if os.getppid() == parent:
                os.write(ready_w, b".")
                signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(ready_w)
        if os.read(ready_r, 1) != b".":
            raise OSError("the kernel refuses a user namespace (user.max_user_namespaces?)")
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{kind}", "wb", buffering=0) as file:
                file.write(b"0 %d %d\n" % (base, ID_RANGE))
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_r)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def idmapped(directory: int, userns: int) -> int:
    """A detached mount of `directory` in which on-disk ids 0 … are those of `userns`; noexec, nosuid, nodev."""
    tree = mount.open_tree(directory, "", mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)
    attributes = MOUNT_ATTR_IDMAP | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    mount.mount_setattr(tree, "", AT_EMPTY_PATH, attributes, userns_fd=userns)
    return tree


def leave_host() -> None:
    """Own namespaces (children are pid 1 of their own), and an empty tmpfs that cannot be written to as root."""
    ns.unshare(
        ns.CLONE_NEWNS | ns.CLONE_NEWNET | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS | ns.CLONE_NEWPID | ns.CLONE_NEWCGROUP
    )
    mount.make_private("/")
    context = mount.fsopen("tmpfs")
    mount.fsconfig_set_string(context, "nr_inodes", "2")
    mount.fsconfig_create(context)
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    root = mount.fsmount(context, mount.FSMOUNT_CLOEXEC, attributes)
    os.close(context)
    move_root(root)


def move_root(root: int) -> None:
    """Make the detached mount `root` this mount namespace's only one, and close it."""
    # pivot_root wants a mount point; every host has /proc, and in this mount namespace nobody needs it any more
    mount.move_mount(root, "", AT_FDCWD, "/proc", mount.MOVE_MOUNT_F_EMPTY_PATH)
    os.fchdir(root)
    libc_call("pivot_root", ".", ".", path="/proc")
    mount.umount2(".", mount.MNT_DETACH)
    os.chdir("/")
    os.close(root)


def become_root_of(userns: int) -> None:
    """Enter `userns` and be its root: a host id that owns nothing."""
    ns.setns(userns, ns.CLONE_NEWUSER)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def keep_capabilities(kept: Iterable[int]) -> None:
    """Have `kept` and nothing else, now and after any exec; no way back (no_new_privs), no core dump, no ptrace."""
    mask = sum(1 << number for number in kept)
    for number in range(64):
        if mask >> number & 1:
            continue
        try:
            prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # past the last capability that this kernel knows
    libc_call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    libc_call("capset", header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_DUMPABLE, 0)


def limit_resources(limits: Limits) -> None:
    """Bounds on what a decoder can be led to do: memory, processor time, file size, fds, threads."""
    set_limits(
        (
            (resource.RLIMIT_AS, limits.memory),
            (resource.RLIMIT_CPU, limits.cpu_seconds),
            (resource.RLIMIT_FSIZE, limits.bytes),
            (resource.RLIMIT_NOFILE, 256),
            (resource.RLIMIT_NPROC, 16),
            (resource.RLIMIT_CORE, 0),
        )
    )


def set_limits(wanted: Iterable[tuple[int, int]]) -> None:
    """Soft and hard resource limits, or the hard ones that there are where those are lower."""
    for which, value in wanted:
        _, hard = resource.getrlimit(which)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (allowed, allowed))


@functools.cache
def compile_filter() -> bytes:
    """The program that allows files by fd and what CPython needs; everything else does not exist (ENOSYS lets libc
    fall back). clone makes threads only: its flags are looked at, which clone3 keeps in memory. Nothing is mapped
    shared: every write to a file changes its ctime, which `unpack.early` relies on.
    """
    import pyseccomp  # looks for its library by running ldconfig, which a worker has no time for

    program = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    for name in (_FILE_CALLS + _INTERPRETER_CALLS).split():
        program.add_rule(pyseccomp.ALLOW, name)
    program.add_rule(pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
    program.add_rule(pyseccomp.ALLOW, "mmap", pyseccomp.Arg(3, pyseccomp.MASKED_EQ, mmap.MAP_SHARED, 0))
    descriptor = os.memfd_create("filter", os.MFD_CLOEXEC)
    with open(descriptor, "w+b") as file:
        program.export_bpf(file)
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def filter_system_calls(program: bytes = b"") -> None:
    """Install `program` (none given: a new one of `compile_filter`) for good; see seccomp(2)."""
    program = program or compile_filter()
    libc_call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _Program(len(program) // 8, program), 0, 0)
