"""Reading a source from outside: with patience that ends, and hashed on the way to the unpacker."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import stat
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.images.model import Limits
from agentos_native.images.unpack.messages import Expect, Fed

_CHUNK: Final = 1 << 20


class Source:
    """Reads the fd of an archive; a pipe that gives nothing for `Limits.idle_seconds` is an error."""

    def __init__(self, descriptor: int, limits: Limits) -> None:
        self._descriptor = descriptor
        self._patience = limits.idle_seconds
        self._waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; b"" at the end.

        Raises:
            AgentosError: ``source-stalled``, ``source-not-read``.
        """
        self._wait()
        try:
            return os.read(self._descriptor, size)
        except OSError as error:
            raise _unreadable(error) from None

    def read_into(self, buffer: bytearray) -> int:
        """The same into `buffer`; how many bytes of it."""
        self._wait()
        try:
            return os.readv(self._descriptor, [buffer])
        except OSError as error:
            raise _unreadable(error) from None

    def _wait(self) -> None:
        if self._waits and not self._poll.poll(self._patience * 1000):
            raise AgentosError(
                "source-stalled",
                f"the archive's pipe gave nothing for {self._patience:g} s",
                hint="is the program that writes it stuck? import a file, or start again",
            )


def _unreadable(error: OSError) -> AgentosError:
    return AgentosError("source-not-read", f"the archive cannot be read: {error.strerror}")


def mismatch(what: str, expected: str, found: str) -> AgentosError:
    """Something is not what its digest says."""
    return AgentosError(
        "digest-mismatch",
        f"{what} is not what its digest says",
        f"expected {expected}, found {found}",
        "it was damaged or replaced on its way: fetch it again",
    )


def wrong_size(expected: int, found: str) -> AgentosError:
    """Something is longer or shorter than was said."""
    return AgentosError(
        "size-mismatch",
        f"the archive has {found} bytes, {expected} were announced",
        hint="it was damaged or replaced on its way, or its manifest lies: fetch it again",
    )


def check(expect: Expect, fed: Fed) -> None:
    """Compare what was read with what was expected.

    Raises:
        AgentosError: ``size-mismatch``, ``digest-mismatch``.
    """
    if expect.size >= 0 and fed.size != expect.size:
        raise wrong_size(expect.size, str(fed.size))
    if expect.digest and fed.digest != expect.digest:
        raise mismatch("the archive", expect.digest, fed.digest)


def feed(source: int, sink: int, expect: Expect, limits: Limits) -> Fed:
    """Pass everything (`Expect.within`: as much as is expected) from `source` to the pipe `sink`, and close that.

    When nobody reads `sink` any more the rest is only hashed: a damaged archive stops the unpacker early, and the
    digest says that it was damaged.

    Raises:
        AgentosError: ``size-mismatch`` as soon as there is more than expected; as `Source.read`.
    """
    stream = Source(source, limits)
    content = hashlib.sha256()
    size = 0
    wanted = True
    try:
        while data := stream.read(min(_CHUNK, expect.size - size) if expect.within else _CHUNK):
            size += len(data)
            if 0 <= expect.size < size:
                raise wrong_size(expect.size, f"more than {expect.size}")
            content.update(data)
            wanted = wanted and _pass_on(sink, data)
            if not wanted and expect.size < 0:
                break  # an endless source, perhaps: the unpacker's own complaint has to do
    finally:
        os.close(sink)
    return Fed(f"sha256:{content.hexdigest()}", size)


def _pass_on(sink: int, data: bytes) -> bool:
    """Write all of `data`; false when nobody reads."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(sink, rest) :]
    except OSError as error:
        if error.errno == errno.EPIPE:
            return False
        raise
    return True
