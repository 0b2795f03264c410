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


def test_wires_go_together_and_their_slots_are_free_then(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retiring, "GRACE_SECONDS", PATIENCE)
    made = Retiring(kernel.remove)
    for slot in (1, 2, 3):
        made.add(slot)
    assert made.slots() == {1, 2, 3}
    made.close()
    assert kernel.removed == [{1, 2, 3}]
    assert made.slots() == set()


def test_a_wire_goes_by_itself_after_a_moment(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retiring, "GRACE_SECONDS", 0.01)
    made = Retiring(kernel.remove)
    made.add(7)
    assert kernel.called.wait(PATIENCE)
    assert kernel.removed == [{7}]
    made.close()


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
    monkeypatch.setattr(retiring, "RETRY_SECONDS", 0.0)
    made = Retiring(kernel.remove)
    kernel.refuse = True
    made.add(1)
    assert kernel.called.wait(PATIENCE)
    made.add(2)
    made.close()
    assert kernel.removed[0] == {1}
    assert {1, 2} <= set().union(*kernel.removed[1:])
    assert made.slots() == set()
    monkeypatch.setattr(retiring, "GRACE_SECONDS", PATIENCE)
    made = Retiring(kernel.remove)
    made.add(4)
    kernel.refuse = True
    with pytest.raises(OSError, match="refused"):
        made.finish(4)
    assert made.slots() == {4}
    made.close()


def test_a_slot_whose_wire_is_being_removed_is_waited_for_and_left_alone_afterwards(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the wire of the slot's next agent would be removed."""
    monkeypatch.setattr(retiring, "GRACE_SECONDS", 0.0)
    go_on = threading.Event()

    def slow(slots: Iterable[int]) -> None:
        kernel.remove(slots)
        assert go_on.wait(PATIENCE)

    made = Retiring(slow)
    made.add(1)
    assert kernel.called.wait(PATIENCE)
    waiting = threading.Thread(target=made.finish, args=(1,))
    waiting.start()
    assert waiting.is_alive()
    go_on.set()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert kernel.removed == [{1}]
    made.close()
    assert kernel.removed[1:] == [set()]
