"""``python -m agentos_native.recording REQUEST``: what ``alloc replay`` and ``report`` become.

The argument is one of `options` in JSON: the command line knows the options, and may not load what this loads.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import msgspec
import numpy as np

from agentos_native.errors import AgentosError
from agentos_native.recording import reader, replay
from agentos_native.recording.model import Entry, Tick
from agentos_native.recording.options import Replay, Report, Request
from agentos_native.recording.page import write


def main(argv: Sequence[str]) -> int:
    """The process."""
    try:
        request = msgspec.json.decode(argv[0], type=Request)
        return _answer(request)
    except AgentosError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def _answer(request: Request) -> int:
    try:
        return _replay(request) if isinstance(request, Replay) else _report(request)
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        # Frames whose checksums are right and whose figures are not: shapes that do not fit, times beyond the calendar.
        what = f"figures in it make no sense: {type(error).__name__}: {error}"
        raise AgentosError("record-damaged", what, request.directory)


def _replay(request: Replay) -> int:
    found = reader.Found()
    ring = reader.find(request.directory)
    began = time.perf_counter()
    ticks = (entry for entry in reader.read(ring, found) if isinstance(entry, Tick))
    done = replay.replay(replay.last(ticks, request.last))
    seconds = time.perf_counter() - began
    if request.output == "json":
        result = {**asdict(done), "seconds": seconds, **asdict(found)}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
    else:
        _tell(done, found, seconds)
    return 1 if done.first is not None or found.damaged else 0


def _tell(done: replay.Replayed, found: reader.Found, seconds: float) -> None:
    engines = " and ".join(sorted(done.engines or ())) or "none"
    print(
        f"{done.ticks} ticks of {done.agents} shares in {found.segments} segments, engine {engines},"
        f" {seconds:.2f} s: {done.differing} differ"
    )
    for line in _remarks(found):
        print(line)
    if done.first is not None:
        first = done.first
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(first.wall))
        print(f"first in tick {first.tick} ({when}): {first.what}: {first.recorded!r} recorded, {first.computed!r} now")
        for line in _versions(found):
            print(line)


def _remarks(found: reader.Found) -> list[str]:
    lines = []
    if found.torn:
        lines.append(f"{found.torn} segments end within a frame: the supervisor died while it wrote")
    if found.dropped:
        lines.append(f"{found.dropped} ticks were not recorded: the disk was too slow")
    lines += [f"damaged: {place}" for place in found.damaged]
    return lines


def _versions(found: reader.Found) -> list[str]:
    """Where bits may come from when nothing of ours was changed."""
    versions = {(opening.numpy, opening.machine) for opening in found.openings}
    return [
        f"recorded with NumPy {numpy} on {machine}; this is NumPy {np.__version__}"
        for numpy, machine in sorted(versions)
        if numpy != np.__version__
    ]


def _report(request: Report) -> int:
    ring = reader.find(request.directory)
    found = reader.Found()

    def read() -> Iterator[Entry]:
        nonlocal found
        found = reader.Found()
        return reader.read(ring, found)

    summary = write(read, request, lambda: _remarks(found))
    if request.output != "-":
        print(f"{request.output}: {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
