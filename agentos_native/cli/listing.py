"""``ps``, ``inspect`` and ``tenant``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agentos_native.cli.context import AGENT, TENANT, client_of, output_option
from agentos_native.cli.output import age, cpu_millis, print_json, sections, size, table, to_plain
from agentos_native.cli.queued import note

if TYPE_CHECKING:
    from agentos_native.wire import api


@click.command()
@click.option("-a", "--all", "ended", is_flag=True, help="Also agents that have ended.")
@click.option("--tenant", type=TENANT, metavar="NAME", help="Only this tenant's.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@output_option
def ps(ended: bool, tenant: str | None, quiet: bool, output: str) -> None:
    """List agents. CPU and MEMORY are what is reserved and the limit: 500m/1."""
    agents = client_of().agents(tenant=tenant, ended=ended)
    if quiet:
        print("\n".join(agent.id for agent in agents) or "", end="\n" if agents else "")
    elif output == "json":
        print_json(agents)
    else:
        headers: tuple[str, ...] = (
            "ID",
            "TENANT",
            "NAME",
            "TYPE",
            "IMAGE",
            "STATE",
            "TIER",
            "WEIGHT",
            "CPU",
            "MEMORY",
            "AGE",
            "RESTARTS",
        )
        rows = [_row(agent) for agent in agents]
        if any(agent.queue for agent in agents):
            headers = (*headers, "WAITS AT")
            rows = [(*row, note(agent) or "-") for row, agent in zip(rows, agents, strict=True)]
        table(headers, rows, right=("WEIGHT", "AGE", "RESTARTS"))


def _row(agent: api.Agent) -> tuple[str, ...]:
    state = agent.state
    if state in ("exited", "failed") and agent.exit_status is not None:
        state += f" ({agent.exit_status}{', oom' if agent.oom_killed else ''})"  # type: ignore[assignment]
    return (
        *(agent.id, agent.tenant, agent.name, agent.type, agent.image, state, agent.priority, str(agent.weight)),
        _bounds(agent.resources, "cpu"),
        _bounds(agent.resources, "memory"),
        age(agent.started_at or agent.created_at),
        str(agent.restarts),
    )


def _bounds(resources: dict[str, dict[str, int | str]], resource: str) -> str:
    """Request and limit of one resource: ``200m/1``."""
    shown = []
    for side in ("requests", "limits"):
        value = (resources.get(side) or {}).get(resource)
        shown.append(cpu_millis(value) if resource == "cpu" or isinstance(value, str) else size(value or None))
    return "/".join(shown) if shown != ["-", "-"] else "-"


@click.command()
@click.argument("names", nargs=-1, required=True, type=AGENT, metavar="NAME...")
@output_option
def inspect(names: tuple[str, ...], output: str) -> None:
    """Everything about agents: spec, state, addresses, cgroup, stages of the start, what is not enforced."""
    client = client_of()
    agents = [to_plain(client.agent(name)) for name in names]
    if output == "json":
        print_json(agents[0] if len(agents) == 1 else agents)
        return
    for number, agent in enumerate(agents):
        if number:
            print()
        sections(agent)


@click.group()
def tenant() -> None:
    """Owners of agents."""


@tenant.command("ls")
@output_option
def tenant_ls(output: str) -> None:
    """List tenants."""
    tenants = client_of().tenants()
    if output == "json":
        print_json(tenants)
        return
    counted = ("AGENTS", "RUNNING", "QUEUED")
    headers = ("NAME", "WEIGHT", "TIER", "CPU", "MEMORY", "PROMISED CPU", "PROMISED MEMORY", *counted)
    rows = []
    for row in tenants:
        bounds = {"requests": row.requests, "limits": row.limits}
        promised = (cpu_millis(row.requested_cpu_millis), size(row.requested_memory or None))
        counts = (str(row.agents), str(row.running), str(row.queued))
        rows.append(
            (
                row.name,
                str(row.weight),
                row.priority,
                _bounds(bounds, "cpu"),
                _bounds(bounds, "memory"),
                *promised,
                *counts,
            )
        )
    table(headers, rows, right=("WEIGHT", *counted))


@tenant.command("inspect")
@click.argument("name", type=TENANT)
@output_option
def tenant_inspect(name: str, output: str) -> None:
    """Everything about one tenant."""
    found = client_of().tenant(name)
    print_json(found) if output == "json" else sections(to_plain(found))
