"""Reading a ring, oldest first: while its supervisor runs, after it was killed, or anywhere it was copied to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.recording import batch, frames
from agentos_native.recording.model import Entry, Opening, Roster
from agentos_native.recording.ring import DIRECTORY, segments


@dataclass
class Found:
    """What was met while reading.

    Attributes:
        segments: files; `torn`: of them, those that end in the middle of a frame, as a killed writer leaves them.
        damaged: where something else than a whole frame is, in words.
        dropped: ticks that the writer could not keep up with.
        openings: by whom segments were written.
    """

    segments: int = 0
    torn: int = 0
    damaged: list[str] = field(default_factory=list)
    dropped: int = 0
    openings: list[Opening] = field(default_factory=list)


def find(directory: str) -> str:
    """The ring in a state directory, or `directory` where it is one itself. Raises ``no-recording``."""
    for candidate in (os.path.join(directory, DIRECTORY), directory):
        if segments(candidate):
            return candidate
    hint = "a supervisor records when its setting `record` is not off; the first ticks are written after 10 s"
    raise AgentosError("no-recording", "no recorded ticks are here", directory, hint)


def read(directory: str, found: Found | None = None) -> Iterator[Entry]:
    """Every entry of the ring, in the order in which it was recorded; `found` is told what else is there."""
    found = found if found is not None else Found()
    for path in segments(directory):
        try:
            data = _content(path)
        except FileNotFoundError:  # the supervisor needed the room in the meantime
            continue
        except OSError as error:
            raise AgentosError("cannot-read", error.strerror or str(error), path)
        found.segments += 1
        yield from _segment(data, os.path.basename(path), found)


def _content(path: str) -> bytes:
    """Of a regular file: a pipe may never end, and a device has no end."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise AgentosError("cannot-read", "not a regular file", path)
        return file.read()


def _segment(data: bytes, name: str, found: Found) -> Iterator[Entry]:
    rosters: dict[int, Roster] = {}
    for item in frames.scan(data):
        if isinstance(item, frames.Damage):
            if item.torn:
                found.torn += 1
            else:
                found.damaged.append(f"{name} at byte {item.offset}")
        elif item.kind == frames.OPENING:
            found.openings.append(_opening(item.body, name))
        elif item.kind == frames.BATCH:
            try:
                yield from _batch(item.body, rosters, found)
            except AgentosError as error:
                if error.code != "record-damaged":
                    raise
                found.damaged.append(f"{name} at byte {item.offset}: {error.what}")


def _opening(body: bytes, name: str) -> Opening:
    try:
        opening = msgspec.msgpack.decode(body, type=Opening)
    except msgspec.MsgspecError as error:
        raise AgentosError("record-version", f"the segment's beginning is not known: {error}", name)
    if opening.version != Opening().version:
        raise AgentosError("record-version", f"written in version {opening.version} of the format", name)
    return opening


def _batch(body: bytes, rosters: dict[int, Roster], found: Found) -> Iterator[Entry]:
    one = batch.open_body(body)
    found.dropped += one.dropped
    roster = batch.roster_of(one)
    if roster is not None:
        rosters.clear()  # batches speak of the last one only
        rosters[one.roster] = roster
    yield from batch.unpack(one, rosters)
