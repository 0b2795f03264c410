"""One bounded GET over HTTP: what comes back may be anything, and takes only so long and so much.

Each request has a connection of its own (`urllib3`'s, without its pool: no redirects, retries, cookies or decompression
that nobody asked for), to the host itself or to the proxy that stands for it. A time limit on a socket's calls bounds
each of them, not their sum: a server that sends a byte now and then would be listened to for ever. So a `Watch` knows a
deadline for what each request does now, and one thread (`Watchman`) shuts the sockets down whose time is over.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from agentos_native import __version__
from agentos_native.errors import AgentosError
from agentos_native.images.registry.model import PullLimits
from agentos_native.images.registry.proxy import Proxies, Proxy, proxy_for
from agentos_native.images.registry.reach import Reach, leads, named, reach
from agentos_native.images.registry.url import Target

_PIECE: Final = 256 << 10
_TICK: Final = 0.05
_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": f"agentos-native/{__version__}", "Connection": "close"}
_TLS_HINT: Final = (
    "--ca-file FILE trusts a further authority; --no-tls-verify trusts anybody; --plain-http speaks without TLS"
)

_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where distributions keep the authorities that they trust in one file."""
_NO_TUNNEL: Final = "Tunnel connection failed: "
_NO_TLS: Final = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}


class Transient(AgentosError):
    """A failure after which trying again makes sense, now or with another pull."""


class Watch:
    """The deadline of what one request does now, and a second fd of its socket to end it by."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadline = float("inf")
        self._socket: socket.socket | None = None
        self.expired = False

    def expect(self, seconds: float) -> None:
        """What happens now may take so long."""
        self._deadline = time.monotonic() + seconds

    def follow(self, sock: socket.socket) -> None:
        """Watch `sock`; a duplicate, because TLS takes the original apart."""
        with self._lock:
            self._close()
            self._socket = socket.socket(fileno=os.dup(sock.fileno()))

    def check(self, now: float) -> None:
        """Shut the socket down when its time is over."""
        if now < self._deadline:
            return
        with self._lock:
            if self._socket is not None and not self.expired:
                self.expired = True
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def end(self) -> None:
        """The request is over."""
        with self._lock:
            self._close()


class Watchman:
    """A thread that looks after the watches of a process."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="watchman", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_TICK)
            with self._lock:
                watches = list(self._watches)
            now = time.monotonic()
            for watch in watches:
                watch.check(now)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watch]:
        """A watch for one request."""
        watch = Watch()
        with self._lock:
            self._watches.add(watch)
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.discard(watch)
            watch.end()


class Answer(NamedTuple):
    """The head of an answer, and its body yet to come."""

    target: Target
    status: int
    headers: urllib3.HTTPHeaderDict
    body: Body

    def header(self, name: str) -> str:
        """One value of the header `name`, "" when there is none."""
        return str(self.headers.get(name, ""))


class Body:
    """The bytes of an answer as they were sent: no content coding is asked for, none accepted, none undone."""

    def __init__(self, response: urllib3.HTTPResponse, watch: Watch, limits: PullLimits, target: Target) -> None:
        self._response, self._watch, self._limits, self._target = response, watch, limits, target

    def pieces(self) -> Iterator[bytes]:
        """As they arrive, to the end of the body, or of the connection: who needs a length counts.

        Raises:
            Transient: ``registry-too-slow``, ``registry-connection``.
        """
        begun, received = time.monotonic(), 0
        self._watch.expect(self._limits.window * 1.5)
        while True:
            with _explained(self._target, self._watch):
                piece = self._response.read1(_PIECE, decode_content=False)
            if self._watch.expired:
                raise _too_slow(self._target)
            if not piece:
                return
            received += len(piece)
            now = time.monotonic()
            if now - begun >= self._limits.window:
                if received < self._limits.rate * (now - begun):
                    raise _too_slow(self._target)
                begun, received = now, 0
                self._watch.expect(self._limits.window * 1.5)
            yield piece

    def read(self, most: int, what: str) -> bytes:
        """All of it, at most `most` bytes. Raises ``too-large``."""
        content = bytearray()
        for piece in self.pieces():
            content += piece
            if len(content) > most:
                raise AgentosError(
                    "registry-answer-too-large", f"{what} has more than {most} bytes", self._target.shown()
                )
        length = self._response.headers.get("Content-Length", "")
        if length.isdecimal() and len(content) < int(length):
            raise Transient("registry-connection", f"{what} ended before its end", self._target.shown())
        return bytes(content)


