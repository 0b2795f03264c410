"""Policies on a real scheduler: each agent gets what its tenant's policy gives it, within 2 % of the machine."""

from __future__ import annotations

from tests.vm.loads import Load
from tests.vm.test_tick_shares import assert_shares


def test_tenants_of_one_node_divide_by_policies_of_their_own() -> None:
    with Load("mixed") as load:
        load.ticker.set_tenant("models", 100, "normal", 0, None, "utility")
        load.ticker.set_tenant("home", 100, "normal", 0, None)
        load.agent("best", "models", weight=200)
        load.agent("other", "models", weight=100)
        load.agent("two", "home", weight=200)
        load.agent("one", "home", weight=100)
        assert_shares(load, lambda c: {"best": c / 2, "other": 0.0, "two": c / 3, "one": c / 6})
