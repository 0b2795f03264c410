"""What is said of a start that waits, or that may not: words and figures."""

from __future__ import annotations

from typing import Any

from agentos_native.alloc.room import Obstacle
from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec
from agentos_native.supervisor import admission


def queue_full(spec: AgentSpec, waiting: int, most: int, why: str = "") -> AgentosError:
    """No further start of this tenant may wait."""
    return AgentosError(
        "queue-full",
        f"{waiting} of at most {most} starts of tenant {spec.tenant} wait already{why}",
        f"agent {spec.tenant}/{spec.name}",
        "Try again when some of them run, or raise limits.queued of the tenant (queueLimit of the supervisor).",
        details={"resource": "queued", "asked": 1, "free": max(most - waiting, 0), "capacity": most},
    )


def node_queue_full(spec: AgentSpec, own: int, left: int, total: int, why: str = "") -> AgentosError:
    """The node's queue has no place for a further start of a tenant of which so many wait."""
    most = max(left, 0)
    return AgentosError(
        "queue-full",
        f"{own} starts of tenant {spec.tenant} wait already, and of the node's {total} places in the queue {most} are"
        f" left: a tenant may have no more waiting than that{why}",
        f"agent {spec.tenant}/{spec.name}",
        "Try again when some of them run, or raise nodeQueueLimit of the supervisor (--node-queue-limit).",
        details={"resource": "queued", "asked": 1, "free": 0, "capacity": total, "waiting": own, "left": most},
    )


def figures(obstacle: Obstacle | None) -> dict[str, Any]:
    if obstacle is None:
        return {}
    return {"resource": obstacle.resource, "asked": int(obstacle.asked), "free": max(int(obstacle.free), 0)}


def in_words(tenant: str, why: Obstacle | None) -> str:
    """What a start of the tenant waits for."""
    if why is None:
        return "its turn"
    owner = "the node" if why.scope == "node" else f"tenant {tenant}"
    free, capacity = (admission.show(why.resource, max(amount, 0)) for amount in (why.free, why.capacity))
    asked = "" if why.resource in ("slots", "agents") else f" {admission.show(why.resource, why.asked)}"
    ahead = ", set aside for starts ahead" if why.ahead else ""
    return f"{why.resource}{asked}: {free} of {owner}'s {capacity} free{ahead}"
