"""Who asks: RFC 7617's Basic and the distribution protocol's bearer tokens, and to whom a password may be shown.

A registry that wants a token names the server that gives it. Left alone, that is a way to have a password sent
anywhere; so it goes to the registry's own host, to one under the same domain, or to the one that the user has named,
and never without TLS unless the registry itself is spoken to so. The scope that is asked for is our own: pulling this
one path.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlencode

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images.registry.model import Access, PullLimits
from agentos_native.images.registry.transport import Answer, Transient, Transport
from agentos_native.images.registry.url import Target, parse_url

_HEADER_MAX: Final = 8192
_SCHEME: Final = re.compile(r"(?:^|,)\s*(basic|bearer)(?=\s|,|$)", re.IGNORECASE)
_PARAMETER: Final = re.compile(r'([A-Za-z][A-Za-z0-9_-]{0,31})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{1,16384}")


class Challenge(NamedTuple):
    """What a 401 asks for; `parameters` of a bearer token."""

    basic: bool
    bearer: Mapping[str, str] | None


class _TokenAnswer(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def parse_challenge(header: str) -> Challenge:
    """A WWW-Authenticate header, which may hold several challenges."""
    found = list(_SCHEME.finditer(header[:_HEADER_MAX]))
    basic, bearer = False, None
    ends = [match.start() for match in found[1:]] + [_HEADER_MAX]
    for match, end in zip(found, ends, strict=bool(found)):
        if match[1].lower() == "basic":
            basic = True
        elif bearer is None:
            text = header[match.end() : end]
            bearer = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(text)}
    return Challenge(basic, bearer)


class Credentials:
    """The Authorization header of requests to one registry, made when it is asked for. Not thread-safe: see `renew`."""

    def __init__(self, access: Access, registry: Target, path: str, transport: Transport, limits: PullLimits) -> None:
        self._access, self._registry, self._path = access, registry, path
        self._transport, self._limits = transport, limits
        self._header = ""

    def headers(self, target: Target) -> dict[str, str]:
        """For a request to `target`: nothing unless it goes to the registry itself."""
        if self._header and target.origin == self._registry.origin:
            return {"Authorization": self._header}
        return {}

    def renew(self, challenge: str, refused: Mapping[str, str]) -> None:
        """Answer a 401 with the header `challenge` to a request with the headers `refused`.

        Raises:
            AgentosError: ``registry-auth``.
        """
        asked = parse_challenge(challenge)
        used = refused.get("Authorization", "")
        if self._header != used:
            return  # another thread was faster
        if asked.bearer is not None:
            self._header = f"Bearer {self._token(asked.bearer)}"
        elif not asked.basic:
            raise self._refused("the registry wants to know who asks, in a way that is not spoken here")
        elif not self._access.username:
            raise self._refused("the registry wants a user and a password")
        elif used:
            raise self._refused("the registry does not accept this user and password")
        else:
            self._header = self._basic()

    def _basic(self) -> str:
        word = base64.b64encode(f"{self._access.username}:{self._access.password}".encode()).decode()
        return f"Basic {word}"

    def _refused(self, what: str) -> AgentosError:
        hint = "--creds USER asks for the password; --authfile FILE reads both as docker keeps them"
        return AgentosError("registry-auth", what, self._registry.shown(), hint)

    def _token(self, parameters: Mapping[str, str]) -> str:
        server = self._token_server(parameters.get("realm", ""))
        query = {"scope": f"repository:{self._path}:pull"}
        if parameters.get("service"):
            query = {"service": parameters["service"][:256], **query}
        separator = "&" if "?" in server.path else "?"
        target = server._replace(path=f"{server.path}{separator}{urlencode(query)}")
        headers = {"Authorization": self._basic()} if self._access.username else {}
        with self._asked(target, headers) as answer:
            if answer.status in {401, 403}:
                if headers:
                    raise self._refused("the registry's token server does not accept this user and password")
                raise self._refused("the registry's token server wants a user and a password")
            if answer.status != 200:
                kind = Transient if answer.status >= 500 or answer.status == 429 else AgentosError
                raise kind("registry-auth", f"the registry's token server answers {answer.status}", target.shown())
            body = answer.body.read(self._limits.token, "a token server's answer")
        try:
            given = msgspec.json.decode(body, type=_TokenAnswer)
        except (msgspec.MsgspecError, RecursionError):
            raise AgentosError("registry-auth", "the token server's answer is not understood", target.shown()) from None
        token = given.token or given.access_token
        if not _TOKEN.fullmatch(token):
            raise AgentosError("registry-auth", "the token server's answer holds no token", target.shown())
        return token

    @contextlib.contextmanager
    def _asked(self, target: Target, headers: Mapping[str, str]) -> Iterator[Answer]:
        """The token server's answer; where it may be is the transport's matter unless the user has named it."""
        named = target.host.lower() == self._access.token_host.lower()
        try:
            with self._transport.get(target, headers, anywhere=named) as answer:
                yield answer
        except AgentosError as error:
            if error.code == "registry-redirect":
                error.hint = f"{error.hint}\nif that token server is right, say so: --token-host {target.host[:100]}"
            raise

    def _token_server(self, realm: str) -> Target:
        try:
            server = parse_url(realm)
        except ValueError as error:
            raise AgentosError(
                "registry-auth", f"the registry names a token server that is not asked: {error}", self._registry.shown()
            ) from None
        if server.scheme != "https" and self._registry.scheme == "https":
            raise AgentosError("registry-auth", "the registry names a token server without TLS", server.shown())
        if self._access.username and not may_know(server.host, self._registry.host, self._access.token_host):
            raise AgentosError(
                "registry-auth",
                f"the registry wants the password sent to another host, {server.host[:100]}",
                self._registry.shown(),
                f"if that is right, say so: --token-host {server.host[:100]}",
            )
        return server


def may_know(host: str, registry: str, named: str) -> bool:
    """Whether `host` may be given the password for `registry`: it is that, `named`, or under the registry's domain.

    That domain is the registry's name without its first label, and has two labels at least.
    """
    host, registry = host.lower().rstrip("."), registry.lower().rstrip(".")
    if not host:
        return False
    if host in {registry, named.lower()}:
        return True
    try:
        ipaddress.ip_address(registry.strip("[]"))
        return False
    except ValueError:
        domain = registry.partition(".")[2]
        return "." in domain and (host == domain or host.endswith(f".{domain}"))
