"""Starts that wait for room: who is let in now, who waits, who is refused, and what is promised meanwhile.

Theory of operation
    Every start asks here (`request`), under its agent's lock; the answer comes at once, since everything runs on the
    event loop's thread and nothing in this file awaits. What can never fit, a full queue, and a start that shall not
    wait are refused. What must wait is recorded (state queued, with a ticket that gives its place), so that the next
    supervisor knows the same queue. `wake`, called wherever something may have become free, lets in what the fair
    queue chooses (`agentos_native.alloc.queueing`): it is *granted*, which counts as promised from this moment on, and
    started by a task of its own. So two starts cannot be given the same room, and a start that fails only gives its
    room back.

    An agent that is restarted, or replaced by an edited document, keeps its room meanwhile (`keeping`): others that
    wait do not get it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import operator
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from agentos_native.alloc.queueing import Entry, FairQueue, Obstacle, Room
from agentos_native.errors import AgentosError
from agentos_native.spec.model import PRIORITIES, AgentSpec, TenantSpec
from agentos_native.supervisor import admission
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.host import Host
from agentos_native.wire import api

_KEY: Final = "queue"
"""Where the registry has the fair queue's tags."""


class _Tags(msgspec.Struct):
    virtual: float = 0.0
    finish: dict[str, float] = {}


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
        self._written = msgspec.json.encode(_Tags()).decode()
        self._waking = False
        self._places: dict[str, tuple[int, int]] | None = None
        self.closed = False

    # -- what is promised ----------------------------------------------------------------------------------------

    def promised(self, without: Agent | None = None, specs: Mapping[str, AgentSpec] | None = None) -> list[AgentSpec]:
        """What is reserved: for agents that run, are let in, wait for their next restart, or are being replaced.

        Args:
            specs: by agent id, instead of their own.
        """
        found = [
            (specs or {}).get(agent.id, agent.record.spec)
            for agent in self._host.agents
            if agent is not without and (agent.live or agent.record.state == "backoff" or agent.id in self._granted)
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
            self._check_may_wait(agent, entry, wait)
        except AgentosError as error:
            self._fair.remove(agent.id)
            self._changed()
            self._tell_refused(agent.record.spec, agent.id, error)
            raise
        self._enter(agent, entry)
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

    def _check_may_wait(self, agent: Agent, entry: Entry, wait: bool) -> None:
        spec = agent.record.spec
        assert entry.obstacle is not None
        error = admission.refusal(spec, entry.obstacle)
        if not wait:
            raise error
        most, others = self.limit(self._host.tenants.get(spec.tenant)), self._fair.length(spec.tenant) - 1
        if others >= most:
            raise queue_full(spec, others, most, f"; {error.what}")

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
        record.ticket, record.queued_at, record.wanted, record.provisional = entry.ticket, time.time(), True, False
        agent.become("queued")
        self._host.registry.save(record)
        self._changed()
        place = self.place(agent)
        assert place is not None
        self._event(record.spec, agent.id, "queued", place=place.place, **_figures(entry.obstacle))

    def would_start(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> list[AgentSpec]:
        """Who of those that wait would be let in, in this order, if agents (by id) and tenants had these specs."""
        host, found = self._host, []
        fair = copy.deepcopy(self._fair)
        for entry in fair:
            agent = host.agents.by_id(entry.key)
            if agent is not None and entry.key in specs:
                fair.put(self._entry(agent, entry.ticket, specs[entry.key]))
        promised = self.promised(specs=specs)
        taken = sum(slot >= 0 for slot in host.agents.slots())
        room = admission.room(promised, {**host.tenants, **tenants}, host.capacity, slots=taken)
        while chosen := fair.choose(room):
            room.take(chosen.tenant, chosen.asked)
            agent = host.agents.by_id(chosen.key)
            if agent is not None:
                found.append(agent.record.spec)
        return found

    # -- letting in ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may have become free, or been changed: see soon who can be let in."""
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
        self._refresh(asking)
        room = self._room()
        while entry := self._fair.choose(room):
            agent = self._host.agents.by_id(entry.key)
            assert agent is not None  # `leave` is called before it goes
            room.take(entry.tenant, entry.asked)
            self._grant(agent)
            if agent is not asking:
                self._start(agent)
        self._changed()

    def _refresh(self, asking: Agent | None) -> None:
        """Specs and limits may have been changed; what can never fit by now is refused."""
        host = self._host
        empty = admission.room((), host.tenants, host.capacity)
        for entry in self._fair:
            agent = host.agents.by_id(entry.key)
            assert agent is not None
            now = self._entry(agent, entry.ticket)
            if now != entry:
                self._fair.put(now)
            obstacle = empty.obstacle(now.tenant, now.asked)
            if obstacle is not None and agent is not asking:
                error = admission.refusal(agent.record.spec, obstacle)
                self.leave(agent)
                self._tell_refused(agent.record.spec, agent.id, error)
                self._refuse(agent, error)

    def _grant(self, agent: Agent) -> None:
        record = agent.record
        if record.slot < 0:
            record.slot = self._host.userns.free_slot()
            self._save(agent)
        self._granted.add(agent.id)

    def may_start(self, agent: Agent) -> bool:
        """Whether a granted agent, whose lock is the caller's, starts now.

        It may have been called off since. Or its reservation was raised: then it waits again.
        """
        if agent.id not in self._granted or agent.record.state != "queued" or self.closed:
            return False
        entry = self._entry(agent, agent.record.ticket)
        if self._room(without=agent).obstacle(entry.tenant, entry.asked) is not None:
            self._fair.put(entry)
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
        if self._fair.remove(agent.id):
            self._changed()
        self.wake()

    # -- across restarts -----------------------------------------------------------------------------------------

    def restore(self) -> None:
        """The agents whose state is queued, as the registry has them, wait in their old order. Nobody is let in yet."""
        with contextlib.suppress(msgspec.MsgspecError):
            tags = msgspec.json.decode(self._host.registry.get(_KEY) or "{}", type=_Tags)
            self._fair.virtual, self._fair.finish = tags.virtual, dict(tags.finish)
        for agent in self._host.agents:
            self._next_ticket = max(self._next_ticket, agent.record.ticket + 1)
            if agent.record.state == "queued":
                self._fair.put(self._entry(agent, agent.record.ticket))
        self._changed()

    def _changed(self) -> None:
        self._places = None
        text = msgspec.json.encode(_Tags(self._fair.virtual, self._fair.finish)).decode()
        if text != self._written:
            self._host.registry.put(_KEY, text)
            self._written = text

    # -- showing -------------------------------------------------------------------------------------------------

    def place(self, agent: Agent) -> api.QueuePlace | None:
        """Where and why it waits; None when it does not, or is about to start."""
        entry = self._fair.get(agent.id)
        if entry is None or agent.record.state != "queued":
            return None
        if self._places is None:
            self._places = {}
            seen: dict[str, int] = {}
            for number, one in enumerate(self._fair.order(self._room()), 1):
                seen[one.tenant] = seen.get(one.tenant, 0) + 1
                self._places[one.key] = number, seen[one.tenant]
        place, tenant_place = self._places[agent.id]
        return api.QueuePlace(
            place=place,
            tenant_place=tenant_place,
            since=agent.record.queued_at or agent.record.created_at,
            resource=entry.obstacle.resource if entry.obstacle else "",
            waiting_for=_words(entry),
        )

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


def queue_full(spec: AgentSpec, waiting: int, most: int, why: str = "") -> AgentosError:
    """No further start of this tenant may wait."""
    return AgentosError(
        "queue-full",
        f"{waiting} of at most {most} starts of tenant {spec.tenant} wait already{why}",
        f"agent {spec.tenant}/{spec.name}",
        "Try again when some of them run, or raise limits.queued of the tenant (queueLimit of the supervisor).",
        details={"resource": "queued", "asked": 1, "free": max(most - waiting, 0), "capacity": most},
    )


def _figures(obstacle: Obstacle | None) -> dict[str, Any]:
    if obstacle is None:
        return {}
    return {"resource": obstacle.resource, "asked": int(obstacle.asked), "free": max(int(obstacle.free), 0)}


def _words(entry: Entry) -> str:
    """What it waits for: ``cpu 500m: 200m of the node's 2000m free``."""
    why = entry.obstacle
    if why is None:
        return "its turn"
    owner = "the node" if why.scope == "node" else f"tenant {entry.tenant}"
    free, capacity = (admission.show(why.resource, max(amount, 0)) for amount in (why.free, why.capacity))
    asked = "" if why.resource in ("slots", "agents") else f" {admission.show(why.resource, why.asked)}"
    ahead = ", set aside for starts ahead" if why.ahead else ""
    return f"{why.resource}{asked}: {free} of {owner}'s {capacity} free{ahead}"
