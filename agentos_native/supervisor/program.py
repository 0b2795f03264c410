"""From a spec and an image to the plan that the launcher's child interprets: command, environment, user, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agentos_native.errors import EXIT_NOT_FOUND, AgentosError
from agentos_native.images.model import ImageConfig
from agentos_native.images.users import User
from agentos_native.sandbox.config import BindMount, Fds, SandboxConfig
from agentos_native.sandbox.plan import Plan, exec_plan, start_plan
from agentos_native.spec.model import AgentSpec
from agentos_native.supervisor.guestfiles import hostname
from agentos_native.supervisor.registry import Record


class Handles(NamedTuple):
    """The fds of a start, all the caller's; `stdio` is empty for an agent with a terminal."""

    rootfs: int
    netns: int
    userns: int
    init: int
    leaf: int
    stdio: tuple[int, ...]
    volumes: tuple[int, ...]


def command(spec: AgentSpec, image: ImageConfig) -> tuple[str, ...]:
    """As Kubernetes has it: `command` replaces the image's entrypoint, `args` its arguments."""
    own = (*spec.command, *spec.args)
    argv = own if spec.command else (*image.entrypoint, *(spec.args or image.cmd))
    if not argv:
        raise AgentosError(
            "no-command",
            "neither the spec nor the image says what to run",
            f"agent {spec.tenant}/{spec.name}",
            "Give a command.",
            exit_status=EXIT_NOT_FOUND,
        )
    return argv


def environment(spec: AgentSpec, image: ImageConfig, user: User) -> dict[str, str]:
    """What follows from the sandbox, then the image's variables, then the spec's."""
    home = user.home or ("/root" if user.uid == 0 else "/")
    env = {"HOSTNAME": hostname(spec), "HOME": home, **dict(image.env)}
    if spec.tty:
        env.setdefault("TERM", "xterm")
    env.update(spec.env)
    return env


def workdir(spec: AgentSpec, image: ImageConfig) -> str:
    """The directory that the program starts in."""
    return spec.workdir or image.workdir or "/"


def _config(record: Record, image: ImageConfig, user: User, id_base: int) -> SandboxConfig:
    spec = record.spec
    return SandboxConfig(
        agent_id=record.id,
        hostname=hostname(spec),
        argv=command(spec, image),
        env=tuple(environment(spec, image, user).items()),
        workdir=workdir(spec, image),
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        id_base=id_base,
        capabilities=spec.capabilities,
        rlimits=tuple(spec.rlimits.items()),
        read_only=spec.read_only,
        mounts=tuple(BindMount(v.target, v.read_only, str(n)) for n, v in enumerate(spec.volumes)),
        tty=spec.tty,
    )


def start_program(record: Record, image: ImageConfig, user: User, id_base: int, handles: Handles) -> Plan:
    """The plan of an agent's main program."""
    stdin, stdout, stderr = handles.stdio or (-1, -1, -1)
    fds = Fds(
        cgroup=handles.leaf,
        rootfs=handles.rootfs,
        netns=handles.netns,
        userns=handles.userns,
        init=handles.init,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        volumes={str(n): fd for n, fd in enumerate(handles.volumes)},
    )
    return start_plan(_config(record, image, user, id_base), fds)


class ExecHandles(NamedTuple):
    """The fds of a further process; `stdio` is empty when it gets a terminal."""

    leaf: int
    agent: int
    pidns: int
    stdio: tuple[int, ...]


class ExecRequest(NamedTuple):
    """What a client asks to be run inside."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    user: str | None
    workdir: str | None
    tty: bool
    stdin: bool


def exec_program(
    record: Record, image: ImageConfig, user: User, id_base: int, request: ExecRequest, handles: ExecHandles
) -> Plan:
    """The plan of a further process in a running agent, with the agent's environment, directory and restrictions."""
    spec = record.spec
    env = {**environment(spec, image, user), **request.env}
    if request.tty:
        env.setdefault("TERM", "xterm")
    config = SandboxConfig(
        agent_id=record.id,
        hostname=hostname(spec),
        argv=request.argv,
        env=tuple(env.items()),
        workdir=request.workdir or workdir(spec, image),
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        id_base=id_base,
        capabilities=spec.capabilities,
        rlimits=tuple(spec.rlimits.items()),
        tty=request.tty,
    )
    stdin, stdout, stderr = handles.stdio or (-1, -1, -1)
    fds = Fds(cgroup=handles.leaf, agent=handles.agent, pidns=handles.pidns, stdin=stdin, stdout=stdout, stderr=stderr)
    return exec_plan(config, fds)


def pairs(words: Sequence[str]) -> dict[str, str]:
    """``NAME=value`` words as a mapping; the last one of a name counts."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise AgentosError("invalid-env", f"not NAME=value: {word[:80]!r}", "", "For example --env LANG=C.UTF-8.")
        found[name] = value
    return found
