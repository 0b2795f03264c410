"""The compiled engine, loaded when there are enough agents for it."""

from __future__ import annotations

import contextlib

from agentos_native import alloc
from agentos_native.cgroup import sensors
from agentos_native.kernel.mappings import drop_code


def load() -> bool:
    """Allocate, read and write by compiled code from now on; False where numba is not installed.

    Takes half a second, so it is called from a thread. The compiler itself is not needed any more then: its code is
    50 MB of memory.
    """
    if not (alloc.load_compiled() and sensors.use_compiled()):
        return False
    with contextlib.suppress(OSError):
        drop_code("llvmlite")
    return True
