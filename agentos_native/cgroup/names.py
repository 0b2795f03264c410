"""Names in the tree: ``agentos-<node>/<tenant>/<tier>/<agent-id>/{main,exec-<n>}``.

Nothing that came from a user reaches a path without passing here. No accepted name holds a dot, so none can be taken
for a file of the kernel's (``cpu.max``), and none holds a slash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.spec.model import PRIORITIES

PREFIX: Final = "agentos-"
_NODE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")
_TENANT: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_AGENT: Final = re.compile(r"[0-9a-f]{12}")
_LEAF: Final = re.compile(r"main|exec-[a-z0-9]{1,32}")


def _check(pattern: re.Pattern[str], kind: str, name: str) -> str:
    if not pattern.fullmatch(name):
        hint = f"it must match {pattern.pattern}"
        raise AgentosError("invalid-name", f"not a name of {kind}: {name!r}", "cgroup", hint)
    return name


def node_directory(node: str) -> str:
    return PREFIX + _check(_NODE, "a node", node)


def tenant_name(name: str) -> str:
    return _check(_TENANT, "a tenant", name)


def leaf_name(name: str) -> str:
    return _check(_LEAF, "a leaf", name)


def is_tenant(name: str) -> bool:
    return _TENANT.fullmatch(name) is not None


def is_agent(name: str) -> bool:
    return _AGENT.fullmatch(name) is not None


@dataclass(frozen=True, slots=True, order=True)
class GroupRef:
    """Which agent's group: checked when made, so a GroupRef is always safe to use in a path."""

    tenant: str
    tier: str
    agent_id: str

    def __post_init__(self) -> None:
        _check(_TENANT, "a tenant", self.tenant)
        _check(_AGENT, "an agent's group", self.agent_id)
        if self.tier not in PRIORITIES:
            hint = f"one of {', '.join(PRIORITIES)}"
            raise AgentosError("invalid-name", f"not a tier: {self.tier!r}", "cgroup", hint)

    @property
    def relative(self) -> str:
        """The path below the node's group."""
        return f"{self.tenant}/{self.tier}/{self.agent_id}"
