"""The report: one HTML page without a script and without anything from elsewhere.

Names come from users, so every one goes through `svg.escape`, and the page forbids scripts and requests on top.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from agentos_native.alloc.waterfill import Floats
from agentos_native.errors import AgentosError
from agentos_native.recording.history import BUCKETS, Agent, History
from agentos_native.recording.model import Entry, Tick
from agentos_native.recording.options import Report
from agentos_native.recording.style import STYLE
from agentos_native.recording.svg import Line, Span, chart, escape, number

DRAWN: Final = 24
"""Agents that have a chart each; of more, those with the largest shortfalls."""
TENANTS: Final = 24
LISTED: Final = 2000
"""Rows of the table."""
EVENTS: Final = 200
BAD: Final = frozenset(
    ("refused", "oom-killed", "memory-squeezed", "failed", "timed-out", "foreign-change", "cgroup-gone")
)
UNITS: Final = {
    "memory": ("MiB", 2.0**20),
    "network": ("Mbit/s", 1e6),
    "io": ("% of the disk", 0.01),
}


def write(read: Callable[[], Iterable[Entry]], request: Report, remarks: Callable[[], Sequence[str]] = tuple) -> str:
    """Write the page about what `read` gives; says in a few words what is on it. `remarks` are asked for afterwards.

    Raises ``no-recording``, ``no-such-agent``, ``cannot-write``.
    """
    since = 0.0
    if request.since is not None:
        since = max((entry.wall for entry in read() if isinstance(entry, Tick)), default=0.0) - request.since
    history = History(since=since).gather(read())
    if not history.ticks:
        raise AgentosError("no-recording", "no recorded tick", request.directory, "the first is written after 10 s")
    chosen = _chosen(history, request.agents)
    text = page(history, chosen, remarks())
    try:
        if request.output == "-":
            sys.stdout.write(text)
        else:
            Path(request.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise AgentosError("cannot-write", error.strerror or str(error), request.output)
    return f"{history.ticks} ticks, {len(chosen)} agents, {history.axis.end:.0f} s"


def _chosen(history: History, wanted: Sequence[str]) -> list[Agent]:
    """The agents that are asked for, the worst first."""
    agents = list(history.agents.values())
    if wanted:
        agents = [a for a in agents if {a.member.name, a.member.label, a.member.agent_id} & set(wanted)]
        known = {word for a in agents for word in (a.member.name, a.member.label, a.member.agent_id)}
        for name in wanted:
            if name not in known:
                raise AgentosError("no-such-agent", "it is not in the recording", name, "the page without --agent")
    return sorted(agents, key=lambda agent: (-agent.worst, -agent.error, agent.member.label))


def page(history: History, agents: Sequence[Agent], remarks: Sequence[str] = ()) -> str:
    """The whole page."""
    span = Span(history.axis.begin, history.axis.end, history.axis.used)
    begin, end = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) for when in (span.begin, span.begin + span.seconds)
    )
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><title>agentos-native: shares</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f'<meta name="color-scheme" content="light dark"><style>{STYLE}</style></head><body>',
        f"<header><h1>Shares and entitlement</h1><p>{begin} to {end}, {history.ticks} ticks, {len(history.agents)}"
        f" agents. Each point is the mean of {number(history.axis.width)} s. CPU in CPUs.</p>",
        *(f'<p class="remark">{escape(remark)}</p>' for remark in remarks),
        _legend(),
        "</header><main>",
        _section("The node", _node(history, span)),
        _section("Tenants", _tenants(history, span)),
        _section(_title(agents), [_agent(history, agent, span) for agent in agents[:DRAWN]]),
        *(_section(name.capitalize(), _resource(history, name, agents, span)) for name in sorted(history.resources)),
        _table(agents),
        _events(history),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _title(agents: Sequence[Agent]) -> str:
    return "Agents" if len(agents) <= DRAWN else f"The {DRAWN} agents of {len(agents)} that were farthest behind"


def _legend() -> str:
    keys = (
        *(("used", "had (measured)"), ("entitled", "entitled to"), ("floor", "reserved"), ("limit", "limit")),
        *(("pressure", "part of the time in which it waited"), ("bad", "refused, killed, squeezed")),
        ("happened", "started, ended, queued"),
    )
    return '<ul class="legend">' + "".join(f'<li><i class="{key}"></i>{words}</li>' for key, words in keys) + "</ul>"


def _section(title: str, charts: Sequence[str]) -> str:
    if not charts:
        return ""
    return f'<section><h2>{escape(title)}</h2><div class="charts">{"".join(charts)}</div></section>'


def _figure(title: str, words: str, drawn: str) -> str:
    return f"<figure><figcaption><b>{escape(title)}</b> {escape(words)}</figcaption>{drawn}</figure>"


def _node(history: History, span: Span) -> list[str]:
    node = history.node
    used, capacity = node.mean("used", 0), node.mean("capacity", 0)
    writes, agents = node.mean("writes", 0), node.mean("agents", 0)
    milliseconds = node.mean("duration", 0) * 1e3
    marks = [
        (history.axis.of_wall(item.wall), "bad" if item.kind in BAD else "happened") for item in history.happenings
    ]
    counted = ", ".join(f"{count} {kind}" for kind, count in history.kinds.most_common(6)) or "no events"
    figures = (
        ("CPUs", f"{_mean(used)} of {_mean(capacity)} used", [_area(used), Line(capacity, "limit")], "CPUs"),
        ("Agents", f"{_mean(agents)} on average; {counted}", [Line(agents, "entitled")], "agents"),
        (
            "Weights written",
            f"{history.writes} in {history.ticks} ticks, {history.failures} refused by the kernel",
            [_area(writes)],
            "per tick",
        ),
        ("Duration of a tick", f"{_mean(milliseconds)} ms on average", [Line(milliseconds, "entitled")], "ms"),
    )
    return [
        _figure(title, words, chart(title, words, lines, span, unit, marks=marks if title == "Agents" else ()))
        for title, words, lines, unit in figures
    ]


def _mean(values: Floats) -> str:
    known = values[np.isfinite(values)]
    return number(float(known.mean())) if len(known) else "–"


def _area(values: Floats) -> Line:
    return Line(values, "used", "area")


def _tenants(history: History, span: Span) -> list[str]:
    """One chart for each tenant: the sums over its agents."""
    rows: dict[str, list[int]] = {}
    for agent in history.agents.values():
        rows.setdefault(agent.member.tenant, []).append(agent.row)
    ticks = history.node.sums["count"][0]
    there = ticks > 0
    drawn = []
    for tenant in sorted(rows, key=lambda name: (-len(rows[name]), name))[:TENANTS]:
        mine = rows[tenant]

        def mean(name: str, mine: list[int] = mine) -> Floats:
            sums: Floats = history.by_agent.sums[name][mine].sum(axis=0)
            means = np.full(BUCKETS, np.nan)
            means[there] = sums[there] / ticks[there]
            return means

        used, entitled, floor = mean("used"), mean("entitled"), mean("floor")
        count = f"{len(mine)} agent{'s' * (len(mine) != 1)}"
        words = f"{count}; had {_mean(used)}, entitled to {_mean(entitled)}, {_mean(floor)} reserved"
        lines = [_area(used), Line(entitled, "entitled"), *([Line(floor, "floor")] if np.nanmax(floor) > 0 else [])]
        drawn.append(_figure(tenant, words, chart(f"Tenant {tenant}", words, lines, span, "CPUs")))
    return drawn


def _agent(history: History, agent: Agent, span: Span) -> str:
    table, row = history.by_agent, agent.row
    limit = table.mean("limit", row)
    limit[limit == 0] = np.nan
    entitled = table.mean("entitled", row)
    if np.isfinite(limit).any() and np.nanmin(limit) > 4 * np.nanmax(entitled):
        limit[:] = np.nan  # so far above that the rest could not be seen
    lines = [_area(table.mean("used", row)), Line(entitled, "entitled")]
    if agent.floor:
        lines.append(Line(table.mean("floor", row), "floor"))
    lines.append(Line(limit, "limit"))
    words = (
        f"had {number(agent.used)}, entitled to {number(agent.entitled)}, reserved {number(agent.floor)};"
        f" worst shortfall {number(agent.worst)}; waited {agent.stalled:.0%} of the time"
    )
    marks = [
        (history.axis.of_wall(item.wall), "bad" if item.kind in BAD else "happened")
        for item in history.happenings
        if item.agent_id == agent.member.agent_id
    ]
    pressure = table.mean("stalled", row, "waited")
    drawn = chart(f"Agent {agent.member.label}", words, lines, span, "CPUs", strip=pressure, marks=marks)
    return _figure(agent.member.label, words, drawn)


def _resource(history: History, name: str, agents: Sequence[Agent], span: Span) -> list[str]:
    """Those agents that have the most of another resource."""
    table = history.resources[name]
    unit, factor = UNITS.get(name, ("", 1.0))
    totals = table.sums["measured"].sum(axis=1)
    most = sorted(agents, key=lambda agent: -float(totals[agent.row]))[: DRAWN // 2]
    drawn = []
    for agent in most:
        used = table.mean("measured", agent.row) / factor
        entitled = table.mean("entitled", agent.row, "known") / factor
        if not np.isfinite(used).any():
            continue
        words = f"had {_mean(used)} {unit}, entitled to {_mean(entitled)}"
        lines = [_area(used), Line(entitled, "entitled")]
        title = f"{agent.member.label}: {name}"
        drawn.append(_figure(agent.member.label, words, chart(title, words, lines, span, unit)))
    return drawn


_HEADERS: Final = (
    *("Agent", "Tier", "Weight", "Reserved", "Limit", "Entitled", "Had", "Worst shortfall", "Mean error", "Waited"),
    "Ticks",
)


def _table(agents: Sequence[Agent]) -> str:
    rows = []
    for agent in agents[:LISTED]:
        cells = (
            escape(agent.member.tier),
            number(agent.weight) if agent.weight else "–",
            *(number(value) for value in (agent.floor, agent.limit, agent.entitled, agent.used)),
            *(number(agent.worst), number(agent.error), f"{agent.stalled:.0%}", str(agent.ticks)),
        )
        rows.append(
            f'<tr><th scope="row">{escape(agent.member.label)}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
        )
    caption = (
        "CPUs, averaged over the ticks in which it was there. Shortfall: what it was due and did not have, over 4 s;"
        " due is what it was entitled to, or what it could use if that is less. Error: their mean distance."
    )
    return _scrolled("Every agent", _HEADERS, rows, len(agents) - len(rows), caption)


def _scrolled(
    title: str, headers: Sequence[str], rows: Sequence[str], left_out: int, caption: str = "", style: str = ""
) -> str:
    """A table that is moved sideways where the screen is narrow."""
    head = "".join(f'<th scope="col">{name}</th>' for name in headers)
    more = f"<p>{left_out} more are not listed.</p>" if left_out else ""
    return (
        f'<section><h2>{title}</h2><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f'<table class="{style}">{f"<caption>{caption}</caption>" if caption else ""}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{more}</section>"
    )


def _events(history: History) -> str:
    if not history.happenings:
        return ""
    rows = []
    for item in list(history.happenings)[-EVENTS:]:
        style = ' class="bad"' if item.kind in BAD else ""
        when = time.strftime("%H:%M:%S", time.localtime(item.wall))
        rows.append(
            f"<tr{style}><td>{when}</td><td>{escape(item.kind)}</td><td>{escape(item.label)}</td>"
            f"<td>{escape(item.detail)}</td></tr>"
        )
    left_out = sum(history.kinds.values()) - len(rows)
    return _scrolled("Events", ("Time", "Event", "Agent", "Detail"), rows, left_out, style="words")
