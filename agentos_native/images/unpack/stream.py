"""A byte stream that only goes forward: an archive in a file or pipe, decompressed on the way, with its limits.

A thread reads and decompresses one chunk ahead (zlib, lzma and zstd work outside the interpreter's lock), as a shell's
``zcat | tar`` would with two processes.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import queue
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final, TypeAlias, cast

import zstandard

from agentos_native.errors import AgentosError
from agentos_native.images.model import Limits
from agentos_native.images.unpack.feed import Source

CHUNK: Final = 1 << 20
BUFFER: Final = 256 << 10
"""What is read at once of what needs no decompression, or is written already: it stays in a core's own cache."""
HEADER_READ_MAX: Final = 1 << 20
"""More than any extended header needs: pax and GNU long names are held in memory whole."""
_PADDING_MAX: Final = 64 << 20
"""More than the record of any tape. Zeros without end come from /dev/zero."""
_ZEROS: Final = memoryview(bytes(CHUNK))
_MAGIC_MAX: Final = 6
_ZSTD_WINDOW_MAX: Final = 128 << 20
_LZMA_MEMORY_MAX: Final = 256 << 20

_MAGICS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
)


def corrupt(what: str, where: str = "") -> AgentosError:
    """The archive cannot be read."""
    return AgentosError("invalid-archive", what, where, "was it cut off or damaged on its way? make or fetch it again")


def too_large(what: str, hint: str) -> AgentosError:
    """The archive is beyond a limit of the import."""
    return AgentosError("image-too-large", what, hint=hint)


class _Bzip2:
    """bz2's decoder; what it finds damaged is no error of the operating system."""

    def __init__(self) -> None:
        self._decoder = bz2.BZ2Decompressor()

    def decompress(self, data: bytes, size: int) -> bytes:
        """At most `size` bytes."""
        try:
            return self._decoder.decompress(data, size)
        except OSError as error:
            raise zlib.error(str(error)) from None

    @property
    def eof(self) -> bool:
        """Whether the end of a stream was seen."""
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        """Whether there is nothing to be had without more data."""
        return self._decoder.needs_input

    @property
    def unused_data(self) -> bytes:
        """What came after the end."""
        return self._decoder.unused_data


_Decoder: TypeAlias = "zlib._Decompress | lzma.LZMADecompressor | _Bzip2"


def _members(chunks: Iterator[bytes], new: Callable[[], _Decoder]) -> Iterator[bytes]:
    """Decompress concatenated gzip members, xz or bzip2 streams; zero bytes after one are padding."""
    decoder = new()
    fresh = True
    for chunk in chunks:
        data = chunk
        while data:
            if fresh:
                data = data.lstrip(b"\0")
                if not data:
                    break
            fresh = False
            yield from _drain(decoder, data)
            if not decoder.eof:
                break
            data = decoder.unused_data
            decoder, fresh = new(), True
    if not fresh:
        raise corrupt("the compressed archive ends too early")


def _drain(decoder: _Decoder, data: bytes) -> Iterator[bytes]:
    """All output for `data`, never more than a few chunks at once however well it was compressed."""
    while True:
        output = decoder.decompress(data, CHUNK)
        if output:
            yield output
        if isinstance(decoder, lzma.LZMADecompressor | _Bzip2):
            data = b""
            if decoder.eof or decoder.needs_input:
                return
        else:
            data = decoder.unconsumed_tail
            if decoder.eof or (not data and len(output) < CHUNK):
                return


class _Joined:
    """The chunks as a file object, for zstandard: its reader bounds its output only when it reads its input itself."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end."""
        data = self._rest or next(self._chunks, b"")
        self._rest = data[size:]
        return data[:size]


def _zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    # a stream that ends inside a frame looks like its end here; the missing end of the archive gives it away
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
    reader = decoder.stream_reader(cast(IO[bytes], _Joined(chunks)), read_across_frames=True)
    while output := reader.read(CHUNK):
        yield output


