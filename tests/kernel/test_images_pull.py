"""Pulls from Debian's docker-registry, and what is left of one that is killed, cancelled, or lied to."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import Image, ImageStore
from agentos_native.images.oci.model import INDEX
from agentos_native.images.registry.confinement import FETCHER_ID
from agentos_native.images.registry.pulling import Pull
from agentos_native.wire.images import ImageEvent, PullRequest
from tests.images import listing, needs_root
from tests.networks import require_outer_namespace
from tests.registries import (
    PATIENCE,
    Answer,
    Certificates,
    Content,
    DockerRegistry,
    Handler,
    Server,
    failure,
    index,
    layer,
    make_certificates,
    make_layout,
    noise,
    ranged,
    serving,
    sha256,
)
from tests.supervisors import Place, children, eventually

pytestmark = needs_root
PROGRAM = (sys.executable, "-c", "import sys; from agentos_native.cli import main; sys.exit(main())")
SECRET = "open-sesame-7261"
BASE = layer({"etc/motd": b"hello\n", "usr/lib/big": noise(3_000_000)})


@pytest.fixture(autouse=True, scope="module")
def own_network() -> None:
    require_outer_namespace()


@pytest.fixture(scope="module")
def content() -> Content:
    return Content(BASE, layer({"bin/agent": b"#!/bin/sh\n", "etc/motd": b"welcome\n"}))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, content: Content) -> Iterator[DockerRegistry]:
    directory = tmp_path_factory.mktemp("registry")
    made = DockerRegistry(directory)
    try:
        made.push(make_layout(directory / "agent", content), "team/agent:1")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, content: Content, certificates: Certificates
) -> Iterator[DockerRegistry]:
    directory = tmp_path_factory.mktemp("guarded")
    made = DockerRegistry(directory, certificates, {"ada": SECRET})
    try:
        made.push(make_layout(directory / "agent", content), "team/agent:1")
        yield made
    finally:
        made.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state")


class Pulled(NamedTuple):
    image: Image
    events: list[ImageEvent]

    def cached(self) -> int:
        return sum(event.kind == "cached" for event in self.events)

    def notes(self) -> str:
        return "\n".join(event.text for event in self.events if event.kind == "note")


def request(reference: str, **given: Any) -> PullRequest:
    fields: dict[str, Any] = {"reference": reference, "plain_http": True, "platform": "linux/amd64"}
    return PullRequest(**(fields | given))


def pull(store: ImageStore, reference: str, **given: Any) -> Pulled:
    events: list[ImageEvent] = []
    return Pulled(Pull(store.catalog, request(reference, **given)).run(events.append), events)


def downloads(store: ImageStore) -> list[str]:
    return os.listdir(store.path / "downloads")


# -- Debian's docker-registry


def test_a_pull_and_another(store: ImageStore, registry: DockerRegistry) -> None:
    reference = f"{registry.host}/team/agent:1"
    first = pull(store, reference)
    assert first.image.names == (reference,)
    assert first.image.config.cmd == ("/bin/agent",)
    assert [path.joinpath("etc/motd").read_text() for path in first.image.layers] == ["hello\n", "welcome\n"]
    assert first.image.layers[0].joinpath("usr/lib/big").read_bytes() == noise(3_000_000)
    progress = [event for event in first.events if event.what == "fetching"]
    assert progress[-1].done == progress[-1].total > 3_000_000
    served = registry.blobs_served()
    again = pull(store, reference, name="again")
    assert again.image.digest == first.image.digest
    assert again.cached() == 2
    assert registry.blobs_served() == served + 1, "the configuration, but no layer"
    assert downloads(store) == []


def test_layers_are_shared(store: ImageStore, registry: DockerRegistry, tmp_path: Path) -> None:
    pull(store, f"{registry.host}/team/agent:1")
    other = Content(BASE, layer({"other": b""}))
    registry.push(make_layout(tmp_path / "other", other), "team/other:1")
    made = pull(store, f"{registry.host}/team/other:1")
    assert made.cached() == 1
    fetched = [event.total for event in made.events if event.what == "fetching"]
    assert fetched[-1] == len(other.layers[1])


def test_by_digest(store: ImageStore, registry: DockerRegistry, content: Content) -> None:
    digest = sha256(content.manifest_bytes())
    made = pull(store, f"{registry.host}/team/agent@{digest}")
    assert made.image.names == (f"{registry.host}/team/agent@{digest}",)
    absent = sha256(b"absent")
    assert failure(lambda: pull(store, f"{registry.host}/team/agent@{absent}")).code == "not-in-registry"


def test_an_index_for_several_machines(
    store: ImageStore, registry: DockerRegistry, content: Content, tmp_path: Path
) -> None:
    arm = Content(BASE, layer({"arm": b""}))
    arm.config["architecture"] = "arm64"
    arm.manifest["config"] = arm.descriptor(arm.manifest["config"]["mediaType"], arm.config_bytes())
    registry.push(make_layout(tmp_path / "arm", arm), "team/agent:arm")
    several = index((arm.manifest_bytes(), "arm64"), (content.manifest_bytes(), "amd64"))
    registry.put_manifest("team/agent", "multi", several, INDEX)
    reference = f"{registry.host}/team/agent:multi"
    here = pull(store, reference).image
    there = pull(store, reference, platform="linux/arm64", name="there").image
    assert (here.architecture, there.architecture) == ("amd64", "arm64")
    assert here.layers[0] == there.layers[0]
    error = failure(lambda: pull(store, reference, platform="linux/riscv64"))
    assert (error.code, "linux/arm64" in error.hint) == ("platform-not-found", True)


def test_tls_and_a_password(store: ImageStore, guarded: DockerRegistry, certificates: Certificates) -> None:
    reference = f"{guarded.host}/team/agent:1"
    who = {"username": "ada", "password": SECRET, "plain_http": False}
    unknown = failure(lambda: pull(store, reference, **who))
    assert (unknown.code, "--ca-file" in unknown.hint) == ("registry-tls", True)
    who["ca_file"] = str(certificates.ca)
    nobody = failure(lambda: pull(store, reference, plain_http=False, ca_file=str(certificates.ca)))
    wrong = failure(lambda: pull(store, reference, **{**who, "password": SECRET + "x"}))
    assert nobody.code == wrong.code == "registry-auth"
    assert SECRET not in str(wrong)
    assert store.list() == []
    made = pull(store, reference, **who)
    assert made.image.config.cmd == ("/bin/agent",)
    assert SECRET not in repr(made.events)
    assert made.notes() == ""
    loud = pull(store, reference, username="ada", password=SECRET, plain_http=False, verify_tls=False)
    assert "certificate is not verified" in loud.notes()


def test_tls_where_there_is_none_and_the_other_way_round(
    store: ImageStore, registry: DockerRegistry, guarded: DockerRegistry
) -> None:
    error = failure(lambda: pull(store, f"{registry.host}/team/agent:1", plain_http=False))
    assert (error.code, "--plain-http" in error.hint) == ("registry-tls", True)
    assert failure(lambda: pull(store, f"{guarded.host}/team/agent:1")).code == "registry-protocol"


@pytest.mark.parametrize("word", ["nothing", "a certificate that is none", "a directory"])
def test_files_of_authorities_that_are_none(store: ImageStore, tmp_path: Path, word: str) -> None:
    path = tmp_path / "ca.pem"
    if word == "a directory":
        path.mkdir()
    else:
        path.write_text("" if word == "nothing" else "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    reference = "localhost:1/team/agent"
    error = failure(lambda: pull(store, reference, plain_http=False, ca_file=str(path)))
    assert error.code == "invalid-ca"


def test_nobody_listens(store: ImageStore, server: Server) -> None:
    host = server.host
    server.server_close()
    error = failure(lambda: pull(store, f"{host}/team/agent:1"))
    assert (error.code, "refused" in error.what) == ("registry-unreachable", True)


# -- the fetcher


def held(data: bytes, first: int) -> Answer:
    """Sends `first` bytes and then nothing; the rest to who asks for it."""
    rest = ranged(data)

    def answer(handler: Handler) -> None:
        if "Range" in handler.headers:
            rest(handler)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:first])
        handler.wfile.flush()
        handler.server.over.wait(PATIENCE)

    return answer


def fetchers(pid: int) -> list[int]:
    """Children of `pid` that are fetchers."""
    return [child for child in children(pid) if b"registry.fetcher" in Path(f"/proc/{child}/cmdline").read_bytes()]


def arrived(store: ImageStore) -> int:
    """Bytes of blobs under way."""
    return sum(path.stat().st_size for path in store.path.glob("downloads/*/partial/*"))


def test_the_fetcher_is_nobody_and_sees_nothing(store: ImageStore, server: Server) -> None:
    content = Content(BASE)
    reference = content.serve(server)
    server.answers[content.blob()] = held(content.layers[0], 100_000)
    running = Pull(store.catalog, request(reference, username="ada", password=SECRET))
    errors: list[AgentosError] = []
    thread = threading.Thread(target=lambda: errors.append(failure(lambda: running.run(lambda _event: None))))
    thread.start()
    eventually(lambda: arrived(store) == 100_000, "it fetches")
    (pid,) = fetchers(os.getpid())
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Uid"].split() == status["Gid"].split() == [str(FETCHER_ID)] * 4
    assert status["Groups"].strip() == ""
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    root = Path(f"/proc/{pid}/root")
    assert sorted(os.listdir(root)) == ["etc"]
    assert {"nsswitch.conf"} <= set(os.listdir(root / "etc")) <= {"nsswitch.conf", "resolv.conf", "hosts", "gai.conf"}
    for name in ("cmdline", "environ"):
        assert SECRET.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    running.cancel()
    thread.join(PATIENCE)
    assert [error.code for error in errors] == ["cancelled"]
    assert fetchers(os.getpid()) == []


_CONFINED = """
import ctypes, json, os, socket, sys, threading
from agentos_native.images.registry import confinement
from agentos_native.images.registry.model import PullLimits
CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
os.umask(0o022)
confinement.leave_host()
confinement.limit_resources(PullLimits())
confinement.become_nobody()
confinement.filter_system_calls()
libc = ctypes.CDLL(None, use_errno=True)
NEWUSER = 0x10000000
tries = {
    "a unix socket": lambda: socket.socket(socket.AF_UNIX),
    "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "a port of the host": lambda: socket.create_server(("127.0.0.1", 0)),
    "a process": lambda: os.execv("/proc/self/exe", ["x"]),
    "a user namespace": lambda: libc.unshare(NEWUSER) and 1 / 0,
    "a user namespace by clone": lambda: libc.syscall(CLONE, NEWUSER | 17, 0, 0, 0, 0) < 0 and 1 / 0,
    "another's memory": lambda: libc.ptrace(16, 1, 0, 0) and 1 / 0,
    "a signal": lambda: os.kill(os.getppid(), 0),
    "root": lambda: os.setuid(0),
    "the root directory": lambda: os.open("/x", os.O_WRONLY | os.O_CREAT),
    "etc": lambda: os.open("/etc/hosts", os.O_WRONLY),
    "devices": lambda: os.open("/dev/null", os.O_RDONLY),
}
got = []
for name, action in tries.items():
    try:
        action()
        got.append(name)
    except (OSError, ZeroDivisionError):
        pass
