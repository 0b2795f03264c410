"""Wires on their way out: removed together, by whoever comes first, and never forgotten."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest

from agentos_native.network import retiring
from agentos_native.network.retiring import Retiring

PATIENCE = 30.0


class Kernel:
    """Records what it is asked to remove; `refuse` once lets it refuse."""

    def __init__(self) -> None:
        self.removed: list[set[int]] = []
        self.called = threading.Event()
        self.refuse = False

    def remove(self, slots: Iterable[int]) -> None:
        self.removed.append(set(slots))
        self.called.set()
        if self.refuse:
            self.refuse = False
            raise OSError(5, "refused")


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_without_wires_there_is_no_thread_and_nothing_is_removed(kernel: Kernel) -> None:
    before = threading.active_count()
    made = Retiring(kernel.remove)
    made.finish(3)
    made.close()
    assert threading.active_count() == before
    assert kernel.removed == []


def test_wires_go_together_after_a_moment_and_their_slots_are_free_then(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Retiring(kernel.remove)
    monkeypatch.setattr(retiring, "GRACE_SECONDS", 1.0)
    for slot in (1, 2, 3):
        made.add(slot)
    assert made.slots() == {1, 2, 3}
    assert kernel.called.wait(PATIENCE)
    made.close()
    assert kernel.removed[0] == {1, 2, 3}
    assert made.slots() == set()


def test_who_needs_a_slot_does_not_wait_for_the_moment(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retiring, "GRACE_SECONDS", PATIENCE)
    made = Retiring(kernel.remove)
    made.add(1)
    made.add(2)
    made.finish(1)
    assert kernel.removed == [{1}]
    assert made.slots() == {2}
    made.close()
    assert kernel.removed == [{1}, {2}]


def test_a_refusal_is_told_to_who_waits_and_ends_no_thread(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retiring, "GRACE_SECONDS", 0.0)
    made = Retiring(kernel.remove)
    kernel.refuse = True
    made.add(1)
    assert kernel.called.wait(PATIENCE)
    kernel.called.clear()
    made.add(2)
    assert kernel.called.wait(PATIENCE)
    made.close()
    monkeypatch.setattr(retiring, "GRACE_SECONDS", PATIENCE)
    made = Retiring(kernel.remove)
    made.add(4)
    kernel.refuse = True
    with pytest.raises(OSError, match="refused"):
        made.finish(4)
    assert made.slots() == {4}
    made.close()