def _decode(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The plain bytes of a stream that begins with `first`, whatever its compression."""
    kind = next((name for magic, name in _MAGICS if first.startswith(magic)), "")
    if kind == "gzip":
        return _members(chunks, lambda: zlib.decompressobj(wbits=31))
    if kind == "xz":
        return _members(chunks, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY_MAX))
    if kind == "bzip2":
        return _members(chunks, _Bzip2)
    if kind == "zstd":
        return _zstd(chunks)
    if kind:
        raise AgentosError(
            "unsupported-archive",
            f"the archive is {kind}",
            hint="an image is a directory or a tar, plain or as gzip, xz, bzip2 or zstd",
        )
    return chunks


class Forward:
    """The archive's plain bytes: enough of a file object for `tarfile` to read headers from, and `blocks` for the rest.

    Seeking back is refused: only a crafted archive asks for it (CVE-2025-8194 is an endless loop of that kind).

    Args:
        hashed: whether `digest` will be asked for.
        open_ended: take an archive without its end, which some tools (umoci insert) leave away: only where the digest
            that is asked for is known beforehand, and nothing can have been cut off.
    """

    def __init__(self, descriptor: int, limits: Limits, *, hashed: bool = False, open_ended: bool = False) -> None:
        self._limits = limits
        self._taken = 0
        self._position = 0
        self._made = 0
        self._chunk = memoryview(b"")
        self.last_header = b""
        """What the last read of one block gave: two blocks of zeros end an archive."""
        self._sum = hashlib.sha256() if hashed else None
        self._open_ended = open_ended
        self._ended = False
        source = Source(descriptor, limits)
        first = source.read(BUFFER)
        while first and len(first) < _MAGIC_MAX and (more := source.read(BUFFER)):
            first += more  # a pipe gives what it has
        raw = self._count(source, first)
        plain = _decode(first, raw)
        self._chunks: Iterator[bytes | memoryview]
        if plain is raw and not hashed:
            self._chunks = self._in_place(source, first)
        else:
            self._chunks = _ahead(self._hash(plain))

    def _in_place(self, source: Source, first: bytes) -> Iterator[bytes | memoryview]:
        """The stream as it is; every chunk takes the place of the one before."""
        self._taken = len(first)
        if first:
            yield first
        del first
        buffer = bytearray(BUFFER)
        view = memoryview(buffer)
        while size := source.read_into(buffer):
            self._taken += size
            yield view[:size]

    def _count(self, source: Source, first: bytes) -> Iterator[bytes]:
        chunk = first
        while chunk:
            self._taken += len(chunk)
            yield chunk
            chunk = source.read(CHUNK)

    def _hash(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self._sum is not None:
                self._sum.update(chunk)
            yield chunk

    def digest(self) -> str:
        """``sha256:<hex>`` of all plain bytes, after `drain`."""
        return f"sha256:{self._sum.hexdigest()}" if self._sum is not None else ""

    def _next(self) -> bool:
        """Fetch the next chunk; false at the end."""
        try:
            chunk = next(self._chunks, b"")
        except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
            raise corrupt(f"the archive cannot be decompressed: {error}", f"after {self._made} bytes") from None
        if not chunk and self._open_ended and not self._ended:
            self._ended = True
            self._chunk = _ZEROS[: -self._made % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE]
            return True
        self._chunk = memoryview(chunk)
        self._made += len(chunk)
        if self._made > max(self._limits.ratio_from, self._limits.ratio * self._taken):
            raise too_large(
                f"{self._taken} compressed bytes became more than {self._made}",
                "that is what an archive made to fill a disk looks like; import it decompressed if it is meant",
            )
        if self._made > 2 * self._limits.bytes:
            raise too_large(f"the archive has more than {2 * self._limits.bytes} bytes", "")
        return bool(chunk)

    def blocks(self, size: int) -> Iterable[memoryview]:
        """The next `size` bytes, in pieces without copying.

        Raises:
            AgentosError: ``invalid-archive``; the stream ends before.
        """
        if size > len(self._chunk) or self._ended:
            return self._checked(size)
        if not size:
            return ()
        piece = self._chunk[:size]  # as a rule a file lies in one chunk
        self._chunk = self._chunk[size:]
        self._position += size
        return (piece,)

    def at_hand(self, position: int) -> bytes:
        """The block at `position` if it lies in what has been read, but is not taken yet; else b""."""
        start = position - self._position
        return bytes(self._chunk[start : start + tarfile.BLOCKSIZE]) if start >= 0 else b""

    def _checked(self, size: int) -> Iterator[memoryview]:
        for piece in self._pieces(size):
            if self._ended:
                raise corrupt("the archive ends too early", f"at byte {self._position}")
            yield piece

    def _pieces(self, size: int) -> Iterator[memoryview]:
        while size:
            if not self._chunk and not self._next():
                raise corrupt("the archive ends too early", f"at byte {self._position}")
            piece = self._chunk[:size]
            self._chunk = self._chunk[len(piece) :]
            self._position += len(piece)
            size -= len(piece)
            yield piece

    def tell(self) -> int:
        """Plain bytes read so far."""
        return self._position

    def seek(self, position: int) -> None:
        """Skip forward to `position`."""
        if position < self._position:
            raise corrupt("a header of the archive points backwards", f"at byte {self._position}")
        if position - self._position <= len(self._chunk):
            self._chunk = self._chunk[position - self._position :]
            self._position = position
            return
        for _ in self._pieces(position - self._position):
            pass

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of header data; fewer only at the end of the stream."""
        if size > HEADER_READ_MAX:
            raise corrupt(f"a header of the archive has {size} bytes", f"at byte {self._position}")
        if len(self._chunk) < size:
            self._join(size)
        data = bytes(self._chunk[:size])
        self._chunk = self._chunk[size:]
        self._position += len(data)
        self.last_header = data
        return data

    def _join(self, size: int) -> None:
        held = bytes(self._chunk)
        while len(held) < size and self._next():
            held += self._chunk
        self._chunk = memoryview(held)

    def drain(self) -> None:
        """Read to the end of the stream, which is padded with zeros: decoders check their checksums there, and a
        pipe's writer wants to be read.

        Raises:
            AgentosError: ``invalid-archive``; there is something else, or no end of zeros.
        """
        padding = 0
        while self._chunk or self._next():
            padding += len(self._chunk)
            if self._chunk != _ZEROS[: len(self._chunk)]:
                raise corrupt("there is something after the end of the archive", f"after byte {self._position}")
            if padding > _PADDING_MAX:
                raise corrupt(f"the archive ends with more than {_PADDING_MAX} zeros", f"at byte {self._position}")
            self._chunk = memoryview(b"")


def _ahead(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, made in a thread that is at most two ahead."""
    made: queue.Queue[bytes | BaseException] = queue.Queue(2)

    def run() -> None:
        try:
            for chunk in chunks:
                made.put(chunk)
        except BaseException as error:
            made.put(error)
        else:
            made.put(b"")

    threading.Thread(target=run, name="decompress", daemon=True).start()
    while item := made.get():
        if isinstance(item, BaseException):
            raise item
        yield item
