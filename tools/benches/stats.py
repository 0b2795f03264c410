"""Order statistics: what a benchmark may say about a few noisy samples, and when it must say nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of `values` do not exceed. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle value; of an even number the mean of the middle two."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Bounds that hold the true median with at least `confidence`, whatever the distribution; None: too few values.

    The k-th smallest and k-th largest value enclose the median unless fewer than k samples fell on one side of it,
    which is binomial with p = 1/2 (the sign test's interval).
    """
    ordered = sorted(values)
    n = len(ordered)
    best: int | None = None
    for k in range(1, n // 2 + 1):
        missed = 2 * sum(math.comb(n, i) for i in range(k)) / 2**n
        if 1 - missed < confidence:
            break
        best = k
    return None if best is None else (ordered[best - 1], ordered[n - best])
