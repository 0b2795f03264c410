"""A fluid model of siblings on several CPUs, as the kernel keeps them: a group's weight is spread over the CPUs that
its threads are on, and on each CPU whoever is there divides it. Nothing moves from CPU to CPU.

`tests.kernelmodel` has one pool for all CPUs; here a thread has no more than the CPU that it is on, and competes there
only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Sibling:
    """A group: on each CPU so many threads, each of which would compute for the part `duty` of the time."""

    threads: tuple[int, ...]
    duty: float = 1.0
    used: float = 0.0

    @property
    def wanted(self) -> float:
        """CPUs."""
        return sum(self.threads) * self.duty


def run(siblings: list[Sibling], weights: list[float], lanes: list[float]) -> None:
    """What each uses by these weights; `lanes`: what the machine's own work leaves of each CPU."""
    for sibling in siblings:
        sibling.used = 0.0
    for cpu, lane in enumerate(lanes):
        here = [(s, w * s.threads[cpu] / sum(s.threads)) for s, w in zip(siblings, weights, strict=True)]
        here = [(s, w) for s, w in here if w > 0]
        left, weight = lane, sum(w for _, w in here)
        for sibling, own in sorted(here, key=lambda pair: most(pair[0], cpu, lane) / pair[1]):
            given = min(most(sibling, cpu, lane), left * own / weight)
            if sibling.duty < 1.0:
                given = duty_cycle(sibling, cpu, lane, own, weight, given)
            sibling.used += given
            left, weight = left - given, weight - own


def most(sibling: Sibling, cpu: int, lane: float) -> float:
    """What its threads on this CPU use if nobody else is there."""
    return min(sibling.threads[cpu] * sibling.duty, lane)


def duty_cycle(sibling: Sibling, cpu: int, lane: float, own: float, weight: float, given: float) -> float:
    """One thread that sleeps in between and computes at its share of the CPU by odds, against whoever never sleeps."""
    speed = lane * own / weight
    return min(given, sibling.duty / (sibling.duty / speed + 1.0 - sibling.duty)) if speed > 0 else given
