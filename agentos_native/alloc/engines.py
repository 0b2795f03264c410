"""Which engine fills: NumPy from the first call on, the compiled one after `load_compiled`.

At up to some hundred agents NumPy takes a fraction of a millisecond, while loading numba costs half a second and more
than 100 MB; so the caller decides if and when to load it (from a thread of its own: the switch is one assignment).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from agentos_native.alloc import drf as _numpy_drf
from agentos_native.alloc import waterfill as _numpy
from agentos_native.alloc.drf import Filled
from agentos_native.alloc.waterfill import Floats, Indices

Waterfill = Callable[[Floats, Floats, Floats, Indices, Floats, Floats], tuple[Floats, Floats]]
Engine = Literal["numpy", "numba"]


class Dominant(Protocol):
    """`agentos_native.alloc.drf.fill`."""

    def __call__(
        self,
        weights: Floats,
        usage: Floats,
        floors: Floats,
        ceilings: Floats,
        starts: Indices,
        capacity: Floats,
        guesses: Floats | None = None,
    ) -> Filled: ...


class _Choice:
    name: Engine = "numpy"
    waterfill: Waterfill = staticmethod(_numpy.waterfill)
    dominant: Dominant = staticmethod(_numpy_drf.fill)


def engine() -> Engine:
    """The engine in use."""
    return _Choice.name


def load_compiled() -> bool:
    """Import numba and the compiled kernels and use them from now on; False where numba is not installed."""
    try:
        compiled = importlib.import_module("agentos_native.alloc.compiled")
        compiled_drf = importlib.import_module("agentos_native.alloc.compiled_drf")
    except ImportError:
        return False
    compiled_drf.kernel(np.float64)
    _Choice.dominant = staticmethod(compiled_drf.fill)
    _Choice.waterfill, _Choice.name = staticmethod(compiled.waterfill), "numba"
    return True


def use_numpy() -> None:
    """Go back to the NumPy engine."""
    _Choice.dominant = staticmethod(_numpy_drf.fill)
    _Choice.waterfill, _Choice.name = staticmethod(_numpy.waterfill), "numpy"


def waterfill(
    weights: Floats, floors: Floats, ceilings: Floats, starts: Indices, budgets: Floats, guesses: Floats
) -> tuple[Floats, Floats]:
    """`agentos_native.alloc.waterfill.waterfill` by the engine in use."""
    return _Choice.waterfill(weights, floors, ceilings, starts, budgets, guesses)


def dominant(
    weights: Floats, usage: Floats, floors: Floats, ceilings: Floats, starts: Indices, capacity: Floats
) -> Filled:
    """`agentos_native.alloc.drf.fill` by the engine in use."""
    return _Choice.dominant(weights, usage, floors, ceilings, starts, capacity)
