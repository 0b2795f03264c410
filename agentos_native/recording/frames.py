"""Frames of a segment file: a header with a checksum of its own, and a checksummed body.

    magic "AoRf" · kind (1 byte) · length of the body · CRC-32 of the body · CRC-32 of the header so far

Since the header is checked by itself, its length can be trusted: a frame that ends after the file does was being
written when the process died (*torn*, and nothing is wrong), while any other mismatch is *damage*. After damage the
search goes on at the next magic.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"AoRf"
OPENING, BATCH = 1, 2
"""Kinds: the first frame of a segment, and everything else."""
_FIELDS: Final = struct.Struct("<4sBII")
_CHECK: Final = struct.Struct("<I")
HEADER: Final = _FIELDS.size + _CHECK.size


@dataclass(frozen=True)
class Frame:
    """One whole frame, and where its segment holds it."""

    kind: int
    body: bytes
    offset: int


@dataclass(frozen=True)
class Damage:
    """Bytes that are no frame. `torn`: the end of what was being written when the writer died."""

    offset: int
    torn: bool


def pack(kind: int, body: bytes) -> bytes:
    """The frame as it is written."""
    fields = _FIELDS.pack(MAGIC, kind, len(body), zlib.crc32(body))
    return fields + _CHECK.pack(zlib.crc32(fields)) + body


def _header(data: bytes, offset: int) -> tuple[int, int, int] | None:
    """Kind, length and checksum of the frame at `offset`; None where no valid header is."""
    if data[offset : offset + 4] != MAGIC:
        return None
    fields = data[offset : offset + _FIELDS.size]
    (check,) = _CHECK.unpack_from(data, offset + _FIELDS.size)
    if zlib.crc32(fields) != check:
        return None
    _, kind, length, body_check = _FIELDS.unpack(fields)
    return kind, length, body_check


def scan(data: bytes) -> Iterator[Frame | Damage]:
    """Everything in a segment, in order."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < HEADER:
            yield Damage(offset, torn=MAGIC.startswith(data[offset : offset + len(MAGIC)]))
            return
        header = _header(data, offset)
        if header is not None:
            kind, length, check = header
            begin, end = offset + HEADER, offset + HEADER + length
            if end > len(data):
                yield Damage(offset, torn=True)
                return
            body = data[begin:end]
            if zlib.crc32(body) == check:
                yield Frame(kind, body, offset)
            else:
                yield Damage(offset, torn=False)
            offset = end
            continue
        yield Damage(offset, torn=False)
        following = data.find(MAGIC, offset + 1)
        offset = following if following >= 0 else len(data)
