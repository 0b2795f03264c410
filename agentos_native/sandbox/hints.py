"""What a failure of the child stage means to a person, and how to mend it: data, looked up by stage, call and errno."""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from agentos_native.errors import EXIT_CANNOT_EXECUTE, EXIT_FAILED, EXIT_NOT_FOUND, AgentosError
from agentos_native.wire.launch import Failure


class _Hint(NamedTuple):
    """The first entry whose given fields all match is used; "" and 0 match anything; `stage` is a prefix."""

    stage: str
    call: str
    errno: int
    text: str


_HINTS: Final = tuple(
    _Hint(*row)
    for row in (
        (
            "command",
            "",
            errno.ENOENT,
            "The image has no such program, or PATH does not lead to it: see `inspect`, PATH.",
        ),
        ("command", "", errno.EACCES, "The file exists, but this user may not execute it: chmod +x it in the image."),
        ("execute", "", errno.ENOEXEC, "It is not a program for this machine, or a script without a #! line."),
        ("execute", "", errno.ENOENT, "Its interpreter (the #! line, or the dynamic loader) is not in the image."),
        ("execute", "", errno.EACCES, "The init program, or a mount it lies on, does not allow execution."),
        (
            "execute",
            "",
            errno.E2BIG,
            "Command and environment together are larger than the kernel takes; shorten them.",
        ),
        ("workdir", "", errno.ENOENT, "Make the directory in the image, or choose another one with --workdir."),
        ("workdir", "", errno.EACCES, "The user of the agent may not enter the directory."),
        ("workdir", "getcwd", errno.EXDEV, "The working directory lies outside the root file system: refused."),
        (
            "volume",
            "openat2",
            errno.ELOOP,
            "The image has a symbolic link in this path; name the real path as the target.",
        ),
        ("volume", "openat2", errno.ENOTDIR, "A part of the target's path is a file in the image."),
        ("volume", "openat2", errno.EROFS, "The image has no such path and is read-only; make it in the image."),
        (
            "mount /",
            "openat2",
            errno.ELOOP,
            "The image ships this mount point as a symbolic link; it has to be a directory.",
        ),
        ("mount /", "openat2", errno.ENOTDIR, "The image ships this mount point as a file; it has to be a directory."),
        ("mount /", "openat2", errno.EROFS, "The image lacks this directory and is read-only; make it in the image."),
        (
            "mount /",
            "fsopen",
            errno.ENODEV,
            "This kernel lacks the file system; `agentos-native check` says which are needed.",
        ),
        ("", "", errno.ETIMEDOUT, "The machine may be overloaded, or a volume hangs."),
        ("limits", "prlimit64", errno.EPERM, "The limit is above the hard limit that this program was started with."),
        ("namespaces", "setns", errno.ESRCH, "The agent has ended meanwhile."),
        ("clone", "clone3", errno.EBUSY, "Processes can only be started in a leaf of the cgroup tree."),
        (
            "clone",
            "clone3",
            errno.EAGAIN,
            "A limit on processes is reached: pids.max of the group, or pid_max of the machine.",
        ),
        ("clone", "clone3", errno.ENOENT, "The cgroup was removed meanwhile: the agent is being stopped."),
        ("clone", "clone3", errno.ENODEV, "The cgroup was removed meanwhile: the agent is being stopped."),
        ("clone", "start", errno.EAGAIN, "Too many starts are in flight; try again."),
        ("clone", "", errno.ENOSPC, "A limit on namespaces is reached: see the sysctls user.max_*_namespaces."),
        ("user namespace", "", errno.ENOSPC, "A limit on namespaces is reached: sysctl user.max_user_namespaces."),
        ("seccomp", "", errno.EINVAL, "The kernel refuses the filter; it needs CONFIG_SECCOMP_FILTER."),
        ("stdio", "", errno.ENOSPC, "No terminals are left: sysctl kernel.pty.max."),
        ("mount /", "", errno.ENOSPC, "The agent's memory limit is too small for the start."),
        ("", "", errno.ENOMEM, "The machine, or the agent's memory limit, is too small for the start."),
        ("", "", errno.EPERM, "The supervisor must run as root with all capabilities; see `agentos-native check`."),
    )
)


def hint_of(failure: Failure) -> str:
    """The hint for `failure`, or ""."""
    for hint in _HINTS:
        if (
            failure.stage.startswith(hint.stage)
            and hint.call in {"", failure.call}
            and hint.errno in {0, failure.errno}
        ):
            return hint.text
    return ""


def failure_to_error(failure: Failure, where: str = "") -> AgentosError:
    """The user's error for a unit that never executed.

    Args:
        where: whose start it was, for example "agent home/thermostat".

    The exit status is 127 for a command that is not there, 126 for one that cannot be executed, else 125.
    """
    reason = os.strerror(failure.errno) if failure.errno else failure.detail or "refused"
    if failure.errno and failure.detail:
        reason += f" ({failure.detail})"
    subject = f"{failure.call}({failure.path})" if failure.path else failure.call
    code, what, status = "start-failed", f"{failure.stage}: {subject}: {reason}", EXIT_FAILED
    if failure.stage == "command" and failure.errno == errno.ENOENT:
        code, what, status = "command-not-found", f"no such program inside: {failure.path}", EXIT_NOT_FOUND
    elif failure.stage in {"command", "execute"} and failure.errno in {errno.EACCES, errno.ENOEXEC, errno.ENOENT}:
        code, status = "command-not-executable", EXIT_CANNOT_EXECUTE
        what = f"{failure.path or 'the program'} cannot be executed: {reason}"
    details = {
        "stage": failure.stage,
        "call": failure.call,
        "path": failure.path,
        "errno": errno.errorcode.get(failure.errno, str(failure.errno)),
    }
    return AgentosError(code, what, where, hint_of(failure), exit_status=status, details=details)
