"""What users write, as frozen structures; every default of the product is here and nowhere else.

Units: CPU in millicores, memory in bytes, times in seconds. The structures are what the parser of `agentos_native.spec`
produces from YAML, what the command line fills from its options, and what the supervisor is given.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

AgentType = Literal["task", "dialogue", "learning"]
DEFAULT_TYPE: Final[AgentType] = "task"
TYPE_LABEL: Final = "io.agentos.type"
"""The label by which an image says of what type its agents are, unless their spec says it."""
Priority = Literal["system", "high", "normal", "low", "idle"]
PRIORITIES: tuple[Priority, ...] = ("system", "high", "normal", "low", "idle")
"""Highest first. They order agents within their tenant; a tenant's own priority is set by an administrator."""
NetworkMode = Literal["none", "isolated", "egress"]
RestartMode = Literal["never", "on-failure", "always"]
Controller = Literal["cpu", "memory", "pids", "io"]
Policy = Literal["maxmin", "drf", "utility", "priority"]
POLICIES: tuple[Policy, ...] = ("maxmin", "drf", "utility", "priority")
"""How a node divides among its tenants, and a tenant among its agents; `agentos_native.alloc.policies` says what each
does. The first is the default."""
Resource = Literal["cpu", "memory", "io", "network"]
RESOURCES: tuple[Resource, ...] = ("cpu", "memory", "io", "network")
"""What the closed loop moves; each can be switched off (`Settings.control`)."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"):
    """Field names are snake_case here and camelCase in YAML and JSON (Kubernetes' habit)."""


class IoLimits(_Part, frozen=True, kw_only=True):
    """Bytes and operations per second for the device that holds the agent's files (``io.max``)."""

    read_bps: int | None = None
    write_bps: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None


class NetworkRates(_Part, frozen=True, kw_only=True):
    """Bits per second: `egress` is what the agent sends, `ingress` what it receives (Kubernetes' bandwidth)."""

    egress: int | None = None
    ingress: int | None = None


class Requests(_Part, frozen=True, kw_only=True):
    """Reservations: admission keeps their sum within the tenant and the machine."""

    cpu: int = 0
    memory: int = 0
    network: NetworkRates | None = None


class Limits(_Part, frozen=True, kw_only=True):
    """Ceilings; None means none of its own."""

    cpu: int | None = None
    memory: int | None = None
    pids: int | None = None
    io: IoLimits | None = None
    network: NetworkRates | None = None


class Resources(_Part, frozen=True, kw_only=True):
    requests: Requests = Requests()
    limits: Limits = Limits()
    io_weight: int | None = None


class Restart(_Part, frozen=True, kw_only=True):
    """Exponential: `backoff`, 2·`backoff`, … up to `max_backoff` seconds; reset after a run of 10 minutes.

    `max` restarts are tried (None: no end).
    """

    policy: RestartMode = "never"
    backoff: float = 1.0
    max_backoff: float = 300.0
    max: int | None = None


class Stop(_Part, frozen=True, kw_only=True):
    """`signal` None is that of the image (STOPSIGNAL), or SIGTERM."""

    signal: str | None = None
    grace: float = 10.0


class Volume(_Part, frozen=True, kw_only=True):
    """A bind of the host's `source` at `target`, nosuid and nodev.

    Ids are mapped: the agent's root is the host's owner 0 in it.
    """

    source: str
    target: str
    read_only: bool = False


class AgentSpec(_Part, frozen=True, kw_only=True):
    """One agent (or `replicas` of it, named ``<name>-0`` …).

    Seconds: `timeout` is how long it may run, `wait_timeout` how long its start may wait in the queue. `type` None: as
    the image says (`TYPE_LABEL`); in an agent that has been made, `DEFAULT_TYPE`, for its image says nothing.
    """

    name: str
    tenant: str = "default"
    image: str
    labels: dict[str, str] = {}
    type: AgentType | None = None
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    user: str | None = None
    workdir: str | None = None
    hostname: str | None = None
    replicas: int = 1
    priority: Priority = "normal"
    weight: int = 100
    resources: Resources = Resources()
    restart: Restart = Restart()
    stop: Stop = Stop()
    network: NetworkMode = "isolated"
    volumes: tuple[Volume, ...] = ()
    capabilities: tuple[str, ...] = ()
    rlimits: dict[str, int] = {}
    read_only: bool = False
    tty: bool = False
    stdin: bool = False
    timeout: float | None = None
    wait_timeout: float | None = None
    auto_remove: bool = False
    allow_unenforced: tuple[Controller, ...] = ()


class TenantLimits(_Part, frozen=True, kw_only=True):
    """`agents` run at once; `queued` wait for their start at once (None: `Settings.queue_limit`)."""

    cpu: int | None = None
    memory: int | None = None
    agents: int | None = None
    queued: int | None = None


class TenantSpec(_Part, frozen=True, kw_only=True):
    """An owner of agents. `priority` is honoured only from an administrator (uid 0).

    `policy`: how its share is divided among its agents (None: the node's).
    """

    name: str
    weight: int = 100
    priority: Priority = "normal"
    policy: Policy | None = None
    requests: Requests = Requests()
    limits: TenantLimits = TenantLimits()


Document = AgentSpec | TenantSpec
