"""What policies divide among, and what they answer: arrays of the members of many parents at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from agentos_native.alloc.waterfill import Floats, Indices, Truths, segments_of

TIERS: Final = 5
"""system, high, normal, low, idle: the index is the rank, 0 goes first."""
HUNGRY: Final = 1e-6
"""CPUs: whoever is this far below its ceiling wants more than it has."""


def sums(values: Floats, starts: Indices) -> Floats:
    """Of each segment of consecutive members; `starts` of the segments, and n."""
    result = np.zeros(len(starts) - 1)
    some = starts[1:] > starts[:-1]
    if len(values):
        result[some] = np.add.reduceat(values, starts[:-1][some])
    return result


@dataclass(frozen=True)
class Members:
    """Those among whom P parents divide, in the order of their groups (group = parent · TIERS + tier).

    Attributes:
        weight, floor, wanted: shape (n,), as `waterfill.sanitise` leaves them; wanted is min(ceiling, demand).
        starts: of the groups, and n: shape (P · TIERS + 1,).
        capacity: what each parent divides, shape (P,).
        guesses: earlier levels of the groups, or 0: shape (P · TIERS,).
        machine: CPUs of which `parts` are fractions.
        parts: what each member wants of the machine's resources, CPU first, as fractions of it, shape (n, m); None:
            nobody asks.
    """

    weight: Floats
    floor: Floats
    wanted: Floats
    starts: Indices
    capacity: Floats
    guesses: Floats
    machine: float
    parts: Floats | None = None

    @property
    def group(self) -> Indices:
        return segments_of(self.starts)

    def tiers(self, values: Floats) -> Floats:
        """Sums over the groups, shape (P, TIERS)."""
        return sums(values, self.starts).reshape(-1, TIERS)

    def of(self, chosen: Truths) -> tuple[Members, Truths]:
        """The members of the chosen parents (P,) alone, and which they are, shape (n,)."""
        sizes, groups = np.diff(self.starts), np.repeat(chosen, TIERS)
        mine: Truths = np.repeat(groups, sizes)
        part = Members(
            self.weight[mine],
            self.floor[mine],
            self.wanted[mine],
            np.append(0, np.cumsum(sizes[groups])).astype(np.int64),
            self.capacity[chosen],
            self.guesses[groups],
            self.machine,
            None if self.parts is None else self.parts[mine],
        )
        return part, mine


@dataclass(frozen=True)
class Division:
    """What a policy makes of `Members`.

    Attributes:
        share: of the members, shape (n,).
        promise: what each has before the rest is filled by weight: the floor, or more. Shape (n,).
        budget: of the groups, shape (P, TIERS).
        level: of the groups, share per unit weight of those who are held back by nothing but their weight; ∞ where
            everybody has what it wants, 0 where nothing is left beyond the floors. Shape (P · TIERS,).
    """

    share: Floats
    promise: Floats
    budget: Floats
    level: Floats

    @classmethod
    def empty(cls, members: Members) -> Division:
        count, groups = len(members.weight), len(members.starts) - 1
        return cls(np.zeros(count), np.zeros(count), np.zeros((groups // TIERS, TIERS)), np.zeros(groups))

    def put(self, part: Division, chosen: Truths, mine: Truths) -> None:
        """Take over the division of the `chosen` parents (P,), whose members are `mine` (n,)."""
        self.share[mine] = part.share
        self.promise[mine] = part.promise
        self.budget[chosen] = part.budget
        self.level[np.repeat(chosen, TIERS)] = part.level
