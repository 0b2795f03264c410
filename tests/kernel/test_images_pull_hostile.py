"""Registries that err or lie: each gets its own answer, in bounded time, and nothing wrong is kept."""

from __future__ import annotations

import gzip
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentos_native.images.oci.model import CONFIG, INDEX, LAYER, MANIFEST
from agentos_native.images.registry.model import Advance, Complete, PullLimits, Remark
from tests.networks import require_outer_namespace
from tests.registries import (
    QUICK,
    Answer,
    Content,
    Handler,
    Server,
    failure,
    fetch,
    index,
    layer,
    noise,
    ranged,
    serving,
    sha256,
)

SECRET = "open-sesame-7261"
BOMB = gzip.compress(bytes(20_000_000), 1)


@pytest.fixture(autouse=True, scope="module")
def own_network() -> None:
    require_outer_namespace()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture
def other() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture
def content() -> Content:
    return Content(layer({"big": noise(200_000)}))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "download"


def limits(**changed: Any) -> PullLimits:
    return msgspec.structs.replace(QUICK, **changed)


def whole(place: Path) -> list[str]:
    """The blobs that are here, verified."""
    directory = place / "blobs" / "sha256"
    return sorted(f"sha256:{path.name}" for path in directory.iterdir())


def partial(place: Path, content: Content, number: int = 0) -> bytes:
    """What is here of a layer under way."""
    path = place / "partial" / sha256(content.layers[number]).removeprefix("sha256:")
    return path.read_bytes() if path.exists() else b""


# -- what goes right


def test_an_honest_registry(server: Server, content: Content, place: Path) -> None:
    content = Content(*content.layers, layer({"b": b"b"}), content.layers[0])
    link = fetch(place, content.serve(server))
    last = link.said[-1]
    assert isinstance(last, Complete)
    assert last.fetched == len(content.layers[0]) + len(content.layers[1])
    manifest, config = content.manifest_bytes(), content.config_bytes()
    assert whole(place) == sorted({sha256(data) for data in (*content.layers, manifest, config)})
    assert json.loads((place / "index.json").read_bytes())["manifests"][0]["digest"] == sha256(manifest)
    assert not any("authorization" in asked.headers for asked in server.asked)


def test_layers_that_are_known_are_not_fetched(server: Server, place: Path) -> None:
    content = Content(layer({"a": b"a"}), layer({"b": b"b"}))
    fetch(place, content.serve(server), unwanted=[0])
    assert content.blob(0) not in server.paths()
    assert content.blob(1) in server.paths()


