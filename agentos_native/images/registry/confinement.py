"""Taking power away from a fetcher: it keeps the host's network, and of the host's files only how names are resolved.

What it may not do is what `images.confine` takes from an unpacker, but for sockets. It runs as a user of its own in
the host's user namespace: an id that owns nothing but its download directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from typing import Final

import pyseccomp

from agentos_native.images import confine
from agentos_native.images.registry.model import PullLimits
from agentos_native.kernel import caps, mount, ns
from agentos_native.kernel.libc import AT_EMPTY_PATH, libc_call

FETCHER_ID: Final = confine.UNPACKER_BASE - 1
"""The user and the group of every fetcher: the id below the unpackers' range."""

_RESOLVING: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/gai.conf")
_FILE_MAX: Final = 1 << 20
_NSSWITCH: Final = b"hosts: files dns\n"
"""Not the host's own: what it may name beyond these two are programs and sockets that are not here."""
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38

_CALLS: Final = """
    read readv pread64 write writev pwrite64 lseek close fstat newfstatat statx openat getdents64 fcntl ioctl dup
    mkdirat unlinkat renameat renameat2 ftruncate fsync fdatasync fstatfs
    connect sendto recvfrom sendmsg sendmmsg recvmsg getsockname getpeername setsockopt getsockopt shutdown bind
    mmap munmap mprotect mremap madvise brk futex set_robust_list rseq gettid getpid getuid geteuid
    exit exit_group rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack tgkill restart_syscall sched_yield
    sched_getaffinity membarrier clock_gettime clock_nanosleep nanosleep poll ppoll select pselect6 getrandom getrusage
    sysinfo prlimit64
"""
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_NAMESPACES: Final = sum(ns.NAMES.values()) | ns.CLONE_NEWTIME


def leave_host() -> None:
    """Own namespaces (but the network's) and a root that cannot be written to, with what resolving names takes."""
    ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS | ns.CLONE_NEWCGROUP)
    mount.make_private("/")
    context = mount.fsopen("tmpfs")
    for key, value in (("nr_inodes", "16"), ("size", "8m"), ("mode", "0755")):
        mount.fsconfig_set_string(context, key, value)
    mount.fsconfig_create(context)
    attributes = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
    root = mount.fsmount(context, mount.FSMOUNT_CLOEXEC, attributes)
    _copy_configuration(root)
    mount.mount_setattr(root, "", AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY)
    os.close(context)
    confine.move_root(root)


def _copy_configuration(root: int) -> None:
    contents = {"/etc/nsswitch.conf": _NSSWITCH}
    for path in _RESOLVING:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            contents[path] = file.read(_FILE_MAX)
    os.mkdir("etc", 0o755, dir_fd=root)
    for path, content in contents.items():
        descriptor = os.open(path.lstrip("/"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=root)
        with open(descriptor, "wb") as file:
            file.write(content)


def become_nobody() -> None:
    """Be `FETCHER_ID` without one capability, for good."""
    for number in range(64):
        try:
            confine.prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # past the last capability that this kernel knows
    os.setgroups([])
    os.setresgid(FETCHER_ID, FETCHER_ID, FETCHER_ID)
    os.setresuid(FETCHER_ID, FETCHER_ID, FETCHER_ID)
    libc_call("capset", *caps.capset_arguments(0, 0, 0))
    confine.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    confine.prctl(_PR_SET_DUMPABLE, 0)
    confine.die_with_parent()  # the change of user took it away


def limit_resources(limits: PullLimits) -> None:
    """Bounds on what a registry can lead the fetcher to do."""
    confine.set_limits(
        (
            (resource.RLIMIT_AS, limits.memory),
            (resource.RLIMIT_CPU, limits.cpu_seconds),
            (resource.RLIMIT_FSIZE, limits.bytes),
            (resource.RLIMIT_NOFILE, 128),
            (resource.RLIMIT_NPROC, 256),  # threads of all fetchers together
            (resource.RLIMIT_CORE, 0),
        )
    )


def filter_system_calls() -> None:
    """Allow files by fd, TCP and UDP, and what CPython needs; everything else does not exist (ENOSYS)."""
    program = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    for name in _CALLS.split():
        program.add_rule(pyseccomp.ALLOW, name)
    for family in _FAMILIES:
        program.add_rule(pyseccomp.ALLOW, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    # Threads, but no user namespace to be somebody in. A filter cannot read the flags of clone3; libc does without it.
    program.add_rule(pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _NAMESPACES, 0))
    program.load()
