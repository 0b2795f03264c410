"""The child stage in C; its theory of operation is at the top of ``_child.c``."""

from typing import Final

OPS: Final[dict[str, tuple[int, str]]]
"""Operation → (number in an encoded plan, kinds of its arguments)."""

def setup(status_fd: int, launcher_pidfd: int, empty_mntns: int) -> None:
    """Once, before the first start: where to report, how a child sees that the launcher lives, where starts begin."""

def start(program: bytes, fds: tuple[int, ...], namespaces: int, cgroup: int, pidns: int) -> int:
    """Let a child interpret `program`; returns the slot under which the status socket speaks of it, without waiting.

    Each message is a native-endian u32: slot << 8 | kind (1 born, 2 released: executed or failed, 3 terminal, with its
    master as SCM_RIGHTS). `fds` must stay open until born or released.

    Args:
        cgroup: fd of the leaf's directory, or -1.
        pidns: fd of the pid namespace to clone into, or -1.

    Raises:
        OSError: EAGAIN: all slots are in use.
        ValueError: `program` is damaged, or of another version.
    """

def result(slot: int) -> tuple[int, int, int, str, str, bytes, int]:
    """(state, pid, pidfd, stage, call, path, errno); states: 0 preparing, 1 executing, 2 failed, 3 not cloned."""

def free(slot: int) -> None:
    """The slot may be used again (as soon as nobody runs in its memory)."""

def hold_userns() -> int:
    """The pid of a new child of this process that does nothing but hold a new user namespace, until it is killed.

    Raises:
        OSError: EAGAIN: too many of them live, and none of them has ended within two seconds.
    """
