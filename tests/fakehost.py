"""A supervisor's host without a kernel: fakes behind the doors, which record what is done and fail on demand."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentos_native.cgroup import GroupRef, GroupSettings
from agentos_native.errors import AgentosError
from agentos_native.images.model import Image, ImageConfig
from agentos_native.images.rootfs import Workdir
from agentos_native.images.users import User
from agentos_native.network import Rates, addresses
from agentos_native.spec.model import TenantSpec
from agentos_native.spec.settings import Settings
from agentos_native.supervisor.admission import Capacity
from agentos_native.supervisor.agents import Agents
from agentos_native.supervisor.doors import Workers
from agentos_native.supervisor.events import Events
from agentos_native.supervisor.host import Host, Units
from agentos_native.supervisor.launcher_link import CloneError, CloneRequest
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.loop.controllers import Member
from agentos_native.supervisor.loop.whatif import Change, Moved
from agentos_native.supervisor.options import Options
from agentos_native.supervisor.registry import Registry
from agentos_native.supervisor.userns import UsernsPool
from agentos_native.wire import launch


class World:
    """What exists, and what was done in which order. `fail` names the steps that shall fail."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.exists: set[str] = set()
        self.fail: set[str] = set()
        self.oom_kills = 0
        self.alive: dict[str, int] = {}
        self.ignores: set[str] = set()

    def step(self, name: str, thing: str = "") -> None:
        """Do, or fail."""
        if name in self.fail:
            raise AgentosError(f"{name}-failed", f"{name} was told to fail")
        self.done.append(name)
        if thing:
            self.exists.add(thing)


class FakeGroup:
    def __init__(self, world: World, ref: GroupRef, link: FakeLink) -> None:
        self.ref, self._world, self._link = ref, world, link
        self.path = f"/cgroup/{ref.relative}"

    def leaf(self, name: str) -> int:
        self._world.step(f"leaf {name}")
        return os.open(os.devnull, os.O_RDONLY)

    def leaves(self) -> list[str]:
        return ["main"]

    def update(self, wanted: GroupSettings, allow: Collection[str] = ()) -> None:
        self._world.step(f"update weight {wanted.cpu_weight}")

    def stat(self) -> dict[str, Any]:
        return {"memory.events": {"oom_kill": self._world.oom_kills}}

    def kill(self, leaf: str | None = None) -> None:
        self._world.step("kill")
        self._link.end_soon(self.ref.agent_id, 2, 9)

    def procs(self) -> list[int]:
        return []

    def freeze(self) -> None:
        self._world.step("freeze")

    def thaw(self) -> None:
        self._world.step("thaw")

    def remove_leaf(self, name: str) -> None:
        self._world.step(f"remove {name}")

    def remove_if_empty(self) -> bool:
        return False

    def remove(self) -> None:
        self._world.step("cgroup gone")
        self._world.exists.discard(f"cgroup {self.ref.agent_id}")


class FakeGroups:
    def __init__(self, world: World, link: FakeLink) -> None:
        self._world, self._link = world, link

    def create(self, ref: GroupRef, wanted: GroupSettings, allow: Collection[str] = ()) -> FakeGroup:
        self._world.step("cgroup", f"cgroup {ref.agent_id}")
        return FakeGroup(self._world, ref, self._link)

    def get(self, ref: GroupRef) -> FakeGroup:
        return FakeGroup(self._world, ref, self._link)

    def find(self) -> list[GroupRef]:
        return []

    def set_tenant(self, tenant: str, wanted: GroupSettings, allow: Collection[str] = ()) -> None:
        self._world.step(f"tenant {tenant}")

    def tenant_path(self, tenant: str) -> str:
        return f"/cgroup/{tenant}"

    def remove_empty_tenants(self) -> list[str]:
        return []


class FakeAttachment:
    def __init__(self) -> None:
        self.netns_fd = os.open(os.devnull, os.O_RDONLY)


class FakeNetwork:
    def __init__(self, world: World) -> None:
        self._world = world

    def create(self, slot: int, agent_id: str, mode: str, rates: Rates) -> FakeAttachment:
        self._world.step("network", f"network {slot}")
        return FakeAttachment()

    def adopt(self, slot: int, agent_id: str, mode: str, rates: Rates, pidfd: int) -> FakeAttachment | None:
        return None

    def destroy(self, slot: int) -> None:
        self._world.step("network gone")
        self._world.exists.discard(f"network {slot}")

    def retire(self, slot: int) -> None:
        self.destroy(slot)

    def retiring(self) -> set[int]:
        return set()

    def found(self) -> dict[int, str]:
        return {}


class FakeImages:
    def __init__(self, world: World) -> None:
        self._world = world

    def get(self, ref: str) -> Image:
        if ref not in {"box", "sha256:b"}:
            raise AgentosError("image-not-found", "no such image", ref)
        config = ImageConfig(cmd=("/bin/sh",), env=(("PATH", "/bin"),))
        return Image(
            digest="sha256:b", name="box", names=("box",), created=0, size=1, entries=1, config=config, layers=()
        )

    def prepare(self, image: Image, agent_dir: Path, id_base: int, files: Mapping[str, bytes]) -> None:
        self._world.step("prepare", f"files {agent_dir.name}")

    def mount(
        self, image: Image, agent_dir: Path, userns_fd: int, read_only: bool = False, *, workdir: Workdir | None = None
    ) -> int:
        self._world.step("mount")
        return os.open(os.devnull, os.O_RDONLY)

    def release(self, agent_dir: Path) -> None:
        self._world.step("files gone")
        self._world.exists.discard(f"files {agent_dir.name}")


