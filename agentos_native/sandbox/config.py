"""What one sandbox shall be: the words of a start (`SandboxConfig`) and the file descriptors it is composed of (`Fds`).

Everything is checked here once, by `check`, before any operation is planned; what reaches the child is bytes that
were looked at.
"""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass, field
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.kernel import caps

ID_RANGE: Final = 65536
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RLIMITS: Final[dict[str, int]] = {
    name: getattr(resource, f"RLIMIT_{name.upper()}")
    for name in (
        "as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
        "rttime", "sigpending", "stack",
    )
    if hasattr(resource, f"RLIMIT_{name.upper()}")
}  # fmt: skip
"""Name as in limits.conf(5) → number."""
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class BindMount:
    """A volume: the detached mount `Fds.volumes[fd]` appears at `target` (absolute, inside). Always nosuid, nodev."""

    target: str
    read_only: bool
    fd: str


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """One program in one sandbox.

    Args:
        env: as inside; PATH is added when it is missing.
        workdir: absolute, inside; must exist and be enterable by `uid`.
        uid, gid, groups: as inside (0..65535).
        id_base: host id of inner 0.
        capabilities: the bounding set that is kept; only a program of inner uid 0 gets them. Inheritable and
        ambient stay empty. rlimits: (name as in `RLIMITS`, value for soft and hard limit). tty: stdio is a new
        terminal of the agent's own devpts; `Fds` then needs no stdin, stdout, stderr. shm_bytes: size of /dev/shm.
    """

    agent_id: str
    hostname: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    workdir: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    id_base: int
    capabilities: tuple[str, ...] = ()
    rlimits: tuple[tuple[str, int], ...] = ()
    read_only: bool = False
    mounts: tuple[BindMount, ...] = ()
    tty: bool = False
    shm_bytes: int = 64 * 1024 * 1024
    umask: int = 0o022


@dataclass(frozen=True, slots=True)
class Fds:
    """Real, open fds; the planner only refers to them, their owner closes them after the request has been sent.

    Args:
        cgroup: directory of the leaf cgroup.
        rootfs: start: detached mount of the root file system.
        netns, userns, init: start: namespace files; the init program opened O_RDONLY.
        agent: exec: pidfd of the agent's first process.
        pidns: exec: /proc/<that pid>/ns/pid.
        volumes: detached mounts by the name that `BindMount.fd` uses.
    """

    cgroup: int
    rootfs: int = -1
    netns: int = -1
    userns: int = -1
    init: int = -1
    agent: int = -1
    pidns: int = -1
    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    volumes: dict[str, int] = field(default_factory=dict)


def check(config: SandboxConfig, fds: Fds) -> None:
    """Refuse what cannot be meant. Raises AgentosError ``invalid-sandbox``."""
    _check_words(config)
    _check_ids(config)
    for mount in config.mounts:
        _check_target(mount.target)
        _require(mount.fd in fds.volumes, f"no file descriptor for the volume at {mount.target}")
    stdio = (fds.stdin, fds.stdout, fds.stderr)
    _require(config.tty or min(stdio) >= 0, "standard input, output and error are needed unless it has a terminal")


def _check_words(config: SandboxConfig) -> None:
    _require(bool(_HOSTNAME.fullmatch(config.hostname)), f"not a host name: {config.hostname!r}")
    _require(bool(config.argv) and bool(config.argv[0]), "the command is empty")
    _require(config.workdir.startswith("/"), f"the working directory is not absolute: {config.workdir!r}")
    for name, value in config.env:
        _require(bool(name) and "=" not in name, f"not the name of an environment variable: {name!r}")
        _require("\0" not in name + value, f"a NUL byte in the environment variable {name!r}")
    for word in (*config.argv, config.workdir):
        _require("\0" not in word, f"a NUL byte in {word!r}")


def _check_ids(config: SandboxConfig) -> None:
    for number in (config.uid, config.gid, *config.groups):
        _require(0 <= number < ID_RANGE, f"id {number} is outside 0..{ID_RANGE - 1}")
    _require(config.id_base >= ID_RANGE, f"id base {config.id_base} would give host ids to the agent")
    _require(0 <= config.umask <= 0o777, f"not a umask: {config.umask:o}")
    for name in config.capabilities:
        _require(name.upper().removeprefix("CAP_") in caps.NAMES, f"no such capability: {name!r}")
    for name, value in config.rlimits:
        _require(name in RLIMITS, f"no such resource limit: {name!r}; there are {', '.join(RLIMITS)}")
        _require(-1 <= value < 1 << 63, f"limit {name} is out of range: {value}")


def _check_target(target: str) -> None:
    parts = target.split("/")
    plain = target.startswith("/") and len(parts) > 1 and not {"", ".", ".."} & set(parts[1:]) and "\0" not in target
    _require(plain, f"not an absolute, plain path for a volume: {target!r}")
    _require(parts[1] not in {"proc", "sys", "dev"}, f"{target}: /proc, /sys and /dev are the sandbox's own")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise AgentosError("invalid-sandbox", what)
