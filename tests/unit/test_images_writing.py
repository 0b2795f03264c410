"""What is written out while files are made, and what is known of it in the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.unpack import writing
from agentos_native.images.unpack.writing import Writing

MIB = 1 << 20


class Disk:
    """A syncfs that takes as long as the test wants; its answers in order, None for success."""

    def __init__(self, *answers: OSError | None) -> None:
        self.answers = list(answers)
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.calls = 0

    def __call__(self, name: str, tree: int) -> int:
        self.calls += 1
        answer = self.answers.pop(0) if self.answers else None
        self.begun.release()
        self.go_on.acquire()
        if answer is not None:
            raise answer
        return 0


@pytest.fixture
def disk_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Disk]:
    def make(*answers: OSError | None) -> Disk:
        disk = Disk(*answers)
        monkeypatch.setattr(writing, "libc_call", disk)
        return disk

    return make


def test_it_begins_when_there_is_enough_and_never_twice_at_once(disk_of: Callable[..., Disk]) -> None:
    disk = disk_of()
    under_way = Writing(5)
    under_way.more(15 * MIB)
    assert disk.calls == 0
    under_way.more(MIB)
    disk.begun.acquire()
    under_way.more(100 * MIB)
    assert disk.calls == 1
    disk.go_on.release()
    under_way.wait()
    under_way.more(0)  # what was made meanwhile was enough
    disk.begun.acquire()
    assert disk.calls == 2
    disk.go_on.release()
    under_way.wait()


def test_the_last_time_waits_for_no_other(disk_of: Callable[..., Disk]) -> None:
    disk = disk_of()
    under_way = Writing(5)
    under_way.more(16 * MIB)
    under_way.all()
    disk.begun.acquire()
    disk.begun.acquire()
    disk.go_on.release(2)
    under_way.wait()
    assert disk.calls == 2


def test_a_failure_of_any_time_is_one_of_the_import(disk_of: Callable[..., Disk]) -> None:
    disk = disk_of(OSError(5, os.strerror(5)), None)
    under_way = Writing(5)
    under_way.more(16 * MIB)
    disk.begun.acquire()
    disk.go_on.release(2)
    under_way.all()
    with pytest.raises(AgentosError, match="Input/output error") as raised:
        under_way.wait()
    assert raised.value.code == "disk-failed"


def test_nothing_was_begun(disk_of: Callable[..., Disk]) -> None:
    disk = disk_of()
    Writing(5).wait()
    assert disk.calls == 0
