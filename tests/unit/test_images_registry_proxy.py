"""Which requests of a pull go by way of a proxy; see `images.registry.proxy`."""

from __future__ import annotations

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.registry.proxy import Proxies, Proxy, from_environment, proxy_for
from agentos_native.images.registry.reach import named
from agentos_native.images.registry.url import parse_url


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, Proxies()),
        ({"HTTPS_PROXY": "http://p:1"}, Proxies(https="http://p:1")),
        ({"HTTPS_PROXY": "http://p:1", "https_proxy": "q:2"}, Proxies(https="q:2")),
        ({"ALL_PROXY": "p:1", "http_proxy": "q:2"}, Proxies(http="q:2", https="p:1")),
        ({"no_proxy": "a,b", "HTTP_PROXY": ""}, Proxies(bypass="a,b")),
    ],
)
def test_the_environment(environment: dict[str, str], wanted: Proxies) -> None:
    assert from_environment(environment) == wanted


@pytest.mark.parametrize(
    "value",
    [
        "socks5://p:1",
        "https://p:1",
        "http://",
        "http://p:port",
        "http://p:99999",
        "http://ä",
        "http://[::1",
        "http://p/a",
        "http://p?a",
        "http://1#x@p",
    ],
)
def test_what_is_no_proxy_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(AgentosError) as caught:
        from_environment({"HTTPS_PROXY": value.replace("://", "://ada:secret@")})
    assert caught.value.code == "invalid-proxy" and "secret" not in str(caught.value)


def test_a_proxy_with_a_password() -> None:
    proxies = Proxies(https="http://ada:s%40cret@p")
    assert proxy_for(proxies, parse_url("https://r/")) == Proxy("p", 80, "Basic YWRhOnNAY3JldA==")
    assert "cret" not in repr(proxies)
    assert proxy_for(proxies, parse_url("http://r/")) is None


@pytest.mark.parametrize(
    ("bypass", "url", "direct"),
    [
        ("", "https://r.test/", False),
        ("", "https://localhost:5000/", True),
        ("", "https://a.localhost/", True),
        ("", "https://127.3.4.5/", True),
        ("", "https://[::1]:5000/", True),
        ("", "https://[fe80::1]/", False),
        ("*", "https://r.test/", True),
        ("r.test", "https://r.test/", True),
        ("r.test", "https://a.r.test/", True),
        ("R.Test", "https://r.tEST/", True),
        ("r.test", "https://other.test/", False),
        ("r.test", "https://ar.test/", False),
        (".r.test", "https://r.test/", False),
        (".r.test", "https://a.r.test/", True),
        ("*.r.test", "https://a.r.test/", True),
        ("r.test:443", "https://r.test/", True),
        ("r.test:5000", "https://r.test/", False),
        ("r.test:5000", "https://r.test:5000/", True),
        ("a, r.test b", "https://r.test/", True),
        ("10.0.0.0/8", "https://10.1.2.3/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("10.1.2.3", "https://10.1.2.3:5000/", True),
        ("10.1.2.3:80", "https://10.1.2.3:5000/", False),
        ("10.0.0.0/8", "https://r.test/", False),
        ("fd00::/8", "https://[fd00::1]/", True),
        ("[fd00::1]:5000", "https://[fd00::1]:5000/", True),
        ("fd00::1", "https://[fd00::2]/", False),
        ("::::,300.1.1.1,/", "https://10.1.1.1/", False),
    ],
)
def test_who_is_asked_without_one(bypass: str, url: str, direct: bool) -> None:
    found = proxy_for(Proxies(https="p:1", http="p:1", bypass=bypass), parse_url(url))
    assert found == (None if direct else Proxy("p", 1, ""))


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("r.test", "public"),
        ("10.1.1.1", "private"),
        ("169.254.169.254", "link-local"),
        ("[::1]", "loopback"),
        ("127.1", "loopback"),
        ("0xa9fea9fe", "link-local"),
        ("167772161", "private"),
        ("1.r.test", "public"),
    ],
)
def test_what_is_known_of_a_host_that_the_proxy_looks_up(host: str, wanted: str) -> None:
    assert named(host) == wanted
