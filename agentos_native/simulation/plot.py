"""Shares over time as a picture, by matplotlib: SVG or PNG, by the name of the file."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np

from agentos_native.errors import AgentosError
from agentos_native.simulation.results import Tally
from agentos_native.simulation.run import Machine

MANY: Final = 9
"""Tenants (or agents) drawn each by itself; the others are drawn as one."""
POINTS: Final = 600
"""Of each line; more cannot be told apart."""


def check(path: str) -> None:
    """Raise ``no-matplotlib`` or ``usage`` before a long simulation ends without its picture."""
    if not path.lower().endswith((".svg", ".png")):
        raise AgentosError("usage", "the plot is an SVG or a PNG", path, "name the file NAME.svg or NAME.png")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise AgentosError("no-matplotlib", "plots need matplotlib", "", "pip install 'agentos-native[plot]'")


def _thinned(values: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Means over equal parts, at most POINTS."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) <= POINTS:
        return array
    edges = np.linspace(0, len(array), POINTS + 1).astype(np.int64)
    sums: np.ndarray[Any, np.dtype[np.float64]] = np.add.reduceat(array, edges[:-1])
    return sums / np.diff(edges)


def _layers(tally: Tally) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """What is stacked: tenants, or the agents where there is only one tenant and few agents."""
    lines: dict[str, list[float]] = {name: series.had for name, series in tally.tenants.items()}
    if len(lines) == 1 and 0 < len(tally.agents) <= MANY:
        index = {time: place for place, time in enumerate(tally.times)}
        lines = {}
        for place, series in tally.agents.items():
            line = lines.setdefault(tally.label(place), [0.0] * len(tally.times))
            for time, had in zip(series["time"], series["had"], strict=True):
                line[index[time]] = had
    ordered = sorted(lines, key=lambda name: -sum(lines[name]))
    layers = {name: _thinned(lines[name]) for name in ordered[:MANY]}
    if len(ordered) > MANY:
        layers[f"{len(ordered) - MANY} others"] = sum(
            (_thinned(lines[name]) for name in ordered[MANY:]), np.zeros(len(_thinned(tally.times)))
        )
    return layers


def draw(tally: Tally, machine: Machine, path: str) -> None:
    """Write the picture. Raises ``cannot-write``."""
    check(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    shares, wants, queue = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.4, 1.1))
    times = _thinned(tally.times)
    layers = _layers(tally)
    shares.stackplot(times, list(layers.values()), labels=list(layers), step=None, linewidth=0)
    shares.axhline(machine.cpus, color="black", linewidth=0.8, linestyle="--")
    shares.set_ylabel("CPUs given")
    shares.set_ylim(0, machine.cpus * 1.08)
    shares.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    everybody = np.sum([_thinned(series.wanted) for series in tally.tenants.values()], axis=0)
    wants.plot(times, everybody, linewidth=1, color="tab:blue", label="wanted by all")
    wants.plot(times, _thinned(tally.short_now), linewidth=1, color="tab:red", label="reserved, wanted, not had")
    wants.axhline(machine.cpus, color="black", linewidth=0.8, linestyle="--")
    wants.set_ylabel("CPUs")
    wants.set_ylim(bottom=0)
    wants.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    queue.plot(times, _thinned([float(count) for count in tally.running]), linewidth=1, label="agents that run")
    queue.plot(times, _thinned([float(count) for count in tally.waiting]), linewidth=1, label="agents that wait")
    queue.set_ylabel("agents")
    queue.set_ylim(bottom=0)
    queue.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    queue.set_xlabel("seconds")
    try:
        figure.savefig(path, dpi=130, metadata={"Title": "Shares over time: " + os.path.basename(path)})
    except OSError as error:
        raise AgentosError("cannot-write", error.strerror or str(error), path)