def test_an_index_is_read_for_the_platform(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    foreign = Content(layer({"arm": b""}))
    foreign.config["architecture"] = "arm64"
    several = index((foreign.manifest_bytes(), "arm64"), (content.manifest_bytes(), "amd64"))
    content.serve_manifest(server, several, INDEX)
    server.answers[f"{content.path}/manifests/{sha256(content.manifest_bytes())}"] = lambda handler: handler.say(
        200, content.manifest_bytes(), Content_Type=MANIFEST
    )
    fetch(place, reference)
    assert sha256(content.manifest_bytes()) in whole(place)
    assert sha256(foreign.manifest_bytes()) not in whole(place)


def test_a_blob_may_be_elsewhere_but_the_password_stays(
    server: Server, other: Server, content: Content, place: Path
) -> None:
    reference = content.serve(server)
    demand(server, content, "Basic realm=x")
    other.answers["/cdn/layer"] = ranged(content.layers[0])
    target = f"http://{other.host}/cdn/layer?signature=abc"
    honest = server.answers[content.blob()]
    server.answers[content.blob()] = redirect(target)
    assert honest is not server.answers[content.blob()]
    fetch(place, reference, username="ada", password=SECRET)
    (asked,) = other.asked
    assert asked.query == "signature=abc"
    assert "authorization" not in asked.headers
    assert sha256(content.layers[0]) in whole(place)


def test_a_token_is_asked_for_and_shown(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    demand(server, content, f'Bearer realm="http://{server.host}/token",service="s",scope="repository:x:push"')
    server.answers["/token"] = lambda handler: handler.say(200, b'{"token":"abc.def"}')
    fetch(place, reference, username="ada", password=SECRET)
    (token,) = (asked for asked in server.asked if asked.path == "/token")
    assert token.query == "service=s&scope=repository%3Ateam%2Fagent%3Apull"
    assert token.headers["authorization"].startswith("Basic ")
    shown = {asked.headers.get("authorization") for asked in server.asked if asked.path != "/token"}
    assert shown == {None, "Bearer abc.def"}


def test_a_broken_connection_is_resumed(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    data = content.layers[0]
    server.answers[content.blob()] = ranged(data, drops=[50_000, 70_000])
    link = fetch(place, reference)
    ranges = [asked.headers.get("range") for asked in server.asked if asked.path == content.blob()]
    assert ranges == [None, "bytes=50000-", "bytes=120000-"]
    assert link.said[-1] == Complete(len(data))
    assert sum(isinstance(message, Remark) for message in link.said) == 2


def test_a_later_pull_goes_on_where_the_earlier_ended(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    honest = server.answers[content.blob()]
    server.answers[content.blob()] = ranged(content.layers[0], drops=[60_000, 1, 1])
    assert failure(lambda: fetch(place, reference)).code == "registry-connection"
    assert partial(place, content) == content.layers[0][:60_002]
    server.answers[content.blob()] = honest
    link = fetch(place, reference)
    assert server.asked[-1].headers["range"] == "bytes=60002-"
    assert link.said[-1] == Complete(len(content.layers[0]) - 60_002)
    assert any(isinstance(message, Advance) and message.resumed == 60_002 for message in link.said)


def test_a_registry_without_ranges_sends_all_of_it_again(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    data = content.layers[0]
    breaking = ranged(data, drops=[10])

    def answer(handler: Handler) -> None:
        breaking(handler) if "Range" not in handler.headers else handler.say(200, data)

    server.answers[content.blob()] = answer
    fetch(place, reference)
    assert sha256(data) in whole(place)


def test_a_damaged_rest_of_an_earlier_pull_is_thrown_away(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    (place / "partial").mkdir(parents=True)
    (place / "partial" / sha256(content.layers[0]).removeprefix("sha256:")).write_bytes(b"\0" * 1000)
    fetch(place, reference)
    ranges = [asked.headers.get("range") for asked in server.asked if asked.path == content.blob()]
    assert ranges == ["bytes=1000-", None]
    assert sha256(content.layers[0]) in whole(place)


def test_a_busy_registry_is_asked_again(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    honest = server.answers[f"{content.path}/manifests/1"]
    answers = iter([503, 429])

    def answer(handler: Handler) -> None:
        status = next(answers, 200)
        honest(handler) if status == 200 else handler.say(status)

    server.answers[f"{content.path}/manifests/1"] = answer
    fetch(place, reference)


# -- what goes wrong: manifests


def redirect(target: str, status: int = 307) -> Answer:
    return lambda handler: handler.say(status, Location=target)


def demand(server: Server, content: Content, challenge: str) -> None:
    """Have all of the registry want to know who asks."""
    for path, answer in list(server.answers.items()):
        if path.startswith(content.path):
            server.answers[path] = _guarded(answer, challenge)


def _guarded(answer: Answer, challenge: str) -> Answer:
    def guarded(handler: Handler) -> None:
        if "Authorization" in handler.headers:
            answer(handler)
        else:
            handler.say(401, WWW_Authenticate=challenge)

    return guarded


def raw(data: bytes, *, hold: bool = False) -> Answer:
    """Whatever an HTTP server would not say."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(data)
        handler.wfile.flush()
        if hold:
            handler.server.over.wait(10)
        handler.drop()

    return answer


def forever(head: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    """Never ends, until the client does."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        try:
            handler.wfile.write(head)
            while not handler.server.over.is_set():
                handler.wfile.write(piece)
                handler.wfile.flush()
                if pause:
                    time.sleep(pause)
        except OSError:
            pass

    return answer


def manifest_of(**changed: Any) -> Callable[[Content], bytes]:
    return lambda content: json.dumps({**content.manifest, **changed}).encode()


def with_layer(**changed: Any) -> Callable[[Content], bytes]:
    def make(content: Content) -> bytes:
        return json.dumps({**content.manifest, "layers": [{**content.manifest["layers"][0], **changed}]}).encode()

    return make


BAD_MANIFESTS: dict[str, tuple[Callable[[Content], bytes], str]] = {
    "a document nested without end": (lambda _: b'{"layers":' + b"[" * 1_000_000, "invalid-layout"),
    "numbers without end": (lambda _: b'{"schemaVersion":' + b"9" * 1_000_000 + b"}", "invalid-layout"),
    "no JSON": (lambda _: b"\xff\xfe<html>", "invalid-layout"),
    "version 1": (manifest_of(schemaVersion=1), "unsupported-layout"),
    "an index as well": (manifest_of(manifests=[]), "invalid-layout"),
    "no configuration": (manifest_of(config=None), "invalid-layout"),
    "something that is no image": (
        manifest_of(config={"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": "sha256:0", "size": 1}),
        "unsupported-layout",
    ),
    "a digest that is a path": (with_layer(digest="sha256:../../../../etc/passwd"), "invalid-layout"),
    "a digest of another kind": (with_layer(digest="sha512:" + "0" * 128), "unsupported-layout"),
    "a negative size": (with_layer(size=-1), "invalid-layout"),
    "a size beyond all discs": (with_layer(size=1 << 50), "image-too-large"),
    "a layer shorter than it is": (with_layer(size=100), "size-mismatch"),
    "a layer longer than it is": (with_layer(size=100_000_000), "size-mismatch"),
    "one layer with two sizes": (
        lambda content: json.dumps(
            {
                **content.manifest,
                "layers": [content.manifest["layers"][0], {**content.manifest["layers"][0], "size": 1}],
            }
        ).encode(),
        "invalid-layout",
    ),
    "600 layers": (
        lambda content: json.dumps({**content.manifest, "layers": content.manifest["layers"] * 600}).encode(),
        "unsupported-layout",
    ),
    "more layers than the configuration has": (
        lambda content: json.dumps({**content.manifest, "layers": content.manifest["layers"] * 2}).encode(),
        "invalid-layout",
    ),
    "layers that are elsewhere": (
        with_layer(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=["http://127.0.0.1:1/"]),
        "unsupported-layout",
    ),
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_manifests_that_lie(server: Server, content: Content, place: Path, case: str) -> None:
    make, code = BAD_MANIFESTS[case]
    reference = content.serve(server)
    content.serve_manifest(server, make(content))
    error = failure(lambda: fetch(place, reference))
    assert error.code == code
    assert sha256(content.layers[0]) not in whole(place)
    assert not (place / "index.json").exists()


def test_a_configuration_that_lies_about_its_size(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    config = content.descriptor(CONFIG, content.config_bytes())
    for size, code in ((config["size"] - 1, "size-mismatch"), (5 << 20, "image-too-large")):
        content.serve_manifest(server, manifest_of(config={**config, "size": size})(content))
        assert failure(lambda: fetch(place, reference)).code == code


def test_an_image_for_other_machines(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    content.serve_manifest(server, index((content.manifest_bytes(), "s390x")), INDEX)
    error = failure(lambda: fetch(place, reference))
    assert error.code == "platform-not-found"
    assert "s390x" in error.hint


def test_what_an_index_calls_a_manifest_must_be_served_as_one(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    content.serve_manifest(server, kind=INDEX)
    manifest = content.manifest_bytes()
    server.answers[f"{content.path}/manifests/1"] = lambda handler: handler.say(
        200, index((manifest, "amd64")), Content_Type=INDEX
    )
    assert failure(lambda: fetch(place, reference)).code == "invalid-layout"


def test_an_index_that_lies_about_the_size(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    several = json.loads(index((content.manifest_bytes(), "amd64")))
    several["manifests"][0]["size"] += 1
    data = json.dumps(several).encode()
    server.answers[f"{content.path}/manifests/1"] = lambda handler: handler.say(200, data, Content_Type=INDEX)
    assert failure(lambda: fetch(place, reference)).code == "size-mismatch"


def test_a_manifest_that_is_not_what_was_asked_for(server: Server, content: Content, place: Path) -> None:
    content.serve(server)
    digest = sha256(b"another")
    server.answers[f"{content.path}/manifests/{digest}"] = server.answers[f"{content.path}/manifests/1"]
    error = failure(lambda: fetch(place, f"{server.host}/team/agent@{digest}"))
    assert error.code == "digest-mismatch"


def test_a_manifest_that_is_not_what_the_registry_says(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    server.answers[f"{content.path}/manifests/1"] = lambda handler: handler.say(
        200, content.manifest_bytes(), Content_Type=MANIFEST, Docker_Content_Digest=sha256(b"x")
    )
    assert failure(lambda: fetch(place, reference)).code == "digest-mismatch"


ANSWERS: dict[str, tuple[Answer, str]] = {
    "nothing there": (lambda handler: handler.say(404, b'{"errors":[{"message":"\x1b[31mred"}]}'), "not-in-registry"),
    "forbidden": (lambda handler: handler.say(403), "registry-denied"),
    "busy for ever": (lambda handler: handler.say(503), "registry-busy"),
    "a teapot": (lambda handler: handler.say(418), "registry-protocol"),
    "a web page": (lambda handler: handler.say(200, b"<html>", Content_Type="text/html"), "unsupported-layout"),
    "a manifest without end": (
        forever(b"HTTP/1.1 200 OK\r\nContent-Type: x\r\n\r\n", b" " * 65536),
        "registry-answer-too-large",
    ),
    "headers without end": (forever(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 50), "registry-protocol"),
    "a header without end": (forever(b"HTTP/1.1 200 OK\r\nX-A: ", b"b" * 65536), "registry-protocol"),
    "continue without end": (forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "registry-too-slow"),
    "headers in drops": (forever(b"HTTP/1.1 200 OK\r\n", b"X", 0.02), "registry-too-slow"),
    "nothing at all": (raw(b"", hold=True), "registry-too-slow"),
    "no HTTP": (raw(b"\x16\x03\x01\x02\x00\x01\r\n\r\n"), "registry-protocol"),
    "chunks that are none": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        "registry-connection",
    ),
    "trailers without end": (
        forever(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 50),
        "registry-too-slow",
    ),
    "a gzip bomb": (
        lambda handler: handler.say(200, BOMB, Content_Encoding="gzip"),
        "registry-protocol",
    ),
    "half of what it promised": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{}"), "registry-connection"),
    "a redirect to nowhere": (lambda handler: handler.say(302), "registry-redirect"),
    "a redirect to a file": (redirect("file:///etc/passwd"), "registry-redirect"),
    "a redirect to something else": (redirect("gopher://127.0.0.1/x"), "registry-redirect"),
    "a redirect with a password": (redirect("http://user:word@127.0.0.1/x"), "registry-redirect"),
    "a redirect with a line feed": (redirect("http://127.0.0.1/x y"), "registry-redirect"),
    "a redirect to itself": (redirect("/v2/team/agent/manifests/1"), "registry-redirect"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_that_are_none(server: Server, content: Content, place: Path, case: str) -> None:
    answer, code = ANSWERS[case]
    reference = content.serve(server)
    server.answers[f"{content.path}/manifests/1"] = answer
    began = time.monotonic()
    chosen = limits(head=0.4, window=0.4, attempts=2) if code == "registry-too-slow" else limits(attempts=2)
    error = failure(lambda: fetch(place, reference, chosen))
    assert error.code == code
    assert time.monotonic() - began < 20
    assert str(error).replace("\n", "").isprintable()
    assert whole(place) == []


# -- what goes wrong: blobs

BLOBS: dict[str, tuple[Answer, str]] = {
    "another length": (lambda handler: handler.say(200, b"x" * 10), "size-mismatch"),
    "a length that is none": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1e9\r\n\r\n" + b"x" * 100),
        "size-mismatch",
    ),
    "too much": (forever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536), "size-mismatch"),
    "too little": (raw(b"HTTP/1.1 200 OK\r\n\r\nxxxx"), "registry-connection"),
    "a drop now and then": (forever(b"HTTP/1.1 200 OK\r\n\r\n", b"x", 0.02), "registry-too-slow"),
    "chunks in drops": (
        forever(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.02),
        "registry-too-slow",
    ),
    "a chunk's length in drops": (
        forever(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1", b"0", 0.02),
        "registry-too-slow",
    ),
    "a gzip bomb": (
        lambda handler: handler.say(200, BOMB, Content_Encoding="gzip"),
        "registry-protocol",
    ),
    "a part of what was not asked for": (
        lambda handler: handler.say(206, b"x" * 100, Content_Range="bytes 7-106/200"),
        "registry-protocol",
    ),
    "not there": (lambda handler: handler.say(404), "not-in-registry"),
}


@pytest.mark.parametrize("case", BLOBS)
def test_blobs_that_are_none(server: Server, content: Content, place: Path, case: str) -> None:
    answer, code = BLOBS[case]
    reference = content.serve(server)
    server.answers[content.blob()] = answer
    began = time.monotonic()
    slow = code == "registry-too-slow"
    chosen = limits(rate=100_000, window=0.3, attempts=2) if slow else limits(attempts=2)
    error = failure(lambda: fetch(place, reference, chosen))
    assert error.code == code
    assert time.monotonic() - began < 20
    assert sha256(content.layers[0]) not in whole(place)
    assert not (place / "index.json").exists()


def test_other_bytes_of_the_right_length_are_not_kept(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    server.answers[content.blob()] = ranged(noise(len(content.layers[0])))
    assert failure(lambda: fetch(place, reference)).code == "digest-mismatch"
    assert partial(place, content) == b""


def test_one_bad_layer_ends_the_others(server: Server, place: Path) -> None:
    content = Content(*(layer({f"f{number}": noise(300_000 + number)}) for number in range(4)))
    reference = content.serve(server)
    server.answers[content.blob(0)] = forever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000, 0.01)
    server.answers[content.blob(2)] = ranged(noise(len(content.layers[2])))
    assert failure(lambda: fetch(place, reference)).code == "digest-mismatch"


# -- what goes wrong: passwords

REALMS = ("file:///etc/passwd", "ftp://127.0.0.1/t", "", "http://", "http://user@127.0.0.1/", "http://127.0.0.1:99999/")


@pytest.mark.parametrize("realm", REALMS)
def test_token_servers_that_are_none(server: Server, content: Content, place: Path, realm: str) -> None:
    reference = content.serve(server)
    demand(server, content, f'Bearer realm="{realm}",service="s"')
    error = failure(lambda: fetch(place, reference, username="ada", password=SECRET))
    assert error.code == "registry-auth"
    assert SECRET not in str(error)


@pytest.fixture
def linked() -> Iterator[Server]:
    """A server where clouds keep those that tell what a machine is and may."""
    subprocess.run(["ip", "addr", "add", "169.254.77.77/32", "dev", "lo"], check=True)
    try:
        with serving(address="169.254.77.77") as made:
            yield made
    finally:
        subprocess.run(["ip", "addr", "del", "169.254.77.77/32", "dev", "lo"], check=True)


def test_a_token_server_on_the_link_is_asked_only_when_it_is_named(
    server: Server, linked: Server, content: Content, place: Path
) -> None:
    reference = content.serve(server)
    linked.answers["/token"] = lambda handler: handler.say(200, b'{"token":"abc"}')
    demand(server, content, f'Bearer realm="http://{linked.host}/token"')
    error = failure(lambda: fetch(place, reference))
    assert error.code == "registry-redirect"
    assert "--token-host 169.254.77.77" in error.hint
    assert linked.asked == []
    fetch(place, reference, token_host="169.254.77.77")
    assert len(linked.asked) == 1


def test_the_password_is_not_sent_to_another_host(server: Server, other: Server, content: Content, place: Path) -> None:
    reference = content.serve(server).replace("127.0.0.1", "localhost")
    other.answers["/token"] = lambda handler: handler.say(200, b'{"token":"abc"}')
    demand(server, content, f'Bearer realm="http://{other.host}/token"')
    error = failure(lambda: fetch(place, reference, username="ada", password=SECRET))
    assert error.code == "registry-auth"
    assert "--token-host 127.0.0.1" in error.hint
    assert other.asked == []
    fetch(place, reference)  # without a password there is nothing to lose
    assert "authorization" not in other.asked[0].headers
    fetch(place, reference, username="ada", password=SECRET, token_host="127.0.0.1")
    assert "authorization" in other.asked[1].headers


TOKENS = {
    "no token": (b"{}", 200),
    "a line feed": (b'{"token":"a\\r\\nX-Evil: 1"}', 200),
    "no JSON": (b"[[[", 200),
    "too much": (b" " * 100_000, 200),
    "refused": (b"", 401),
    "elsewhere": (b"", 302),
}


@pytest.mark.parametrize("case", TOKENS)
def test_answers_of_token_servers(server: Server, content: Content, place: Path, case: str) -> None:
    body, status = TOKENS[case]
    reference = content.serve(server)
    demand(server, content, f'Bearer realm="http://{server.host}/token"')
    server.answers["/token"] = lambda handler: handler.say(status, body, Location="/elsewhere")
    error = failure(lambda: fetch(place, reference, username="ada", password=SECRET))
    assert error.code in {"registry-auth", "registry-answer-too-large"}
    assert SECRET not in str(error)
    assert "/elsewhere" not in server.paths()


@pytest.mark.parametrize("challenge", ["Basic realm=x", 'Bearer realm="http://{host}/token"', "Negotiate", ""])
def test_who_is_refused_for_ever_gives_up(server: Server, content: Content, place: Path, challenge: str) -> None:
    reference = content.serve(server)
    said = challenge.format(host=server.host)
    server.answers["/token"] = lambda handler: handler.say(200, b'{"token":"abc"}')
    server.answers[f"{content.path}/manifests/1"] = lambda handler: handler.say(401, WWW_Authenticate=said)
    error = failure(lambda: fetch(place, reference, username="ada", password=SECRET))
    assert error.code == "registry-auth"
    assert len(server.asked) <= 5


def test_nobody_is_asked_for_a_password(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    demand(server, content, "Basic realm=x")
    error = failure(lambda: fetch(place, reference))
    assert error.code == "registry-auth"
    assert "--creds" in error.hint


def test_layers_of_other_kinds_are_named(server: Server, content: Content, place: Path) -> None:
    reference = content.serve(server)
    content.serve_manifest(server, with_layer(mediaType=f"{LAYER}+gzip+encrypted")(content))
    assert "encrypted" in failure(lambda: fetch(place, reference)).what