class FakeShares:
    def __init__(self, world: World) -> None:
        self._world = world

    def add(self, member: Member) -> None:
        self._world.step("share", f"share {member.agent_id}")

    def remove(self, agent_id: str) -> None:
        self._world.exists.discard(f"share {agent_id}")

    def change(self, member: Member) -> None:
        self._world.step(f"share weight {member.spec.weight}")

    def set_tenant(self, spec: TenantSpec) -> None:
        self._world.step(f"tenant weight {spec.weight}")

    def remove_tenant(self, name: str) -> None:
        self._world.step("tenant gone")

    def effects(self, change: Change) -> list[Moved]:
        """Every changed agent gains a tenth of a CPU."""
        return [Moved(agent_id, "cpu", 0.1, 0.2) for agent_id in change.specs]


class FakeLink:
    """The launcher: a unit is a real child (``sleep``), so that its pidfd is real and signals do something."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.units: Units
        self.acknowledged: list[int] = []
        self.exits = 0
        self._pids: dict[str, int] = {}
        self._statuses: dict[str, int] = {}

    async def make_userns(self, base: int, size: int, inside: int = 0) -> int:
        self.world.step("userns")
        return os.open(os.devnull, os.O_RDONLY)

    def clone(
        self, unit: str, program: bytes, *, namespaces: int, fds: Sequence[int], cgroup: int, pidns: int = -1,
        deadline: float = 30.0,
    ) -> CloneRequest:  # fmt: skip
        loop = asyncio.get_running_loop()
        request = CloneRequest(unit, loop)
        for fd in fds:
            os.fstat(fd)  # every fd of the packet is open
        if "clone" in self.world.fail:
            failure = CloneError(unit, launch.Failure("command", "execve", "/nope", 2))
            for future in (request.cloned, request.running):
                future.set_exception(failure)
                future.exception()
            return request
        self.world.done.append("clone")
        pid = os.fork()
        if pid == 0:
            time.sleep(100)
            os._exit(0)
        self._pids[unit] = pid
        self.world.exists.add(f"process {unit}")
        pidfd = os.pidfd_open(pid)
        asyncio.create_task(self._reap(unit, pid, os.dup(pidfd)))  # noqa: RUF006
        request.cloned.set_result((pid, pidfd))
        request.running.set_result([])
        return request

    async def _reap(self, unit: str, pid: int, pidfd: int) -> None:
        loop = asyncio.get_running_loop()
        dead = asyncio.Event()
        loop.add_reader(pidfd, dead.set)
        await dead.wait()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        code = self._statuses.pop(unit, os.waitstatus_to_exitcode(status))
        self._exited(unit, pid, 1 if code >= 0 else 2, abs(code))

    def _exited(self, unit: str, pid: int, code: int, status: int) -> None:
        del self._pids[unit]
        self.world.exists.discard(f"process {unit}")
        self.exits += 1
        self.units.exited(launch.Exited(self.exits, unit, pid, code, status, 0.0, 0.0, 0, time.time()))

    def exit(self, unit: str, status: int) -> None:
        """The program ends by itself with `status`."""
        self._statuses[unit] = status
        os.kill(self._pids[unit], 9)

    def end_soon(self, unit: str, code: int, status: int) -> None:
        """SIGKILL by cgroup (called from a worker thread)."""
        pid = self._pids.get(unit)
        if pid is not None:
            os.kill(pid, 9)

    def acknowledge(self, exit_id: int) -> None:
        self.acknowledged.append(exit_id)


@asynccontextmanager
async def lifecycle_of(directory: Path, **capacity: int) -> AsyncIterator[tuple[Lifecycle, World, FakeLink]]:
    """A lifecycle on fakes, with its own registry; everything is closed at the end."""
    world = World()
    link = FakeLink(world)
    (directory / "agents").mkdir(exist_ok=True)
    settings = Settings(state_dir=str(directory), tick_period=0.1)
    agents = Agents()
    userns = UsernsPool(link.make_userns, 0, agents.slots, depth=0)
    link.units = Units(link.acknowledge)
    init_fd = os.open(os.devnull, os.O_RDONLY)
    host = Host(
        options=Options(settings=settings),
        block=0,
        capacity=Capacity(capacity.get("cpu", 2000), capacity.get("memory", 1 << 30)),
        controllers=frozenset({"cpu", "memory", "pids"}),
        init_fd=init_fd,
        registry=Registry(str(directory / "registry.db")),
        agents=agents,
        events=Events(),
        workers=Workers(),
        link=link,  # type: ignore[arg-type]
        units=link.units,
        userns=userns,
        images=FakeImages(world),
        groups=FakeGroups(world, link),
        network=FakeNetwork(world),
        shares=FakeShares(world),
        addresses=addresses,
        resolve_user=lambda image, user: User(0, 0, ()),
        volume=lambda source, userns, read_only: os.open(os.devnull, os.O_RDONLY),
    )
    lifecycle = Lifecycle(host)
    try:
        yield lifecycle, world, link
    finally:
        await lifecycle.close(keep=False)
        await userns.close()
        host.workers.close()
        host.registry.close()
        os.close(init_fd)
