"""What the tick writes: ``cpu.weight`` of many groups, as rarely as possible, through files that stay open.

A changed weight costs the kernel a pass over every possible CPU under one mutex (sched_group_set_shares), so the caller
writes differences only. Files are opened at the first write to a slot: most agents never need one.
"""

from __future__ import annotations

import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agentos_native.cgroup.sensors import Integers, compiled

UNKNOWN: Final = -1
_RANGES: Final = {"cpu.weight": (1, 10_000), "cpu.idle": (0, 1)}
"""What the kernel takes. Nothing else is ever written, whatever a caller computes (a NaN becomes the number −2⁶³)."""
_COMPILED_FROM: Final = 16
"""Fewer writes than this are not worth leaving Python for."""


class WeightFiles:
    """Slots of ``cpu.weight`` files.

    Attributes:
        written: what each file holds as far as is known (UNKNOWN: ask the kernel), one entry per slot.
    """

    def __init__(self, capacity: int = 64, file: str = "cpu.weight") -> None:
        self.file = file
        self._lowest, self._highest = _RANGES[file]
        self.written: Integers = np.full(capacity, UNKNOWN, dtype=np.int64)
        self._fds: Integers = np.full(capacity, -1, dtype=np.int64)
        self._paths: dict[int, str] = {}

    def grow(self, capacity: int) -> None:
        more = capacity - len(self.written)
        self.written = np.append(self.written, np.full(more, UNKNOWN, dtype=np.int64))
        self._fds = np.append(self._fds, np.full(more, -1, dtype=np.int64))

    def open(self, slot: int, path: str) -> None:
        """Take the group at `path` into `slot` and see what its file holds."""
        self.close(slot)
        self._paths[slot] = path
        self.refresh(slot)

    def close(self, slot: int) -> None:
        if self._fds[slot] >= 0:
            os.close(int(self._fds[slot]))
        self._fds[slot] = -1
        self._paths.pop(slot, None)
        self.written[slot] = UNKNOWN

    def close_all(self) -> None:
        for slot in list(self._paths):
            self.close(slot)

    def refresh(self, slot: int) -> None:
        """Read the file: somebody else may have written it."""
        self.written[slot] = UNKNOWN
        try:
            if self._fds[slot] >= 0:
                text = os.pread(int(self._fds[slot]), 64, 0)
            else:
                fd = os.open(f"{self._paths[slot]}/{self.file}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    text = os.read(fd, 64)
                finally:
                    os.close(fd)
            self.written[slot] = int(text)
        except (OSError, ValueError):
            return

    def write(self, slots: Integers, values: Integers) -> NDArray[np.bool_]:
        """Write `values`; true where the kernel took it (a group may have gone meanwhile, or the value be none)."""
        for slot in slots[self._fds[slots] < 0].tolist():
            self._fds[slot] = self._open(slot)
        fds = np.where((values >= self._lowest) & (values <= self._highest), self._fds[slots], -1)
        done = np.zeros(len(slots), dtype=np.bool_)
        engine = compiled()
        if engine is not None and len(slots) >= _COMPILED_FROM:
            engine.write_numbers(fds, values.astype(np.int64), done)
        else:
            for index, (fd, value) in enumerate(zip(fds.tolist(), values.tolist(), strict=True)):
                done[index] = fd >= 0 and self._write_one(fd, value)
        self.written[slots] = np.where(done, values, UNKNOWN)
        return done

    def _open(self, slot: int) -> int:
        try:
            return os.open(f"{self._paths[slot]}/{self.file}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (KeyError, OSError):
            return -1

    @staticmethod
    def _write_one(fd: int, value: int) -> bool:
        text = str(value).encode()
        try:
            return os.pwrite(fd, text, 0) == len(text)
        except OSError:
            return False
