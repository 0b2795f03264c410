"""Which engine fills: NumPy from the first call on, the compiled one after `load_compiled`.

At up to some hundred agents NumPy takes a fraction of a millisecond, while loading numba costs half a second and more
than 100 MB; so the caller decides if and when to load it (from a thread of its own: the switch is one assignment).
The kernels of `drf` cost as much again, so they are loaded only once `drf_fill` has been called: by `load_compiled`, or
if that was before, by a thread, since the caller may be a tick that cannot wait. Until then NumPy fills.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from agentos_native.alloc import drf as _numpy_drf
from agentos_native.alloc import waterfill as _numpy
from agentos_native.alloc.drf import Filled
from agentos_native.alloc.waterfill import Floats, Indices

Waterfill = Callable[[Floats, Floats, Floats, Indices, Floats, Floats], tuple[Floats, Floats]]
Engine = Literal["numpy", "numba"]


class DrfFill(Protocol):
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
    drf_fill: DrfFill = staticmethod(_numpy_drf.fill)
    drf_wanted = False


def engine() -> Engine:
    """The engine in use."""
    return _Choice.name


def load_compiled() -> bool:
    """Import numba and the compiled kernels and use them from now on; False where numba is not installed."""
    try:
        compiled = importlib.import_module("agentos_native.alloc.compiled")
    except ImportError:
        return False
    if _Choice.drf_wanted:
        load_compiled_drf()
    _Choice.waterfill, _Choice.name = staticmethod(compiled.waterfill), "numba"
    return True


def load_compiled_drf() -> bool:
    """Compile, or load from the cache, the kernels of `drf` too; False where numba is not installed."""
    try:
        compiled = importlib.import_module("agentos_native.alloc.compiled_drf")
    except ImportError:
        return False
    compiled.kernel(np.float64)
    _Choice.drf_fill, _Choice.drf_wanted = staticmethod(compiled.fill), True
    return True


def use_numpy() -> None:
    """Go back to the NumPy engine."""
    _Choice.waterfill, _Choice.name = staticmethod(_numpy.waterfill), "numpy"
    _Choice.drf_fill, _Choice.drf_wanted = staticmethod(_numpy_drf.fill), False


def waterfill(
    weights: Floats, floors: Floats, ceilings: Floats, starts: Indices, budgets: Floats, guesses: Floats
) -> tuple[Floats, Floats]:
    """`agentos_native.alloc.waterfill.waterfill` by the engine in use."""
    return _Choice.waterfill(weights, floors, ceilings, starts, budgets, guesses)


def drf_fill(
    weights: Floats,
    usage: Floats,
    floors: Floats,
    ceilings: Floats,
    starts: Indices,
    capacity: Floats,
    guesses: Floats | None = None,
) -> Filled:
    """`agentos_native.alloc.drf.fill` by the engine in use."""
    if _Choice.name == "numba" and not _Choice.drf_wanted:
        threading.Thread(target=load_compiled_drf, name="compile", daemon=True).start()
    _Choice.drf_wanted = True
    return _Choice.drf_fill(weights, usage, floors, ceilings, starts, capacity, guesses)
