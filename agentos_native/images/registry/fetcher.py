"""The process that talks to a registry: ``python -m agentos_native.images.registry.fetcher JOB``.

Theory of operation
-------------------
::

    store     (a thread of the supervisor: `fetching`) decides which layers are wanted, imports what has arrived
     └ fetcher  a user and a group that own nothing, no capability, seccomp, a read-only root with three files of
                /etc; the host's network. Threads: one for each blob, one that ends what takes too long (`transport`).

1. It reads its errand, with the password, from a memory file, and the certificates that it shall trust.
2. It gives up everything but four fds: the errand (closed), the download directory, the link to the store, and stderr.
3. It asks for the manifest, if that is an index for the one of the platform, and for the configuration; all of that is
   verified, and read by `oci.survey` here, where it can do no harm. It sends a `Plan`.
4. The store answers with a `Choice`: the layers that it does not know. They are fetched, verified while they stream.
5. `Complete` or `Broken` is its last word. The store believes neither: the importer verifies every digest again.

It dies with the thread that started it, and leaves what has arrived where the next pull finds it.
"""

from __future__ import annotations

import contextlib
import encodings.idna
import errno
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Final, TypeVar

import msgspec
import urllib3.response
import urllib3.util.ssl_match_hostname

from agentos_native.errors import AgentosError
from agentos_native.images import confine
from agentos_native.images.oci import model as oci
from agentos_native.images.oci.survey import invalid, survey, unsupported
from agentos_native.images.registry import confinement
from agentos_native.images.registry.download import Account, BlobFetch, Directory
from agentos_native.images.registry.model import (
    Blob,
    Broken,
    Choice,
    Complete,
    Errand,
    Message,
    Plan,
    PullLimits,
)
from agentos_native.images.registry.repository import Repository, check_digest, wrong_size
from agentos_native.images.registry.transport import Transient, Transport, tls_context
from agentos_native.kernel.libc import SyscallError

_T = TypeVar("_T")
_LOADED: Final = (encodings.idna, urllib3.response, urllib3.util.ssl_match_hostname)
"""What the standard library and urllib3 import when it is first needed: nothing can be imported any more then."""


class Link:
    """The socket to the store: JSON in lines. Thread-safe to write to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """One message."""
        data = memoryview(msgspec.json.encode(message) + b"\n")
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def choice(self) -> Choice:
        """The store's answer to a plan."""
        received = b""
        while not received.endswith(b"\n"):
            piece = os.read(self._descriptor, 65536)
            if not piece:
                os._exit(1)
            received += piece
        return msgspec.json.decode(received, type=Choice)


class Fetcher:
    """One errand, once the process is confined."""

    def __init__(self, errand: Errand, directory: Directory, link: Link, transport: Transport) -> None:
        self._errand, self._limits = errand, errand.limits
        self._directory, self._link = directory, link
        self._account = Account(link.send)
        self._repository = Repository(errand.place, errand.access, errand.limits, transport)

    def run(self) -> None:
        """Everything, up to the last word."""
        manifest, content = self._manifest()
        question = oci.AskManifest(content=content, media_type=manifest.media_type)
        contents = _survey(question, oci.Contents)
        config = self._document(contents.config)
        description = _survey(
            oci.AskConfig(content=config, layers=len(contents.layers), platform=self._errand.platform), oci.Description
        )
        layers = _blobs(contents, self._limits)
        plan = Plan(manifest=_blob(manifest), layers=layers, diff_ids=description.diff_ids)
        self._link.send(plan)
        wanted = self._link.choice().wanted
        chosen = {layers[number].digest: layers[number] for number in wanted if 0 <= number < len(layers)}
        self._fetch(list(chosen.values()))
        self._directory.put(manifest.digest, content)
        self._directory.put(contents.config.digest, config)
        described = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}
        self._directory.finish(self._errand.place.name, described)
        self._account.finish()
        self._link.send(Complete(self._account.fetched))

    def _manifest(self) -> tuple[oci.Descriptor, bytes]:
        """The manifest for the platform."""
        target, kind, size = self._errand.place.target, "", -1
        for _ in range(oci.DEPTH_MAX + 1):
            asked = target
            content, served = self._again(lambda: self._repository.manifest(asked))  # noqa: B023 - called at once
            if size not in (-1, len(content)):
                raise wrong_size(target, f"the manifest has {len(content)} bytes where the index says {size}")
            if kind and served in oci.INDEX_TYPES | oci.MANIFEST_TYPES and served != kind:
                raise invalid(f"what the index calls {kind!r} is served as {served!r}")  # CVE-2021-41190
            kind = kind or served
            if kind in oci.MANIFEST_TYPES:
                digest = target if oci.is_digest(target) else _sha256(content)
                return oci.Descriptor(media_type=kind, digest=digest, size=len(content)), content
            if kind not in oci.INDEX_TYPES:
                hint = "schema 1 has no digests that hold: `skopeo copy` makes an image of today of it"
                raise unsupported(f"the registry serves {kind[:80]!r} as a manifest", hint)
            entry = _survey(oci.AskIndex(content=content, platform=self._errand.platform), oci.Descriptor)
            target, kind, size = entry.digest, entry.media_type, entry.size
        raise invalid("there are indexes in indexes without end")

    def _document(self, wanted: oci.Descriptor) -> bytes:
        """A configuration."""
        _check(wanted, self._limits.document, "the configuration")

        def attempt() -> bytes:
            with self._repository.blob(wanted.digest, 0, wanted.size) as (_, answer):
                content = answer.body.read(wanted.size, "the configuration")
            if len(content) != wanted.size:
                raise wrong_size(wanted.digest, f"the configuration has {len(content)} bytes, not {wanted.size}")
            check_digest(wanted.digest, _sha256(content), "the configuration")
            return content

        return self._again(attempt)

    def _again(self, action: Callable[[], _T]) -> _T:
        """`action`, with as many attempts as there may be."""
        for attempt in range(self._limits.attempts):
            try:
                return action()
            except Transient as error:
                if attempt == self._limits.attempts - 1 or error.code == "registry-unreachable":
                    raise  # nothing was ever there: waiting for it is the user's to decide
                self._account.remark(f"{error.what}; attempt {attempt + 2}")
                time.sleep(min(self._limits.backoff * 2**attempt, self._limits.backoff_max))
        raise AssertionError("there is at least one attempt")

    def _fetch(self, blobs: list[Blob]) -> None:
        """Several at a time; the first failure ends all, once they have put away what they have."""
        total = sum(blob.size for blob in blobs)
        self._directory.check_room(total)
        self._account.expect(total)
        stop = threading.Event()
        with ThreadPoolExecutor(self._limits.parallel, thread_name_prefix="blob") as pool:
            futures: list[Future[None]] = []
            for blob in blobs:
                fetch = BlobFetch(blob, self._directory, self._account, self._limits, stop)
                futures.append(pool.submit(fetch.run, self._repository))
            done, pending = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [error for future in done if (error := future.exception()) is not None]
            if failed:
                stop.set()
                for future in pending:
                    future.cancel()
                raise next((error for error in failed if not isinstance(error, Transient)), failed[0])


