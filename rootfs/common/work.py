"""What the agents of all types share: one worker process for each CPU, and a switch between busy and idle.

SIGUSR1 sends the agent to rest, SIGUSR2 back to work. The workers share one byte with their parent; a resting worker
sleeps in the kernel and uses no processor.
"""

import mmap
import os
import signal
import time

IDLE, BUSY = 0, 1


def run(start, report=None):
    """Fork a worker for each CPU that this process may use; each calls `start(worker_number)`, and then what that
    gives, `step()`, again and again.

    `step` does a bounded piece of real work and returns a number that counts as progress. Every few seconds the first
    worker prints `report(steps, progress)`, if it is given.
    """
    switch = mmap.mmap(-1, 1)
    switch[0] = BUSY
    workers = []
    for number in range(len(os.sched_getaffinity(0))):
        worker = os.fork()
        if worker == 0:
            for name in (signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(name, signal.SIG_IGN)
            _work(switch, start(number), report if number == 0 else None)
        workers.append(worker)

    def finish(*_):
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGUSR1, lambda *_: switch.__setitem__(0, IDLE))
    signal.signal(signal.SIGUSR2, lambda *_: switch.__setitem__(0, BUSY))
    signal.signal(signal.SIGTERM, finish)
    while True:
        signal.pause()


def _work(switch, step, report):
    steps, progress, told = 0, 0.0, time.monotonic()
    while True:
        if switch[0] == IDLE:
            time.sleep(0.2)
            continue
        progress += step()
        steps += 1
        if report and time.monotonic() - told > 5:
            print(report(steps, progress), flush=True)
            told = time.monotonic()
