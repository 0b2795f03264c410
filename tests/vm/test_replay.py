"""What a real scheduler made of a real load is in the record, with what was written for it, and replays bit for bit.

No time is waited for: whatever a slow machine gives in these ticks is recorded, and must be replayed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from agentos_native.recording import reader
from agentos_native.recording.model import Tick
from agentos_native.recording.replay import last, replay
from agentos_native.recording.ring import DIRECTORY
from agentos_native.supervisor.loop.recorder import Recorder
from agentos_native.supervisor.loop.ticker import Turn
from tests.vm.loads import SLEEPY, Load

TICKS = 8
PERIOD = 0.3


def test_a_record_of_weights_really_written_is_replayed_bit_for_bit(tmp_path: Path) -> None:
    warnings: list[str] = []
    recorder = Recorder(str(tmp_path), 2**24, lambda agent_id: None, warnings.append)
    recorder.start()
    turns: list[Turn] = []

    def both(turn: Turn) -> None:
        turns.append(turn)
        recorder.turn(turn)

    with Load("replay", PERIOD) as load:
        load.ticker.on_turn = both
        load.ticker.set_tenant("models", 150, "high", 200, None, "utility")
        load.ticker.set_tenant("shared", 100, "normal", 0, 1500, "drf")
        reserved = load.agent("reserved", weight=50, request=500)
        load.agent("hog", weight=500)
        sleepy = SLEEPY.format(busy=0.02, idle=0.05)
        load.agent("sleepy", tier="high", threads=1, command=(sys.executable, "-c", sleepy))
        load.agent("best", "models", weight=300, threads=1)
        ran(load)
        load.agent("late", "shared", limit=400)
        load.ticker.change(reserved.ref.agent_id, 50, 700, None)
        ran(load)
        held = int(Path(reserved.path, "cpu.weight").read_text())
        load.stop("hog")
        ran(load)
    recorder.close()

    assert warnings == []
    assert sum(turn.writes for turn in turns) > 0
    ticks = [entry for entry in reader.read(str(tmp_path / DIRECTORY)) if isinstance(entry, Tick)]
    assert [tick.monotonic for tick in ticks] == [turn.time for turn in turns]
    assert [tick.writes for tick in ticks] == [turn.writes for turn in turns]
    assert all(tick.inputs.trims is not None for tick in ticks)  # weights were enforced
    assert held > 50  # the kernel was told of the reservation
    whole = replay(ticks)
    assert (whole.ticks, whole.differing, whole.first) == (len(turns), 0, None)
    assert replay(last(ticks, TICKS)).differing == 0  # from the middle as well


def ran(load: Load) -> None:
    """So many ticks, however long they take."""
    for _ in range(TICKS):
        load.run(PERIOD / 2)
