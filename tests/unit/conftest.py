"""Properties: on a person's machine each run tries other examples; the gate tries the same ones every time.

A gate that fails by chance teaches people to run it again. What random examples find belongs to whoever runs them.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("gate", derandomize=True)
if os.environ.get("AGENTOS_TESTS_REQUIRED", "0") not in ("", "0"):
    settings.load_profile("gate")
