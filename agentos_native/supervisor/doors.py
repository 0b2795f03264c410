"""What the supervisor needs of the packages below it, as protocols: the doors that unit tests put fakes behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from agentos_native.cgroup import GroupRef, GroupSettings
from agentos_native.images.model import Image
from agentos_native.images.rootfs import Workdir
from agentos_native.network import Rates
from agentos_native.spec.model import TenantSpec
from agentos_native.supervisor.loop.controllers import Member
from agentos_native.supervisor.loop.whatif import Change, Moved

T = TypeVar("T")


class Group(Protocol):
    """An agent's cgroup (`agentos_native.cgroup.AgentGroup`)."""

    @property
    def ref(self) -> GroupRef: ...
    @property
    def path(self) -> str: ...
    def leaf(self, name: str) -> int: ...
    def update(self, wanted: GroupSettings, allow: Collection[str] = ()) -> None: ...
    def stat(self) -> dict[str, Any]: ...
    def leaves(self) -> list[str]: ...
    def kill(self, leaf: str | None = None) -> None: ...
    def procs(self) -> list[int]: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def remove_leaf(self, name: str) -> None: ...
    def remove_if_empty(self) -> bool: ...
    def remove(self) -> None: ...


class Groups(Protocol):
    """The node's cgroup tree (`agentos_native.cgroup.Tree`)."""

    def create(self, ref: GroupRef, wanted: GroupSettings, allow: Collection[str] = ()) -> Group: ...
    def get(self, ref: GroupRef) -> Group: ...
    def find(self) -> list[GroupRef]: ...
    def tenant_path(self, tenant: str) -> str: ...
    def set_tenant(self, tenant: str, wanted: GroupSettings, allow: Collection[str] = ()) -> None: ...
    def remove_empty_tenants(self) -> list[str]: ...


class Attached(Protocol):
    """An agent's network (`agentos_native.network.Attachment`). `netns_fd` is the receiver's to close; -1: adopted."""

    @property
    def netns_fd(self) -> int: ...


class Networks(Protocol):
    """The node's network (`agentos_native.network.NodeNetwork`)."""

    def create(self, slot: int, agent_id: str, mode: str, rates: Rates) -> Attached: ...
    def adopt(self, slot: int, agent_id: str, mode: str, rates: Rates, pidfd: int) -> Attached | None: ...
    def destroy(self, slot: int) -> None: ...
    def retire(self, slot: int) -> None: ...
    def retiring(self) -> set[int]: ...
    def found(self) -> dict[int, str]: ...


class Images(Protocol):
    """The image store (`agentos_native.images.ImageStore`)."""

    def get(self, ref: str) -> Image: ...
    def prepare(self, image: Image, agent_dir: Path, id_base: int, files: Mapping[str, bytes]) -> None: ...
    def mount(
        self, image: Image, agent_dir: Path, userns_fd: int, read_only: bool = False, *, workdir: Workdir | None = None
    ) -> int: ...
    def release(self, agent_dir: Path) -> None: ...


class Workers:
    """A few threads for what blocks: mounts, cgroup files, netlink. The event loop's thread itself never waits.

    Not an executor of concurrent.futures: a start hands work over twice, and its futures cost as much as a stage.
    """

    def __init__(self, threads: int = 6) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"stage-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run `function` in one of the threads and give its result; not at all if it is cancelled before it begins."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            if future.cancelled():
                return
            try:
                settle = partial(_settle, future, function(*arguments), None)
            except BaseException as error:  # handed over: it is the caller's
                settle = partial(_settle, future, None, error)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                loop.call_soon_threadsafe(settle)

        self._jobs.put(job)
        return await future

    def close(self) -> None:
        """Wait for what is still running."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # cancelled
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class Shares(Protocol):
    """The allocator's side of an agent's life (`loop.shares.Shares`)."""

    def add(self, member: Member) -> None: ...
    def remove(self, agent_id: str) -> None: ...
    def change(self, member: Member) -> None: ...
    def set_tenant(self, spec: TenantSpec) -> None: ...
    def remove_tenant(self, name: str) -> None: ...
    def effects(self, change: Change) -> list[Moved]: ...