def _survey(question: oci.Question, answer: type[_T]) -> _T:
    return msgspec.msgpack.decode(survey(msgspec.msgpack.encode(question)), type=answer)


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _check(descriptor: oci.Descriptor, limit: int, what: str) -> None:
    if not descriptor.digest.startswith("sha256:"):
        raise unsupported(f"{what} has a digest of another kind than sha256", "push the image with sha256")
    if descriptor.size > limit:
        raise _too_large(f"{what} is said to have {descriptor.size} bytes; {limit} are allowed", descriptor.digest)


def _too_large(what: str, where: str = "") -> AgentosError:
    return AgentosError("image-too-large", what, where, "is the manifest's size a lie, or the image not for here?")


def _blob(descriptor: oci.Descriptor) -> Blob:
    return Blob(digest=descriptor.digest, size=descriptor.size)


def _blobs(contents: oci.Contents, limits: PullLimits) -> tuple[Blob, ...]:
    """The layers; one that occurs twice has one size."""
    sizes: dict[str, int] = {}
    for number, layer in enumerate(contents.layers, 1):
        _check(layer, limits.bytes, f"layer {number}")
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise invalid("the manifest gives one layer two sizes", layer.digest)
    if sum(sizes.values()) > limits.bytes:
        raise _too_large(f"the layers are said to have more than {limits.bytes} bytes together")
    return tuple(map(_blob, contents.layers))


def _broken(error: BaseException) -> Broken:
    """Any failure as the last word."""
    if isinstance(error, AgentosError):
        known = error
    elif isinstance(error, MemoryError):
        known = AgentosError("image-too-large", "what the registry sends needs more memory than a pull may use")
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        known = AgentosError(
            "disk-full", "there is no room for what is fetched", "", "`agentos-native image gc` may help"
        )
    elif isinstance(error, SyscallError):
        hint = "`agentos-native check` says what this host lacks"
        known = AgentosError("pull-not-confined", str(error), "", hint)
    else:
        known = AgentosError("pull-failed", f"{type(error).__name__}: {error}")
    return Broken(known.to_dict(), resumable=isinstance(error, Transient) or known.code == "disk-full")


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb", buffering=0) as file:
        file.seek(0)
        return file.readall() or b""


def main() -> None:
    """Entry point; the exit status says nothing, the messages do. JOB: the numbers of three fds."""
    errand_fd, directory_fd, link_fd = map(int, sys.argv[1].split(","))
    errand = msgspec.json.decode(_read_all(errand_fd), type=Errand)
    confine.die_with_parent()
    if os.getppid() != errand.parent:
        os._exit(1)  # the store died before the line above
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    link = Link(link_fd)
    os.umask(0o022)  # what the root gets must be readable without power
    try:
        tls = tls_context(errand.access.ca, errand.access.verify_tls)
        with contextlib.suppress(OSError):  # loads what resolving takes
            socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        "localhost".encode("idna")
        confinement.leave_host()
        confinement.limit_resources(errand.limits)
        confinement.become_nobody()
        confinement.filter_system_calls()
        Fetcher(errand, Directory(directory_fd), link, Transport(errand.limits, tls, errand.access.proxies)).run()
    except BaseException as error:
        with contextlib.suppress(OSError):
            link.send(_broken(error))
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
