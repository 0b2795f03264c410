"""A whole agentos-native of its own for a benchmark: launcher, supervisor and API, in the benchmark's state and cgroup.

The client here is as thin as it can be in Python (bytes on a kept-open unix socket, one per thread), because its time
counts as the product's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tools.benches import memory
from tools.benches.place import BenchError, Place, cgroup2_mount, find_program, link_names
from tools.benches.rounds import Times

IMAGE: Final = "bench"
ALLOW: Final = ["cpu", "memory", "pids", "io"]
START_SECONDS: Final = 240.0
"""Importing numpy alone takes a quarter of a minute in an emulated machine."""
STOP_SECONDS: Final = 120.0


def agentos_native() -> str:
    """The command of the environment that runs this benchmark."""
    return find_program(str(Path(sys.executable).parent / "agentos-native"), "agentos-native")


class Connection:
    """One kept-open HTTP/1.1 connection over a unix socket; not thread-safe."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, target: str, body: Any = None) -> Any:
        """The answer's JSON. Raises BenchError for a status of 400 or more, with the service's own error text."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.1\r\nHost: agentos\r\nContent-Type: application/json\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        status, answer = self._receive()
        if status >= 400:
            raise BenchError(f"{method} {target}: {status} {answer[:600].decode(errors='replace')}")
        return json.loads(answer) if answer else None

    def _receive(self) -> tuple[int, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(body) < length:
            body += self._more()
        return int(head.split(b" ", 2)[1]), body

    def _more(self) -> bytes:
        part = self._socket.recv(65536)
        if not part:
            raise BenchError("the supervisor closed the connection (see above)")
        return part


class Service:
    """A running agentos-native. `launcher` is its top process."""

    def __init__(self, here: Place, name: str) -> None:
        self.state = here.directory / name
        self.state.mkdir(mode=0o711)
        self.socket = str(self.state / "api.sock")
        group = here.cgroup / name
        group.mkdir()
        self._log = self.state / "supervisor.log"
        mount = cgroup2_mount()
        command = [
            *(agentos_native(), "supervise"),
            *("--node", f"b{os.getpid() % 1000000}", "--state-dir", str(self.state / "state"), "--socket", self.socket),
            *("--cgroup-root", f"/{group.relative_to(mount)}"),
        ]
        self.process = subprocess.Popen(command, stderr=self._log.open("wb"), stdout=subprocess.DEVNULL)
        self._await_answer()
        with contextlib.closing(self.connect()) as connection:
            connection.call("POST", f"/v1/images?name={IMAGE}&source={here.image}")

    def connect(self) -> Connection:
        """A new connection; the caller closes it."""
        return Connection(self.socket)

    def _await_answer(self) -> None:
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), contextlib.closing(self.connect()) as connection:
                connection.call("GET", "/v1/version")
                return
            time.sleep(0.05)
        self.stop()
        raise BenchError(f"the supervisor did not start:\n{self._log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """SIGTERM: it stops its agents and ends."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def processes(self) -> list[int]:
        """The launcher and its supervisor (not the agents)."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        own = [self.process.pid]
        for pid in children:
            with contextlib.suppress(OSError):
                if b"agentos_native" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    own.append(int(pid))
        return own


@contextmanager
def service(here: Place, name: str) -> Iterator[Service]:
    """A `Service` for the length of a block."""
    running = Service(here, name)
    try:
        yield running
    finally:
        running.stop()


def agent_spec(name: str, command: list[str], image: str = IMAGE) -> dict[str, Any]:
    """A small agent with every layer; what the host cannot enforce is done without."""
    return {"name": name, "image": image, "command": command, "network": "isolated", "allowUnenforced": ALLOW}


class ApiContender:
    """One POST for each start, answered when the program runs; then wait for its end and remove it."""

    stage_names: tuple[str, ...] = ()

    def __init__(self, running: Service, name: str = "API", image: str = IMAGE) -> None:
        self.name = name
        self._image = image
        self._service = running
        self._local = threading.local()
        self._number = 0

    def run(self, count: int, depth: int) -> Times:
        """See `rounds.Contender.run`."""
        begun = time.perf_counter()
        first, self._number = self._number, self._number + count
        with ThreadPoolExecutor(depth) as threads:
            results = list(threads.map(self._one, range(first, first + count)))
        wall = time.perf_counter() - begun
        return Times(tuple(result[0] for result in results), tuple(result[1] for result in results), wall * 1e6)

    def processor_seconds(self) -> float:
        """See `rounds.Contender`; this client's own time is not in it."""
        return memory.processor_seconds(self._service.processes(), children=True)

    def settle(self) -> bool:
        return not link_names("ao")

    def _one(self, number: int) -> tuple[float, float]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._service.connect()
        body = {"spec": agent_spec(f"start-{number}", ["/bin/true"], self._image), "start": True}
        begun = time.perf_counter()
        agent = connection.call("POST", "/v1/agents", body)
        executed = time.perf_counter()
        ended = connection.call("GET", f"/v1/agents/{agent['id']}/wait")
        if ended["exit_status"] != 0:
            raise BenchError(f"an agent ended with {ended}")
        connection.call("DELETE", f"/v1/agents/{agent['id']}")
        return (executed - begun) * 1e6, (time.perf_counter() - begun) * 1e6


@contextmanager
def contender(here: Place) -> Iterator[ApiContender]:
    """The API contender with a service of its own."""
    with service(here, "api") as running:
        yield ApiContender(running)
