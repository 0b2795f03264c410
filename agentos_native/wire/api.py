"""The HTTP API's bodies as typed structures: what the supervisor sends and what the client decodes.

Field names are snake_case; only ``spec`` inside them is written as users write it (camelCase, `agentos_native.spec`).
Times are seconds since the epoch, CPU is in millicores where the name says so and in CPUs elsewhere, memory in bytes.
Streams (exec, attach) are WebSocket with the subprotocol `STREAM_PROTOCOL`: each binary message begins with its
channel.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

STREAM_PROTOCOL: Final = "v5.channel.k8s.io"
"""Kubernetes' remote command framing, version 5 (with the close channel)."""
CHANNEL_STDIN: Final = 0
CHANNEL_STDOUT: Final = 1
CHANNEL_STDERR: Final = 2
CHANNEL_STATUS: Final = 3
"""JSON `StreamStatus`; the last message of a stream."""
CHANNEL_RESIZE: Final = 4
"""JSON ``{"Width": columns, "Height": rows}``."""
CHANNEL_CLOSE: Final = 255
"""The second byte is the channel that the sender will not write to any more."""

AgentState = Literal["pending", "queued", "starting", "running", "stopping", "exited", "failed", "paused", "backoff"]
"""pending: made, not started; queued: waits for room (`QueuePlace`); failed: a start failed (no program ran); backoff:
waits for its next restart."""
LIVE_STATES: Final[frozenset[str]] = frozenset({"starting", "running", "stopping", "paused"})
"""States in which the agent holds processes, a cgroup and a network."""


Action = Literal["created", "queued", "updated", "unchanged", "deleted", "absent"]
"""What was done to one document's agent or tenant."""


class _Body(msgspec.Struct):
    pass


class ErrorBody(_Body, kw_only=True):
    """Every answer with a status of 400 or more; `error` is ``AgentosError.to_dict()``."""

    error: dict[str, Any]


class AddressesBody(_Body, kw_only=True):
    ipv4: str | None = None
    ipv6: str | None = None


class QueuePlace(_Body, kw_only=True):
    """Where a start waits: its place among the node's waiting starts and within its tenant's queue, both from 1.

    `waiting_for` says what does not fit, in words; `resource` is cpu, memory, agents or slots.
    """

    place: int
    tenant_place: int
    since: float
    resource: str
    waiting_for: str


class Agent(_Body, kw_only=True):
    """One agent. `pid` is its first process as the host numbers it, for display only.

    `unenforced` lists the controllers that the host lacks and the spec did without; `timings` says when each stage
    of the last start was done, in milliseconds since its request. `oom`: the group's figures after an out-of-memory
    kill (oom_kills, peak, current, limit; bytes).
    """

    id: str
    name: str
    tenant: str
    type: str
    image: str
    image_digest: str
    state: AgentState
    reason: str = ""
    exit_status: int | None = None
    oom_killed: bool = False
    oom: dict[str, int | None] = {}
    pid: int | None = None
    slot: int
    restarts: int = 0
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    addresses: AddressesBody = msgspec.field(default_factory=AddressesBody)
    cgroup: str = ""
    priority: str
    weight: int
    resources: dict[str, Any] = msgspec.field(default_factory=dict)
    unenforced: list[str] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)
    timings: dict[str, float] = msgspec.field(default_factory=dict)
    usage: dict[str, Any] = msgspec.field(default_factory=dict)
    spec: dict[str, Any] = msgspec.field(default_factory=dict)
    queue: QueuePlace | None = None


class AgentList(_Body, kw_only=True):
    agents: list[Agent]


class RunRequest(_Body, kw_only=True):
    """`start` false only makes it: attach first, then POST …/start, so that no output is missed.

    `wait` false: a start that does not fit is refused instead of queued.
    """

    spec: dict[str, Any]
    start: bool = True
    wait: bool = True


class StartRequest(_Body, kw_only=True):
    """`wait` as in `RunRequest`."""

    wait: bool = True


class ChangeRequest(_Body, kw_only=True):
    """PATCH of an agent or tenant: `spec` holds only what is to change, written as users write it (null: no limit).

    `dry_run`: only say who would gain and lose.
    """

    spec: dict[str, Any]
    dry_run: bool = False


class Effect(_Body, kw_only=True):
    """What a change does to one agent's entitlement of one resource, in its unit (CPUs, bytes, bits per second)."""

    tenant: str
    name: str
    agent_id: str
    resource: str
    before: float
    after: float


