"""Which engine fills: NumPy from the first call on, the compiled one after `load_compiled`.

At up to some hundred agents NumPy takes a fraction of a millisecond, while loading numba costs half a second and more
than 100 MB; so the caller decides if and when to load it (from a thread of its own: the switch is one assignment).
The kernels of `drf` cost as much again, so they are loaded only once `drf_fill` has been called: by `load_compiled`, or
if that was before, by a thread, since the caller may be a tick that cannot wait. Until then NumPy fills, and the engine
is called ``mixed``: its last bits are others than those of both.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import numpy as np

from agentos_native.alloc import drf as _numpy_drf
from agentos_native.alloc import waterfill as _numpy
from agentos_native.alloc.drf import Filled
from agentos_native.alloc.waterfill import Floats, Indices

Waterfill = Callable[[Floats, Floats, Floats, Indices, Floats, Floats], tuple[Floats, Floats]]
Engine = Literal["numpy", "numba", "mixed"]


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


class _Fillers(NamedTuple):
    """What fills; replaced as a whole, so that no turn meets a pair that has no name."""

    waterfill: Waterfill = _numpy.waterfill
    drf_fill: DrfFill = _numpy_drf.fill


class _Choice:
    now = _Fillers()
    drf_wanted = False
    drf_by_numpy = False  # for a replay, and for good
    loader: threading.Thread | None = None
    lock = threading.Lock()


def engine() -> Engine:
    """The engine in use."""
    waterfills, drf = _Choice.now.waterfill is not _numpy.waterfill, _Choice.now.drf_fill is not _numpy_drf.fill
    if waterfills:
        return "numba" if drf or not _Choice.drf_wanted else "mixed"
    return "mixed" if drf else "numpy"


def load_compiled() -> bool:
    """Import numba and the compiled kernels and use them from now on; False where numba is not installed."""
    try:
        compiled = importlib.import_module("agentos_native.alloc.compiled")
    except ImportError:
        return False
    drf_fill = _compiled_drf() if _Choice.drf_wanted else None
    with _Choice.lock:
        _Choice.now = _Fillers(compiled.waterfill, drf_fill or _Choice.now.drf_fill)
    return True


def load_compiled_drf() -> bool:
    """Compile, or load from the cache, the kernels of `drf` too; False where numba is not installed."""
    fill = _compiled_drf()
    if fill is None:
        return False
    with _Choice.lock:
        _Choice.now = _Fillers(_Choice.now.waterfill, fill)
    return True


def _compiled_drf() -> DrfFill | None:
    try:
        compiled = importlib.import_module("agentos_native.alloc.compiled_drf")
    except ImportError:
        return None
    compiled.kernel(np.float64)
    fill: DrfFill = compiled.fill
    return fill


def use_numpy() -> None:
    """Go back to the NumPy engine."""
    loader, _Choice.loader = _Choice.loader, None
    if loader is not None:
        loader.join()
    _Choice.now, _Choice.drf_wanted, _Choice.drf_by_numpy = _Fillers(), False, False


def use(name: str) -> bool:
    """Compute by this engine from now on, as whoever recorded its name did; False where it cannot be had."""
    use_numpy()
    if name == "numpy":
        return True
    if name == "mixed":
        loaded = load_compiled()
        _Choice.drf_wanted = _Choice.drf_by_numpy = True
        return loaded
    return name == "numba" and load_compiled() and load_compiled_drf()


def waterfill(
    weights: Floats, floors: Floats, ceilings: Floats, starts: Indices, budgets: Floats, guesses: Floats
) -> tuple[Floats, Floats]:
    """`agentos_native.alloc.waterfill.waterfill` by the engine in use."""
    return _Choice.now.waterfill(weights, floors, ceilings, starts, budgets, guesses)


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
    _Choice.drf_wanted = True
    fillers = _Choice.now
    incomplete = engine() == "mixed" and fillers.drf_fill is _numpy_drf.fill
    if incomplete and _Choice.loader is None and not _Choice.drf_by_numpy:
        _Choice.loader = threading.Thread(target=load_compiled_drf, name="compile", daemon=True)
        _Choice.loader.start()
    return fillers.drf_fill(weights, usage, floors, ceilings, starts, capacity, guesses)
