"""An OCI layout or an unpacked ``docker save`` archive as a directory of blobs that somebody untrusted may have made.

Everything is opened beneath the directory's fd: a layout has no symbolic links, a ``docker save`` archive has them for
layers that two images share, and they stay inside. Nothing here interprets what it reads; documents are bytes for
`survey`, and their digests are verified before anybody sees them. A layer's digest is verified while it is unpacked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from typing import Final, Protocol

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


class Blobs(Protocol):
    """Where the blobs of an image come from: a directory here, a registry elsewhere."""

    def read(self, descriptor: Descriptor) -> bytes:
        """A document, its size and digest verified.

        Raises:
            AgentosError: ``blob-missing``, ``size-mismatch``, ``digest-mismatch``, ``invalid-layout``.
        """
        ...

    def open(self, descriptor: Descriptor) -> int:
        """An fd of a layer, at its beginning; the caller closes it, and verifies what comes out of it."""
        ...


class Layout:
    """An OCI layout below the directory fd `root`, which must stay open."""

    def __init__(self, root: int) -> None:
        self._root = root

    def choose(self, how: Ask, ref: str, platform: str) -> Descriptor:
        """The index or manifest of the image that is meant; see `model.AskIndex`."""
        header = _read(_open(self._root, "oci-layout", STRICT), "oci-layout")
        index = _read(_open(self._root, "index.json", STRICT), "index.json")
        question = model.AskIndex(content=index, platform=platform, ref=ref, layout=header)
        return ask(how, question, Descriptor)

    def read(self, descriptor: Descriptor) -> bytes:
        """See `Blobs.read`."""
        file = self.open(descriptor)
        return _read(file, descriptor.digest, descriptor)

    def open(self, descriptor: Descriptor) -> int:
        """See `Blobs.open`."""
        if not model.is_digest(descriptor.digest):
            raise invalid("a digest that is none", repr(descriptor.digest[:200]))
        algorithm, _, digits = descriptor.digest.partition(":")
        return _open(self._root, f"blobs/{algorithm}/{digits}", STRICT)


class DockerArchive:
    """What ``docker save`` wrote, unpacked below the directory fd `root`, which must stay open."""

    def __init__(self, root: int) -> None:
        self._root = root

    def choose(self, how: Ask, ref: str) -> Contents:
        """What the image that is meant consists of; see `model.AskDocker`."""
        content = _read(_open(self._root, "manifest.json", STRICT), "manifest.json")
        return ask(how, model.AskDocker(content=content, ref=ref), Contents)

    def read(self, descriptor: Descriptor) -> bytes:
        """See `Blobs.read`; the digest is known where the file is called by it."""
        match = _HEX_NAME.fullmatch(descriptor.path)
        named = Descriptor(
            media_type=descriptor.media_type, digest=f"sha256:{match.group(1)}" if match else "", size=descriptor.size
        )
        return _read(self.open(descriptor), descriptor.path, named)

    def open(self, descriptor: Descriptor) -> int:
        """See `Blobs.open`."""
        return _open(self._root, descriptor.path, _LINKS_INSIDE)


def recognise(root: int) -> Layout | DockerArchive | None:
    """What is in the directory fd `root`: None for an ordinary tree, also for one with such files among others."""
    names = set(os.listdir(root))
    if names & _ROOTFS_NAMES:
        return None
    if names >= _LAYOUT_NAMES:
        return Layout(root)
    if "manifest.json" in names and len(names) > 1 and all(map(_ARCHIVED_NAME.fullmatch, names)):
        return DockerArchive(root)
    return None


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
            raise AgentosError(
                "blob-missing", "a file of the image is not there", shown, "was all of it copied?"
            ) from None
        if error.errno in (errno.ELOOP, errno.EXDEV):
            raise invalid("a file of the image is a link, or leads out of its directory", shown) from None
        raise AgentosError("source-not-read", f"a file of the image cannot be read: {error.strerror}", shown) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise invalid("a file of the image is no file", repr(path[:200]))
    return descriptor


def _read(descriptor: int, called: str, expected: Descriptor | None = None) -> bytes:
    """The whole of a document; closes `descriptor`."""
    with open(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        if expected is not None and expected.size not in (-1, size):
            raise wrong_size(called, expected.size, size)
        if size > model.DOCUMENT_MAX:
            raise invalid(f"a document has {size} bytes, more than {model.DOCUMENT_MAX}", repr(called[:200]))
        content = b""
        while len(content) <= size and (piece := file.read(size + 1 - len(content))):
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
