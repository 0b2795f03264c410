"""Starts that wait for room: who is let in now, who waits, who is refused, and what is promised meanwhile.

Theory of operation
    Every start asks here (`request`), under its agent's lock; the answer comes at once, since everything runs on the
    event loop's thread and nothing in this file awaits. What can never fit, a full queue, and a start that shall not
    wait are refused. What must wait is recorded (state queued, with a ticket that gives its place), so that the next
    supervisor knows the same queue. `wake`, called wherever something may have become free, lets in what the fair
    queue chooses (`agentos_native.alloc.queueing`): it is *granted*, which counts as promised from this moment on, and
    started by a task of its own. So two starts cannot be given the same room, and a start that fails only gives its
    room back.

    A decision costs O(log tenants), so that the queue may be long: specs and terms are read again only when somebody
    says that they have changed (`wake`), and a place is worked out when it is asked for; who asks for many of them gets
    them from one pass over the whole queue. (What is promised is still summed up over all agents for each decision.)

    How many may wait is bounded for a tenant (`limits.queued`, or the supervisor's `queue_limit`), and for the node
    (`node_queue_limit`) by Choudhury and Hahne's dynamic threshold ("Dynamic queue length thresholds for shared-memory
    packet switches", 1998): a tenant may have as many starts waiting as there are places left. One that floods gets a
    half of the places, n of them n parts of n + 1, and there is always room for others; nobody who was told to wait is
    pushed out for it. A start that has waited as long as its spec allows (`wait_timeout`) is taken out and fails.

    An agent that is restarted, or replaced by an edited document, keeps its room meanwhile (`keeping`): others that
    wait do not get it.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from agentos_native.alloc.queueing import Entry, FairQueue
from agentos_native.alloc.room import Room
from agentos_native.errors import EXIT_TIMEOUT, AgentosError
from agentos_native.spec.model import PRIORITIES, AgentSpec, TenantSpec
from agentos_native.supervisor import admission, queuewords, rehearsing
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.deadlines import Deadlines
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.places import Places
from agentos_native.supervisor.rehearsing import Named, Plan
from agentos_native.wire import api

_KEY: Final = "queue"
"""Where the registry has the fair queue's tags."""


class _Tags(msgspec.Struct, omit_defaults=True):
    virtual: float = 0.0
    finish: dict[str, float] = {}
    passed: dict[str, float] = {}