class ChangeResult(_Body, kw_only=True):
    """`changed`: the fields that differ, by their written path (``resources.requests.cpu``): [before, after].

    `effects` go by the demand that was measured lately; `starts`: who (TENANT/NAME) waits for a start and is let in by
    it; `warnings` say what the change may do besides.
    """

    action: Action
    changed: dict[str, list[Any]] = msgspec.field(default_factory=dict)
    effects: list[Effect] = msgspec.field(default_factory=list)
    starts: list[str] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)


class StopRequest(_Body, kw_only=True):
    grace: float | None = None
    signal: str | None = None


class RestartRequest(StopRequest, kw_only=True):
    """`wait` as in `RunRequest`; it matters when the agent does not run."""

    wait: bool = True


class KillRequest(_Body, kw_only=True):
    signal: str = "SIGKILL"


class WaitResult(_Body, kw_only=True):
    exit_status: int | None
    reason: str
    oom_killed: bool = False


class StreamStatus(_Body, kw_only=True):
    """How a stream ended: the exit status, or the error (``AgentosError.to_dict()``) that kept it from running."""

    exit_status: int | None = None
    reason: str = ""
    error: dict[str, Any] | None = None


class DocumentBody(_Body, kw_only=True):
    kind: Literal["Agent", "Tenant"]
    spec: dict[str, Any]


class ApplyRequest(_Body, kw_only=True):
    """`wait` as in `RunRequest`, for every agent among the documents."""

    documents: list[DocumentBody]
    dry_run: bool = False
    wait: bool = True


class ApplyResult(_Body, kw_only=True):
    """`queue`: where and why it waits, or would (dry run), when `action` is queued."""

    kind: str
    name: str
    tenant: str = ""
    action: Action
    id: str = ""
    queue: QueuePlace | None = None


class ApplyResponse(_Body, kw_only=True):
    """`effects`: of a dry run, who would gain and who lose."""

    results: list[ApplyResult]
    effects: list[Effect] = msgspec.field(default_factory=list)


class Tenant(_Body, kw_only=True):
    """`policy`: how its share is divided among its agents, its own or the node's."""

    name: str
    declared: bool
    weight: int
    priority: str
    policy: str = "maxmin"
    requests: dict[str, Any]
    limits: dict[str, Any]
    agents: int
    running: int
    queued: int = 0
    requested_cpu_millis: int
    requested_memory: int


class TenantList(_Body, kw_only=True):
    tenants: list[Tenant]


class Reservation(_Body, kw_only=True):
    """What is promised of one resource; `free` is what admission can still promise."""

    capacity: int
    promised: int
    free: int


class Node(_Body, kw_only=True):
    """The machine as this supervisor sees it. `cpu` in millicores, `memory` in bytes."""

    name: str
    version: str
    kernel: str
    state_dir: str
    socket: str
    block: int
    cgroup_root: str
    cgroup_layout: str
    controllers: list[str]
    cpu: Reservation
    memory: Reservation
    slots: int
    agents: int
    running: int
    queued: int = 0
    tick_period: float
    tick_engine: str = ""
    started_at: float
    first_tick: float | None = None
    """When the first allocation was done, in seconds since boot (CLOCK_BOOTTIME); None before."""
    supervisor_pid: int
    launcher_restarts: int = 0
    warnings: list[str] = msgspec.field(default_factory=list)


class AllocList(_Body, kw_only=True):
    """One row for each running agent: what the allocator sees and gives, in CPUs."""

    rows: list[dict[str, Any]]


class Version(_Body, kw_only=True):
    name: str
    version: str
    api: str = "v1"


class Event(_Body, kw_only=True):
    """`seq` increases by one; a gap means that events were dropped before they were read."""

    seq: int
    ts: float
    type: str
    agent_id: str = ""
    name: str = ""
    tenant: str = ""
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


class LogLine(_Body, kw_only=True):
    """`log` ends without its newline; `partial`: a piece of a line that was longer than the limit or still open."""

    ts: float
    stream: Literal["stdout", "stderr"]
    log: str
    partial: bool = False


class CheckFeature(_Body, kw_only=True):
    """One probed feature. `required`: nothing runs without it."""

    name: str
    group: str
    state: Literal["ok", "degraded", "missing"]
    required: bool
    detail: str = ""
    hint: str = ""


class CheckReport(_Body, kw_only=True):
    """`ok`: every required feature is there. `cgroup`: layout, root, v2 and v1-bound controllers."""

    ok: bool
    features: list[CheckFeature]
    cgroup: dict[str, Any] = msgspec.field(default_factory=dict)
    limits: dict[str, Any] = msgspec.field(default_factory=dict)
