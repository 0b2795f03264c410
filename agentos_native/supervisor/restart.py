"""The restart policy as a pure function of how the agent ended."""

from __future__ import annotations

from typing import Final

from agentos_native.spec.model import Restart

RESET_AFTER: Final = 600.0
"""Seconds; after a run as long as this the back-off begins anew (Kubernetes uses the same ten minutes)."""


def failures_after(failures: int, ran_for: float) -> int:
    """The number of restarts that count for the back-off, given how long (seconds) the run that just ended took."""
    return 0 if ran_for >= RESET_AFTER else failures


def delay(policy: Restart, restarts: int, exit_status: int | None) -> float | None:
    """Seconds until the next start, or None when the agent stays ended.

    Args:
        policy: from the spec.
        restarts: restarts so far that count (`failures_after`).
        exit_status: None when nobody saw the end; that is treated as a failure.
    """
    if policy.policy == "never":
        return None
    if policy.policy == "on-failure" and exit_status == 0:
        return None
    if policy.max is not None and restarts >= policy.max:
        return None
    # The exponent is bounded before the power is taken: an agent that has crashed for days must not make a huge
    # integer.
    return float(min(policy.backoff * 2.0 ** min(restarts, 64), policy.max_backoff))
