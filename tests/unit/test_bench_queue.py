"""The queue's benchmark measures what it says."""

from __future__ import annotations

from tools.benches.queue import Node


def test_the_node_stays_full_and_as_many_wait_as_are_served() -> None:
    node = Node(200, 10)
    waiting = len(node._queue)
    assert waiting > 100
    served = sum(node.decide() for _ in range(50))
    assert served > 10
    assert len(node._queue) == waiting + 50 - served
    assert node._room.promised <= node._room.capacity
