"""One turn of the allocator as a pure function: what the tick, the replay of a record and the simulation all call.

Everything that the answer depends on is in `Inputs`, down to the levels of the last turn (from which the search for
this one's starts, so they decide its last bits); the same inputs on the same engine give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from agentos_native.alloc import demand, trim
from agentos_native.alloc.hierarchy import HUNGRY, Problem, Solution, Warm, solve
from agentos_native.alloc.trim import Experience, Trims
from agentos_native.alloc.waterfill import Floats
from agentos_native.alloc.weights import Weights, kernel_weights


@dataclass(frozen=True)
class Inputs:
    """What one turn goes by.

    Attributes:
        problem: what there is and who wants it.
        warm: the levels of the last turn; not changed.
        trims: the corrections so far; None: none are kept (nothing is measured, as in a simulation).
        experience: what agents had and were due lately; None: nothing is concluded from this turn.
        cpus: of the machine.
        elapsed: seconds since the last turn.
        lately: the most that each agent wanted lately, see `demand.awake`; None: weights are told for present demand.
    """

    problem: Problem
    warm: Warm
    trims: Trims | None = None
    experience: Experience | None = None
    cpus: float = 0.0
    elapsed: float = 0.0
    lately: Floats | None = None


@dataclass(frozen=True)
class Outcome:
    """What one turn gives: shares, what the kernel is to be told, and what the next turn is to be given."""

    solution: Solution
    weights: Weights
    warm: Warm
    trims: Trims | None


def turn(inputs: Inputs) -> Outcome:
    """Divide, correct by experience, and quantise."""
    warm = Warm(inputs.warm.tenants, inputs.warm.groups)
    solution = solve(inputs.problem, warm)
    trims = inputs.trims
    if trims is not None and inputs.experience is not None:
        trims = trim.step(trims, inputs.problem, solution, inputs.experience, inputs.cpus, inputs.elapsed)
    told, by = inputs.problem, solution
    if inputs.lately is not None:
        wanted = demand.awake(told.demand, told.floor, inputs.lately)
        if np.any(wanted > told.demand + HUNGRY):
            told = replace(told, demand=wanted)
            by = solve(told, Warm(warm.tenants, warm.groups))
    return Outcome(solution, kernel_weights(told, by, trims), warm, trims)
