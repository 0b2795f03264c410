"""The policies: against linear programmes, simple code of their own, and the model of the kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.alloc import kernel_weights, solve
from agentos_native.alloc.policies import DRF, MAXMIN, PRIORITY, UTILITY
from tests.treeproblems import by_the_kernel, problems

ALL = (MAXMIN, DRF, UTILITY, PRIORITY)


@pytest.mark.parametrize("kinds", [*((policy,) for policy in ALL), ALL], ids=str)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_kernel_arrives_at_the_shares_by_the_weights(kinds: tuple[int, ...], data: st.DataObject) -> None:
    """Within 1 % of the machine for everybody; a reservation that the policy keeps is not short by more than 3 %."""
    one = data.draw(problems(kinds))
    solution = solve(one)
    got = np.array(by_the_kernel(one, kernel_weights(one, solution)))
    assert np.abs(got - solution.share).max() <= 0.01 * one.capacity
    due = np.minimum(one.floor, solution.wanted)
    kept = solution.share >= due - 1e-9
    assert np.all(got[kept] >= 0.97 * due[kept] - 1e-3)