class _Plain(HTTPConnection):
    """A connection that says when it has a socket."""

    opened: Callable[[socket.socket], None]

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        try:
            self.opened(sock)
        except BaseException:
            sock.close()
            raise
        return sock


class _Secure(_Plain, HTTPSConnection):
    """The same with TLS."""


class Transport:
    """Makes requests. `tls` is used for every https connection; None when there shall be none.

    The first connection is the registry's own and decides where else it may lead, by a redirect or to a token server:
    see `reach`. Of what a proxy leads to only that is known which its name says; the rest is the proxy's to decide.
    """

    def __init__(self, limits: PullLimits, tls: ssl.SSLContext, proxies: Proxies = Proxies()) -> None:  # noqa: B008
        self._limits = limits
        self._tls = tls
        self._proxies = proxies
        self._watchman = Watchman()
        self._registry: Reach | None = None

    @contextlib.contextmanager
    def get(self, target: Target, headers: Mapping[str, str], *, anywhere: bool = False) -> Iterator[Answer]:
        """GET `target`; redirects are the caller's. `anywhere`: the user has named its host, wherever that is.

        Raises:
            Transient: ``registry-unreachable``, ``registry-connection``, ``registry-too-slow``.
            AgentosError: ``registry-tls``, ``registry-protocol``, ``registry-redirect``.
        """
        proxy = proxy_for(self._proxies, target)
        with self._watchman.watch() as watch, contextlib.closing(self._connection(target, proxy)) as connection:
            connection.opened = lambda sock: self._begin(connection, watch, sock, target, proxy, anywhere)
            watch.expect(self._limits.connect + self._limits.head)
            path, given = target.path, {**_HEADERS, **headers}
            if proxy is not None and target.scheme == "http":
                path = target.absolute()
                given |= _authorized(proxy)
            with _explained(target, watch, proxy):
                connection.request("GET", path, headers=given, preload_content=False, decode_content=False)
                response = connection.getresponse()
            with contextlib.closing(response):  # which has a file of its own on the socket
                if watch.expired:
                    raise _too_slow(target)
                _check_coding(response, target)
                yield Answer(target, response.status, response.headers, Body(response, watch, self._limits, target))

    def _connection(self, target: Target, proxy: Proxy | None) -> _Plain | _Secure:
        host, port = (target.host.strip("[]"), target.port) if proxy is None else (proxy.host, proxy.port)
        if target.scheme == "http":
            return _Plain(host, port, timeout=self._limits.connect)
        connection = _Secure(
            host,
            port,
            timeout=self._limits.connect,
            ssl_context=self._tls,
            cert_reqs=self._tls.verify_mode,
            assert_hostname=None if self._tls.check_hostname else False,
        )
        if proxy is not None:
            connection.set_tunnel(target.host.strip("[]"), target.origin[2], _authorized(proxy))
        return connection

    def _begin(
        self,
        connection: _Plain | _Secure,
        watch: Watch,
        sock: socket.socket,
        target: Target,
        proxy: Proxy | None,
        anywhere: bool,
    ) -> None:
        """TCP is connected; TLS and the request follow."""
        if not anywhere:
            self._check_peer(reach(str(sock.getpeername()[0])) if proxy is None else named(target.host), target)
        watch.follow(sock)
        watch.expect(self._limits.head)
        connection.timeout = self._limits.quiet  # which it sets again before it reads
        sock.settimeout(self._limits.quiet)

    def _check_peer(self, there: Reach, target: Target) -> None:
        self._registry = self._registry or there
        if not leads(self._registry, there):
            raise AgentosError(
                "registry-redirect",
                f"the registry, which is on a {self._registry} address, sends its clients to a {there} one",
                target.shown(),
                "it may be trying to reach what only this machine can reach",
            )


def _authorized(proxy: Proxy) -> dict[str, str]:
    return {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}


def _check_coding(response: urllib3.HTTPResponse, target: Target) -> None:
    coding = response.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise AgentosError(
            "registry-protocol",
            f"the answer is in the content coding {coding[:20]!r}, which was not asked for",
            target.shown(),
            "a blob's digest is of its bytes as they are; is there a proxy in between that recodes?",
        )


