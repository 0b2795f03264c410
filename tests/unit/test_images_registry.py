"""What a pull reads that others wrote, without a network: references, URLs, challenges, files with passwords."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.cli.images.credentials import chosen
from agentos_native.cli.images.pulling import display
from agentos_native.errors import AgentosError
from agentos_native.images.registry.auth import may_know, parse_challenge
from agentos_native.images.registry.model import Access, Place
from agentos_native.images.registry.reach import leads, reach
from agentos_native.images.registry.reference import check_platform, parse_reference
from agentos_native.images.registry.transport import Transient, explain
from agentos_native.images.registry.url import Target, parse_url, redirected
from agentos_native.wire.images import ImageEvent, PullRequest

DIGEST = "sha256:" + "0" * 64
HERE = Target("https", "registry.test", None, "/v2/a/blobs/x?y=1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("registry.test/a", Place(name="registry.test/a", host="registry.test", port=None, path="a", target="latest")),
        ("localhost/a/b:1", Place(name="localhost/a/b:1", host="localhost", port=None, path="a/b", target="1")),
        ("h:5000/a:latest", Place(name="h:5000/a", host="h", port=5000, path="a", target="latest")),
        (f"h:5000/a:1@{DIGEST}", Place(name=f"h:5000/a:1@{DIGEST}", host="h", port=5000, path="a", target=DIGEST)),
    ],
)
def test_references(text: str, expected: Place) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text", ["a", "team/agent:1", "", "localhost", "h:0/a", "h:65536/a", "h:5000/", "h:5000/A", "h:5000/a@sha256:12",
             "https://registry.test/a", "registry.test/../a", "registry.test/a\n", "registry.test//a", DIGEST]
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(AgentosError) as caught:
        parse_reference(text)
    assert caught.value.code in {"invalid-reference", "invalid-image-name"}
    assert caught.value.hint


def test_platforms() -> None:
    assert check_platform("").startswith("linux/")
    assert check_platform("linux/arm/v7") == "linux/arm/v7"
    assert check_platform("arm64") == "linux/arm64"
    for bad in ("windows/amd64", "linux/", "a/b/c/d", "linux/\n"):
        with pytest.raises(AgentosError, match="invalid-platform"):
            check_platform(bad)


def test_passwords_are_not_shown() -> None:
    assert "word" not in repr(Access(username="ada", password="word"))
    assert "word" not in repr(PullRequest(reference="h:1/a", username="ada", password="word"))


# -- URLs


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/b?c=d", ("https", "registry.test", None, "/b?c=d")),
        ("z", ("https", "registry.test", None, "/v2/a/blobs/z")),
        ("//cdn.test:8443", ("https", "cdn.test", 8443, "/")),
        ("https://[2001:db8::1]:444/x", ("https", "[2001:db8::1]", 444, "/x")),
    ],
)
def test_redirects(location: str, expected: tuple[Any, ...]) -> None:
    assert redirected(HERE, location) == Target(*expected)


@pytest.mark.parametrize(
    "location",
    ["http://registry.test/", "file:///etc/passwd", "ftp://x/", "//u:p@x/", "https://x\\@y/", "/\r\nX: y",
     "https://x:0/", "https://x:99999/", "https://[::1/", "/" + "a" * 9000, "javascript:alert(1)", "https://exa mple/"],
)  # fmt: skip
def test_redirects_that_are_not_followed(location: str) -> None:
    with pytest.raises(AgentosError) as caught:
        redirected(HERE, location)
    assert (caught.value.code, bool(caught.value.hint)) == ("registry-redirect", True)


def test_http_may_lead_to_https() -> None:
    assert redirected(HERE._replace(scheme="http"), "https://cdn.test/x").scheme == "https"


@given(st.text(max_size=60))
@settings(max_examples=300)
def test_any_text_is_a_url_of_ours_or_none(text: str) -> None:
    try:
        target = parse_url(f"http://{text}")
    except ValueError:
        return
    assert target.path.startswith("/")
    assert target.path.isascii()
    assert target.host
    assert not set(target.host) & set("@/?#\\ \r\n")


def test_signatures_in_queries_are_not_shown() -> None:
    assert "y=1" not in HERE.shown()


@pytest.mark.parametrize(
    ("address", "public"),
    [("198.51.100.7", False), ("8.8.8.8", True), ("127.0.0.1", False), ("169.254.169.254", False), ("10.1.2.3", False),
     ("::1", False), ("fe80::1%eth0", False), ("::ffff:10.0.0.1", False), ("2606:4700::1", True)],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert (reach(address) == "public") is public


@pytest.mark.parametrize(
    ("registry", "peer", "allowed"),
    [
        ("8.8.8.8", "1.1.1.1", True),
        ("8.8.8.8", "10.0.0.1", False),
        ("8.8.8.8", "127.0.0.1", False),
        ("8.8.8.8", "169.254.169.254", False),
        ("10.0.0.1", "10.0.0.2", True),
        ("10.0.0.1", "8.8.8.8", True),
        ("10.0.0.1", "169.254.169.254", False),
        ("10.0.0.1", "::ffff:127.0.0.1", False),
        ("10.0.0.1", "0.0.0.0", False),
        ("127.0.0.1", "::1", True),
        ("127.0.0.1", "10.0.0.1", True),
        ("127.0.0.1", "169.254.169.254", False),
        ("127.0.0.1", "fe80::1%eth0", False),
    ],
)
def test_where_a_registry_may_lead(registry: str, peer: str, allowed: bool) -> None:
    assert leads(reach(registry), reach(peer)) is allowed


# -- who asks


@pytest.mark.parametrize(
    ("header", "basic", "bearer"),
    [
        ('Basic realm="x"', True, None),
        ("basic", True, None),
        ('Bearer realm="https://t/x?a=b,c",service="s"', False, {"realm": "https://t/x?a=b,c", "service": "s"}),
        ('Negotiate, BASIC realm=x, bearer REALM="r" , scope="a b"', True, {"realm": "r", "scope": "a b"}),
        ("Negotiate abc", False, None),
        ("", False, None),
        ("Bearerish realm=x", False, None),
    ],
)
def test_challenges(header: str, basic: bool, bearer: dict[str, str] | None) -> None:
    assert parse_challenge(header) == (basic, bearer)


@given(st.text(alphabet='Bearerbasic ,="\\x', max_size=200))
@settings(max_examples=200)
def test_any_challenge_is_read(header: str) -> None:
    basic, bearer = parse_challenge(header)
    assert basic in {True, False}
    assert bearer is None or all(isinstance(value, str) for value in bearer.values())


@pytest.mark.parametrize(
    ("host", "registry", "named", "allowed"),
    [
        ("registry.test.example", "registry.test.example", "", True),
        ("auth.test.example", "registry.test.example", "", True),
        ("test.example", "registry.test.example", "", True),
        ("evil.example", "registry.test.example", "", False),
        ("eviltest.example", "registry.test.example", "", False),
        ("other.example", "test.example", "", False),
        ("other.example", "test.example", "other.example", True),
        ("127.0.0.2", "127.0.0.1", "", False),
        ("x.0.0.1", "127.0.0.1", "", False),
        ("", "localhost", "", False),
    ],
)
def test_who_may_know_a_password(host: str, registry: str, named: str, allowed: bool) -> None:
    assert may_know(host, registry, named) is allowed


# -- failures of the libraries below


@pytest.mark.parametrize(
    ("error", "code", "transient"),
    [
        (ConnectionResetError(104, "reset"), "registry-connection", True),
        (urllib3.exceptions.ProtocolError("x", http.client.IncompleteRead(b"")), "registry-connection", True),
        (http.client.RemoteDisconnected("x"), "registry-connection", True),
        (http.client.BadStatusLine("x"), "registry-protocol", False),
        (http.client.LineTooLong("header"), "registry-protocol", False),
        (socket.gaierror(-2, "Name or service not known"), "registry-unreachable", True),
        (TimeoutError("x"), "registry-unreachable", True),
        (ssl.SSLEOFError(8, "EOF"), "registry-connection", True),
        (ssl.SSLError(1, "handshake failure"), "registry-tls", False),
    ],
)
def test_failures_are_explained(error: BaseException, code: str, transient: bool) -> None:
    explained = explain(error, HERE)
    assert (explained.code, isinstance(explained, Transient), bool(explained.hint)) == (code, transient, True)


# -- passwords of the command line


def auth(user: str, word: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{word}".encode()).decode()}


@pytest.fixture
def authfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return tmp_path / "auth.json"


def test_a_file_with_passwords(authfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auths = {
        "h:5000": auth("ada", "a:b"),
        "h:5000/team": auth("bob", "c"),
        "https://old.test/v1/": auth("cy", "d"),
        "plain.test": {"username": "dee", "password": "e"},
    }
    authfile.write_text(json.dumps({"auths": auths, "HttpHeaders": {"X": "y"}}))
    path = str(authfile)
    assert chosen("h:5000/x:1", None, False, path) == ("ada", "a:b")
    assert chosen(f"h:5000/team/agent:1@{DIGEST}", None, False, path) == ("bob", "c")
    assert chosen("old.test/x", None, False, path) == ("cy", "d")
    assert chosen("plain.test/x", None, False, path) == ("dee", "e")
    assert chosen("other.test/x", None, False, path) == ("", "")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", path)
    assert chosen("h:5000/x", None, False, None) == ("ada", "a:b")


def test_the_file_of_docker_is_the_default(authfile: Path) -> None:
    assert chosen("h:5000/x", None, False, None) == ("", "")
    docker = authfile.parent / "home" / ".docker"
    docker.mkdir(parents=True)
    (docker / "config.json").write_text(json.dumps({"auths": {"h:5000": auth("ada", "word")}}))
    assert chosen("h:5000/x", None, False, None) == ("ada", "word")


@pytest.mark.parametrize(
    "found", [{"credHelpers": {"h:5000": "evil"}}, {"credsStore": "evil", "auths": {"h:5000": {}}}]
)
def test_programs_that_hold_passwords_are_not_run(authfile: Path, found: dict[str, Any]) -> None:
    authfile.write_text(json.dumps(found))
    with pytest.raises(AgentosError) as caught:
        chosen("h:5000/x", None, False, str(authfile))
    assert caught.value.code == "credential-helper"
    assert "--password-stdin" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"auths":3}', '{"auths":{"h:5000":{"auth":"%%%"}}}', '{"auths":{"h:5000":{"auth":"YQ=="}}}',
     '{"auths":' + "[" * 100_000, '{"auths":{"h:5000":{"identitytoken":"x"}}}'],
)  # fmt: skip
def test_files_that_are_not_understood(authfile: Path, text: str) -> None:
    authfile.write_text(text)
    with pytest.raises(AgentosError) as caught:
        chosen("h:5000/x", None, False, str(authfile))
    assert (caught.value.code, caught.value.where) == ("invalid-authfile", str(authfile))


def test_a_file_that_is_named_must_be_there(authfile: Path) -> None:
    with pytest.raises(AgentosError, match="invalid-authfile"):
        chosen("h:5000/x", None, False, str(authfile))


def test_a_password_on_the_command_line_or_from_standard_input(authfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen("h:5000/x", "ada:a:b", False, None) == ("ada", "a:b")
    monkeypatch.setattr(sys, "stdin", io.StringIO("word with spaces \nmore"))
    assert chosen("h:5000/x", "ada", True, None) == ("ada", "word with spaces ")
    for creds, from_stdin in ((":word", False), ("ada:word", True), (None, True)):
        with pytest.raises(AgentosError, match="invalid-creds"):
            chosen("h:5000/x", creds, from_stdin, None)


# -- what is shown

EVENTS = (
    ImageEvent(kind="note", text="WARNING: no TLS\x1b[31m"),
    ImageEvent(kind="progress", what="fetching", done=0, total=2048),
    ImageEvent(kind="progress", what="fetching", done=1024, total=2048),
    ImageEvent(kind="progress", what="fetching", done=2048, total=2048),
    ImageEvent(kind="step", step=1, steps=2, text=f"layer {DIGEST}"),
    ImageEvent(kind="cached", step=1, steps=2, text=f"layer {DIGEST}"),
    ImageEvent(kind="step", step=2, steps=2, text=f"layer {DIGEST}"),
    ImageEvent(kind="progress", what="layer 2", done=5, total=10),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, *, quiet: bool = False) -> str:
    with display(stream, quiet=quiet) as show:
        for event in EVENTS:
            show(event)
    return stream.getvalue()


def test_lines_in_a_pipe() -> None:
    assert shown(io.StringIO()).splitlines() == [
        "WARNING: no TLS\N{REPLACEMENT CHARACTER}[31m",
        "fetching 0 of 2Ki",
        "fetching 2Ki of 2Ki",
        "[1/2] layer 000000000000 is here already",
        "[2/2] layer 000000000000 is unpacked",
    ]


def test_a_quiet_pull_still_warns() -> None:
    assert shown(io.StringIO(), quiet=True) == "WARNING: no TLS\N{REPLACEMENT CHARACTER}[31m\n"


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = shown(Terminal())
    assert "fetching" in text
    assert "WARNING" in text
    assert "\x1b[31m[31m" not in text
