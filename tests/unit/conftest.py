"""Properties: on a person's machine each run tries other examples; the gate tries the same ones every time.

A gate that fails by chance teaches people to run it again. What random examples find belongs to whoever runs them. No
example has a deadline: on a busy machine any takes a second, and what is slow is for tools/bench to say.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("here", deadline=None)
settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile("here" if os.environ.get("AGENTOS_TESTS_REQUIRED", "0") in ("", "0") else "gate")