class Queue:
    """One per supervisor.

    Args:
        start: begins the start of an agent that has been granted its room; must not block.
        refuse: ends an agent's waiting for good, with the error that says why; must not block.
        save: writes an agent's record, which has got a slot, wherever it is kept.
    """

    def __init__(
        self,
        host: Host,
        start: Callable[[Agent], object],
        refuse: Callable[[Agent, AgentosError], object],
        save: Callable[[Agent], object],
    ) -> None:
        self._host = host
        self._start = start
        self._refuse = refuse
        self._save = save
        self._fair = FairQueue()
        self._granted: set[str] = set()
        self._kept: list[AgentSpec] = []
        self._next_ticket = 1
        self._written = _Tags()
        self._waking = False
        self._outdated = False
        self._seen: Room | None = None
        self._places = Places(self._fair)
        self._deadlines = Deadlines(self._give_up)
        self.closed = False

    # -- what is promised ----------------------------------------------------------------------------------------

    def promised(
        self,
        without: Agent | None = None,
        specs: Mapping[str, AgentSpec] | None = None,
        gone: Collection[str] = (),
    ) -> list[AgentSpec]:
        """What is reserved: for agents that run, are let in, wait for their next restart, or are being replaced.

        Args:
            specs: by agent id, instead of their own.
            gone: ids of agents that are left out.
        """
        found = [
            (specs or {}).get(agent.id, agent.record.spec)
            for agent in self._host.agents
            if (agent.live or agent.record.state == "backoff" or agent.id in self._granted)
            and agent is not without
            and agent.id not in gone
        ]
        if self._kept:
            kept = {(spec.tenant, spec.name): spec for spec in self._kept}
            for spec in found:
                kept.pop((spec.tenant, spec.name), None)
            found += kept.values()
        return found

    def _room(self, without: Agent | None = None) -> Room:
        host = self._host
        taken = sum(slot >= 0 for slot in host.agents.slots())
        return admission.room(self.promised(without), host.tenants, host.capacity, slots=taken)

    @contextlib.contextmanager
    def keeping(self, agent: Agent) -> Iterator[None]:
        """While an agent is stopped to be started again (or made anew), what it has reserved is kept for it."""
        kept = [agent.record.spec] if agent.live or agent.record.state == "backoff" else []
        self._kept += kept
        try:
            yield
        finally:
            self._kept = [spec for spec in self._kept if not any(spec is one for one in kept)]
            self.wake()

    # -- asking for room -----------------------------------------------------------------------------------------

    def check(self, spec: AgentSpec, *, wait: bool = True, agent_id: str = "") -> None:
        """Raise for what can never fit or, without `wait`, does not fit now."""
        host = self._host
        try:
            admission.admit(spec, (), host.tenants, host.capacity)
            if not wait:
                others = [other for other in self.promised() if (other.tenant, other.name) != (spec.tenant, spec.name)]
                admission.admit(spec, others, host.tenants, host.capacity)
        except AgentosError as error:
            self._tell_refused(spec, agent_id, error)
            raise

    def request(self, agent: Agent, *, wait: bool) -> bool:
        """Room for the start of `agent`, whose lock is the caller's: True: granted, until `settled`; False: it waits.

        Raises:
            AgentosError: it can never fit; it is not to wait; ``queue-full``.
        """
        self.check(agent.record.spec, agent_id=agent.id)
        if self._inherits(agent):
            self._granted.add(agent.id)
            return True
        entry = self._entry(agent, self._next_ticket)
        self._next_ticket += 1
        self._fair.put(entry)
        self._serve(asking=agent)
        if agent.id in self._granted:
            return True
        try:
            self._check_may_wait(agent, wait)
        except AgentosError as error:
            self._fair.remove(agent.id)
            self._changed()
            self._tell_refused(agent.record.spec, agent.id, error)
            raise
        try:
            self._enter(agent, entry)
        except BaseException:  # a full disk: what nobody would know of after a crash does not wait
            self.leave(agent)
            raise
        return False

    def _inherits(self, agent: Agent) -> bool:
        """Whether its room was kept, and it asks for no more than that; if for more, what was kept is given up."""
        spec = agent.record.spec
        mine = [kept for kept in self._kept if (kept.tenant, kept.name) == (spec.tenant, spec.name)]
        wants = admission.asked(spec, slot=agent.record.slot < 0)
        if any(all(map(operator.le, wants, admission.asked(kept))) for kept in mine):
            return True
        self._kept = [kept for kept in self._kept if kept not in mine]
        return False

    def _check_may_wait(self, agent: Agent, wait: bool) -> None:
        spec = agent.record.spec
        obstacle = self._fair.obstacle(agent.id)
        assert obstacle is not None
        error = admission.refusal(spec, obstacle)
        if not wait:
            raise error
        own, all_ = self._fair.length(spec.tenant) - 1, len(self._fair) - 1
        self.check_places(spec, self._host.tenants.get(spec.tenant), own, all_, error.what)

    def check_places(self, spec: AgentSpec, tenant: TenantSpec | None, own: int, all_: int, why: str) -> None:
        """Raise ``queue-full`` unless a start of `spec` may wait.

        Args:
            tenant: its tenant's terms.
            own, all_: starts of the tenant and of everybody that wait beside this one.
        """
        most = self.limit(tenant)
        if own >= most:
            raise queuewords.queue_full(spec, own, most, f"; {why}")
        total = self._host.options.settings.node_queue_limit
        if own >= total - all_:
            raise queuewords.node_queue_full(spec, own, total - all_, total, f"; {why}")

    def limit(self, tenant: TenantSpec | None) -> int:
        """How many starts of a tenant (None: one that is not declared) may wait."""
        own = tenant.limits.queued if tenant else None
        return self._host.options.settings.queue_limit if own is None else own

    def _entry(self, agent: Agent, ticket: int, spec: AgentSpec | None = None) -> Entry:
        spec = spec or agent.record.spec
        tier = PRIORITIES.index(spec.priority)
        return Entry(agent.id, spec.tenant, tier, ticket, admission.asked(spec, slot=agent.record.slot < 0))

    def _enter(self, agent: Agent, entry: Entry) -> None:
        record = agent.record
        before = (record.ticket, record.queued_at, record.wanted, record.provisional, record.state, record.reason)
        record.ticket, record.queued_at, record.wanted, record.provisional = entry.ticket, time.time(), True, False
        record.state, record.reason = "queued", ""
        try:
            self._host.registry.save(record)
        except BaseException:
            record.ticket, record.queued_at, record.wanted, record.provisional, record.state, record.reason = before
            raise
        agent.notify()
        self._changed()
        self._deadlines.set(agent)
        place = self.place(agent)
        assert place is not None
        figures = queuewords.figures(self._fair.obstacle(agent.id))
        self._event(record.spec, agent.id, "queued", place=place.place, **figures)

    def would_start(self, plan: Plan) -> list[AgentSpec]:
        """Who of those that wait would be let in, in this order, by what `plan` changes."""
        (fair, room, _), found = self._copies(plan), []
        while chosen := fair.choose(room):
            room.take(chosen.tenant, chosen.asked)
            agent = self._host.agents.by_id(chosen.key)
            if agent is not None:
                found.append(agent.record.spec)
        return found

    def would_wait(self, plan: Plan) -> dict[Named, api.QueuePlace]:
        """Which of the plan's starts would have to wait, where and for what."""
        fair, room, slots = self._copies(plan)
        return rehearsing.places(fair, room, plan.starts, self._next_ticket, slots)

    def keeps_room(self, agent: Agent, spec: AgentSpec) -> bool:
        """Whether an agent could be made anew as `spec` in the room that it has."""
        has = agent.live or agent.record.state == "backoff"
        return has and all(map(operator.le, admission.asked(spec), admission.asked(agent.record.spec)))

    def _copies(self, plan: Plan) -> tuple[FairQueue, Room, int]:
        """The queue and the room as they would be without the plan's starts, and the number of free slots."""
        host, fair = self._host, self._fair.copy()
        for key in plan.gone:
            fair.remove(key)
        for key, spec in plan.changed.items():
            entry, agent = fair.get(key), host.agents.by_id(key)
            if agent is not None and entry is not None:
                fair.put(self._entry(agent, entry.ticket, spec))
        promised = self.promised(specs=plan.changed, gone=plan.gone)
        taken = sum(slot >= 0 for slot in host.agents.slots())
        room = admission.room(promised, {**host.tenants, **plan.tenants}, host.capacity, slots=taken)
        return fair, room, admission.SLOTS - taken

    # -- letting in ----------------------------------------------------------------------------------------------
    def wake(self, *, changed: bool = False) -> None:
        """Something may have become free: see soon who can be let in.

        Args:
            changed: specs or limits are others, also of those that wait.
        """
        self._outdated |= changed
        if len(self._fair) and not self._waking and not self.closed:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._awake)

    def _awake(self) -> None:
        self._waking = False
        self._serve()

    def _serve(self, asking: Agent | None = None) -> None:
        """Grant what can be granted; all but `asking`, who sees to it itself, are started from here."""
        if self.closed:
            return
        if self._outdated:
            self._refresh(asking)
        self._seen = room = self._room()
        while entry := self._fair.choose(room):
            agent = self._host.agents.by_id(entry.key)
            assert agent is not None  # `leave` is called before it goes
            room.take(entry.tenant, entry.asked)
            self._grant(agent)
            if agent is not asking:
                self._start(agent)
        self._changed()

    def _refresh(self, asking: Agent | None) -> None:
        """Specs and limits have been changed; what can never fit by now is refused."""
        host = self._host
        self._outdated = False
        empty = admission.room((), host.tenants, host.capacity)
        for entry in self._fair:
            agent = host.agents.by_id(entry.key)
            assert agent is not None
            now = self._entry(agent, entry.ticket)
            if now != entry:
                self._fair.put(now)
            if agent is asking:
                continue
            self._deadlines.set(agent)
            obstacle = empty.obstacle(now.tenant, now.asked)
            if obstacle is not None:
                self._expel(agent, admission.refusal(agent.record.spec, obstacle))

    def _expel(self, agent: Agent, error: AgentosError) -> None:
        self.leave(agent)
        self._tell_refused(agent.record.spec, agent.id, error)
        self._refuse(agent, error)

    def _give_up(self, agent: Agent) -> None:
        """It has waited as long as it may."""
        entry = self._fair.get(agent.id)
        if entry is None or agent.record.state != "queued" or self.closed:
            return
        spec = agent.record.spec
        assert spec.wait_timeout is not None
        words = self._words(entry)
        error = AgentosError(
            "wait-timeout",
            f"it has waited {spec.wait_timeout:g} s for its start, as long as it may, for {words}",
            agent.where,
            "Try again later, ask for less, or let it wait longer (--wait-timeout, waitTimeout).",
            exit_status=EXIT_TIMEOUT,
            details=queuewords.figures(self._fair.obstacle(agent.id)),
        )
        self._expel(agent, error)

    def _grant(self, agent: Agent) -> None:
        record = agent.record
        if record.slot < 0:
            record.slot = self._host.userns.free_slot()
            with contextlib.suppress(sqlite3.OperationalError, OSError):  # on a full disk its start fails, and says so
                self._save(agent)
        self._granted.add(agent.id)
        self._deadlines.forget(agent)

    def may_start(self, agent: Agent) -> bool:
        """Whether a granted agent, whose lock is the caller's, starts now.

        It may have been called off since. Or its reservation was raised: then it waits again.
        """
        if agent.id not in self._granted or agent.record.state != "queued" or self.closed:
            return False
        entry = self._entry(agent, agent.record.ticket)
        if self._room(without=agent).obstacle(entry.tenant, entry.asked) is not None:
            self._fair.put(entry)
            self._deadlines.set(agent)
            return False
        waited = time.time() - (agent.record.queued_at or time.time())
        self._event(agent.record.spec, agent.id, "dequeued", waited=round(waited, 3))
        return True

    def settled(self, agent: Agent) -> None:
        """The start has ended, well or not: from now on what the agent's state says counts."""
        self._granted.discard(agent.id)
        self.wake()

    def leave(self, agent: Agent) -> None:
        """It waits no more."""
        self._granted.discard(agent.id)
        self._deadlines.forget(agent)
        if self._fair.remove(agent.id):
            self._changed()
        self.wake()

    # -- across restarts -----------------------------------------------------------------------------------------

    def restore(self) -> None:
        """The agents whose state is queued, as the registry has them, wait in their old order. Nobody is let in yet."""
        with contextlib.suppress(msgspec.MsgspecError):
            tags = msgspec.json.decode(self._host.registry.get(_KEY) or "{}", type=_Tags)
            self._fair.virtual, self._fair.finish, self._fair.passed = tags.virtual, tags.finish, tags.passed
        for agent in self._host.agents:
            self._next_ticket = max(self._next_ticket, agent.record.ticket + 1)
            if agent.record.state == "queued":
                self._fair.put(self._entry(agent, agent.record.ticket))
                self._deadlines.set(agent)
        self._outdated = True  # the machine or a tenant's terms may be others by now
        self._changed()

    def _changed(self) -> None:
        self._places.forget()
        fair, known = self._fair, self._written
        if (fair.virtual, fair.finish, fair.passed) != (known.virtual, known.finish, known.passed):
            tags = _Tags(fair.virtual, dict(fair.finish), dict(fair.passed))
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk: written with the next change
                self._host.registry.put(_KEY, msgspec.json.encode(tags).decode())
                self._written = tags

    # -- showing -------------------------------------------------------------------------------------------------

    def place(self, agent: Agent) -> api.QueuePlace | None:
        """Where and why it waits; None when it does not, or is about to start."""
        entry = self._fair.get(agent.id)
        if entry is None or agent.record.state != "queued":
            return None
        self._seen = room = self._seen or self._room()
        place, tenant_place = self._places.of(entry, room)
        obstacle = self._fair.obstacle(entry.key)
        return api.QueuePlace(
            place=place,
            tenant_place=tenant_place,
            since=agent.record.queued_at or agent.record.created_at,
            resource=obstacle.resource if obstacle else "",
            waiting_for=self._words(entry),
        )

    def _words(self, entry: Entry) -> str:
        """What it waits for: ``cpu 500m: 200m of the node's 2000m free``."""
        return queuewords.in_words(entry.tenant, self._fair.obstacle(entry.key))

    def error(self, agent: Agent) -> AgentosError:
        """What is said of a queued agent to those who want something else of it."""
        place = self.place(agent)
        where = f", number {place.place} of {len(self._fair)}: {place.waiting_for}" if place else ""
        return AgentosError(
            "agent-queued",
            f"the agent waits for its start{where}",
            agent.where,
            "It starts by itself when there is room. To call it off: agentos-native stop (or rm).",
        )

    def _tell_refused(self, spec: AgentSpec, agent_id: str, error: AgentosError) -> None:
        figures = {name: error.details.get(name) for name in ("resource", "asked", "free")}
        self._event(spec, agent_id, "refused", code=error.code, what=error.what, **figures)

    def _event(self, spec: AgentSpec, agent_id: str, kind: str, **detail: Any) -> None:
        self._host.events.add(kind, agent_id=agent_id, name=spec.name, tenant=spec.tenant, **detail)
