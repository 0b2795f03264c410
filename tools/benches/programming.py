"""The first linear programme of the sequence by which a general solver finds a max-min allocation, by HiGHS.

Maximise the level t subject to ``Σ_i usage_ij · s_i ≤ capacity_j``, ``s_i ≥ w_i · t`` and floor ≤ s ≤ ceiling. It stops
at the first agent that cannot rise further; a solver of the whole problem would fix that one and go on with the next
programme, up to n times. The engines, which give the whole answer, are held against this first step alone.
"""

from __future__ import annotations

import time
from typing import Any

import highspy
import numpy as np
from numpy.typing import NDArray

from tools.benches.place import BenchError

Reals = NDArray[Any]


def first_programme(weights: Reals, usage: Reals, floors: Reals, ceilings: Reals, capacity: Reals) -> float:
    """Seconds that HiGHS takes to solve it, on one thread, without building it. Raises BenchError if it fails."""
    n, m = usage.shape
    solver = highspy.Highs()
    solver.silent()
    solver.setOptionValue("threads", 1)
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = n + 1, n + m
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_ = np.append(np.zeros(n), 1.0)
    model.col_lower_ = np.append(floors, 0.0).astype(float)
    model.col_upper_ = np.append(ceilings, np.inf).astype(float)
    model.row_lower_ = np.append(np.zeros(n), np.full(m, -np.inf))
    model.row_upper_ = np.append(np.full(n, np.inf), capacity).astype(float)
    # By columns: each agent's has its own row and the resources', the level's has every agent's row.
    rows = np.column_stack([np.arange(n), np.tile(np.arange(n, n + m), (n, 1))])
    values = np.column_stack([np.ones(n), usage])
    matrix = model.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kColwise
    matrix.start_ = np.append(np.arange(0, (n + 1) * (m + 1), m + 1), n * (m + 2)).astype(np.int32)
    matrix.index_ = np.append(rows.ravel(), np.arange(n)).astype(np.int32)
    matrix.value_ = np.append(values.ravel(), -weights).astype(float)
    solver.passModel(model)
    begun = time.perf_counter()
    solver.run()
    taken = time.perf_counter() - begun
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise BenchError(f"HiGHS: {solver.modelStatusToString(solver.getModelStatus())}")
    return taken
