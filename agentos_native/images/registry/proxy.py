"""Whether a request goes by way of a proxy: HTTPS_PROXY, HTTP_PROXY and NO_PROXY as curl and Go's programs read them.

The variables are the supervisor's. A proxy is spoken to by HTTP; what is https inside is a tunnel (CONNECT), so the
proxy sees hosts and amounts, not words. What is on this machine is never asked for by way of another.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.registry.url import Target

_HINT: Final = "HTTPS_PROXY=http://HOST:PORT in the environment of the supervisor"


class Proxies(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment says, "" for nothing: the proxies for http and https, and who is asked without one."""

    http: str = ""
    https: str = ""
    bypass: str = ""

    def __repr__(self) -> str:
        """Without passwords: what is printed may be kept."""
        return f"Proxies(http={bool(self.http)}, https={bool(self.https)}, bypass={self.bypass!r})"


class Proxy(NamedTuple):
    """One proxy; `authorization` is the value of its header, "" for none."""

    host: str
    port: int
    authorization: str

    def shown(self) -> str:
        """For people, without the password."""
        return f"{self.host}:{self.port}"


def from_environment(environment: Mapping[str, str]) -> Proxies:
    """The lower-case variables count before the others, as with curl.

    Raises:
        AgentosError: ``invalid-proxy``.
    """

    def said(name: str) -> str:
        return environment.get(name) or environment.get(name.upper(), "")

    every = said("all_proxy")
    found = Proxies(http=said("http_proxy") or every, https=said("https_proxy") or every, bypass=said("no_proxy"))
    for text in filter(None, (found.http, found.https)):
        _parsed(text)
    return found


def proxy_for(proxies: Proxies, target: Target) -> Proxy | None:
    """The proxy by which `target` is asked, None for none.

    Raises:
        AgentosError: ``invalid-proxy``.
    """
    text = proxies.https if target.scheme == "https" else proxies.http
    if not text or _is_bypassed(target, proxies.bypass):
        return None
    return _parsed(text)


def _parsed(text: str) -> Proxy:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise AgentosError("invalid-proxy", "it does not name a host and a port", "HTTPS_PROXY", _HINT) from None
    if parts.scheme != "http":
        what = f"a proxy that is spoken to by {parts.scheme[:20]!r} is not used"
        raise AgentosError("invalid-proxy", what, "HTTPS_PROXY", _HINT)
    if not host or not host.isascii() or not host.isprintable():
        raise AgentosError("invalid-proxy", "it does not name a host and a port", "HTTPS_PROXY", _HINT)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        # or a password with such a character ends there, and its user's name is taken for a host
        what = "there is a path, a query or a fragment in it"
        hint = f"{_HINT}; in a password / is %2F, ? is %3F, # is %23"
        raise AgentosError("invalid-proxy", what, "HTTPS_PROXY", hint)
    authorization = ""
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(words.encode()).decode()
    return Proxy(host, port or 80, authorization)


def _is_bypassed(target: Target, bypass: str) -> bool:
    host = target.host.strip("[]").lower().rstrip(".")
    address = _address(host)
    if host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback):
        return True
    port = target.origin[2]
    return any(_matches(word, host, address, port) for word in bypass.lower().replace(",", " ").split())


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _matches(word: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
    """Whether one word of NO_PROXY means the host: ``*``, an address, a network, or a domain (``.d``: only what is
    below it), each with ``:port`` perhaps."""
    if word == "*":
        return True
    name, colon, digits = word.rpartition(":")
    if colon and digits.isdecimal() and (":" not in name or name.endswith("]")):
        if int(digits) != port:
            return False
        word = name
    word = word.strip("[]")
    if address is not None:
        try:
            return address in ipaddress.ip_network(word, strict=False)
        except ValueError:
            return False
    below = word.removeprefix("*")
    return host.endswith(below) if below.startswith(".") else host == word or host.endswith(f".{word}")
