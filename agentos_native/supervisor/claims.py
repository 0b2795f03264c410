"""What supervisors of one machine share, each claimed by a lock: node names, and blocks of ids and addresses.

The lock (on a file that stays) says that a supervisor lives. The file's text says who had it last: after a crash its
agents may still run, so a name or block is taken from a dead owner only when no process is left in its cgroups. An
owner that comes back gets another block then, and the files of its ended agents are given to their new ids
(`moving`).
"""

from __future__ import annotations

import fcntl
import os
from typing import Final, NamedTuple

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.supervisor.admission import BLOCKS

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Owner(msgspec.Struct, frozen=True):
    """Who claims: node name, state directory, and the node's group in the cgroup file system."""

    node: str = ""
    state: str = ""
    cgroup: str = ""

    def is_gone(self) -> bool:
        """Whether its state has been deleted (or it never was)."""
        return not self.state or not os.path.exists(os.path.join(self.state, "registry.db"))

    def has_processes(self) -> bool:
        """Whether any process is left in its cgroups."""
        for path, _, _ in os.walk(self.cgroup) if self.cgroup else ():
            try:
                with open(os.path.join(path, "cgroup.procs"), encoding="ascii") as file:
                    if file.read(1):
                        return True
            except OSError:
                continue  # the group has just gone
        return False


class Block(NamedTuple):
    """A claimed block; the claim lasts as long as `fd` is open."""

    number: int
    fd: int


def claim_node(directory: str, owner: Owner) -> int:
    """Claim the owner's node name, which cgroups, devices and rules carry and recovery goes by.

    Returns:
        the fd that holds the claim.

    Raises:
        AgentosError: ``node-in-use``: a supervisor of that name runs, or agents of a dead one with another state.
    """
    fd = _open(os.path.join(directory, "nodes"), owner.node)
    before = _read(fd)
    ours = before.state == owner.state
    if not _lock(fd) or (not ours and not before.is_gone() and before.has_processes()):
        os.close(fd)
        raise AgentosError(
            "node-in-use",
            f"the node name {owner.node} belongs to the supervisor whose state is in {before.state}",
            f"node {owner.node}",
            "Choose another --node, use that --state-dir, or stop that one's agents.",
        )
    _write(fd, owner)
    return fd


def claim_block(directory: str, owner: Owner, preferred: int | None = None) -> Block:
    """Claim one of the machine's blocks, `preferred` (the last one of this state) if possible.

    Raises:
        AgentosError: ``no-block``; its hint says who has them.
    """
    directory = os.path.join(directory, "blocks")
    order = sorted(range(BLOCKS), key=lambda number: (number != preferred, number))
    holders: list[str] = []
    # Blocks of dead owners that may come back are touched only when there is no other.
    for considerate in (True, False):
        for number in order:
            fd = _open(directory, str(number))
            before = _read(fd)
            ours = before.state in {"", owner.state}
            free = ours or before.is_gone() or (not considerate and not before.has_processes())
            if free and _lock(fd):
                _write(fd, owner)
                return Block(number, fd)
            os.close(fd)
            if not considerate:
                holders.append(f"{number}: {before.state}")
    raise AgentosError(
        "no-block",
        f"all {BLOCKS} blocks of agent slots on this machine are taken",
        directory,
        "Each supervisor takes one, and keeps it while its agents live. Stop one of these:\n" + "\n".join(holders),
    )


def _open(directory: str, name: str) -> int:
    os.makedirs(directory, mode=0o711, exist_ok=True)
    return os.open(os.path.join(directory, name), _FLAGS, 0o600)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(fd: int) -> Owner:
    try:
        return msgspec.json.decode(os.pread(fd, 8192, 0) or b"{}", type=Owner)
    except msgspec.MsgspecError:
        return Owner()


def _write(fd: int, owner: Owner) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, msgspec.json.encode(owner), 0)
