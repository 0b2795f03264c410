"""The composition root: everything is made here, in order, and taken down in the reverse order.

    foundation (state, registry, name and block, cgroups, the tick) → launcher → network, images → recovery
    → the other resources' turns → API

What cannot work is refused before the API answers; the process then exits with 125 and the launcher with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentos_native.errors import EXIT_FAILED, AgentosError
from agentos_native.images import ImageStore, resolve_user
from agentos_native.network import NodeNetwork, addresses
from agentos_native.supervisor.agents import Agents
from agentos_native.supervisor.applying import Applier
from agentos_native.supervisor.doors import Workers
from agentos_native.supervisor.events import Events
from agentos_native.supervisor.foundation import Foundation
from agentos_native.supervisor.grants import Grants
from agentos_native.supervisor.host import Host, Units
from agentos_native.supervisor.launcher_link import LauncherLink
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.loop.aside import Aside
from agentos_native.supervisor.loop.controllers import Controller, Notify
from agentos_native.supervisor.loop.io import IoController
from agentos_native.supervisor.loop.memory import MemoryController
from agentos_native.supervisor.loop.network import NetworkController
from agentos_native.supervisor.loop.recorder import Recorder
from agentos_native.supervisor.loop.ticker import COMPILE_FROM
from agentos_native.supervisor.options import INITS, Options
from agentos_native.supervisor.recovery import Recovery
from agentos_native.supervisor.userns import UsernsPool

if TYPE_CHECKING:
    from agentos_native.supervisor.server import Server

_log = logging.getLogger("agentos_native.supervisor")
EXIT_LAUNCHER_LOST = EXIT_FAILED


class App:
    """One supervisor, from start to stop."""

    def __init__(self, options: Options, launcher_fd: int, foundation: Foundation) -> None:
        self._options = options
        self._launcher_fd = launcher_fd
        self._foundation = foundation
        self._tree, self._shares, self._warn = foundation.tree, foundation.shares, foundation.warn
        self._stop = asyncio.Event()
        self._status = 0
        self._ready = False
        self._server: Server | None = None
        self._started_at = time.time()
        self._recorder: Recorder | None = None

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
        link = LauncherLink(self._launcher_fd, self._launcher_lost)
        units = Units(link.acknowledge, recovering=True)
        link.on_exit = units.exited
        stack.callback(link.close)
        host = await self._make_host(stack, link, units)
        stack.push_async_callback(self._shut_down_launcher, link)
        lifecycle = Lifecycle(host)
        stack.push_async_callback(self._close_server)  # after the agents, whose ends attached clients are told
        stack.push_async_callback(self._take_down, lifecycle)
        await asyncio.wait_for(link.replay.complete.wait(), 30)
        recovery = Recovery(lifecycle, link.replay)
        await recovery.run(registry_lost=self._foundation.registry_lost)
        await lifecycle.tenancy.restore()
        lifecycle.wake_queue()
        for line in recovery.report:
            _log.warning("recovery: %s", line)
        self._begin_turns(host.agents, host.events)
        stack.callback(self._shares.close)
        await self._serve(stack, lifecycle)
        host.userns.refill()

    def _begin_turns(self, agents: Agents, events: Events) -> None:
        """All agents are known: what the tick tells of them finds them, and the other resources are moved."""
        ticker = self._foundation.ticker
        ticker.on_event = _notifier(agents, events)
        if self._recorder is not None:
            ticker.on_turn = self._recorder.turn
        ticker.compile_from = COMPILE_FROM
        self._shares.settle()

    async def _make_host(self, stack: contextlib.AsyncExitStack, link: LauncherLink, units: Units) -> Host:
        options, settings, foundation = self._options, self._options.settings, self._foundation
        workers = Workers()
        stack.callback(workers.close)
        tree, registry, block = foundation.tree, foundation.registry, foundation.block
        self._network = network = NodeNetwork(settings.node, block)
        self._store = store = ImageStore(Path(options.state_dir))
        await asyncio.gather(
            workers.call(partial(network.open, required=settings.network == "required")),
            workers.call(store.recover),
        )
        stack.callback(network.close)
        agents, events = Agents(), Events()
        controllers = self._controllers(_notifier(agents, events))
        self._shares.join(controllers, self._look_after_rules)
        stack.callback(self._shares.close)  # before what they work with, also when this start comes to nothing
        for spec in registry.tenants():
            self._shares.set_tenant(spec)
        self._record(stack, controllers, agents, events)
        userns = UsernsPool(link.make_userns, block, agents.slots, unready=network.retiring)
        stack.push_async_callback(userns.close)
        init_fd = open_init(settings.init)
        stack.callback(os.close, init_fd)
        grants = Grants()
        host = Host(
            options=options,
            block=block,
            capacity=foundation.capacity,
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
            shares=self._shares,
            addresses=addresses,
            resolve_user=resolve_user,
            volume=partial(grants.mount, private=self._options.state_dir),
            grants=grants,
            tenants={spec.name: spec for spec in registry.tenants()},
        )
        store.catalog.damage.running = host.images_running
        return host

    def _record(
        self,
        stack: contextlib.AsyncExitStack,
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

        self._recorder = recorder = Recorder(options.state_dir, options.settings.record, name, self._warn)
        events.on_event = recorder.event
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
            "warnings": [*self._foundation.warnings, *self._network.notices, *self._tree.refused.values()],
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
