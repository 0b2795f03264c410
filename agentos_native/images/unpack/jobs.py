"""What a confined child does for one job, from its fds to its last word; the processes are those of `images.worker`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.model import Limits
from agentos_native.images.unpack.archive import Entry, check_path, entries
from agentos_native.images.unpack.digest import measure
from agentos_native.images.unpack.directory import DirectoryReader
from agentos_native.images.unpack.early import EarlyHashes, Hints
from agentos_native.images.unpack.finding import find
from agentos_native.images.unpack.layer import LayerWriter
from agentos_native.images.unpack.messages import Answered, Failed, Found, Job, Measured, Message, Progress, Written
from agentos_native.images.unpack.reading import Root
from agentos_native.images.unpack.stream import Forward, corrupt
from agentos_native.images.unpack.writer import TreeWriter
from agentos_native.images.unpack.writing import Writing
from agentos_native.kernel.libc import SyscallError

Task = Callable[[bytes], bytes]
Report = Callable[[int, int], None]

_INTERVAL: Final = 0.1


def send(descriptor: int, message: Message) -> None:
    """Write one message as a line."""
    data = memoryview(msgspec.json.encode(message) + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


def reporter(descriptor: int) -> Report:
    """A progress callback that sends at most ten messages a second."""
    due = time.monotonic() + _INTERVAL

    def report(count: int, size: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + _INTERVAL
            send(descriptor, Progress(count, size))

    return report


def failure(error: BaseException, doing: str) -> Failed:
    """Any exception as what the user reads."""
    if isinstance(error, AgentosError):
        known = error
    elif isinstance(error, MemoryError):
        known = AgentosError("image-too-large", "the archive's headers need more memory than an import may use", doing)
    elif isinstance(error, SyscallError):
        known = AgentosError(
            "import-not-confined", str(error), doing, "`agentos-native check` says what this host lacks"
        )
    else:
        known = AgentosError("import-failed", f"{type(error).__name__}: {error}", doing)
    return Failed(known.to_dict())


def unpack(job: Job, descriptors: Mapping[str, int], status: int) -> Written | Found:
    """An archive, in an unprivileged child."""
    if job.find and (found := find(descriptors["source"])) is not None:
        return found
    is_layer = job.kind == "layer"
    prefix = check_path(job.prefix, job.limits)
    hints = Hints(descriptors.get("hints", -1))
    writer: TreeWriter
    if is_layer or "base" in descriptors:
        base = Root(descriptors.get("base", -1))
        writer = LayerWriter(
            descriptors["target"], job.limits, reporter(status), hints.add, base=base, whiteouts=is_layer
        )
        prefix = writer.real(prefix)
    else:
        writer = TreeWriter(descriptors["target"], job.limits, reporter(status), hints.add)
    stream = Forward(descriptors["source"], job.limits, hashed=is_layer, open_ended=bool(job.expect.diff_id))
    for entry in entries(stream, job.limits):
        stored = entry.size if entry.segments is None else sum(length for _, length in entry.segments)
        writer.add(_below(prefix, entry, job.limits) if prefix else entry, stream.blocks(stored))
    if not writer.entries and not is_layer:
        raise corrupt("the archive is empty")
    writer.finish()
    send(status, Progress(writer.entries, writer.bytes))
    rooted = isinstance(writer, LayerWriter) and writer.rooted
    return Written(notes=writer.notes(), diff_id=stream.digest(), rooted=rooted)


def _below(prefix: bytes, entry: Entry, limits: Limits) -> Entry:
    """`entry` as it is below the directory `prefix`."""
    path = check_path(prefix + b"/" + entry.path, limits)
    target = check_path(prefix + b"/" + entry.target, limits) if entry.kind == "hardlink" else entry.target
    return msgspec.structs.replace(entry, path=path, target=target)


def read_directory(job: Job, descriptors: Mapping[str, int], status: int) -> Written:
    """A directory, in a child with the warden's file capabilities."""
    hints = Hints(descriptors.get("hints", -1))
    writer = TreeWriter(descriptors["tree"], job.limits, reporter(status), hints.add)
    reader = DirectoryReader(descriptors["source"], job.limits, upper=job.kind == "upper", exclude=job.exclude)
    reader.copy(writer)
    writer.finish()
    send(status, Progress(writer.entries, writer.bytes))
    return Written(notes=reader.notes() + writer.notes())


def answer(job: Job, task: Task, descriptors: Mapping[str, int]) -> Answered:
    """A pure function, in an unprivileged child."""
    result = memoryview(task(job.request))
    while result:
        result = result[os.write(descriptors["answer"], result) :]
    return Answered()


def measure_tree(tree: int, hints: int, go: int, *, sync: bool) -> Measured:
    """The digest of what is on disk, while a thread makes sure that it is on disk.

    Args:
        hints, go: see `EarlyHashes.follow`; -1 where nobody is writing.
        sync: whether it has to be on disk.
    """
    writing = Writing(tree)
    early = EarlyHashes(tree, writing.more)
    if go >= 0:
        early.follow(hints, go)
    if sync:
        writing.all()
    try:
        measured = measure(tree, early)
    except (OSError, KeyError) as error:
        raise AgentosError("tree-not-read", f"the tree cannot be read: {error}") from None
    writing.wait()
    return measured
