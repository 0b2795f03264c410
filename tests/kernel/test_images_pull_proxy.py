"""Pulls by way of a proxy on loopback, which alone knows where ``registry.test`` is."""

from __future__ import annotations

import contextlib
import http.server
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentos_native.images import ImageStore
from agentos_native.images.registry.proxy import Proxies
from agentos_native.images.registry.pulling import Pull
from agentos_native.wire.images import ImageEvent, PullRequest
from tests.images import needs_root
from tests.networks import require_outer_namespace
from tests.registries import (
    Content,
    DockerRegistry,
    Server,
    failure,
    fetch,
    layer,
    make_certificates,
    make_layout,
    serving,
)

pytestmark = needs_root


@pytest.fixture(autouse=True, scope="module")
def own_network() -> None:
    require_outer_namespace()


class _Asked(http.server.BaseHTTPRequestHandler):
    """Leads ``*.test`` to 127.0.0.1, by CONNECT or by a whole URL; keeps what it was asked for."""

    server: Proxying
    protocol_version = "HTTP/1.1"

    def _note(self) -> bool:
        self.server.asked.append((self.command, self.path, self.headers.get("Proxy-Authorization", "")))
        if self.server.status != 200:
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
        return self.server.status == 200

    def _connected(self, authority: str) -> socket.socket:
        host, _, port = authority.rpartition(":")
        assert host.endswith(".test"), host
        return socket.create_connection(("127.0.0.1", int(port)))

    def do_CONNECT(self) -> None:
        if not self._note():
            return
        with self._connected(self.path) as there:
            self.send_response(200)
            self.end_headers()
            self._pass(self.connection, there)
        self.close_connection = True

    def do_GET(self) -> None:
        if not self._note():
            return
        authority, _, path = self.path.removeprefix("http://").partition("/")
        with self._connected(authority) as there:
            assert self.headers["Host"] == authority
            kept = "".join(f"{key}: {value}\r\n" for key, value in self.headers.items())
            there.sendall(f"GET /{path} HTTP/1.1\r\n{kept}\r\n".encode())
            while piece := there.recv(65536):
                self.wfile.write(piece)
        self.close_connection = True

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with selectors.DefaultSelector() as waiting, contextlib.suppress(OSError):
            waiting.register(one, selectors.EVENT_READ, other)
            waiting.register(other, selectors.EVENT_READ, one)
            while True:
                for key, _ in waiting.select():
                    assert isinstance(key.fileobj, socket.socket)
                    piece = key.fileobj.recv(65536)
                    if not piece:
                        return
                    key.data.sendall(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class Proxying(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.asked: list[tuple[str, str, str]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://ada:pw@127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up."""


@pytest.fixture
def proxy() -> Iterator[Proxying]:
    made = Proxying()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def named(reference: str, host: str = "registry.test") -> str:
    return f"{host}:{reference.partition(':')[2]}"


def test_plain_http_goes_by_the_proxy(server: Server, proxy: Proxying, tmp_path: Path) -> None:
    content = Content(layer({"a": b"a"}))
    reference = named(content.serve(server))
    fetch(tmp_path / "d", reference, proxies=Proxies(http=proxy.url))
    host = reference.partition("/")[0]
    assert {(command, word) for command, _, word in proxy.asked} == {("GET", "Basic YWRhOnB3")}
    assert [path for _, path, _ in proxy.asked] == [f"http://{host}{path}" for path in server.paths()]
    assert len(proxy.asked) >= 3


def test_tls_goes_through_the_proxy_and_is_verified(proxy: Proxying, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    authority = certificates.ca.read_text()
    content = Content(layer({"a": b"a"}))
    with serving(certificates.server_context()) as server:
        reference = content.serve(server)
        given: dict[str, Any] = {"plain_http": False, "proxies": Proxies(https=proxy.url)}
        fetch(tmp_path / "d", named(reference), ca=authority, **given)
        assert {(command, path, word) for command, path, word in proxy.asked} == {
            ("CONNECT", named(reference).partition("/")[0], "Basic YWRhOnB3")
        }
        assert not any("proxy-authorization" in asked.headers for asked in server.asked)
        for host, ca in (("registry.test", ""), ("other.test", authority)):
            where = named(reference, host)
            error = failure(partial(fetch, tmp_path / "e", where, ca=ca, **given))
            assert error.code == "registry-tls", error


def test_who_need_not_be_asked_for_by_the_proxy_is_not(server: Server, proxy: Proxying, tmp_path: Path) -> None:
    reference = Content(layer({"a": b"a"})).serve(server)
    fetch(tmp_path / "d", reference, proxies=Proxies(http=proxy.url))
    assert proxy.asked == []


@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_proxy_that_refuses(proxy: Proxying, tmp_path: Path, status: int) -> None:
    proxy.status = status
    given: dict[str, Any] = {"plain_http": False, "proxies": Proxies(https=proxy.url)}
    error = failure(lambda: fetch(tmp_path / "d", "registry.test/x:1", **given))
    assert error.code == "registry-proxy" and str(status) in error.what
    assert f"by the proxy 127.0.0.1:{proxy.server_address[1]}" in error.where and "pw" not in str(error)


def test_a_proxy_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    error = failure(lambda: fetch(tmp_path / "d", "registry.test/x:1", proxies=Proxies(http=f"127.0.0.1:{port}")))
    assert error.code == "registry-unreachable" and f"by the proxy 127.0.0.1:{port}" in error.where


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "127.0.0.1"])
def test_a_registry_behind_a_proxy_leads_to_no_private_address(
    server: Server, proxy: Proxying, tmp_path: Path, host: str
) -> None:
    content = Content(layer({"a": b"a"}))
    reference = named(content.serve(server))
    target = f"http://{host}:{server.server_address[1]}/secret"
    server.answers[content.blob()] = lambda handler: handler.say(307, Location=target)
    error = failure(lambda: fetch(tmp_path / "d", reference, proxies=Proxies(http=proxy.url)))
    assert error.code == "registry-redirect" and "public" in error.what
    assert "/secret" not in server.paths()


def test_the_environment_of_the_supervisor_counts(
    proxy: Proxying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = DockerRegistry(tmp_path / "registry")
    try:
        registry.push(make_layout(tmp_path / "agent", Content(layer({"a": b"a"}))), "team/agent:1")
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        store = ImageStore(tmp_path / "state")
        events: list[ImageEvent] = []
        request = PullRequest(reference=f"registry.test:{registry.port}/team/agent:1", plain_http=True, name="x")
        image = Pull(store.catalog, request).run(events.append)
        assert (image.layers[0] / "a").read_bytes() == b"a"
        assert proxy.asked
        monkeypatch.setenv("NO_PROXY", "test")
        assert failure(lambda: Pull(store.catalog, request).run(events.append)).code == "registry-unreachable"
    finally:
        registry.close()
