"""The tick over real groups that come, go, fork and vanish while it reads them, by both engines."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from agentos_native import alloc
from agentos_native.cgroup import GroupRef, GroupSettings, Tree, discover, sensors
from agentos_native.supervisor.loop.ticker import Ticker, TickResult
from tests.kernel.test_cgroup_tree import run_in
from tests.supervisors import PATIENCE, eventually

CPUS = float(os.cpu_count() or 1)
FORKS = "import os\nfor _ in range(20):\n if os.fork() == 0: os._exit(sum(range(20000)) % 2)\n os.wait()"


@pytest.fixture(params=["python", "compiled"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "compiled":
        assert sensors.use_compiled()
        assert alloc.load_compiled()
    yield request.param
    sensors.use_python()
    alloc.use_numpy()


@pytest.fixture
def tree(engine: str) -> Iterator[Tree]:
    one = Tree(discover(), f"c{os.getpid() % 10**6}")
    one.open()
    yield one
    for ref in one.find():
        one.get(ref).kill()
        one.get(ref).remove()
    one.teardown()
    assert not os.path.exists(one.path)


@pytest.fixture
def ticker(tree: Tree) -> Iterator[Ticker]:
    one = Ticker(tree, CPUS, compile_from=0)
    yield one
    one.close()


def ref_of(number: int) -> GroupRef:
    return GroupRef(f"t{number % 3}", ("high", "normal", "idle")[number % 3], f"{number:012x}")


def add(tree: Tree, ticker: Ticker, number: int) -> GroupRef:
    ref = ref_of(number)
    tree.create(ref, GroupSettings())
    ticker.add(ref.agent_id, ref, 100 + number, 0, None)
    return ref


def tick(ticker: Ticker) -> TickResult:
    time.sleep(0.02)
    return ticker.tick(time.monotonic())


def used(ticker: Ticker) -> dict[str, int]:
    """µs of CPU time of each agent's group."""
    return {row.agent_id: row.usage_usec for row in ticker.rows()}


def test_a_group_removed_under_the_reader_is_reported_once_and_skipped(tree: Tree, ticker: Ticker) -> None:
    """Its kept-open files answer ENODEV; the others are read as ever."""
    refs = [add(tree, ticker, number) for number in range(20)]
    stays = run_in(tree.get(refs[1]), "main", "sh", "-c", "while :; do :; done")
    try:
        assert tick(ticker).gone == ()
        tree.get(refs[0]).remove()
        assert tick(ticker).gone == (refs[0].agent_id,)
        before = used(ticker)
        assert tick(ticker).gone == ()
        stayed = refs[1].agent_id
        eventually(lambda: tick(ticker) and used(ticker)[stayed] > before[stayed], "the others are read")
        assert len(used(ticker)) == 20  # until it is removed
        ticker.remove(refs[0].agent_id)
        assert len(ticker.rows()) == 19
    finally:
        stays.kill()
        stays.wait()


def test_a_group_made_again_at_the_same_path_is_read_anew(tree: Tree, ticker: Ticker) -> None:
    ref = add(tree, ticker, 0)
    first = run_in(tree.get(ref), "main", "sh", "-c", "while :; do :; done")
    eventually(lambda: tick(ticker) and used(ticker)[ref.agent_id] > 100_000, "it has computed")
    before = used(ticker)[ref.agent_id]
    tree.get(ref).kill()
    first.wait()
    tree.get(ref).remove()
    tree.create(ref, GroupSettings())
    assert tick(ticker).gone == (ref.agent_id,)  # the old files stay those of the old group
    ticker.add(ref.agent_id, ref, 100, 0, None)
    assert tick(ticker).gone == ()
    assert used(ticker)[ref.agent_id] < before


def test_files_are_not_leaked_over_a_thousand_groups(tree: Tree, ticker: Ticker) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1000):
        ref = add(tree, ticker, number)
        if number % 50 == 0:
            ticker.tick(time.monotonic())
        if number % 2:  # some groups go before their agents are forgotten, some after
            tree.get(ref).remove()
            ticker.remove(ref.agent_id)
        else:
            ticker.remove(ref.agent_id)
            tree.get(ref).remove()
    assert len(os.listdir("/proc/self/fd")) == before
    assert tick(ticker).agents == 0


def test_agents_start_fork_exit_and_vanish_while_it_ticks(tree: Tree, ticker: Ticker) -> None:
    stop, failures, lives = threading.Event(), [], [0]

    def live(seed: int) -> None:
        chance = random.Random(seed)
        number = seed * 100
        try:
            while not stop.is_set():
                number += 1
                ref = add(tree, ticker, number)
                process = run_in(tree.get(ref), "main", sys.executable, "-Sc", FORKS + "\nimport time; time.sleep(60)")
                time.sleep(chance.uniform(0.0, 0.1))
                tree.get(ref).kill()
                process.wait()
                if chance.random() < 0.5:
                    ticker.remove(ref.agent_id)
                tree.get(ref).remove()
                ticker.remove(ref.agent_id)
                lives[0] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=live, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    while time.monotonic() < begun + 4.0 or (lives[0] < 3 and time.monotonic() < begun + PATIENCE):
        result = tick(ticker)
        assert result.failures == 0 or ticker.enforced
        for row in ticker.rows(2.0):
            assert 0.0 <= row.measured <= 10 * CPUS
            assert 0.0 <= row.entitled <= CPUS + 1e-6
    stop.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert lives[0] >= 3
    assert tick(ticker).agents == 0
