"""URLs that others wrote: only what can be asked for by this program, and where one of them may lead."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from agentos_native.errors import AgentosError

URL_MAX: Final = 8192
_CHARACTERS: Final = re.compile(r"[\x21-\x7e]+")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\]")


class Target(NamedTuple):
    """What one request asks for; `path` with its query, as it is sent."""

    scheme: str
    host: str
    port: int | None
    path: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """What a password belongs to."""
        return self.scheme, self.host.lower(), self.port or {"http": 80, "https": 443}[self.scheme]

    def absolute(self) -> str:
        """As a proxy is asked for it."""
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}://{self.host}{port}{self.path}"

    def shown(self) -> str:
        """For people: without the query, in which a redirect may carry a signature."""
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}://{self.host}{port}{self.path.partition('?')[0]}"[:300]


def parse_url(text: str) -> Target:
    """Raises ValueError with the reason: anything that is not plain http or https, or is hard to read twice alike."""
    if not text or len(text) > URL_MAX:
        raise ValueError("it is empty or too long")
    if not _CHARACTERS.fullmatch(text):
        raise ValueError("there are characters in it that a URL has not")
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"}:
        raise ValueError(f"{parts.scheme[:20]!r} is not spoken here")
    if "@" in parts.netloc or "\\" in parts.netloc:
        raise ValueError("there is a user or a password in it")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    if not _HOST.fullmatch(host):
        raise ValueError("its host is not one")
    port = parts.port
    if port == 0:
        raise ValueError("its port is not one")
    return Target(parts.scheme, host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def redirected(source: Target, location: str) -> Target:
    """Where an answer of `source` sends its client.

    Raises:
        AgentosError: ``registry-redirect``.
    """
    hint = "the registry, or somebody in between, is set up wrongly or hostile"
    port = f":{source.port}" if source.port else ""
    try:
        target = parse_url(urljoin(f"{source.scheme}://{source.host}{port}{source.path}", location))
    except ValueError as error:
        raise AgentosError(
            "registry-redirect", f"a redirect that is not followed: {error}", source.shown(), hint
        ) from None
    if source.scheme == "https" and target.scheme != "https":
        raise AgentosError("registry-redirect", "a redirect from https to http is not followed", source.shown(), hint)
    return target
