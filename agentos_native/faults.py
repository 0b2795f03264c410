"""Named points at which tests kill or fail this very process, to prove that the next start cleans up.

``AGENTOS_FAULT=name`` ends the process by SIGKILL the first time it passes the point; ``AGENTOS_FAULT=name:error``
raises `InjectedFault` there instead. Without the variable a point costs one comparison. `POINTS` is the inventory that
the crash tests walk through; a point that is not listed is an error, so that no stage escapes the tests.
"""

from __future__ import annotations

import os
import signal
from typing import Final

POINTS: Final[dict[str, str]] = {
    # name -> the process that passes it
    "admit.recorded": "supervisor",
    "userns.made": "supervisor",
    "rootfs.prepared": "supervisor",
    "rootfs.mounted": "supervisor",
    "cgroup.made": "supervisor",
    "network.made": "supervisor",
    "logs.opened": "supervisor",
    "launch.sent": "supervisor",
    "launch.cloned": "supervisor",
    "launch.running": "supervisor",
    "launch.kept": "supervisor",
    "stop.signalled": "supervisor",
    "release.network": "supervisor",
    "release.cgroup": "supervisor",
    "release.rootfs": "supervisor",
    "launcher.received": "launcher",
    "launcher.cloned": "launcher",
    "launcher.executed": "launcher",
    "launcher.exit-kept": "launcher",
}
"""Every fault point, in the order in which a start and a stop pass them."""

STORE_POINTS: Final[tuple[str, ...]] = (
    "store.lease-made",
    "store.staged",
    "store.layer-added",
    "store.layer-replaced",
    "store.key-written",
    "store.manifest-written",
    "store.name-written",
    "store.manifest-settled",
    "store.lease-ended",
    "store.name-removed",
    "store.manifest-gone",
    "store.names-removed",
    "store.key-removed",
    "store.layer-aside",
)
"""The same of the image store, in whatever process changes it."""
_armed: str = os.environ.get("AGENTOS_FAULT", "")


class InjectedFault(RuntimeError):
    """Raised at an armed ``name:error`` point."""


def point(name: str) -> None:
    """Pass the point `name`; dies or raises when it is the armed one."""
    if not _armed:
        return
    if name not in POINTS and name not in STORE_POINTS:
        raise KeyError(f"fault point {name!r} is in no inventory of `faults`")
    armed_name, _, action = _armed.partition(":")
    if armed_name != name:
        return
    if action == "error":
        raise InjectedFault(name)
    os.kill(os.getpid(), signal.SIGKILL)
