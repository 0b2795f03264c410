"""Which system calls an agent may make, as data: an allow-list, calls whose arguments decide, what is refused by name.

Whatever is not named does not exist for the agent (ENOSYS), so a call that a later kernel adds is closed until somebody
opens it here, and libraries fall back. A dangerous call needs a written reason to be allowed (`seccomp.lint`).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000


def refuse(number: int) -> int:
    """The action that makes a call fail with errno `number`."""
    return _ERRNO | number


@dataclass(frozen=True, slots=True)
class ArgumentIs:
    """True when the low (or `high`) 32 bits of argument `arg`, masked, are `value`.

    One half is compared because the kernel takes most arguments as int and drops the rest: a filter that compared
    64 bits could be passed by setting a bit that the kernel ignores (CVE-2019-10063).
    """

    arg: int
    value: int
    mask: int = 0xFFFFFFFF
    high: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """`action` when every test holds; the rules of a call are tried in order."""

    call: str
    tests: tuple[ArgumentIs, ...]
    action: int = ALLOW


@dataclass(frozen=True, slots=True)
class Policy:
    """Args:
    allow: calls that pass whatever their arguments.
    rules: calls that some of their arguments decide; when no rule of a call matches, `otherwise` of it decides.
    otherwise: call → action, for the calls in `rules` (default: EPERM).
    deny: call → action.
    reasons: call → why it is allowed although it is dangerous.
    An empty `allow` allows nothing.
    """

    allow: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    otherwise: Mapping[str, int] = field(default_factory=dict)
    deny: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    default: int = refuse(errno.ENOSYS)


_FILES: Final = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr lstat
mkdir mkdirat mknod mknodat newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev
pwritev2 read readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr
splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime
utimensat utimes vmsplice write writev cachestat setxattrat getxattrat listxattrat removexattrat file_getattr
file_setattr io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents
"""
_MEMORY: Final = """
brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mprotect mremap
mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages get_mempolicy
set_mempolicy mbind set_mempolicy_home_node
"""
_PROCESSES: Final = """
arch_prctl capget capset execve execveat exit exit_group fork getegid geteuid getgid getgroups getpgid getpgrp
getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid get_robust_list
get_thread_area ioprio_get ioprio_set kill pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease
restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid
setresuid setreuid setrlimit setsid setuid set_robust_list set_thread_area set_tid_address sigaltstack tgkill tkill
vfork wait4 waitid landlock_create_ruleset landlock_add_rule landlock_restrict_self ptrace process_vm_readv
process_vm_writev
"""
_TIME: Final = """
alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep pause setitimer time timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times
"""
_WAITING: Final = """
epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 futex futex_requeue
futex_wait futex_waitv futex_wake poll ppoll pselect6 select signalfd signalfd4
"""
_COMMUNICATION: Final = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg
sendto setsockopt shutdown mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget
msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget
"""
_MACHINE: Final = "getcpu getrandom sysinfo uname"

_REFUSED: Final = """
mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr
setns bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key
init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd
settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname syslog vhangup open_by_handle_at
name_to_handle_at fanotify_init fanotify_mark lookup_dcookie pidfd_getfd process_madvise kcmp iopl ioperm modify_ldt
nfsservctl migrate_pages move_pages statmount listmount
"""

_NEW_NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET"""
_NEW_TIME: Final = 0x80
_TIOCSTI, _TIOCSETD, _TIOCLINUX = 0x5412, 0x5423, 0x541C
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _NETLINK_ROUTE = 1, 2, 10, 16, 0

_EPERM: Final = refuse(errno.EPERM)

DEFAULT: Final = Policy(
    allow=tuple(f"{_FILES} {_MEMORY} {_PROCESSES} {_TIME} {_WAITING} {_COMMUNICATION} {_MACHINE}".split()),
    rules=(
        *(Rule("socket", (ArgumentIs(0, family),)) for family in (_AF_UNIX, _AF_INET, _AF_INET6)),
        Rule("socket", (ArgumentIs(0, _AF_NETLINK), ArgumentIs(2, _NETLINK_ROUTE))),
        Rule("socketpair", (ArgumentIs(0, _AF_UNIX),)),
        # types into the terminal of somebody else; line disciplines are modules loaded on demand
        *(Rule("ioctl", (ArgumentIs(1, request),), _EPERM) for request in (_TIOCSTI, _TIOCLINUX, _TIOCSETD)),
        Rule("clone", (ArgumentIs(0, 0, _NEW_NAMESPACES),)),
        Rule("unshare", (ArgumentIs(0, 0, _NEW_NAMESPACES | _NEW_TIME), ArgumentIs(0, 0, high=True))),
        # Linux, Linux32, UNAME26 with either, and asking
        *(Rule("personality", (ArgumentIs(0, value),)) for value in (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)),
    ),
    otherwise={
        "socket": refuse(errno.EAFNOSUPPORT),
        "socketpair": refuse(errno.EAFNOSUPPORT),
        "ioctl": ALLOW,
    },
    deny={
        **dict.fromkeys(_REFUSED.split(), _EPERM),
        # its flags are in memory, which a filter cannot read; libc then uses clone, whose flags are an argument
        "clone3": refuse(errno.ENOSYS),
    },
    reasons={
        "ptrace": "Agents that program use debuggers; the namespaces keep it to the agent's own processes.",
        "process_vm_readv": "As ptrace, whose check it uses.",
        "process_vm_writev": "As ptrace, whose check it uses.",
    },
)

DANGEROUS: Final = frozenset(_REFUSED.split()) | {"clone3", "ptrace", "process_vm_readv", "process_vm_writev"}
"""Calls that need a reason to be in `Policy.allow`."""
ARGUMENTS_DECIDE: Final = frozenset({"socket", "socketpair", "ioctl", "clone", "unshare", "personality"})
"""Calls that are never allowed without a look at their arguments."""
