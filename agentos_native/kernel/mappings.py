"""Memory that this process maps and will hardly need again."""

from __future__ import annotations

import ctypes
import os
from typing import Final

MADV_DONTNEED: Final = 4
_madvise: Final = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def drop_code(library: str) -> int:
    """Unmap the code pages of shared libraries whose file's name contains `library`, until they are called again.

    Code is a private mapping of a file that nobody writes to (``r-xp``), so a page that is needed again is read from
    the file, or from the page cache, as it was at first (madvise(2), MADV_DONTNEED). Data are left alone: they have
    been relocated.

    Returns the bytes of the mappings. Raises OSError where the kernel refuses.
    """
    total = 0
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        lines = [line.split(maxsplit=5) for line in maps]
    for span, mode, *_, path in (line for line in lines if len(line) == 6):
        if mode == "r-xp" and library in os.path.basename(path):
            begin, end = (int(part, 16) for part in span.split("-"))
            if _madvise(begin, end - begin, MADV_DONTNEED):
                raise OSError(ctypes.get_errno(), "madvise", path)
            total += end - begin
    return total
