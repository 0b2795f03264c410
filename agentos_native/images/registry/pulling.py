"""A pull, from a request to an image of the store: fetch what the store does not know, import it from where it lies."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.images import names
from agentos_native.images.catalog import Catalog
from agentos_native.images.model import Image, Limits
from agentos_native.images.oci.importing import Importer, ImportOptions
from agentos_native.images.oci.layout import Directory, Layout
from agentos_native.images.registry.fetching import Cancelled, Fetching
from agentos_native.images.registry.model import Access, Advance, Errand, Plan, PullLimits, Remark
from agentos_native.images.registry.proxy import from_environment
from agentos_native.images.registry.reference import check_platform, parse_reference
from agentos_native.images.session import Session
from agentos_native.wire.images import ImageEvent, PullRequest

_CA_MAX: Final = 1 << 20
_NOT_VERIFIED: Final = (
    "WARNING: the registry's certificate is not verified: whoever is in between can read the password"
    " and send another image"
)
_IN_THE_CLEAR: Final = "WARNING: the password goes over the network as it is: --plain-http has no TLS"

Watch = Callable[[ImageEvent], None]


class Pull:
    """One pull; `run` blocks, `cancel` may be called by any thread.

    Raises:
        AgentosError: what is wrong with the request: ``invalid-reference``, ``invalid-platform``, ``invalid-ca`` …;
            with the environment: ``invalid-proxy``.
    """

    def __init__(
        self,
        catalog: Catalog,
        request: PullRequest,
        pull_limits: PullLimits = PullLimits(),  # noqa: B008 - immutable
        limits: Limits = Limits(),  # noqa: B008 - immutable
    ) -> None:
        place = parse_reference(request.reference)
        self._catalog, self._limits = catalog, limits
        self._platform = check_platform(request.platform)
        self.reference = place.name
        self.name = names.parse_name(request.name or place.name)
        self._access = Access(
            username=request.username,
            password=request.password,
            plain_http=request.plain_http,
            verify_tls=request.verify_tls,
            ca=_read_ca(request.ca_file) if request.ca_file else "",
            token_host=request.token_host,
            proxies=from_environment(os.environ),
        )
        errand = Errand(place=place, access=self._access, limits=pull_limits, platform=self._platform)
        self.fetched = 0
        """Bytes of layers that came over the network."""
        self._fetching = Fetching(catalog.path / "downloads", errand)

    def cancel(self) -> None:
        """End it soon; what has arrived is kept for the next pull of the same reference."""
        self._fetching.cancel()

    def run(self, watch: Watch) -> Image:
        """Pull it; `watch` is told how it goes, in this thread.

        Raises:
            AgentosError: what failed; ``cancelled``. The store is as it was.
        """
        try:
            return self._run(watch)
        except Cancelled:
            hint = "what has arrived is kept: the same command goes on from there"
            raise AgentosError("cancelled", "the pull was cancelled", self.reference, hint) from None

    def _run(self, watch: Watch) -> Image:
        for note in self._warnings():
            watch(ImageEvent(kind="note", text=note))

        def tell(message: Advance | Remark) -> None:
            watch(_event(message))

        def unpacking(event: ImageEvent) -> None:
            self._fetching.check()
            watch(event)

        with self._catalog.lease(), self._fetching.run(self._known, tell) as fetched:
            self.fetched = fetched.fetched
            options = ImportOptions(ref=fetched.manifest, platform=self._platform)
            with Session(self._limits) as session:
                importer = Importer(self._catalog, session, options, watch=unpacking)
                return importer.layout(self.name, Layout(Directory(fetched.directory)))

    def _warnings(self) -> list[str]:
        if self._access.plain_http:
            return [_IN_THE_CLEAR] if self._access.username else []
        return [] if self._access.verify_tls else [_NOT_VERIFIED]

    def _known(self, plan: Plan) -> list[int]:
        """The layers that the store has; as `Importer.image` looks them up, under the same lease."""
        found = []
        chain = ""
        for number, diff_id in enumerate(plan.diff_ids):
            chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}" if chain else diff_id
            if self._catalog.known(f"chain:{chain}") or self._catalog.known(f"diff:{diff_id}"):
                found.append(number)
        return found


def _event(message: Advance | Remark) -> ImageEvent:
    if isinstance(message, Remark):
        return ImageEvent(kind="note", text=message.text)
    what = "fetching" if not message.resumed else "fetching (resumed)"
    return ImageEvent(kind="progress", what=what, done=message.done, total=message.total)


def _read_ca(path: str) -> str:
    """The PEM text of a file. Raises ``invalid-ca``."""
    with contextlib.suppress(OSError, UnicodeError, ValueError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and path.startswith("/"):
                text = file.read(_CA_MAX + 1).decode("ascii")
                if len(text) <= _CA_MAX and "BEGIN CERTIFICATE" in text:
                    return text
    hint = "a file with certificates in PEM form, by an absolute path on the machine of the supervisor"
    raise AgentosError("invalid-ca", "the file of authorities cannot be used", path[:300], hint)
