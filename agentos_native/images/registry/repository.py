"""One repository of a registry in the words of the OCI distribution specification: GET manifests, GET blobs.

Redirects and requests to say who asks are dealt with here, each so many times. Nothing that a password was made into
goes to another origin than the registry's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.oci.model import INDEX_TYPES, MANIFEST_TYPES, is_digest
from agentos_native.images.registry.auth import Credentials
from agentos_native.images.registry.model import Access, Place, PullLimits
from agentos_native.images.registry.transport import Answer, Transient, Transport
from agentos_native.images.registry.url import Target, redirected

_ACCEPT: Final = ", ".join(sorted(MANIFEST_TYPES | INDEX_TYPES))
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})
_RENEWALS: Final = 2
_ERROR_BODY_MAX: Final = 16 << 10
_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class _Complaint(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Complaints(msgspec.Struct):
    errors: list[_Complaint] = []


class Repository:
    """Thread-safe."""

    def __init__(self, place: Place, access: Access, limits: PullLimits, transport: Transport) -> None:
        scheme = "http" if access.plain_http else "https"
        self._place, self._limits, self._transport = place, limits, transport
        self._base = Target(scheme, place.host, place.port, f"/v2/{place.path}/")
        self._credentials = Credentials(access, self._base, place.path, transport, limits)
        self._renewing = threading.Lock()

    def manifest(self, target: str) -> tuple[bytes, str]:
        """A manifest or an index by tag or digest, and the media type that it was served with; one attempt.

        Raises:
            Transient: trying again makes sense.
            AgentosError: ``not-in-registry``, ``registry-auth``, ``digest-mismatch`` and so on.
        """
        with self._get(f"manifests/{target}", {"Accept": _ACCEPT}, "the manifest") as answer:
            content = answer.body.read(self._limits.document, "the manifest")
            promised = target if is_digest(target) else answer.header("Docker-Content-Digest")
            kind = answer.header("Content-Type").partition(";")[0].strip().lower()
        if promised.startswith("sha256:"):
            check_digest(promised, f"sha256:{hashlib.sha256(content).hexdigest()}", "the manifest")
        return content, kind

    @contextlib.contextmanager
    def blob(self, digest: str, offset: int, size: int) -> Iterator[tuple[int, Answer]]:
        """The blob from `offset` on, where the registry can do that: from which byte on, and the answer.

        Raises:
            Transient: trying again makes sense.
            AgentosError: ``not-in-registry``, ``size-mismatch`` and so on.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._get(f"blobs/{digest}", headers, f"blob {digest[:19]}") as answer:
            begins = 0
            if answer.status == 206:
                begins = self._range(answer, offset, size)
            length = answer.header("Content-Length")
            if length and (not length.isdecimal() or int(length[:20]) != size - begins):
                raise wrong_size(
                    digest, f"the registry wants to send {length[:20]!r} of its last {size - begins} bytes"
                )
            yield begins, answer

    def _range(self, answer: Answer, offset: int, size: int) -> int:
        found = _RANGE.fullmatch(answer.header("Content-Range"))
        if found is None or int(found[1]) != offset or found[3] not in {"*", str(size)}:
            raise AgentosError(
                "registry-protocol", "the registry sends another part than was asked for", answer.target.shown()
            )
        return offset

    @contextlib.contextmanager
    def _get(self, path: str, headers: Mapping[str, str], what: str) -> Iterator[Answer]:
        """The answer with the content, after redirects and after saying who asks."""
        target = self._base._replace(path=self._base.path + path)
        renewals = hops = 0
        while True:
            shown = self._credentials.headers(target)
            with self._transport.get(target, {**headers, **shown}) as answer:
                own = target.origin == self._base.origin
                if not (own and answer.status == 401 and renewals < _RENEWALS) and answer.status not in _REDIRECTS:
                    self._check_status(answer, what, own)
                    yield answer
                    return
            if answer.status == 401:
                renewals += 1
                with self._renewing:
                    self._credentials.renew(answer.header("WWW-Authenticate"), shown)
                continue
            hops += 1
            if hops > self._limits.redirects:
                hint = "the registry, or somebody in between, is set up wrongly or hostile"
                raise AgentosError("registry-redirect", f"{hops} redirects, one to the next", target.shown(), hint)
            target = redirected(target, answer.header("Location"))

    def _check_status(self, answer: Answer, what: str, own: bool) -> None:
        status, where = answer.status, answer.target.shown()
        if status in {200, 206}:
            return
        said = _complaint(answer) if own else ""
        if status == 404:
            raise AgentosError("not-in-registry", f"{what} of {self._place.name} is not there{said}", where)
        if status == 401:
            raise AgentosError(
                "registry-auth", f"the registry does not accept who asks{said}", where, "--creds, --authfile"
            )
        if status == 403:
            hint = "is the user allowed to pull this? --creds and --authfile say who asks"
            raise AgentosError("registry-denied", f"the registry refuses {what}{said}", where, hint)
        if status in _BUSY:
            raise Transient("registry-busy", f"the registry answers {status}{said}", where, "try again later")
        raise AgentosError("registry-protocol", f"the registry answers {status}{said}", where, "is that a registry?")


def check_digest(promised: str, found: str, what: str) -> None:
    """Raises ``digest-mismatch``."""
    if promised != found:
        raise AgentosError(
            "digest-mismatch",
            f"{what} is not what its digest says",
            f"{promised} is {found}",
            "the registry, or somebody in between, has damaged or changed it",
        )


def wrong_size(digest: str, what: str) -> AgentosError:
    """A blob that is longer or shorter than the manifest says."""
    hint = "the registry, or somebody in between, has damaged or changed it"
    return AgentosError("size-mismatch", what, digest, hint)


def _complaint(answer: Answer) -> str:
    """What the registry itself says about it, so far as it can be printed; "" when it says nothing."""
    try:
        found = msgspec.json.decode(answer.body.read(_ERROR_BODY_MAX, "an error"), type=_Complaints).errors
    except (AgentosError, msgspec.MsgspecError, RecursionError):
        return ""
    words = [f"{entry.code} {entry.message}".strip()[:160] for entry in found[:3]]
    shown = "; ".join(filter(None, words))
    return f" ({''.join(char if char.isprintable() else '?' for char in shown)})" if shown else ""
