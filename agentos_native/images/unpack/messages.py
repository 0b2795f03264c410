"""What the store's side, the warden and the confined children tell each other; see `images.worker`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from agentos_native.images.model import Layer, Limits

Kind = Literal["tar", "layer", "directory", "upper", "copy", "measure", "ask"]

FOUND_MAX: Final = 400
"""Members of a `Found`; what their names take fits into one message of a child."""


class Expect(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody said about an archive, to be checked while it is read; "" and -1 for what nobody said.

    Args:
        digest: ``sha256:<hex>`` of the bytes as they come, compressed.
        size: their number.
        within: there is something else after them, which is not looked at.
        diff_id: ``sha256:<hex>`` of the plain tar.
    """

    digest: str = ""
    size: int = -1
    within: bool = False
    diff_id: str = ""


class CopyItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing to copy, as `build.context` selected it; see `unpack.copying`.

    Args:
        source: where it is, relative to the source's root, without links in it.
        destination: relative to the job's `prefix`; b"" for the prefix itself.
        single: a file that becomes `prefix` itself unless there is a directory.
        stamp: inode, size, and times of change in ns, as they were when it was selected; () for no check.
        content: of a file that is in no directory.
    """

    source: bytes
    destination: bytes
    single: bool = False
    stamp: tuple[int, ...] = ()
    content: bytes | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the warden is asked for. `descriptors` are the roles of the fds that come with it, in order:

    ``source`` an archive, pipe or directory; ``tree`` the directory to fill or to measure, with the ids that are on
    disk; ``target`` the same as the unprivileged child may write to it; ``base`` the merged layers below; ``answer`` a
    memory file. `find`: an archive whose files can be used where they lie is not unpacked, see `Found`. The other
    fields are the arguments of `session.Session`'s calls.
    """

    kind: Kind
    limits: Limits
    descriptors: tuple[str, ...]
    expect: Expect = Expect()
    find: bool = False
    prefix: bytes = b""
    exclude: tuple[bytes, ...] = ()
    items: tuple[CopyItem, ...] = ()
    chown: tuple[int, int] | None = None
    chmod: str = ""
    task: str = ""
    request: bytes = b""


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """The first packet of a session: the compiled filter of system calls for the children."""

    program: bytes


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The warden has left the host; with it comes the user namespace of its unprivileged children."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far an import is: entries and bytes of file content written so far."""

    entries: int
    bytes: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The job failed; `error` is ``AgentosError.to_dict()``."""

    error: dict[str, object]


class Fed(msgspec.Struct, frozen=True, tag="fed"):
    """What the feeder read of an archive: sha256 and number of its bytes."""

    digest: str
    size: int


class Written(msgspec.Struct, frozen=True, tag="written"):
    """The unpacker is through; see `Unpacked`."""

    notes: tuple[str, ...] = ()
    diff_id: str = ""
    rooted: bool = False


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """A tree as it is on disk: the only statement about it that the store believes."""

    digest: str
    size: int
    entries: int

    def layer(self) -> Layer:
        """As the store keeps it."""
        return Layer(digest=self.digest, size=self.size, entries=self.entries)


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """The answer is in the memory file."""


class Found(msgspec.Struct, frozen=True, tag="found"):
    """The archive is an image in a plain tar, as far as its headers say; nothing was unpacked.

    Args:
        files: path, offset in the file, and size of each.
        links: path, and the path of the file that it means.
    """

    files: tuple[tuple[str, int, int], ...]
    links: tuple[tuple[str, str], ...] = ()


Message = Ready | Progress | Failed | Fed | Written | Measured | Answered | Found


class Unpacked(msgspec.Struct, frozen=True, kw_only=True):
    """A tree that is on disk.

    Args:
        measured: what it is.
        notes: what was left out, in words.
        diff_id: sha256 of the plain tar of a layer; "" for everything else.
        rooted: whether the tree depends on the layers below it (whiteouts, parents that only they have).
    """

    measured: Measured
    notes: tuple[str, ...] = ()
    diff_id: str = ""
    rooted: bool = False
