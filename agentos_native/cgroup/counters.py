"""What both engines of the sensors, the Python one and the compiled one, agree on."""

from __future__ import annotations

from typing import Final

OK, GONE, NO_PRESSURE = 0, 1, 2
"""Of a slot after a read: both files read; the group is gone; usage was read, but PSI is not there."""
BUFFER: Final = 4096
"""Bytes that one read of cpu.stat or cpu.pressure takes at most."""
