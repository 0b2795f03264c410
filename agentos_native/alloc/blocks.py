"""What the compiled engines have in common: how they pass over many members without dividing or branching.

A pass goes in blocks whose intermediate values fit the first-level cache. Lanes of a block are summed in the arrays'
own precision, blocks in doubles, so 32-bit arrays lose only what their own rounding loses. Nothing runs on more than
the caller's thread.

Importing this module imports numba: only the compiled engines do so.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from agentos_native.alloc.waterfill import Indices

Reals = NDArray[Any]
"""float64 or float32; all arrays of one call alike."""

_FAST: Final = {"reassoc", "contract", "nsz"}
"""Sums may be reordered, which vectorises them; NaN and ∞ keep their meaning."""
helper: Final = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For what only kernels call: without the wrappers for Python it compiles in half the time."""
vectorised: Final = njit(nogil=True, fastmath=_FAST, no_cpython_wrapper=True, no_cfunc_wrapper=True)
BLOCK: Final = 512
BRACKET: Final = 1 / 32
"""Half the width of the first bracket, relative: wider catches more drift of the level, but has more bends inside."""


@vectorised
def clip(weights: Reals, floors: Reals, ceilings: Reals, level: float, shares: Reals) -> None:
    """``shares = clip(weights · level, floors, ceilings)``; the level in the arrays' precision."""
    for i in range(len(weights)):
        x = weights[i] * level
        x = x if x > floors[i] else floors[i]
        shares[i] = x if x < ceilings[i] else ceilings[i]


@helper
def note(words: NDArray[np.int64], bent: NDArray[np.int8], base: int, inside: Indices, count: int) -> int:
    """Append to `inside` the bent members of a block, looked at by eights (`words` is `bent`, viewed as such)."""
    for word in range(len(words)):
        if words[word] != 0:
            for i in range(8 * word, 8 * word + 8):
                if bent[i]:
                    inside[count] = base + i
                    count += 1
    return count
