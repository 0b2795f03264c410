"""What a queue would do with starts that are only thought of: they are put into a copy of it, one after the other."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from agentos_native.alloc.queueing import Entry, FairQueue
from agentos_native.alloc.room import Room
from agentos_native.spec.model import PRIORITIES, AgentSpec, TenantSpec
from agentos_native.supervisor import admission, queuewords
from agentos_native.wire import api

Named = tuple[str, str]
"""Tenant and name."""


class Plan(NamedTuple):
    """What would be done: `starts` in their order; `changed` specs by agent id; agents that would be `gone`, by id;
    tenants' new terms by name.
    """

    starts: Sequence[AgentSpec]
    changed: Mapping[str, AgentSpec] = {}
    gone: Collection[str] = ()
    tenants: Mapping[str, TenantSpec] = {}


def places(
    fair: FairQueue, room: Room, starts: Sequence[AgentSpec], ticket: int, slots: int
) -> dict[Named, api.QueuePlace]:
    """Where and why those of `starts` would wait that would.

    Args:
        fair, room: copies; they are used up.
        ticket: the next one. slots: how many are free.
    """
    for number, spec in enumerate(starts):
        asked = admission.asked(spec, slot=number >= slots)
        tier = PRIORITIES.index(spec.priority)
        fair.put(Entry(_key(spec), spec.tenant, tier, ticket + number, asked))
        while (chosen := fair.choose(room)) is not None:
            room.take(chosen.tenant, chosen.asked)
    found = {}
    for spec in starts:
        if fair.get(_key(spec)) is not None:
            place, tenant_place = fair.place(_key(spec), room)
            obstacle = fair.obstacle(_key(spec))
            found[spec.tenant, spec.name] = api.QueuePlace(
                place=place,
                tenant_place=tenant_place,
                since=time.time(),
                resource=obstacle.resource if obstacle else "",
                waiting_for=queuewords.in_words(spec.tenant, obstacle),
            )
    return found


def _key(spec: AgentSpec) -> str:
    return f"{spec.tenant}/{spec.name}"
