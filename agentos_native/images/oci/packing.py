"""The process that makes an archive of an image: ``python -m agentos_native.images.oci.packing``, its job on stdin.

Theory of operation
-------------------
::

    exporter   (a thread of the supervisor; passes bytes on)
     └ packer  host root with CAP_DAC_READ_SEARCH only; no network, empty read-only root directory, seccomp

The packer holds four fds: the directory of layers, an empty file without a name for what is under way, the pipe that
the archive goes to, and a pipe for how it ended. Files and names in a layer are whatever a stranger put there; they
are opened beneath the layer, without links, and copied. Everything that a control loop would feel is done here, outside
the supervisor's process: reading, hashing and compressing, the last in a thread of its own.

A layer's size is in its header, before it, so that all are packed into the nameless file first and copied from there:
what goes wrong shows before the first byte has gone out. Memory does not grow with the image. What is the same image
gives the same bytes: nothing of the time or the machine of the export is in them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Literal, Protocol

import msgspec
import zstandard

from agentos_native.errors import AgentosError
from agentos_native.images import confine
from agentos_native.images.model import History, ImageConfig, Limits
from agentos_native.images.oci import describing, model, tarball
from agentos_native.images.oci.tarball import Member, TreePacker
from agentos_native.kernel import ns
from agentos_native.kernel.libc import SyscallError
from agentos_native.kernel.process import close_range

Format = Literal["oci", "docker"]
Compression = Literal["gzip", "zstd", "none"]
_CHUNK: Final = 1 << 20
_SUFFIX: Final = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}
_GZIP_LEVEL: Final = 6
_ZSTD_LEVEL: Final = 3


class PackJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to pack; the fds are inherited.

    Args:
        layers: their directories' names, lowest first.
        home: the directory they are in.
        scratch: an empty file to read and write.
        out: what the archive is written to.
        status: a pipe for the error, if there is one.
        parent: the exporter's pid, without which the packer does not live.
        ref: what the image is called in the archive; "" nothing.
    """

    layers: tuple[str, ...]
    home: int
    scratch: int
    out: int
    status: int
    parent: int
    format: Format
    compression: Compression
    ref: str
    config: ImageConfig
    history: tuple[History, ...]
    architecture: str
    author: str


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(compression: Compression) -> _Compressor:
    if compression == "gzip":
        return zlib.compressobj(_GZIP_LEVEL, wbits=31)  # a header without name and time
    if compression == "zstd":
        return zstandard.ZstdCompressor(_ZSTD_LEVEL, write_checksum=True).compressobj()
    return _Plain()


