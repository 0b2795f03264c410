"""Runs an agent's work on every CPU that it may use, and lets it be told to rest.

The first process only waits for signals; its children, one for each CPU, repeat one step of work without ever
sleeping. SIGUSR1 makes all of them idle, the next one makes them busy again: the switch is a byte of shared memory.
SIGTERM ends all.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

REPORT_SECONDS = 10.0
IDLE_POLL_SECONDS = 0.25


def run(name: str, unit: str, work: Callable[[int], Iterator[None]]) -> None:
    """Does not return. `work(number)` yields after each step; steps are counted and reported as `unit`."""
    busy = mmap.mmap(-1, 1)
    busy[0] = 1
    signals = {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    print(f"{name}: works on {len(os.sched_getaffinity(0))} CPUs", flush=True)
    children = [_start(number, name, unit, work, busy) for number in range(len(os.sched_getaffinity(0)))]
    while signal.sigwait(signals) == signal.SIGUSR1:
        busy[0] = 1 - busy[0]
        print(f"{name}: {'busy' if busy[0] else 'idle'}", flush=True)
    for child in children:
        os.kill(child, signal.SIGKILL)
    print(f"{name}: ends", flush=True)
    sys.exit(0)


def _start(number: int, name: str, unit: str, work: Callable[[int], Iterator[None]], busy: mmap.mmap) -> int:
    child = os.fork()
    if child:
        return child
    reported, since = 0, time.monotonic()
    for steps, _ in enumerate(work(number), 1):
        while not busy[0]:
            time.sleep(IDLE_POLL_SECONDS)
        if steps % 64 == 0 and number == 0 and (now := time.monotonic()) - since > REPORT_SECONDS:
            print(f"{name}: {(steps - reported) / (now - since):.1f} {unit}/s on the first CPU", flush=True)
            reported, since = steps, now
    os._exit(0)
