"""``python -m agentos_native.cgroup.warm``: compile every kernel of the tick into numba's cache on disk.

For image builds: the first tick of the product then loads machine code instead of compiling for seconds.
"""

from __future__ import annotations

import sys
import time

from agentos_native import alloc
from agentos_native.alloc import engines
from agentos_native.cgroup import sensors


def main() -> int:
    began = time.perf_counter()
    if not (alloc.load_compiled() and engines.load_compiled_drf() and sensors.use_compiled()):
        print("numba is not installed: the NumPy engine stays in use", file=sys.stderr)
        return 1
    print(f"compiled kernels ready in {time.perf_counter() - began:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