@contextlib.contextmanager
def _explained(target: Target, watch: Watch, proxy: Proxy | None = None) -> Iterator[None]:
    """Whatever the libraries raise as what a user reads; `proxy`: to which the connection is being made."""
    try:
        yield
    except AgentosError:
        raise
    except Exception as error:
        if watch.expired:
            raise _too_slow(target) from None
        known = explain(error, target)
        if proxy is not None:
            known.where = f"{known.where}, by the proxy {proxy.shown()}"
        raise known from None


def _too_slow(target: Target) -> AgentosError:
    hint = "what has arrived is kept: the same command goes on from there"
    return Transient("registry-too-slow", "the registry sends too slowly, or nothing", target.shown(), hint)


def explain(error: BaseException, target: Target) -> AgentosError:
    """An exception of urllib3, http.client or the operating system: the first reader that knows one of its causes."""
    causes = list(_causes(error))
    for reader in (_of_proxy, _of_tls, _of_http, _of_network):
        for cause in causes:
            if (known := reader(cause, target)) is not None:
                return known
    hint = "what has arrived is kept: the same command goes on from there"
    return Transient("registry-connection", f"the connection broke ({_words(causes[-1])})", target.shown(), hint)


def _of_proxy(cause: BaseException, target: Target) -> AgentosError | None:
    """Http.client has one kind of error for whatever a proxy answers to CONNECT."""
    if not isinstance(cause, OSError) or not str(cause).startswith(_NO_TUNNEL):
        return None
    answer = "".join(filter(str.isprintable, str(cause).removeprefix(_NO_TUNNEL)[:80]))
    hint = "HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT, or NO_PROXY with the registry's host, for the supervisor"
    return AgentosError("registry-proxy", f"the proxy does not let it through: {answer}", target.shown(), hint)


def _of_tls(cause: BaseException, target: Target) -> AgentosError | None:
    if isinstance(cause, ssl.SSLCertVerificationError):
        what, hint = f"its certificate is not trusted: {cause.verify_message}", _TLS_HINT
    elif not isinstance(cause, ssl.SSLError) or isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return None
    elif (reason := getattr(cause, "reason", None)) in _NO_TLS:
        what, hint = "the registry does not speak TLS there", "--plain-http speaks without TLS"
    else:
        what, hint = f"TLS fails: {reason or _words(cause)}", _TLS_HINT
    return AgentosError("registry-tls", what, target.shown(), hint)


def _of_http(cause: BaseException, target: Target) -> AgentosError | None:
    broken = http.client.RemoteDisconnected | http.client.IncompleteRead
    if not isinstance(cause, http.client.HTTPException) or isinstance(cause, broken):
        return None
    hint = "without --plain-http TLS is spoken" if target.scheme == "http" else "is that a registry?"
    return AgentosError(
        "registry-protocol", f"the answer is not HTTP as it should be ({_words(cause)})", target.shown(), hint
    )


def _of_network(cause: BaseException, target: Target) -> AgentosError | None:
    if isinstance(cause, socket.gaierror):
        what, hint = f"the name is not known: {cause.strerror}", "is it right, and does this machine have a network?"
    elif isinstance(cause, ConnectionRefusedError):
        what, hint = "the connection was refused", "is the registry running, and is the port right?"
    elif isinstance(cause, TimeoutError):
        what, hint = "there is no answer", "is there a way to it from here?"
    else:
        return None
    return Transient("registry-unreachable", what, target.shown(), hint)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it was made of, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = next((argument for argument in error.args if isinstance(argument, BaseException)), None)
        error = error.__cause__ or inner or error.__context__


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def tls_context(ca: str, verify: bool) -> ssl.SSLContext:
    """For clients; the system's authorities and those in the PEM text `ca`, all read here.

    Raises:
        AgentosError: ``invalid-ca``.
    """
    bundle = next(filter(os.path.isfile, _BUNDLES), None)
    context = ssl.create_default_context(cafile=bundle)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if bundle is None:
        _load_directory(context)
    if ca:
        try:
            context.load_verify_locations(cadata=ca)
        except (ssl.SSLError, ValueError):
            raise AgentosError(
                "invalid-ca", "the file of authorities has no certificates that can be read", "", "PEM is read"
            ) from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_directory(context: ssl.SSLContext) -> None:
    """Each file of OpenSSL's own directory: it would read them when it needs them, which is when they are gone."""
    directory = ssl.get_default_verify_paths().capath
    for name in sorted(os.listdir(directory)) if directory else ():
        with contextlib.suppress(OSError, ssl.SSLError):
            context.load_verify_locations(cafile=os.path.join(str(directory), name))
