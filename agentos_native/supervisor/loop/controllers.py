"""What the loop asks of a part that moves one resource besides CPU: memory, I/O, the network.

A controller has its own pace, a multiple of the tick; it is called from the tick's thread for `turn` and from others
for the rest, so it guards itself with a lock. Nothing a group does may make `turn` raise for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from agentos_native.cgroup import GroupRef
from agentos_native.spec.model import AgentSpec, Resource, TenantSpec
from agentos_native.supervisor.loop.whatif import Solved

Notify = Callable[..., None]
"""``notify(kind, agent_id, **detail)``: an event for whoever follows them; may be called from any thread."""


@dataclass(frozen=True)
class Member:
    """A running agent, as controllers see it.

    Attributes:
        slot: its number within the node, from which its network names and addresses follow.
        path: of its group.
    """

    agent_id: str
    slot: int
    ref: GroupRef
    path: str
    spec: AgentSpec


class Controller(Protocol):
    """Moves one resource between the members."""

    @property
    def resource(self) -> Resource: ...
    @property
    def period(self) -> float:
        """Seconds between two turns."""

    def add(self, member: Member) -> None:
        """An agent runs (after an adoption as well: whatever its group or link holds from before is taken over)."""

    def change(self, member: Member) -> None:
        """Its spec is another now."""

    def remove(self, agent_id: str) -> None:
        """It has ended; nothing happens when it is not known."""

    def set_tenant(self, spec: TenantSpec) -> None: ...
    def remove_tenant(self, name: str) -> None: ...
    def turn(self, now: float) -> None:
        """Measure, allocate, write; `now` is time.monotonic()."""

    def rows(self) -> dict[str, dict[str, Any]]:
        """By agent id: request, limit, demand, entitled, measured (in the resource's unit), bound, and what else the
        controller knows; the same words as `rows.AllocationRow`."""

    def fractions(self) -> Mapping[str, float]:
        """By agent id: the part of the machine's resource that it wants, 0..1, for policies over several resources."""

    def entitled(self, specs: Mapping[str, AgentSpec], tenants: Mapping[str, TenantSpec]) -> dict[str, float]:
        """By agent id: what each would be entitled to if these specs (by agent id, by name) replaced today's ones.

        With nothing replaced it is what they are entitled to now. Writes nothing.
        """

    def close(self) -> None:
        """Let go of files; what is written stays."""


@runtime_checkable
class Solvable(Protocol):
    """A controller that divides by the same tree as CPU, whose problems can be looked into."""

    def solved(self) -> Mapping[str, tuple[Solved, str]]:
        """Each problem with its solution, by what it is about, and the unit of its amounts (``MiB``, ``Mbit/s``)."""
