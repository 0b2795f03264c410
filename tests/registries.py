"""Registries for tests, on loopback: Debian's docker-registry, and a small server that can be told to misbehave.

`Server` answers GET by what `answers` has for a path (without its query), and keeps what it was asked. `Content` is an
image whose documents and layers a test may change before it serves them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import hashlib
import http.client
import http.server
import io
import json
import os
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.images.oci.model import CONFIG, INDEX, LAYER, MANIFEST
from agentos_native.images.registry.download import Directory
from agentos_native.images.registry.fetcher import Fetcher, Link
from agentos_native.images.registry.model import Access, Choice, Complete, Errand, Message, Plan, PullLimits
from agentos_native.images.registry.reference import parse_reference
from agentos_native.images.registry.transport import Transport, tls_context

PATIENCE = 30.0
QUICK = PullLimits(attempts=3, backoff=0.01, backoff_max=0.02, head=5, window=5, connect=5, quiet=5, total=30)
"""Limits of pulls that shall fail soon."""

Answer = Callable[["Handler"], None]


def sha256(data: bytes) -> str:
    """As a digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Asked(NamedTuple):
    """One request that came."""

    path: str
    query: str
    headers: dict[str, str]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request; an answer may also write whatever it likes to `wfile`."""

    protocol_version = "HTTP/1.1"
    server: Server
    timeout = PATIENCE

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            self.server.asked.append(Asked(path, query, headers))
        answer = self.server.answers.get(path)
        if answer is None:
            self.say(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not known"}]}')
        else:
            answer(self)

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer; underscores in names of headers are dashes. A header "" is left out."""
        self.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(body))} | given).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drop(self) -> None:
        """End the connection as a broken network does."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """A registry that does as it is told, at ``address:<port>``."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.over = threading.Event()

    @property
    def host(self) -> str:
        return f"{self.server_address[0]!s}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what these tests are about."""

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        with self.lock:
            return [asked.path for asked in self.asked]


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> Iterator[Server]:
    """A server that runs."""
    server = Server(context, address)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Content:
    """An image ``team/agent:1`` of some layers; `manifest` and `config` are plain data, to be changed at will."""

    path = "/v2/team/agent"

    def __init__(self, *layers: bytes) -> None:
        self.layers = list(layers) or [layer({"etc/motd": b"hello\n"})]
        plain = [gzip.decompress(data) for data in self.layers]
        self.config: dict[str, Any] = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/agent"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in plain]},
        }
        self.manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.descriptor(CONFIG, self.config_bytes()),
            "layers": [self.descriptor(f"{LAYER}+gzip", data) for data in self.layers],
        }

    @staticmethod
    def descriptor(kind: str, data: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": sha256(data), "size": len(data)}

    def config_bytes(self) -> bytes:
        return json.dumps(self.config).encode()

    def manifest_bytes(self) -> bytes:
        return json.dumps(self.manifest).encode()

    def blob(self, number: int = 0) -> str:
        """The path of a layer."""
        return f"{self.path}/blobs/{sha256(self.layers[number])}"

    def serve(self, server: Server) -> str:
        """Have `server` serve it honestly; its reference."""
        self.serve_manifest(server)
        config = self.config_bytes()
        server.answers[f"{self.path}/blobs/{sha256(config)}"] = lambda handler: handler.say(200, config)
        for number, data in enumerate(self.layers):
            server.answers[self.blob(number)] = ranged(data)
        return f"{server.host}/team/agent:1"

    def serve_manifest(self, server: Server, manifest: bytes | None = None, kind: str = MANIFEST) -> str:
        """The manifest, by tag and by digest; its digest."""
        data = self.manifest_bytes() if manifest is None else manifest
        for target in ("1", sha256(data)):
            server.answers[f"{self.path}/manifests/{target}"] = lambda handler: handler.say(
                200, data, Content_Type=kind, Docker_Content_Digest=sha256(data)
            )
        return sha256(data)


def layer(files: dict[str, bytes]) -> bytes:
    """A tar.gz, the same each time."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), 1, mtime=0)


def noise(size: int) -> bytes:
    """Bytes that do not compress, the same each time."""
    return b"".join(hashlib.sha512(number.to_bytes(8, "little")).digest() for number in range(size // 64 + 1))[:size]


def ranged(data: bytes, *, drops: Sequence[int] = ()) -> Answer:
    """Serves `data` with ranges; breaks off after each of `drops` bytes in turn."""
    left = list(drops)

    def answer(handler: Handler) -> None:
        asked = handler.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        rest = data[start:]
        handler.send_response(206 if asked else 200)
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        if left:
            handler.wfile.write(rest[: left.pop(0)])
            handler.wfile.flush()
            time.sleep(0.05)  # so that it arrives before the end does
            handler.drop()
        else:
            handler.wfile.write(rest)

    return answer


def index(*manifests: tuple[bytes, str]) -> bytes:
    """An index of manifests with their architectures."""
    entries = [
        Content.descriptor(MANIFEST, data) | {"platform": {"os": "linux", "architecture": architecture}}
        for data, architecture in manifests
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()


class InProcess(Link):
    """A store's answers to a fetcher that runs in the test's own process, unconfined: all layers are wanted."""

    def __init__(self, unwanted: Sequence[int] = ()) -> None:
        super().__init__(-1)
        self.said: list[Message] = []
        self._unwanted = unwanted

    def send(self, message: Message) -> None:
        self.said.append(message)

    def choice(self) -> Choice:
        (plan,) = (message for message in self.said if isinstance(message, Plan))
        return Choice(wanted=tuple(n for n in range(len(plan.layers)) if n not in self._unwanted))


def fetch(
    directory: Path, reference: str, limits: PullLimits = QUICK, *, unwanted: Sequence[int] = (), **access: Any
) -> InProcess:
    """Fetch into `directory`; the last message is `Complete`. Raises what the fetcher would tell."""
    directory.mkdir(exist_ok=True)
    given = Access(**({"plain_http": True} | access))
    errand = Errand(place=parse_reference(reference), access=given, limits=limits, platform="linux/amd64")
    link = InProcess(unwanted)
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        tls = tls_context(given.ca, given.verify_tls)
        Fetcher(errand, Directory(root), link, Transport(limits, tls, given.proxies)).run()
    finally:
        os.close(root)
    assert isinstance(link.said[-1], Complete)
    return link


class Certificates(NamedTuple):
    """An authority, and the certificate of ``localhost``, ``registry.test`` and 127.0.0.1."""

    ca: Path
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def make_certificates(directory: Path) -> Certificates:
    """By openssl, which knows nothing of this project."""
    made = Certificates(directory / "ca.pem", directory / "tls.pem", directory / "tls.key")
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    authority = [*new, "-subj", "/CN=test authority", "-keyout", str(directory / "ca.key"), "-out", str(made.ca)]
    server = [*new, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,DNS:registry.test,IP:127.0.0.1"]
    server += [
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-CA",
        str(made.ca),
        "-CAkey",
        str(directory / "ca.key"),
    ]
    for command in (authority, [*server, "-keyout", str(made.key), "-out", str(made.certificate)]):
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    return made


class DockerRegistry:
    """Debian's docker-registry on a free port of loopback. With `users`, they must say who they are."""

    def __init__(self, directory: Path, tls: Certificates | None = None, users: dict[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.host = f"localhost:{self.port}"
        self.log = directory / "log"
        self._tls, self._users = tls, users or {}
        settings: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
            "http": {"addr": f"127.0.0.1:{self.port}"},
        }
        if tls is not None:
            settings["http"]["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
        if users:
            lines = [f"{user}:{_bcrypt(word)}" for user, word in users.items()]
            (directory / "htpasswd").write_text("\n".join(lines) + "\n")
            settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
        (directory / "config.yml").write_text(json.dumps(settings))
        with self.log.open("wb") as log:
            command = ["docker-registry", "serve", str(directory / "config.yml")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def push(self, layout: Path, name: str) -> None:
        """By skopeo, from the one image of an OCI layout."""
        creds = [f"--dest-creds={user}:{word}" for user, word in list(self._users.items())[:1]]
        command = ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", *creds]
        done = subprocess.run(
            [*command, f"oci:{layout}", f"docker://{self.host}/{name}"],
            capture_output=True,
            timeout=PATIENCE * 2,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()

    def put_manifest(self, name: str, target: str, content: bytes, kind: str) -> None:
        """Without skopeo, which puts only what it has read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("PUT", f"/v2/{name}/manifests/{target}", content, {"Content-Type": kind})
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        assert answer.status == 201, said

    def blobs_served(self) -> int:
        """How many blobs it has sent whole or in part."""
        return sum('"GET /v2/' in line and "/blobs/" in line for line in self.log.read_text().splitlines())

    def close(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)


def _bcrypt(word: str) -> str:
    """As htpasswd(1) writes it; Python has had no crypt(3) since 3.13."""
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    made: bytes = library.crypt(word.encode(), b"$2b$04$" + b"saltsaltsaltsaltsaltse")
    return made.decode()


def make_layout(directory: Path, content: Content) -> Path:
    """`content` as an OCI layout, for skopeo to push."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for data in (*content.layers, content.config_bytes(), content.manifest_bytes()):
        (blobs / sha256(data).removeprefix("sha256:")).write_bytes(data)
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    entry = Content.descriptor(MANIFEST, content.manifest_bytes())
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return directory


def failure(action: Callable[[], object]) -> AgentosError:
    """The error that `action` raises, which must have a hint or say where."""
    try:
        action()
    except AgentosError as error:
        assert error.hint or error.where, f"no help in {error}"
        return error
    raise AssertionError("nothing failed")
