"""The allocator: arrays in, arrays out.

`solve` divides the CPUs of a machine over tenants, tiers and agents (weighted max-min with floors and ceilings);
`kernel_weights` says what ``cpu.weight`` must be for the kernel to arrive there; `turn` does both, as a pure function.
`engine` tells which engine computes, `load_compiled` switches to the compiled one.
"""

from agentos_native.alloc.engines import engine, load_compiled, use_numpy
from agentos_native.alloc.hierarchy import TIERS, Problem, Solution, Warm, solve
from agentos_native.alloc.trim import Experience, Trims
from agentos_native.alloc.turn import Inputs, Outcome, turn
from agentos_native.alloc.weights import BASE, Weights, kernel_weights

__all__ = [
    "BASE",
    "TIERS",
    "Experience",
    "Inputs",
    "Outcome",
    "Problem",
    "Solution",
    "Trims",
    "Warm",
    "Weights",
    "engine",
    "kernel_weights",
    "load_compiled",
    "solve",
    "turn",
    "use_numpy",
]
