"""Whether ADD unpacks a file: the confined task "archive-head", which looks at its beginning."""

from __future__ import annotations

import bz2
import lzma
import tarfile
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import zstandard

if TYPE_CHECKING:
    from agentos_native.images.session import Session

HEAD: Final = 64 << 10
"""Enough of any compressed tar for its first header, but for one that was made to be so."""


def task(request: bytes) -> bytes:
    """b"tar" when `request` is the beginning of a tar, plain or compressed, else b""."""
    block = _plain(request[:HEAD])[: tarfile.BLOCKSIZE]
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return b""
    return b"tar"


def is_tar(session: Session, head: bytes) -> bool:
    """`task` in a confined process; only asked for what can be one."""
    begins = any(head.startswith(magic) for magic in _DECODERS)
    if not begins and (len(head) < tarfile.BLOCKSIZE or not head[148:154].strip(b" \0").isdigit()):
        return False
    return session.ask("archive-head", head) == b"tar"


def _plain(data: bytes) -> bytes:
    for magic, decode in _DECODERS.items():
        if data.startswith(magic):
            try:
                return decode(data)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError):
                return b""
    return data


_DECODERS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": lambda data: zlib.decompressobj(wbits=31).decompress(data, tarfile.BLOCKSIZE),
    b"BZh": lambda data: bz2.BZ2Decompressor().decompress(data, tarfile.BLOCKSIZE),
    b"\xfd7zXZ\0": lambda data: lzma.LZMADecompressor(memlimit=256 << 20).decompress(data, tarfile.BLOCKSIZE),
    b"\x28\xb5\x2f\xfd": lambda data: (
        zstandard.ZstdDecompressor(max_window_size=128 << 20).stream_reader(data).read(tarfile.BLOCKSIZE)
    ),
}
