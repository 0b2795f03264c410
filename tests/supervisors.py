"""Real supervisors for tests, to be killed at will, and an inventory of everything they could leave behind.

Every supervisor of one `Place` has the same state, socket, node name and cgroup root, one after the other. Needs root
in an outer mount and network namespace (tools/test makes one).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentos_native.client import Client
from agentos_native.errors import AgentosError
from agentos_native.spec import agent_from_builtins
from agentos_native.wire import api
from tests.sandboxes import busybox_rootfs, cgroup2_mount

PATIENCE = 60.0
_ONE_FAULT = """
import os, sys
flag = sys.argv[1]
if os.path.exists(flag):
    os.environ.pop("AGENTOS_FAULT", None)
open(flag, "w").close()
os.execv(sys.executable, [sys.executable, "-m", "agentos_native.supervisor", *sys.argv[2:]])
"""
"""A supervisor that meets its fault once: the one that the launcher starts after it does not."""


def eventually(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for `condition`; fails with `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


@dataclass
class Place:
    """Where supervisors of one test file live."""

    directory: Path
    node: str
    image: str = "box"
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    group: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.group = cgroup2_mount() / f"test-{self.node}"
        self.group.mkdir(exist_ok=True)
        self.client = Client(str(self.directory / "s.sock"), timeout=PATIENCE)

    @property
    def options(self) -> list[str]:
        """The supervisor's command line."""
        words = {
            "--node": self.node,
            "--state-dir": str(self.directory / "state"),
            "--socket": str(self.directory / "s.sock"),
            "--cgroup-root": "/" + self.group.name,
        }
        return [f"{name}={value}" for name, value in words.items()]

    def refused(self) -> str:
        """Start one that must end by itself with status 125; what it said."""
        command = [sys.executable, "-m", "agentos_native.launcher", "--", *self.options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert done.returncode == 125, done.stderr
        return done.stderr

    def start(self, fault: str = "", *, once: bool = False) -> int:
        """Start a launcher with its supervisor and wait until it answers; gives the launcher's pid."""
        environment = dict(os.environ)
        environment.pop("AGENTOS_FAULT", None)
        if fault:
            environment["AGENTOS_FAULT"] = fault
        command = [sys.executable, "-m", "agentos_native.launcher", "--"]
        if once:
            flag = self.directory / "fault-met"
            flag.unlink(missing_ok=True)
            command += [sys.executable, "-c", _ONE_FAULT, str(flag), *self.options]
        else:
            command += [sys.executable, "-m", "agentos_native.supervisor", *self.options]
        log = (self.directory / "log").open("ab")
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        log.close()
        self.running.append(process)
        self.wait_ready(process)
        return process.pid

    def wait_ready(self, process: subprocess.Popen[bytes] | None = None) -> None:
        """Until the API answers."""

        def answers() -> bool:
            assert process is None or process.poll() is None, self.log()
            with contextlib.suppress(AgentosError):
                self.client.version()
                return True
            return False

        eventually(answers, "the supervisor answers\n" + self.log())

    def log(self) -> str:
        """What the processes have said so far."""
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    def supervisor(self, launcher: int) -> int:
        """The supervisor's pid."""
        eventually(lambda: children(launcher), "the launcher has a supervisor")
        for pid in children(launcher):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("agentos-superv"):
                    return pid
        raise AssertionError(f"no supervisor among {children(launcher)}")

    def kill(self, launcher: int) -> None:
        """SIGKILL to the launcher, after which its supervisor must end by itself."""
        processes = children(launcher)
        supervisors = [pid for pid in processes if "agentos_native" in _command_line(pid)]
        process = next(process for process in self.running if process.pid == launcher)
        process.kill()
        process.wait(PATIENCE)
        for pid in supervisors:
            eventually(lambda pid=pid: not _alive(pid), "the supervisor dies with its launcher")  # type: ignore[misc]
        self.running.remove(process)

    def stop(self, launcher: int) -> int:
        """SIGTERM to the launcher; its exit status."""
        process = next(process for process in self.running if process.pid == launcher)
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE)
        self.running.remove(process)
        return status

    def close(self) -> None:
        """End whatever still runs and remove the group."""
        for process in self.running:
            process.kill()
            process.wait(PATIENCE)
        for directory, _, _ in os.walk(self.group, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory, "cgroup.kill").write_text("1")
            eventually(lambda directory=directory: _removed(directory), f"{directory} is empty")  # type: ignore[misc]

    def import_image(self) -> None:
        """A busybox."""
        rootfs = busybox_rootfs(self.directory / "rootfs")
        self.client.import_image(self.image, str(rootfs))

    def run(self, name: str, *command: str, start: bool = True, **fields: Any) -> api.Agent:
        """An agent of the image."""
        spec = {"name": name, "image": self.image, "command": list(command), **fields}
        return self.client.run(agent_from_builtins(spec), start=start)

    def inventory(self, launcher: int) -> dict[str, Any]:
        """Everything that a start makes, counted; the same numbers mean that nothing was left or lost.

        Taken until it stays the same: pools are filled and connections closed in the background. Wires of ended agents
        go a moment later than the agents.
        """
        eventually(lambda: len(self._links()) <= len(self.client.agents()), "no more wires than agents that live")
        last = self._look(launcher)
        for _ in range(20):
            time.sleep(0.2)
            now = self._look(launcher)
            if now == last:
                break
            last = now
        return last

    def _look(self, launcher: int) -> dict[str, Any]:
        supervisor = self.supervisor(launcher)
        return {
            "cgroups": sorted(str(Path(path).relative_to(self.group)) for path, _, _ in os.walk(self.group)),
            "processes": sorted(_command_line(pid) for pid in self._members()),
            "units of the launcher": len([pid for pid in children(launcher) if pid != supervisor]),
            "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
            "mounts of the launcher": len(Path(f"/proc/{launcher}/mountinfo").read_text().splitlines()),
            "links": self._links(),
            "nft elements": self._elements(),
            "network namespaces": len({os.stat(f"/proc/{pid}/ns/net").st_ino for pid in self._members()}),
            "open files": _kinds_of_files(supervisor),
            "open files of the launcher": _kinds_of_files(launcher),
            "files": sorted(
                str(Path(root, name).relative_to(self.directory / "state"))
                for root, directories, files in os.walk(self.directory / "state" / "agents")
                for name in directories + files
            ),
            "agents": sorted(f"{agent.name} {agent.state}" for agent in self.client.agents(ended=True)),
        }

    def _members(self) -> list[int]:
        found: list[int] = []
        for path, _, _ in os.walk(self.group):
            with contextlib.suppress(OSError):
                found += [int(word) for word in Path(path, "cgroup.procs").read_text().split()]
        return found

    def _links(self) -> list[str]:
        shown = subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout
        return sorted(link["ifname"] for link in json.loads(shown) if link.get("ifname", "").startswith("ao"))

    def _elements(self) -> int:
        table = ["nft", "-j", "list", "table", "inet", f"agentos-{self.node}"]
        shown = subprocess.run(table, capture_output=True, text=True, check=True).stdout
        parts = [next(iter(item.values())) for item in json.loads(shown)["nftables"]]
        return sum(len(part["elem"]) for part in parts if isinstance(part, dict) and "elem" in part)


@contextlib.contextmanager
def place(directory: Path, node: str, kind: type[Place] = Place) -> Iterator[Place]:
    """A place with an image in its store, and no supervisor. The node's name is this process's own on the machine."""
    made = kind(directory, f"{node[:7]}{os.getpid()}")
    try:
        launcher = made.start()
        made.import_image()
        assert made.stop(launcher) == 0
        yield made
    finally:
        made.close()


def _kinds_of_files(pid: int) -> dict[str, int]:
    """How many open files of each kind a process has; which block of addresses is its own depends on other nodes."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            kinds[re.sub(r"[0-9a-f]{12}|:?\[\d+\]|(?<=/blocks/)\d+", "", os.readlink(entry))] += 1
    return dict(kinds)


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def _removed(directory: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(directory)
    return not os.path.exists(directory)
