"""Everything one supervisor works with, in one place: the doors to the packages below, and its own registers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from agentos_native.images.model import Image
from agentos_native.images.users import User
from agentos_native.spec.model import TenantSpec
from agentos_native.supervisor.admission import Capacity
from agentos_native.supervisor.agents import Agent, Agents, Ending
from agentos_native.supervisor.doors import Groups, Images, Networks, Shares, Workers
from agentos_native.supervisor.events import Events
from agentos_native.supervisor.grants import Grants
from agentos_native.supervisor.launcher_link import LauncherLink
from agentos_native.supervisor.options import Options
from agentos_native.supervisor.registry import Registry
from agentos_native.supervisor.userns import UsernsPool
from agentos_native.wire import launch
from agentos_native.wire.api import QueuePlace

CLD_EXITED = 1
"""si_code of a process that ended by itself (waitid(2)); every other code that arrives here is a signal."""


class Wire(Protocol):
    """An agent's addresses (`agentos_native.network.Addresses`)."""

    @property
    def ipv4(self) -> str: ...
    @property
    def ipv6(self) -> str: ...


class Units:
    """Who waits for the end of which unit. An end that nobody expects is acknowledged at once.

    Args:
        recovering: until `recovered`, such an end is kept instead: its agent may be adopted a moment later.
    """

    def __init__(self, acknowledge: Callable[[int], None], *, recovering: bool = False) -> None:
        self._acknowledge = acknowledge
        self._expected: dict[str, asyncio.Future[Ending]] = {}
        self._early: dict[str, launch.Exited] | None = {} if recovering else None

    def expect(self, unit: str) -> asyncio.Future[Ending]:
        """To be called before the clone request goes out, so that the fastest program cannot be missed."""
        future: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        early = self._early.pop(unit, None) if self._early else None
        if early is None:
            self._expected[unit] = future
        else:
            future.set_result(ending(early))
        return future

    def forget(self, unit: str) -> None:
        """Nobody waits any more."""
        self._expected.pop(unit, None)

    def exited(self, message: launch.Exited) -> None:
        """The launcher has reaped a unit."""
        future = self._expected.pop(message.unit, None)
        if future is not None and not future.done():
            future.set_result(ending(message))
        elif future is None and self._early is not None:
            self._early[message.unit] = message
        else:
            self._acknowledge(message.exit_id)

    def recovered(self) -> None:
        """Every agent that lives is expected by now; the other ends are nobody's."""
        for message in (self._early or {}).values():
            self._acknowledge(message.exit_id)
        self._early = None


def ending(message: launch.Exited) -> Ending:
    """A shell's view of the launcher's message."""
    status = message.status if message.code == CLD_EXITED else 128 + message.status
    return Ending(status, message.ended_at, message.exit_id)


@dataclass(kw_only=True)
class Host:
    """Made once by `app`; everything else is given it. `shares` is None until the allocator has been loaded."""

    options: Options
    block: int
    capacity: Capacity
    controllers: frozenset[str]
    init_fd: int
    registry: Registry
    agents: Agents
    events: Events
    workers: Workers
    link: LauncherLink
    units: Units
    userns: UsernsPool
    images: Images
    groups: Groups
    network: Networks
    shares: Shares
    addresses: Callable[[int, int], Wire]
    resolve_user: Callable[[Image, str | None], User]
    volume: Callable[[str, int, bool], int]
    grants: Grants = field(default_factory=Grants)
    tenants: dict[str, TenantSpec] = field(default_factory=dict)
    queue_place: Callable[[Agent], QueuePlace | None] = lambda agent: None
    admitting: threading.Lock = field(default_factory=threading.Lock)
    """Held from looking up an agent's image until the agent has it, and while images are chosen for removal."""
    _by_digest: dict[str, Image] = field(default_factory=dict)
    _users: dict[tuple[str, str | None], User] = field(default_factory=dict)

    def image(self, digest: str) -> Image:
        """The image of an agent. Kept in memory: what a digest means cannot change, and agents keep it from removal."""
        image = self._by_digest.get(digest)
        if image is None:
            image = self._by_digest[digest] = self.images.get(digest)
        return image

    def images_in_use(self) -> dict[str, list[str]]:
        """Digests of the images that agents have, and which agents: ``tenant/name``."""
        found: dict[str, list[str]] = {}
        for agent in self.agents:
            spec = agent.record.spec
            found.setdefault(agent.record.image_digest, []).append(f"{spec.tenant}/{spec.name}")
        return found

    def images_running(self) -> dict[str, list[str]]:
        """Digests of the images that agents run or begin to run from, and which agents; for any thread."""
        found: dict[str, list[str]] = {}
        for agent in self.agents:
            if agent.live:
                spec = agent.record.spec
                found.setdefault(agent.record.image_digest, []).append(f"{spec.tenant}/{spec.name}")
        return found

    @contextlib.contextmanager
    def images_kept(self) -> Iterator[dict[str, list[str]]]:
        """`images_in_use` for any thread, for as long as no agent can be given an image."""
        with self.admitting:
            yield self.images_in_use()

    def user(self, image: Image, user: str | None) -> User:
        """A user's ids and home inside; kept, since images do not change."""
        key = (image.digest, user)
        ids = self._users.get(key)
        if ids is None:
            ids = self._users[key] = self.resolve_user(image, user)
        return ids

    def forget_image(self, digest: str) -> None:
        """It has been removed from the store."""
        self._by_digest.pop(digest, None)
        for key in [key for key in self._users if key[0] == digest]:
            del self._users[key]
