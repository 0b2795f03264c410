"""An OCI layout or a ``docker save`` archive as files that somebody untrusted may have made.

The files are in a directory, or still in an archive (`members`). In a directory everything is opened beneath its fd: a
layout has no symbolic links, a ``docker save`` archive has them for layers that two images share, and they stay inside.
Nothing here interprets what it reads; documents are bytes for `survey`, and their digests are verified before anybody
sees them. A layer's digest is verified while it is unpacked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

from agentos_native.errors import AgentosError
from agentos_native.images.oci import model
from agentos_native.images.oci.model import Contents, Descriptor
from agentos_native.images.oci.survey import Ask, ask, invalid
from agentos_native.images.unpack.writer import STRICT
from agentos_native.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV, openat2

_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LINKS_INSIDE: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_HEX_NAME: Final = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?")
_ARCHIVED_NAME: Final = re.compile(
    r"repositories|oci-layout|blobs|.+\.json|.+\.tar(?:\.gz)?|(?:sha256:)?[0-9a-f]{64}", re.DOTALL
)
"""What lies at the root of a ``docker save`` archive."""
_LAYOUT_NAMES: Final = frozenset({"oci-layout", "index.json", "blobs"})
_ROOTFS_NAMES: Final = frozenset({"bin", "dev", "etc", "home", "lib", "proc", "sbin", "sys", "tmp", "usr", "var"})


class Opened(NamedTuple):
    """An fd, and how many bytes from where it stands are meant; `within`: there is something else after them."""

    fd: int
    size: int
    within: bool = False


class Files(Protocol):
    """Files by path, with ``/`` between names; no path leads out."""

    def open(self, path: str, *, links: bool = False) -> Opened:
        """A plain file, which the caller closes; `links`: also by way of symbolic links that stay inside.

        Raises:
            AgentosError: ``blob-missing``, ``invalid-layout``, ``source-not-read``.
        """
        ...


class Directory:
    """The files below the directory fd `root`, which must stay open."""

    def __init__(self, root: int) -> None:
        self._root = root

    def open(self, path: str, *, links: bool = False) -> Opened:
        """See `Files.open`."""
        descriptor = _open(self._root, path, _LINKS_INSIDE if links else STRICT)
        return Opened(descriptor, os.fstat(descriptor).st_size)


class Blobs(Protocol):
    """Where the blobs of an image come from."""

    def read(self, descriptor: Descriptor) -> bytes:
        """A document, its size and digest verified.

        Raises:
            AgentosError: ``blob-missing``, ``size-mismatch``, ``digest-mismatch``, ``invalid-layout``.
        """
        ...

    def open(self, descriptor: Descriptor) -> Opened:
        """A layer, at its beginning; the caller closes it, and verifies what comes out of it."""
        ...


class Layout:
    """An OCI layout."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def choose(self, how: Ask, ref: str, platform: str) -> Descriptor:
        """The index or manifest of the image that is meant; see `model.AskIndex`."""
        header = _read(self._files.open("oci-layout"), "oci-layout")
        index = _read(self._files.open("index.json"), "index.json")
        question = model.AskIndex(content=index, platform=platform, ref=ref, layout=header)
        return ask(how, question, Descriptor)

    def read(self, descriptor: Descriptor) -> bytes:
        """See `Blobs.read`."""
        return _read(self.open(descriptor), descriptor.digest, descriptor)

    def open(self, descriptor: Descriptor) -> Opened:
        """See `Blobs.open`."""
        if not model.is_digest(descriptor.digest):
            raise invalid("a digest that is none", repr(descriptor.digest[:200]))
        algorithm, _, digits = descriptor.digest.partition(":")
        return self._files.open(f"blobs/{algorithm}/{digits}")


class DockerArchive:
    """What ``docker save`` wrote."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def choose(self, how: Ask, ref: str) -> Contents:
        """What the image that is meant consists of; see `model.AskDocker`."""
        content = _read(self._files.open("manifest.json"), "manifest.json")
        return ask(how, model.AskDocker(content=content, ref=ref), Contents)

    def read(self, descriptor: Descriptor) -> bytes:
        """See `Blobs.read`; the digest is known where the file is called by it."""
        match = _HEX_NAME.fullmatch(descriptor.path)
        named = Descriptor(
            media_type=descriptor.media_type, digest=f"sha256:{match.group(1)}" if match else "", size=descriptor.size
        )
        return _read(self.open(descriptor), descriptor.path, named)

    def open(self, descriptor: Descriptor) -> Opened:
        """See `Blobs.open`."""
        return self._files.open(descriptor.path, links=True)


def recognise(at_root: Iterable[str], files: Files) -> Layout | DockerArchive | None:
    """What `files` are, with the names `at_root`: None for an ordinary tree, also for one with such files among
    others."""
    names = set(at_root)
    if names & _ROOTFS_NAMES:
        return None
    if names >= _LAYOUT_NAMES:
        return Layout(files)
    if "manifest.json" in names and len(names) > 1 and all(map(_ARCHIVED_NAME.fullmatch, names)):
        return DockerArchive(files)
    return None


def missing(path: str) -> AgentosError:
    """There is no such file."""
    return AgentosError("blob-missing", "a file of the image is not there", repr(path[:200]), "was all of it copied?")


def _open(root: int, path: str, resolve: int) -> int:
    """A regular file.

    Raises:
        AgentosError: ``blob-missing``, ``invalid-layout``, ``source-not-read``.
    """
    try:
        descriptor = openat2(root, path, _READ, resolve=resolve)
    except OSError as error:
        shown = repr(path[:200])
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise missing(path) from None
        if error.errno in (errno.ELOOP, errno.EXDEV):
            raise invalid("a file of the image is a link, or leads out of its directory", shown) from None
        raise AgentosError("source-not-read", f"a file of the image cannot be read: {error.strerror}", shown) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise invalid("a file of the image is no file", repr(path[:200]))
    return descriptor


def _read(opened: Opened, called: str, expected: Descriptor | None = None) -> bytes:
    """The whole of a document; closes it."""
    with open(opened.fd, "rb", buffering=0) as file:
        if expected is not None and expected.size not in (-1, opened.size):
            raise wrong_size(called, expected.size, opened.size)
        if opened.size > model.DOCUMENT_MAX:
            raise invalid(f"a document has {opened.size} bytes, more than {model.DOCUMENT_MAX}", repr(called[:200]))
        content = b""
        while piece := file.read(opened.size - len(content)):
            content += piece
    if expected is not None and expected.digest:
        verify(content, expected.digest)
    return content


def verify(content: bytes, digest: str) -> None:
    """Check a document against its digest (`model.is_digest`).

    Raises:
        AgentosError: ``digest-mismatch``.
    """
    algorithm = digest.partition(":")[0]
    found = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    if found != digest:
        raise AgentosError(
            "digest-mismatch",
            "a document of the image is not what its digest says",
            f"{digest} is {found}",
            "it was damaged or changed; get the image again",
        )


def wrong_size(called: str, said: int, found: int) -> AgentosError:
    """A blob is longer or shorter than whoever named it said."""
    return AgentosError(
        "size-mismatch",
        f"a blob of the image has {found} bytes where {said} were promised",
        repr(called[:200]),
        "it was damaged or changed; get the image again",
    )