thread = threading.Thread(target=lambda: got.append("threads"))
thread.start()
thread.join()
os.write(1, json.dumps(got).encode())
os._exit(0)
"""


def test_what_the_fetcher_cannot_do() -> None:
    done = subprocess.run([sys.executable, "-c", _CONFINED], capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["threads"]


_PULLER = """
import sys
from pathlib import Path
from agentos_native.images import ImageStore
from agentos_native.images.registry.pulling import Pull
from agentos_native.wire.images import PullRequest
store = ImageStore(Path(sys.argv[1]))
wanted = PullRequest(reference=sys.argv[2], plain_http=True, platform="linux/amd64")
Pull(store.catalog, wanted).run(lambda _event: None)
"""


def test_a_killed_pull_leaves_nothing_that_runs_and_is_resumed(store: ImageStore, server: Server) -> None:
    content = Content(BASE)
    reference = content.serve(server)
    server.answers[content.blob()] = held(content.layers[0], 1_000_000)
    command = [sys.executable, "-c", _PULLER, str(store.path.parent), reference]
    with subprocess.Popen(command) as process:
        eventually(lambda: arrived(store) == 1_000_000, "it fetches")
        (fetcher,) = fetchers(process.pid)
        process.kill()
    eventually(lambda: not Path(f"/proc/{fetcher}").exists(), "the fetcher dies with who started it")
    assert store.recover() is not None
    made = pull(store, reference)
    ranges = [asked.headers.get("range") for asked in server.asked if asked.path == content.blob()]
    assert ranges == [None, "bytes=1000000-"]
    assert any(event.what == "fetching (resumed)" for event in made.events)
    assert made.image.layers[0].joinpath("etc/motd").read_text() == "hello\n"
    assert downloads(store) == []


class _Names(socketserver.BaseRequestHandler):
    """Answers every question for an IPv4 address with 127.0.0.1, and others with nothing (RFC 1035)."""

    def handle(self) -> None:
        query, sock = self.request
        question = query[12 : query.index(b"\0", 12) + 5]
        known = question[-4:-2] == b"\0\x01"
        answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x7f\0\0\x01" if known else b""
        counts = b"\0\x01" + (b"\0\x01" if known else b"\0\0") + b"\0\0\0\0"
        sock.sendto(query[:2] + b"\x81\x80" + counts + question + answer, self.client_address)


def test_names_are_resolved_by_dns(store: ImageStore, server: Server, tmp_path: Path) -> None:
    content = Content(layer({"a": b"a"}))
    content.serve(server)
    reference = f"registry.test:{server.server_address[1]}/team/agent:1"
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    inner = [sys.executable, "-c", _PULLER, str(store.path.parent), reference]
    script = f'mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
    with socketserver.UDPServer(("127.0.0.1", 53), _Names) as names:
        thread = threading.Thread(target=names.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            line = ["unshare", "--mount", "sh", "-c", script, "sh", *inner]
            done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE * 2, check=False)
        finally:
            names.shutdown()
            thread.join()
    assert done.returncode == 0, done.stderr
    assert store.get(reference).layers[0].joinpath("a").read_bytes() == b"a"


def test_two_pulls_of_one_image_fetch_it_once(store: ImageStore, server: Server) -> None:
    content = Content(BASE)
    reference = content.serve(server)
    go = threading.Event()
    honest = server.answers[content.blob()]

    def answer(handler: Handler) -> None:
        go.wait(PATIENCE)
        honest(handler)

    server.answers[content.blob()] = answer
    made: list[Pulled] = []
    threads = [threading.Thread(target=lambda: made.append(pull(store, reference))) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: content.blob() in server.paths(), "one of them fetches")
    go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [pulled.image.digest for pulled in made] == [made[0].image.digest] * 2
    assert server.paths().count(content.blob()) == 1
    assert "waiting for it" in made[1].notes()


def _other_bytes(content: Content, server: Server) -> None:
    server.answers[content.blob()] = ranged(noise(len(content.layers[0])))


def _another_tar(content: Content, server: Server) -> None:
    content.config["rootfs"]["diff_ids"] = [sha256(b"another")]
    content.manifest["config"] = content.descriptor(content.manifest["config"]["mediaType"], content.config_bytes())
    content.serve(server)


def _no_tar(content: Content, server: Server) -> None:
    content.layers = [noise(5000)]
    content.manifest["layers"] = [content.descriptor("application/vnd.oci.image.layer.v1.tar", noise(5000))]
    content.config["rootfs"]["diff_ids"] = [sha256(noise(5000))]
    content.manifest["config"] = content.descriptor(content.manifest["config"]["mediaType"], content.config_bytes())
    content.serve(server)


def test_lies_leave_the_store_as_it_was(store: ImageStore, server: Server) -> None:
    pull(store, Content(layer({"a": b"a"})).serve(server))
    before = listing(store.path)
    for lie, code in (
        (_other_bytes, "digest-mismatch"),
        (_another_tar, "digest-mismatch"),
        (_no_tar, "invalid-archive"),
    ):
        content = Content(BASE)
        reference = content.serve(server)
        lie(content, server)
        assert failure(lambda: pull(store, reference)).code == code  # noqa: B023 - called at once
        assert listing(store.path) == before


# -- the API and the command


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("pulls"), f"pull{os.getpid()}")
    try:
        made.start()
        yield made
    finally:
        made.close()


def command(ground: Place, *words: str) -> list[str]:
    socket = str(ground.directory / "s.sock")
    return [*PROGRAM, "--socket", socket, "image", "pull", "--plain-http", *words]


def test_the_command(ground: Place, registry: DockerRegistry) -> None:
    reference = f"{registry.host}/team/agent:1"
    line = command(ground, "--platform", "linux/amd64", "--name", "mine", reference)
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE * 2, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ground.client.image("mine").digest
    assert "fetching" in done.stderr, done.stderr
    assert "[2/2]" in done.stderr
    done = subprocess.run([*line, "-o", "json"], capture_output=True, text=True, timeout=PATIENCE * 2, check=False)
    assert (json.loads(done.stdout)["name"], done.stderr) == ("mine", "")
    (first, second) = (event for event in ground.client.events() if event.type == "image-pulled")
    assert (first.detail["image"], first.detail["reference"]) == ("mine", reference)
    assert (first.detail["fetched"] > 3_000_000, second.detail["fetched"]) == (True, 0)
    bad = subprocess.run(command(ground, "agent:1"), capture_output=True, text=True, timeout=PATIENCE * 2, check=False)
    assert bad.returncode == 125
    assert "there is no default registry" in bad.stderr


def test_an_interrupted_command_leaves_nothing_that_runs(ground: Place, server: Server) -> None:
    content = Content(layer({"new": noise(1_000_000)}))
    reference = content.serve(server)
    server.answers[content.blob()] = held(content.layers[0], 500_000)
    store = ImageStore(ground.directory / "state")
    heeding = ("env", "--default-signal=INT")  # who runs the tests in the background has them ignore it
    argv = [*heeding, *command(ground, "--platform", "linux/amd64", reference)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: arrived(store) == 500_000, "it fetches")
        supervisor = ground.supervisor(ground.running[0].pid)
        assert len(fetchers(supervisor)) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    eventually(lambda: not fetchers(supervisor), "the fetcher ends with its client")
    events = list(ground.client.pull_image(request(reference, name="rest")))
    assert events[-1].kind == "done"
    assert server.asked[-1].headers["range"] == "bytes=500000-"


def test_what_is_wrong_with_a_request_is_said_at_once(ground: Place) -> None:
    for wrong, code in (
        ({"reference": "agent"}, "invalid-reference"),
        ({"reference": "localhost:99999/a"}, "invalid-reference"),
        ({"reference": "localhost/A"}, "invalid-image-name"),
        ({"platform": "windows/amd64"}, "invalid-platform"),
        ({"name": "UPPER"}, "invalid-image-name"),
        ({"ca_file": "relative"}, "invalid-ca"),
    ):
        with pytest.raises(AgentosError) as caught:
            list(ground.client.pull_image(request(**({"reference": "localhost:1/a"} | wrong))))
        assert caught.value.code == code


def test_a_failure_is_an_event(ground: Place, registry: DockerRegistry) -> None:
    events = list(ground.client.pull_image(request(f"{registry.host}/team/absent:1")))
    assert events[-1].kind == "failed"
    assert (events[-1].error or {})["code"] == "not-in-registry"
    assert any(event.type == "pull-failed" for event in ground.client.events())