class BlobWriter:
    """Compresses what it is given into the file `descriptor`, in a thread that is at most a few chunks behind."""

    def __init__(self, descriptor: int, compression: Compression) -> None:
        self._descriptor = descriptor
        self._compressor = _compressor(compression)
        self._plain = hashlib.sha256()
        self._packed = hashlib.sha256()
        self._size = 0
        self._held = bytearray()
        self._waiting: queue.Queue[bytes] = queue.Queue(2)
        self._failures: list[Exception] = []
        self._thread = threading.Thread(target=self._run, name="compress", daemon=True)
        self._thread.start()

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the layer's tar."""
        self._held += data
        if len(self._held) >= _CHUNK:
            self._pass_on()

    def finish(self) -> tuple[str, int, str]:
        """Digest and size of the blob, and the digest of the plain tar."""
        self._pass_on()
        self._waiting.put(b"")
        self._thread.join()
        if self._failures:
            raise self._failures[0]
        return f"sha256:{self._packed.hexdigest()}", self._size, f"sha256:{self._plain.hexdigest()}"

    def _pass_on(self) -> None:
        if self._held:
            self._waiting.put(bytes(self._held))
            self._held.clear()

    def _run(self) -> None:
        while piece := self._waiting.get():
            if self._failures:
                continue  # whoever fills the queue must not wait for ever
            try:
                self._plain.update(piece)
                self._keep(self._compressor.compress(piece))
            except Exception as error:
                self._failures.append(error)
        if not self._failures:
            try:
                self._keep(self._compressor.flush())
            except Exception as error:
                self._failures.append(error)

    def _keep(self, data: bytes) -> None:
        self._packed.update(data)
        self._size += len(data)
        _write_all(self._descriptor, data)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Archive:
    """The outer tar; every entry belongs to root and has no time."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._size = 0

    def add(self, path: str, content: bytes) -> None:
        """A file."""
        self._header(path, len(content))
        self._put(content + tarball.padding(len(content)))

    def add_directory(self, path: str) -> None:
        """A directory, with a slash at its end."""
        self._put(tarball.header(Member(path=path.encode(), kind=b"5", mode=0o755)))

    def add_from(self, path: str, descriptor: int, start: int, size: int) -> None:
        """A file with `size` bytes of another."""
        self._header(path, size)
        for piece in _pieces(descriptor, start, start + size):
            self._put(piece)
        self._put(tarball.padding(size))

    def finish(self) -> None:
        """Its end."""
        self._put(tarball.end(self._size))

    def _header(self, path: str, size: int) -> None:
        self._put(tarball.header(Member(path=path.encode(), size=size)))

    def _put(self, data: bytes | memoryview) -> None:
        self._size += len(data)
        _write_all(self._out, data)


def _pieces(descriptor: int, start: int, end: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_CHUNK))
    position = start
    while position < end:
        got = os.preadv(descriptor, [buffer[: min(_CHUNK, end - position)]], position)
        if not got:
            raise AgentosError("disk-failed", "a packed layer became shorter")
        yield buffer[:got]
        position += got


def pack(job: PackJob) -> None:
    """Write the whole archive, its first byte after every layer is packed."""
    packed: list[describing.Packed] = []
    starts: dict[str, int] = {}
    for name in job.layers:
        start = os.lseek(job.scratch, 0, os.SEEK_CUR)
        layer = _pack_layer(job, name)
        packed.append(layer)
        if starts.setdefault(layer.path(job.format), start) != start:  # two layers may be the same
            os.lseek(job.scratch, start, os.SEEK_SET)
    archive = Archive(job.out)
    oci = job.format == "oci"
    if oci:
        archive.add("oci-layout", describing.LAYOUT)
        archive.add_directory("blobs/")
        archive.add_directory("blobs/sha256/")
    for layer in {layer.digest: layer for layer in packed}.values():
        path = layer.path(job.format)
        archive.add_from(path, job.scratch, starts[path], layer.size)
    image = describing.Described(
        config=job.config, history=job.history, architecture=job.architecture, author=job.author, layers=tuple(packed)
    )
    for path, content in image.documents(job.ref) if oci else image.docker_documents(job.ref):
        archive.add(path, content)
    archive.finish()


def _pack_layer(job: PackJob, name: str) -> describing.Packed:
    tree = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=job.home)
    try:
        blob = BlobWriter(job.scratch, job.compression)
        TreePacker(tree, blob.write).pack()
        digest, size, diff_id = blob.finish()
    finally:
        os.close(tree)
    return describing.Packed(
        media_type=model.LAYER + _SUFFIX[job.compression], digest=digest, size=size, diff_id=diff_id
    )


def _failure(error: Exception) -> AgentosError:
    if isinstance(error, AgentosError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return AgentosError(
            "disk-full",
            "no space left for a packed layer",
            hint="free some space under the state directory, or where the archive goes, and export again",
        )
    if isinstance(error, SyscallError):
        return AgentosError("export-failed", str(error))
    return AgentosError("export-failed", f"{type(error).__name__}: {error}")


def _confine(job: PackJob) -> None:
    program = confine.compile_filter()  # before the libraries that it needs are out of sight
    own_pids = ns.open_own("pid")
    confine.leave_host()
    ns.setns(own_pids, ns.CLONE_NEWPID)  # a process whose children would be elsewhere cannot start threads
    _keep_only(job.home, job.scratch, job.out, job.status)
    confine.keep_capabilities((confine.CAP_DAC_READ_SEARCH,))
    confine.die_with_parent()
    confine.limit_resources(Limits())
    confine.filter_system_calls(program)


def _keep_only(*descriptors: int) -> None:
    """Close every other fd but stdio."""
    first = 3
    for descriptor in sorted(descriptors):
        if descriptor > first:
            close_range(first, descriptor - 1)
        first = descriptor + 1
    close_range(first, 0xFFFFFFFF)


def _guarded(status: int, step: Callable[[], None]) -> bool:
    """Do `step`; tell the exporter when it fails."""
    try:
        step()
    except Exception as error:
        _write_all(status, msgspec.json.encode(_failure(error).to_dict()))
        return False
    return True


def main() -> None:
    """Entry point; 0 when the archive is whole."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=PackJob)
    confine.die_with_parent()
    if os.getppid() != job.parent:
        raise SystemExit(1)  # the exporter died before the line above
    if not (_guarded(job.status, lambda: _confine(job)) and _guarded(job.status, lambda: pack(job))):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
