"""What a supervisor needs first: its state, its name on the machine, its cgroups, and the tick over who is in them.

Theory of operation
    Agents outlive their supervisor, and until the next one ticks nobody moves their shares. Most of a start is the
    import of modules that shares have no use for (netlink, images, the API), so those wait: this module imports NumPy,
    SQLite and the tick, and what it makes is all that the tick asks for. `app` is imported after it, in the main
    thread, while the tick's thread works.

    The registry says who ran, and whose group is there is divided among, by weights alone: a weight in a group of this
    node, whose name the claim keeps for us, does no harm even if its agent turns out to be dead. Which of them live is
    found out by `recovery`; it takes out whom it buries. What the other resources need is there only after it, so
    their controllers turn from then on (`Shares.settle`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from types import TracebackType
from typing import Final

from agentos_native.cgroup import Tree, discover
from agentos_native.errors import AgentosError
from agentos_native.supervisor import admission, claims
from agentos_native.supervisor.loop.shares import Shares
from agentos_native.supervisor.loop.ticker import Ticker
from agentos_native.supervisor.options import Options
from agentos_native.supervisor.registry import Registry, open_or_move_aside
from agentos_native.supervisor.resources import group_ref, member
from agentos_native.wire.holder import LOCK, Holder, read

_log = logging.getLogger("agentos_native.supervisor")
_WITH_PROCESSES: Final = ("running", "paused")
_HESITATION: Final = 0.5
"""Seconds for which a lock may be held by somebody who only looks, or has not said yet who it is."""
_POLL: Final = 0.02


class Foundation:
    """A context manager; everything is let go of at the end, the agents' groups stay.

    Attributes:
        registry: open; `registry_lost`: a corrupt one was moved aside, so that nobody was known at the first tick.
        tree: opened. `block`: the number of the claimed one.
        capacity: of this node; the ticker's is its `cpu`.
        ticker, shares: at work.
        warnings: said so far; `warn` adds one.
    """

    registry: Registry
    tree: Tree
    ticker: Ticker
    shares: Shares

    def __init__(self, options: Options) -> None:
        self._options = options
        self._stack = contextlib.ExitStack()
        self.capacity = admission.node_capacity()._replace(network=options.settings.network_rate)
        self.block = -1
        self.registry_lost = False
        self.warnings: list[str] = []

    def __enter__(self) -> Foundation:
        """Raises AgentosError for whatever cannot be had."""
        with contextlib.ExitStack() as stack:
            self._lay(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def warn(self, text: str) -> None:
        """In the log, and (once) for whoever asks for the node."""
        if text not in self.warnings:
            self.warnings.append(text)
        _log.warning("%s", text)

    def _lay(self, stack: contextlib.ExitStack) -> None:
        options, settings = self._options, self._options.settings
        stack.callback(os.close, lock_state(options))
        self.registry, aside = open_or_move_aside(os.path.join(options.state_dir, "registry.db"))
        stack.callback(self.registry.close)
        if aside:
            self.registry_lost = True
            self.warn(f"the registry was corrupt; it was moved to {aside} and made anew from the agents themselves")
        self.tree = Tree(discover(), settings.node, settings.cgroup_root)
        self.block = self._claim(stack)
        self.tree.open()
        self.ticker = Ticker(self.tree, self.capacity.cpu / 1000, policy=settings.policy, compile_from=0)
        self.shares = Shares(self.ticker, settings.tick_period)
        stack.callback(self.shares.close)
        self._take_in()
        self.shares.start()

    def _claim(self, stack: contextlib.ExitStack) -> int:
        """The node's name and a block on this machine; gives the block's number."""
        options = self._options
        owner = claims.Owner(options.settings.node, os.path.abspath(options.state_dir), self.tree.path)
        stack.callback(os.close, claims.claim_node(options.run_dir, owner))
        known = self.registry.get("block")
        block = claims.claim_block(options.run_dir, owner, int(known) if known is not None else None)
        stack.callback(os.close, block.fd)
        if known is not None and int(known) != block.number:
            self.warn(f"block {known} belongs to another supervisor now; ids and addresses come from {block.number}")
        self.registry.put("block", str(block.number))
        return block.number

    def _take_in(self) -> None:
        """Tenants, and the agents that an earlier supervisor has left running."""
        for spec in self.registry.tenants():
            self.shares.set_tenant(spec)
        for record in self.registry.agents():
            if record.state in _WITH_PROCESSES:
                group = self.tree.get(group_ref(record.id, record.spec))
                with contextlib.suppress(AgentosError, OSError):  # what is wrong with one, recovery will meet and tell
                    if not group.wait_empty(0.0):
                        self.shares.add(member(record, group))


def lock_state(options: Options) -> int:
    """The fd that holds the lock of the state directory, which is made if necessary.

    A supervisor that is part of a command ends with it: one that is to stay waits for that, however long it takes.

    Raises:
        AgentosError: ``state-in-use`` by another supervisor; ``state`` when it cannot be made.
    """
    directory = options.state_dir
    try:
        for path in (directory, os.path.join(directory, "agents")):
            os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise AgentosError("state", f"cannot be used: {error.strerror}", directory, "Choose another --state-dir.")
    try:
        _lock(fd, options)
    except BaseException:
        os.close(fd)
        raise
    holder = Holder(pid=os.getpid(), socket=os.path.abspath(options.settings.socket), embedded=options.embedded)
    with contextlib.suppress(OSError):  # a full disk is no reason not to serve
        holder.write(fd)
    return fd


def _lock(fd: int, options: Options) -> None:
    told = False
    deadline = time.monotonic() + _HESITATION
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        holder = read(fd)
        if holder.embedded and not options.embedded:
            if not told:
                _log.info("waits until the command with a supervisor of its own (process %d) has ended", holder.pid)
            told, deadline = True, time.monotonic() + _HESITATION
        elif time.monotonic() > deadline:
            elsewhere = holder.socket and holder.socket != os.path.abspath(options.settings.socket)
            raise AgentosError(
                "state-in-use",
                f"another supervisor (process {holder.pid or '?'}) works on this state directory",
                options.state_dir,
                f"Use that one{f' (--socket {holder.socket})' if elsewhere else ''}, stop it, or choose another"
                " --state-dir.",
            )
        time.sleep(_POLL)
