"""What one field alone cannot tell: a request within its limit, names that stay names with a replica's number, sums."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, Document, TenantSpec
from agentos_native.spec.quantities import format_cpu, format_memory, format_rate
from agentos_native.spec.tree import Node, Place, clip, fail

MAX_PROGRAM: Final = 64 * 1024
"""Bytes of command, arguments and environment together: they travel to the launcher in one packet."""


def check_agent(spec: AgentSpec, fields: dict[str, Node], place: Place) -> AgentSpec:
    """`spec` itself when its fields agree with each other; `fields` are the nodes that it was built from."""
    request, limit = spec.resources.requests, spec.resources.limits
    cpu, memory = (_at(fields, "resources", place, "requests", resource) for resource in ("cpu", "memory"))
    _within("cpu", request.cpu, limit.cpu, format_cpu(request.cpu), cpu)
    _within("memory", request.memory, limit.memory, format_memory(request.memory), memory)
    _check_rates(spec, fields, place)
    longest = len(f"{spec.name}-{spec.replicas - 1}")
    if spec.replicas > 1 and longest > 63:
        what = f"name {clip(spec.name, 24)} is too long for {spec.replicas} replicas"
        raise fail(
            "invalid-name", what, _at(fields, "name", place), f"at most {63 - longest + len(spec.name)} characters"
        )
    size = sum(len(text.encode()) + 9 for text in (*spec.command, *spec.args, *spec.env, *spec.env.values()))
    if size > MAX_PROGRAM:
        raise fail(
            "too-large",
            f"command and environment have {size} bytes",
            _at(fields, "command", place),
            f"at most {MAX_PROGRAM}",
        )
    if spec.command and not spec.command[0]:
        raise fail("invalid-value", "the command's name is empty", _at(fields, "command", place))
    targets: set[str] = set()
    for volume in spec.volumes:
        if volume.target in targets:
            raise fail("duplicate-field", f"two volumes at {volume.target}", _at(fields, "volumes", place))
        targets.add(volume.target)
    if spec.restart.policy != "never" and spec.auto_remove:
        raise fail(
            "invalid-value",
            "an agent that is restarted cannot be removed when it ends",
            _at(fields, "autoRemove", place),
        )
    return spec


def check_tenant(spec: TenantSpec, fields: dict[str, Node], place: Place) -> TenantSpec:
    """`spec` itself when its requests are within its limits."""
    cpu, memory = (_at(fields, "requests", place, resource) for resource in ("cpu", "memory"))
    _within("cpu", spec.requests.cpu, spec.limits.cpu, format_cpu(spec.requests.cpu), cpu)
    _within("memory", spec.requests.memory, spec.limits.memory, format_memory(spec.requests.memory), memory)
    return spec


def check_distinct(documents: Iterable[tuple[Document, Place]]) -> None:
    """Raises ``duplicate-document`` when two documents describe the same agent or tenant."""
    seen: dict[tuple[str, ...], Place] = {}
    for document, place in documents:
        owner = (document.tenant,) if isinstance(document, AgentSpec) else ()
        key = ("agent" if owner else "tenant", *owner, document.name)
        if key in seen:
            what = f"{key[0]} {'/'.join(key[1:])} described twice (first in line {seen[key].line})"
            raise fail("duplicate-document", what, place)
        seen[key] = place


def _at(fields: dict[str, Node], name: str, place: Place, *below: str) -> Place:
    """Where the field, or what is `below` it, is written, or would be."""
    return fields[name].at(*below) if name in fields else place.child(".".join((name, *below)))


def _check_rates(spec: AgentSpec, fields: dict[str, Node], place: Place) -> None:
    """What is reserved of the network is within the limits, and reserved for somebody who can use it."""
    request, limit = spec.resources.requests.network, spec.resources.limits.network
    if request is not None and spec.network != "egress":
        direction = "ingress" if request.egress is None else "egress"
        raise fail(
            "invalid-value",
            f"a network request with network mode {spec.network}",
            _at(fields, "resources", place, "requests", "network", direction),
            "only agents with network: egress reach the uplink that is reserved",
        )
    if limit is not None and spec.network == "none":
        direction = "ingress" if limit.egress is None else "egress"
        where = _at(fields, "resources", place, "limits", "network", direction)
        raise fail("invalid-value", "a network limit without a network", where, "leave it out")
    for direction in ("egress", "ingress") if request and limit else ():
        asked, most = getattr(request, direction), getattr(limit, direction)
        if asked is not None and most is not None and asked > most:
            raise AgentosError(
                "request-above-limit",
                f"{direction} request {format_rate(asked)} is above its limit {format_rate(most)}",
                str(_at(fields, "resources", place, "requests", "network", direction)),
                "lower the request or raise the limit",
                details={"resource": f"network.{direction}", "request": asked, "limit": most},
            )


def _within(resource: str, request: int, limit: int | None, shown: str, place: Place) -> None:
    if limit is not None and request > limit:
        limit_shown = format_cpu(limit) if resource == "cpu" else format_memory(limit)
        raise AgentosError(
            "request-above-limit",
            f"{resource} request {shown} is above its limit {limit_shown}",
            str(place),
            "lower the request or raise the limit",
            details={"resource": resource, "request": request, "limit": limit},
        )
