"""What the idle benchmark makes of its readings, with figures made up so that the answers are known."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tools.benches import memory
from tools.benches.idle import Grown, Reading, _kernel_rows, grown

MEMINFO = """MemTotal: 100 kB
AnonPages: 10 kB
Slab: 20 kB
KernelStack: 30 kB
PageTables: 40 kB
Percpu: 7 kB
HugePages_Total: 0
"""


def test_kernel_memory_is_the_four_fields_without_percpu() -> None:
    figures = memory.meminfo(MEMINFO)
    assert memory.kernel_kib(figures) == 100
    assert figures["Percpu"] == 7


def test_a_steady_drift_cancels_but_is_told() -> None:
    # The machine grows by 1000 between two readings; 10 agents add 5000 on top.
    result = grown(Reading(10_000, 100), Reading(16_000, 120), Reading(12_000, 100), 10)
    assert result == Grown(kernel=500.0, percpu=2.0, drift=100.0)


def test_the_bare_process_is_taken_off_and_the_budget_binds() -> None:
    held, broken = (_kernel_rows(500, Grown(k, 2, 1), Grown(80, 1, 1))[0] for k in (480, 700))
    assert (held.value, held.ok) == (400, True)
    assert (broken.value, broken.ok) == (620, False)


def test_a_machine_that_moved_is_inconclusive() -> None:
    row = _kernel_rows(100, Grown(480, 2, 90), Grown(80, 1, 20))[0]
    assert row.ok is None
    assert "110 KiB" in row.reason


def test_figures_of_a_real_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "sum(range(10**7)); print(1, flush=True); input()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.read(1)
        assert 1000 < memory.rss_kib(child.pid) < 200_000
        assert 0 < memory.pss_kib([child.pid]) <= memory.rss_kib(child.pid)
        assert memory.processor_seconds([child.pid]) > 0
        child.kill()


def test_a_process_that_is_gone_is_an_error_not_a_zero() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    with pytest.raises(FileNotFoundError):
        memory.pss_kib([pid])
