"""The network of one node: a wire for each agent, made, adopted and taken away again.

Theory of operation. Each agent has a veth pair of its own; there is no bridge, so there is no limit of ports and no
neighbour to impersonate. The inner end (eth0) is born inside the agent's namespace; the outer one is born in the node's
interface group, which is what the nftables rules look at (`ruleset`). Addresses, MACs and neighbours are set, none is
negotiated: no ARP, no neighbour discovery, no duplicate address detection, no router advertisement. Everything runs in
the supervisor as root: the caller's threads send prepared batches (`host`), and one thread of its own makes the
namespaces (`netns`).

    create  = admit (elements) → namespace → pair → host end → agent's end → rates   each step with its undo
    destroy = elements → pair → tracked connections                              each step idempotent
    retire  = the elements now, the others a little later (`retiring`)

An agent without rates costs nothing for `shaping` but an open socket.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.network import encode, failures, forwarding, leftovers
from agentos_native.network.addressing import (
    GATEWAY_IPV4,
    GATEWAY_IPV6,
    SLOTS_PER_BLOCK,
    Addresses,
    addresses,
    alias,
    unused,
)
from agentos_native.network.failures import failure
from agentos_native.network.host import Fields, HostSide, NftError
from agentos_native.network.netlink import NetlinkError, send
from agentos_native.network.netns import NamespaceMaker
from agentos_native.network.retiring import Retiring
from agentos_native.network.ruleset import CONNECTIONS_PER_AGENT
from agentos_native.network.shaping import NO_RATES, Direction, Queue, Rates, Shaper
from agentos_native.network.templates import fields_of, template

_log = logging.getLogger(__name__)

MODES: Final = ("none", "isolated", "egress")
"""none: loopback only. isolated: a wire that nothing passes but answers to the host. egress: the outside, never host or
agents."""

NAMESPACES_AHEAD: Final = 4
_AGENT_ID: Final = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Attachment:
    """An agent's network. `netns_fd` is the caller's to close (-1 after `adopt`); the rest is empty for mode none."""

    slot: int
    agent_id: str
    mode: str
    netns_fd: int
    ifname: str = ""
    ipv4: str = ""
    ipv6: str = ""
    mac: str = ""
    gateway_ipv4: str = ""
    gateway_ipv6: str = ""


class NodeNetwork:
    """See the module. Thread-safe once open; `open` and `close` belong to one thread.

    Args:
        node: the node's name; part of the table's name and of each device's alias.
        block: the node's block of machine-wide indexes (0..23).
        connections: tracked connections that one agent may have at a time.
        ahead: namespaces to keep ready (each holds some 300 KiB of kernel memory); they make the next starts faster.
    """

    def __init__(
        self, node: str, block: int, *, connections: int = CONNECTIONS_PER_AGENT, ahead: int = NAMESPACES_AHEAD
    ) -> None:
        self._node = node
        self._block = block
        self._connections = connections
        self._maker = NamespaceMaker(template(lambda _: encode.loopback()), ahead)
        self._host: HostSide | None = None
        self._shaper: Shaper | None = None
        self._retiring = Retiring(self._remove)
        self._unavailable: AgentosError | None = None
        self._lock = threading.Lock()
        self._live: dict[int, tuple[str, str]] = {}
        self._forwarding = False
        self.notices: list[str] = []
        """What was changed on the host beyond devices and the node's own table, in sentences."""

    # -- the node --

    def open(self, required: bool = True) -> None:
        """Encode the messages, open the sockets, load the table. Idempotent; keeps the elements of running agents.

        Args:
            required: raise when the host cannot do it; otherwise only agents with a network are refused, each with the
                reason.
        """
        self._unavailable = None
        was_open = self._host is not None
        try:
            self._open()
            with _stage("sweep", f"node {self._node}"):
                leftovers.sweep(self._opened(), self._block)
        except AgentosError as error:
            if required:
                if not was_open:
                    self.close()
                raise
            self._unavailable = error
        self._maker.restock()

    def _open(self) -> None:
        where = f"node {self._node}"
        try:
            if self._host is None:
                self._host = HostSide(self._node, self._block)
                self._shaper = Shaper(self._block)
            leftovers.refuse_other_block(self._host.links(), self._node, self._block)
            self._load_table(self._host)
        except NftError as error:
            hint = failures.NO_NFT if error.errno == errno.ENOENT else failures.NO_NFTABLES
            raise AgentosError(
                "network", "the nftables table cannot be set up", f"{where}: {error.text}", hint
            ) from error
        except OSError as error:
            raise failure("open", error, where) from error
        try:
            # A dry run: the kernel either knows how to delete by address or says so now, not at the first stop.
            self._host.forget_connections(fields_of(unused()))
        except NetlinkError as error:
            unknown = error.errno in (errno.EOPNOTSUPP, errno.EINVAL)
            if unknown:
                raise AgentosError("network", str(error), where, failures.NO_FILTERED_DELETE) from error
            raise failure("open", error, where) from error

    def _load_table(self, host: HostSide) -> None:
        host.load_table(self._connections)
        for slot, (agent_id, mode) in list(self._live.items()):
            host.admit(fields_of(addresses(self._block, slot), agent_id), mode)

    def ensure(self) -> bool:
        """Put the table back when somebody has flushed it; True when that was necessary. Cheap enough for every
        tick."""
        with self._lock:
            host = self._ready()
            try:
                if host.table_is_whole():
                    return False
                self._load_table(host)
            except OSError as error:
                raise failure("table", error, f"node {self._node}") from error
        _log.warning("the nftables table of node %s had been changed by somebody; it was put back", self._node)
        return True

    def close(self) -> None:
        """Close sockets and thread; agents keep their network."""
        self._maker.close()
        self._retiring.close()
        self._retiring = Retiring(self._remove)
        host, self._host = self._host, None
        shaper, self._shaper = self._shaper, None
        if host is not None:
            host.close()
        if shaper is not None:
            shaper.close()
        self._live.clear()

    def teardown(self) -> None:
        """Remove every wire of the node, its table, and what is tracked of it; then `close`, whatever came of that.
        Routing stays as it is."""
        try:
            self._remove_everything(self._ready())
        except OSError as error:
            raise failure("teardown", error, f"node {self._node}") from error
        finally:
            self.close()

    def _remove_everything(self, host: HostSide) -> None:
        slots = set(self.found()) | set(self._live)
        host.delete_all_links()
        for slot in slots:
            host.forget_connections(fields_of(addresses(self._block, slot)))
        host.delete_table()

    def _opened(self) -> HostSide:
        if self._host is None:
            raise AgentosError("internal", "the network of the node is not open", f"node {self._node}")
        return self._host

    def _opened_shaper(self) -> Shaper:
        assert self._shaper is not None  # made together with the host's side
        return self._shaper

    def _ready(self) -> HostSide:
        if self._unavailable is not None:
            raise self._unavailable
        return self._opened()

    # -- one agent --

    def create(self, slot: int, agent_id: str, mode: str, rates: Rates = NO_RATES) -> Attachment:
        """Make the agent's namespace and, unless `mode` is none, its wire. All or nothing.

        Args:
            rates: its limits.

        Raises:
            AgentosError: ``network``; its details name stage, step and errno. Nothing is left behind.
        """
        own = self._checked(slot, agent_id, mode)
        where = f"agent {agent_id}"
        if mode == "none":
            with _stage("netns", where):
                namespace = self._maker.make()
            namespace.channel.close()
            self._maker.restock()
            return Attachment(slot, agent_id, mode, namespace.fd)
        host = self._ready()
        if slot in self._live:
            raise AgentosError("network", f"slot {slot} belongs to agent {self._live[slot][0]} already", where)
        values = fields_of(own, agent_id)
        with contextlib.ExitStack() as undo:
            self._prepare(mode, where)
            undo.callback(_quietly, self._forget, host, slot, values)
            with _stage("elements", where):
                self._admit(host, slot, agent_id, mode, values)
            with _stage("netns", where):
                namespace = self._maker.make()
            undo.callback(os.close, namespace.fd)
            undo.callback(namespace.channel.close)
            values = fields_of(own, agent_id, namespace.fd)
            with _stage("link", where):
                self._retiring.finish(slot)
                host.make_link(values)
            undo.callback(_quietly, host.delete_link, values)
            with _stage("host", where):
                host.configure_host_end(values)
            with _stage("agent", where):
                send(namespace.channel, host.templates.agent_end, values)
            shaper = self._opened_shaper()
            shaper.keep(slot, namespace.channel)
            undo.callback(shaper.forget, slot)
            if rates:
                with _stage("rates", where):
                    shaper.set_rates(slot, rates)
            undo.pop_all()
        self._maker.restock()
        return self._attachment(own, slot, agent_id, mode, namespace.fd)

    def adopt(self, slot: int, agent_id: str, mode: str, rates: Rates = NO_RATES, pidfd: int = -1) -> Attachment | None:
        """Take over the wire of an agent that ran before this supervisor: whatever of the host's side is missing is put
        back, and its rates are what `rates` says, whatever they were.

        Args:
            pidfd: of a process of the agent; without one, its rates are left alone from now on.

        Returns None when the agent's device is not there, or is not this agent's.
        """
        own = self._checked(slot, agent_id, mode)
        where = f"agent {agent_id}"
        if mode == "none":
            return Attachment(slot, agent_id, mode, -1)
        host = self._ready()
        values = fields_of(own, agent_id)
        with _stage("adopt", where):
            if host.alias_of(values) != alias(self._node, agent_id):
                return None
        self._prepare(mode, where)
        with _stage("adopt", where):
            self._admit(host, slot, agent_id, mode, values)
            host.configure_host_end(values)
        if pidfd >= 0:
            with _stage("rates", where):
                self._adopt_rates(slot, rates, pidfd)
        return self._attachment(own, slot, agent_id, mode, -1)

    def destroy(self, slot: int) -> None:
        """Take the agent's wire away: device, elements, tracked connections. Idempotent.

        Raises:
            AgentosError: ``network``; what could be removed is, and a second call continues.
        """
        host = self._host
        if host is None:
            return  # never open, so there is nothing of this process; and nothing to remove it with
        with _stage("destroy", f"slot {slot}"):
            self._cut_off(host, slot)
            self._remove([slot])

    def retire(self, slot: int) -> None:
        """As `destroy`, but the device goes a moment later: nothing passes it any more. Idempotent.

        Raises:
            AgentosError: ``network``.
        """
        host = self._host
        if host is None:
            return
        with _stage("destroy", f"slot {slot}"):
            self._cut_off(host, slot)
        self._retiring.add(slot)  # also if the device is gone, with its namespace: what is tracked of it is not

    def retiring(self) -> set[int]:
        """Slots of retired wires that may still be there: an agent that is given one of them waits until it is gone."""
        return self._retiring.slots()

    def _cut_off(self, host: HostSide, slot: int) -> None:
        """Nothing passes the wire from now on."""
        self._opened_shaper().forget(slot)
        if self._unavailable is None:
            self._forget(host, slot, fields_of(addresses(self._block, slot)))

    def _remove(self, slots: Iterable[int]) -> None:
        """The wires of `slots`, which are cut off, and what the host tracks of their connections."""
        host = self._opened()
        wires = [fields_of(addresses(self._block, slot)) for slot in slots]
        host.delete_links(wires)
        if self._unavailable is None:
            for values in wires:
                host.forget_connections(values)

    def found(self) -> dict[int, str]:
        """slot → agent id of every wire of this node on the host, whoever made it; those of other blocks are left
        out."""
        prefix = alias(self._node, "")
        slots: dict[int, str] = {}
        with _stage("find", f"node {self._node}"):
            devices = self._opened().links()
        for index, text in devices.items():
            block, slot = divmod(index, SLOTS_PER_BLOCK)
            if block == self._block and text.startswith(prefix):
                slots[slot] = text.removeprefix(prefix)
        return slots

    # -- rates, for the loop that moves them --

    def set_rate(self, slot: int, direction: Direction, rate: int | None) -> None:
        """Bits per second of one direction; None: as fast as it goes.

        Raises:
            AgentosError: ``network``.
        """
        self._ready()
        with _stage("rates", f"slot {slot}"):
            self._opened_shaper().set_rate(slot, direction, rate)

    def queues(self, direction: Direction, slots: Iterable[int]) -> dict[int, Queue]:
        """What these wires have as queueing disciplines; those without any are left out."""
        self._ready()
        with _stage("rates", f"node {self._node}"):
            return self._opened_shaper().queues(direction, slots)

    def counters(self) -> dict[int, tuple[int, int]]:
        """Slot → bytes that each agent has sent and received."""
        self._ready()
        with _stage("counters", f"node {self._node}"):
            return self._opened_shaper().counters()

    # -- steps --

    def _prepare(self, mode: str, where: str) -> None:
        """What the first agent with egress needs from the host."""
        if mode != "egress" or self._forwarding:
            return
        with self._lock, _stage("forwarding", where):
            changed = forwarding.enable()
            self._forwarding = True
        for notice in changed:
            _log.warning("%s", notice)
        self.notices += changed

    def _admit(self, host: HostSide, slot: int, agent_id: str, mode: str, values: Fields) -> None:
        """Add the elements; a table that somebody deleted comes back, with the elements of all agents."""
        self._live[slot] = (agent_id, mode)
        try:
            host.admit(values, mode)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            self.ensure()
            host.admit(values, mode)

    def _forget(self, host: HostSide, slot: int, values: Fields) -> None:
        self._live.pop(slot, None)
        host.expel(values)

    def _adopt_rates(self, slot: int, rates: Rates, pidfd: int) -> None:
        shaper = self._opened_shaper()
        try:
            shaper.enter(slot, pidfd)
        except ProcessLookupError:  # it has just ended, as its watcher will see
            return
        shaper.set_rates(slot, rates)

    def _checked(self, slot: int, agent_id: str, mode: str) -> Addresses:
        if mode not in MODES:
            raise AgentosError(
                "network", f"unknown network mode {mode!r}", f"agent {agent_id}", f"one of {', '.join(MODES)}"
            )
        if not _AGENT_ID.fullmatch(agent_id):
            raise ValueError(f"not an agent id: {agent_id!r}")
        return addresses(self._block, slot)

    @staticmethod
    def _attachment(own: Addresses, slot: int, agent_id: str, mode: str, netns_fd: int) -> Attachment:
        return Attachment(
            slot=slot,
            agent_id=agent_id,
            mode=mode,
            netns_fd=netns_fd,
            ifname=own.host_ifname,
            ipv4=own.ipv4,
            ipv6=own.ipv6,
            mac=own.mac,
            gateway_ipv4=GATEWAY_IPV4,
            gateway_ipv6=GATEWAY_IPV6,
        )


@contextlib.contextmanager
def _stage(name: str, where: str) -> Iterator[None]:
    """Turn what the kernel refuses in here into the user's error."""
    try:
        yield
    except OSError as error:
        raise failure(name, error, where) from error


def _quietly(undo: Callable[..., None], *arguments: object) -> None:
    """An undo step: its failure is logged, because the error to report is the one that made it necessary."""
    try:
        undo(*arguments)
    except OSError as error:
        _log.warning("undo after a failed start: %s", error)
