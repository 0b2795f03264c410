"""The composition root: everything is made here, in order, and taken down in the reverse order.

    state directory (locked) → registry → block → launcher → cgroups, network, images → recovery → ticks → API

What cannot work is refused before the API answers; the process then exits with 125 and the launcher with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentos_native.cgroup import Tree, discover
from agentos_native.errors import EXIT_FAILED, AgentosError
from agentos_native.images import ImageStore, resolve_user, volume_mount
from agentos_native.network import NodeNetwork, addresses
from agentos_native.supervisor import admission, claims
from agentos_native.supervisor.agents import Agents
from agentos_native.supervisor.applying import Applier
from agentos_native.supervisor.doors import Workers
from agentos_native.supervisor.events import Events
from agentos_native.supervisor.host import Host, Units
from agentos_native.supervisor.launcher_link import LauncherLink
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.loop.aside import Aside
from agentos_native.supervisor.loop.controllers import Controller, Notify
from agentos_native.supervisor.loop.io import IoController
from agentos_native.supervisor.loop.memory import MemoryController
from agentos_native.supervisor.loop.network import NetworkController
from agentos_native.supervisor.loop.recorder import Recorder
from agentos_native.supervisor.loop.shares import Shares
from agentos_native.supervisor.loop.ticker import Ticker
from agentos_native.supervisor.options import INITS, Options
from agentos_native.supervisor.recovery import Recovery
from agentos_native.supervisor.registry import Registry, open_or_move_aside
from agentos_native.supervisor.userns import UsernsPool

if TYPE_CHECKING:
    from agentos_native.supervisor.server import Server

_log = logging.getLogger("agentos_native.supervisor")
EXIT_LAUNCHER_LOST = EXIT_FAILED


class App:
    """One supervisor, from start to stop."""

    def __init__(self, options: Options, launcher_fd: int) -> None:
        self._options = options
        self._launcher_fd = launcher_fd
        self._stop = asyncio.Event()
        self._status = 0
        self._ready = False
        self._server: Server | None = None
        self._started_at = time.time()
        self._warnings: list[str] = []

    async def run(self) -> int:
        """Serve until told to stop; gives the exit status."""
        async with contextlib.AsyncExitStack() as stack:
            await self._compose(stack)
            self._ready = True
            self._tell_ready()
            await self._stop.wait()
            _log.info("stopping")
        return self._status

    async def _compose(self, stack: contextlib.AsyncExitStack) -> None:
        options = self._options
        stack.callback(os.close, lock_state(options.state_dir))
        registry, aside = open_or_move_aside(os.path.join(options.state_dir, "registry.db"))
        stack.callback(registry.close)
        if aside:
            self._warn(f"the registry was corrupt; it was moved to {aside} and made anew from the agents themselves")
        self._tree = Tree(discover(), options.settings.node, options.settings.cgroup_root)
        block = self._claim(registry, stack)
        link = LauncherLink(self._launcher_fd, self._launcher_lost)
        units = Units(link.acknowledge, recovering=True)
        link.on_exit = units.exited
        stack.callback(link.close)
        host = await self._make_host(stack, registry, block, link, units)
        stack.push_async_callback(self._shut_down_launcher, link)
        lifecycle = Lifecycle(host)
        stack.push_async_callback(self._close_server)  # after the agents, whose ends attached clients are told
        stack.push_async_callback(self._take_down, lifecycle)
        await asyncio.wait_for(link.replay.complete.wait(), 30)
        recovery = Recovery(lifecycle, link.replay)
        await recovery.run(registry_lost=aside is not None)
        await lifecycle.tenancy.restore()
        lifecycle.wake_queue()
        for line in recovery.report:
            _log.warning("recovery: %s", line)
        self._shares.start()
        stack.callback(self._shares.close)
        await self._serve(stack, lifecycle)
        host.userns.refill()

    async def _make_host(
        self, stack: contextlib.AsyncExitStack, registry: Registry, block: int, link: LauncherLink, units: Units
    ) -> Host:
        options, settings = self._options, self._options.settings
        workers = Workers()
        stack.callback(workers.close)
        tree = self._tree
        self._network = network = NodeNetwork(settings.node, block)
        self._store = store = ImageStore(Path(options.state_dir))
        await asyncio.gather(
            workers.call(tree.open),
            workers.call(partial(network.open, required=settings.network == "required")),
            workers.call(store.recover),
        )
        stack.callback(network.close)
        capacity = admission.node_capacity()._replace(network=settings.network_rate)
        agents, events = Agents(), Events()
        notify = _notifier(agents, events)
        ticker = Ticker(tree, capacity.cpu / 1000, notify, policy=settings.policy)
        controllers = self._controllers(notify)
        self._shares = shares = Shares(ticker, settings.tick_period, self._look_after_rules, controllers)
        self._record(stack, ticker, controllers, agents, events)
        userns = UsernsPool(link.make_userns, block, agents.slots)
        stack.push_async_callback(userns.close)
        init_fd = open_init(settings.init)
        stack.callback(os.close, init_fd)
        host = Host(
            options=options,
            block=block,
            capacity=capacity,
            controllers=tree.controllers,
            init_fd=init_fd,
            registry=registry,
            agents=agents,
            events=events,
            workers=workers,
            link=link,
            units=units,
            userns=userns,
            images=store,
            groups=tree,
            network=network,
            shares=shares,
            addresses=addresses,
            resolve_user=resolve_user,
            volume=partial(volume_mount, private=self._options.state_dir),
            tenants={spec.name: spec for spec in registry.tenants()},
        )
        for spec in host.tenants.values():
            shares.set_tenant(spec)
        return host

    def _record(
        self,
        stack: contextlib.AsyncExitStack,
        ticker: Ticker,
        controllers: list[Controller],
        agents: Agents,
        events: Events,
    ) -> None:
        """Keep every turn in the state directory, unless that is off."""
        options = self._options
        if not options.settings.record:
            return

        def name(agent_id: str) -> str | None:
            agent = agents.by_id(agent_id)
            return agent.record.spec.name if agent is not None else None

        recorder = Recorder(options.state_dir, options.settings.record, name, self._warn)
        ticker.on_turn, events.on_event = recorder.turn, recorder.event
        recorder.start(controllers)
        stack.callback(recorder.close)

    def _controllers(self, notify: Notify) -> list[Controller]:
        """Of the resources besides CPU that are moved on this node."""
        settings = self._options.settings
        memory = MemoryController(self._tree, notify, enforce="memory" in settings.control)
        io = IoController(self._tree, self._options.state_dir, notify, enforce="io" in settings.control)
        controllers: list[Controller] = [Aside(memory), Aside(io)]  # they also measure and report kills
        if settings.network == "required":
            uplink = settings.network_rate if "network" in settings.control else None
            controllers.append(NetworkController(self._network, uplink, notify, settings.policy))
        return controllers

    def _look_after_rules(self) -> None:
        """After each tick. Where agents may do without a network, that it cannot be had is no news."""
        try:
            self._network.ensure()
        except AgentosError:
            if self._options.settings.network == "required":
                raise

    def _claim(self, registry: Registry, stack: contextlib.AsyncExitStack) -> int:
        """The node's name and a block on this machine; gives the block's number."""
        owner = claims.Owner(self._options.settings.node, os.path.abspath(self._options.state_dir), self._tree.path)
        stack.callback(os.close, claims.claim_node(self._options.run_dir, owner))
        known = registry.get("block")
        block = claims.claim_block(self._options.run_dir, owner, int(known) if known is not None else None)
        stack.callback(os.close, block.fd)
        if known is not None and int(known) != block.number:
            self._warn(f"block {known} belongs to another supervisor now; ids and addresses come from {block.number}")
        registry.put("block", str(block.number))
        return block.number

    async def _serve(self, stack: contextlib.AsyncExitStack, lifecycle: Lifecycle) -> None:
        # A quarter of all that is imported: agents that have been adopted need not wait for it with their first tick.
        from agentos_native.supervisor.routes_agents import AgentRoutes
        from agentos_native.supervisor.routes_build import BuildRoutes
        from agentos_native.supervisor.routes_images import ImageRoutes
        from agentos_native.supervisor.routes_node import NodeRoutes
        from agentos_native.supervisor.routes_pull import PullRoutes
        from agentos_native.supervisor.routes_streams import StreamRoutes
        from agentos_native.supervisor.routes_transfer import TransferRoutes
        from agentos_native.supervisor.server import Server, application, bind

        host = lifecycle.host
        node = NodeRoutes(host, self._shares, self._node_extra)
        agents = AgentRoutes(lifecycle, Applier(lifecycle))
        images = ImageRoutes(host, self._store)
        pulls = PullRoutes(host, self._store)
        stack.push_async_callback(pulls.close)
        transfers = TransferRoutes(host, self._store)
        builds = BuildRoutes(lifecycle, self._store)
        await builds.recover()
        stack.push_async_callback(builds.close)  # before the agents, of which some are its own
        rows = [*node.table(), *agents.table(), *transfers.table(), *images.table(), *pulls.table()]
        rows += builds.table()
        node.everything = rows
        self._server = Server(application(rows, StreamRoutes(host)), bind(self._options.settings.socket))
        await self._server.start()
        self._watch_for_the_end()

    def _node_extra(self) -> dict[str, Any]:
        mount = self._tree.mount
        return {
            "cgroup_root": self._tree.path,
            "cgroup_layout": mount.layout,
            "started_at": self._started_at,
            "first_tick": self._shares.first_tick,
            "warnings": [*self._warnings, *self._network.notices, *self._tree.refused.values()],
        }

    def _watch_for_the_end(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        lifeline = self._options.lifeline_fd
        if lifeline >= 0:
            os.set_blocking(lifeline, False)
            loop.add_reader(lifeline, self._lifeline, lifeline)

    def _lifeline(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            if os.read(fd, 64):
                return  # whatever is written there means nothing; only the end does
            asyncio.get_running_loop().remove_reader(fd)
            self.stop()

    def stop(self) -> None:
        """End `run`."""
        self._stop.set()

    def _launcher_lost(self) -> None:
        _log.error("the launcher is gone; the agents live on, the next start adopts them")
        # Nothing can be taken down properly any more, and the parent-death signal is on its way.
        os._exit(EXIT_LAUNCHER_LOST)

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        _log.warning("%s", text)

    async def _take_down(self, lifecycle: Lifecycle) -> None:
        """Agents first. When all are gone, nothing with the node's name stays on the host.

        A supervisor that failed before it was ready leaves the agents that it has adopted to the next one.
        """
        keep = not self._ready or (self._options.settings.on_exit == "keep" and not self._options.embedded)
        await lifecycle.close(keep=keep)
        if any(agent.live for agent in lifecycle.host.agents):
            return
        for step in (self._network.teardown, self._tree.teardown):
            try:
                await lifecycle.host.workers.call(step)
            except AgentosError as error:
                _log.warning("not taken down: %s", error)

    async def _close_server(self) -> None:
        if self._server is not None:
            await self._server.close()

    async def _shut_down_launcher(self, link: LauncherLink) -> None:
        if not self._ready:
            return  # this process's own exit status says more, and whether another start makes sense
        with contextlib.suppress(AgentosError):
            await link.shutdown(self._status)

    def _tell_ready(self) -> None:
        fd = self._options.ready_fd
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.write(fd, b"ready\n")
            os.close(fd)
        _log.info("answers on %s", self._options.settings.socket)


def _notifier(agents: Agents, events: Events) -> Notify:
    """Events about agents from the tick's thread: told in the event loop's, where events are made and read."""
    loop = asyncio.get_running_loop()

    def tell(kind: str, agent_id: str, detail: dict[str, Any]) -> None:
        agent = agents.by_id(agent_id)
        if agent is not None:
            spec = agent.record.spec
            events.add(kind, agent_id=agent_id, name=spec.name, tenant=spec.tenant, **detail)

    def notify(kind: str, agent_id: str, **detail: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(tell, kind, agent_id, detail)

    return notify


def lock_state(directory: str) -> int:
    """The fd that holds the lock of a state directory, which is made if necessary.

    Raises:
        AgentosError: ``state-in-use`` by another supervisor; ``state`` when it cannot be made.
    """
    try:
        for path in (directory, os.path.join(directory, "agents")):
            os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise AgentosError("state", f"cannot be used: {error.strerror}", directory, "Choose another --state-dir.")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 64, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise AgentosError(
            "state-in-use",
            f"another supervisor (process {holder or '?'}) works on this state directory",
            directory,
            "Use that one, stop it, or choose another --state-dir.",
        )
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def open_init(path: str | None) -> int:
    """A read-only fd of the static init that becomes each agent's first process.

    Raises:
        AgentosError: ``no-init``.
    """
    for candidate in [path] if path else INITS:
        with contextlib.suppress(OSError):
            return os.open(candidate, os.O_RDONLY | os.O_CLOEXEC)
    raise AgentosError(
        "no-init",
        "there is no static init for the agents' first process",
        path or ", ".join(INITS),
        "apt-get install tini (or catatonit), or say --init PATH.",
    )
