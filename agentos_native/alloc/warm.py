"""``python -m agentos_native.alloc.warm``: compile the allocator's kernels into numba's cache on disk.

`agentos_native.cgroup.warm` does this and the kernels of the tick's file I/O as well.
"""

from __future__ import annotations

import sys

from agentos_native.alloc.engines import load_compiled


def main() -> int:
    if not load_compiled():
        print("numba is not installed: the NumPy engine stays in use", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
