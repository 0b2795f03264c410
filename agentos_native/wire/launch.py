"""Messages between the launcher and its supervisor, over one SOCK_SEQPACKET socketpair, fds by SCM_RIGHTS.

One message is one packet: MessagePack, tagged arrays (msgspec). The order is the protocol:

    launcher   → `Live`* `Exited`* `Ready`              after every (re)connection, a `Live` per unit that runs
    supervisor → `MakeUserns`                           launcher → `Userns` [userns fd]
    supervisor → `Clone` [fds of the plan's fd table]   launcher → `Cloned` [pidfd], then
                                                        `Running` [pty master?] or `Failed`
    launcher   → `Exited`  (kept until)                 supervisor → `Acknowledge`
    supervisor → `Shutdown`                             the launcher exits; units that still run stay behind

A *unit* is one process tree that the launcher cloned: the main program of an agent (``<agent-id>``) or a further
process in it (``<agent-id>/exec-<n>``). To the launcher the name is opaque.
"""

from __future__ import annotations

from typing import Final

import msgspec

MAX_PACKET: Final = 128 * 1024
"""Bytes; a plan with its seccomp filter is about 10 KiB."""
MAX_FDS: Final = 64
"""File descriptors in one packet; the kernel's own limit is 253 (SCM_MAX_FD)."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why a child stage ended before exec. `errno` 0: the stage refused by its own check."""

    stage: str
    call: str
    path: str
    errno: int
    detail: str = ""


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class MakeUserns(_Message, frozen=True):
    """Make a user namespace that maps `size` inner ids from `inside` on to `base`.. (uids and gids alike)."""

    seq: int
    base: int
    size: int
    inside: int = 0


class Userns(_Message, frozen=True):
    """[userns fd]; on failure no fd and `failure` set."""

    seq: int
    failure: Failure | None = None


class Clone(_Message, frozen=True):
    """Clone one unit and run `program` in it.

    Args:
        unit: see the module's docstring.
        program: the encoded plan (``sandbox.plan.Plan.encode``) that the child interprets; its fd numbers are indexes
            into the fds of this packet.
        namespaces: CLONE_NEW* flags for clone3.
        cgroup: index of the leaf cgroup's directory fd (CLONE_INTO_CGROUP).
        pidns: index of a pid namespace fd that the launcher enters for the clone (exec), or -1.
        deadline: seconds until a child that has not reached exec is killed and reported as `Failed`.
    """

    seq: int
    unit: str
    program: bytes
    namespaces: int
    cgroup: int
    pidns: int = -1
    deadline: float = 30.0


class Cloned(_Message, frozen=True):
    """[pidfd] The child exists (in its cgroup); `pid` is for display only."""

    seq: int
    unit: str
    pid: int


class Running(_Message, frozen=True):
    """The child has executed its program. [pty master] when the plan asked for a terminal."""

    seq: int
    unit: str


class Failed(_Message, frozen=True):
    """The child never reached exec and is already reaped: no `Exited` follows for it."""

    seq: int
    unit: str
    failure: Failure


class Exited(_Message, frozen=True):
    """A unit's first process ended. `code` is CLD_EXITED, CLD_KILLED or CLD_DUMPED, `status` as in waitid(2)."""

    exit_id: int
    unit: str
    pid: int
    code: int
    status: int
    user_seconds: float
    system_seconds: float
    max_rss_bytes: int
    ended_at: float


class Acknowledge(_Message, frozen=True):
    """`exit_id` is in the registry; the launcher may forget it."""

    exit_id: int


class Live(_Message, frozen=True):
    """[pidfd, pty master?] Replayed after a reconnection: this unit runs (`executed`) or is on its way to exec."""

    unit: str
    pid: int
    executed: bool


class Ready(_Message, frozen=True):
    """The replay is complete. `restarts`: how often this launcher has started a supervisor before."""

    restarts: int


class Shutdown(_Message, frozen=True):
    """The launcher exits with `status` as soon as the socket is drained."""

    status: int = 0


ToLauncher = MakeUserns | Clone | Acknowledge | Shutdown
ToSupervisor = Userns | Cloned | Running | Failed | Exited | Live | Ready

_encoder = msgspec.msgpack.Encoder()
_to_launcher = msgspec.msgpack.Decoder(ToLauncher)
_to_supervisor = msgspec.msgpack.Decoder(ToSupervisor)


def encode(message: ToLauncher | ToSupervisor) -> bytes:
    """One packet's bytes."""
    return _encoder.encode(message)


def decode_request(packet: bytes | memoryview) -> ToLauncher:
    """Launcher's side. Raises `msgspec.DecodeError` on anything else."""
    message: ToLauncher = _to_launcher.decode(packet)
    return message


def decode_reply(packet: bytes) -> ToSupervisor:
    """Supervisor's side. Raises `msgspec.DecodeError` on anything else."""
    message: ToSupervisor = _to_supervisor.decode(packet)
    return message
