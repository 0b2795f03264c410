"""Real sandboxes for tests, without image store, network or supervisor: a busybox directory, a netns, one launcher.

`Node` plays the supervisor: it starts the real launcher, whose "supervisor" is ``tests/relay.py``, which hands the
socketpair to the test. Needs root in an outer mount and network namespace (tools/test makes one).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final

from agentos_native.kernel import mount, ns
from agentos_native.kernel.libc import AT_EMPTY_PATH
from agentos_native.sandbox.config import BindMount, Fds, SandboxConfig
from agentos_native.sandbox.plan import Plan, exec_plan, start_plan
from agentos_native.wire import launch

ID_BASE: Final = 0x30000000
"""Host id of inner 0; below what any supervisor on the same machine gives out."""
BUSYBOX: Final = "/bin/busybox"
INIT: Final = "/usr/bin/tini-static"
_RELAY: Final = Path(__file__).with_name("relay.py")
_PATIENCE: Final = 20.0

Planner = Callable[[SandboxConfig, Fds], Plan]


def busybox_rootfs(directory: Path) -> Path:
    """A root file system of one static binary, owned by host 0 (to be mounted id-mapped)."""
    for name in ("bin", "etc", "tmp", "root", "home", "proc", "sys", "dev"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    for name in ("lib", "lib64"):  # for `Node.python`, which brings the host's /usr
        (directory / name).symlink_to(f"usr/{name}")
    shutil.copy2(BUSYBOX, directory / "bin/busybox")
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    return directory


def cgroup2_mount() -> Path:
    """Where cgroup v2 is mounted: /sys/fs/cgroup, or below it on a hybrid host."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, fstype, *_ = line.split()
        if fstype == "cgroup2":
            return Path(where)
    raise RuntimeError("no cgroup v2 mount")


def new_netns() -> int:
    """An fd of a fresh network namespace of the initial user namespace."""
    home = ns.open_own("net")
    try:
        ns.unshare(ns.CLONE_NEWNET)
        try:
            return ns.open_own("net")
        finally:
            ns.setns(home, ns.CLONE_NEWNET)
    finally:
        os.close(home)


def mount_rootfs(directory: Path, userns: int) -> int:
    """A detached, id-mapped copy of `directory`."""
    fd = mount.open_tree(-100, str(directory), mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC)
    mount.mount_setattr(fd, "", AT_EMPTY_PATH, attr_set=mount.MOUNT_ATTR_IDMAP, userns_fd=userns)
    return fd


class StartFailed(Exception):
    """The launcher answered `Failed`."""

    def __init__(self, failure: launch.Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


@dataclass
class Unit:
    """A unit that the launcher said is running."""

    name: str
    pid: int
    pidfd: int
    terminal: int = -1
    output: list[bytes] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)


@dataclass
class Result:
    """How a unit ended, and what it wrote."""

    exited: launch.Exited
    out: str
    err: str

    @property
    def status(self) -> int:
        """As a shell shows it."""
        return self.exited.status if self.exited.code == os.CLD_EXITED else 128 + self.exited.status


class Node:
    """One launcher and the test as its supervisor. Use as a context manager; leaves nothing on the machine."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(os.environ, **(environment or {}))
        self._directory = Path(tempfile.mkdtemp(prefix="agentos-test-"))
        self.cgroup = cgroup2_mount() / self._directory.name
        self.rootfs = self._directory / "rootfs"
        self._listener = socket.socket(socket.AF_UNIX)
        self._seq = 0
        self._backlog: list[tuple[launch.ToSupervisor, list[int]]] = []
        self.link = socket.socket()
        self.relay = socket.socket()
        self.relay_pid = 0
        self.launcher: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Node:
        self._directory.chmod(0o711)  # agents have ids of their own, and walk through it in volumes
        self.cgroup.mkdir()
        busybox_rootfs(self.rootfs)
        self._listener.bind(str(self._directory / "relay"))
        self._listener.listen()
        self._listener.settimeout(_PATIENCE)
        self.start_launcher()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_units()
        if self.launcher is not None:
            self.launcher.kill()
            self.launcher.wait()
        for end in (self.link, self.relay, self._listener):
            end.close()
        for _, fds in self._backlog:
            for fd in fds:
                os.close(fd)
        self._remove_cgroups()
        shutil.rmtree(self._directory)

    def start_launcher(self) -> None:
        """Start the launcher and be its supervisor; swallows the replay up to `Ready` (see `connect`)."""
        relay = [sys.executable, str(_RELAY), str(self._directory / "relay")]
        command = [sys.executable, "-m", "agentos_native.launcher", "--", *relay]
        self.launcher = subprocess.Popen(command, env=self._environment)
        self.connect()
        self.expect(launch.Ready)

    def connect(self) -> None:
        """Become the supervisor that the launcher has started (again)."""
        self.link.close()
        self.relay.close()
        self.relay, _ = self._listener.accept()
        pid, fds, _, _ = socket.recv_fds(self.relay, 32, 1)
        self.relay_pid = int(pid)
        self.link = socket.socket(fileno=fds[0])

    # -------------------------------------------------------------- messages

    def send(self, message: launch.ToLauncher, fds: list[int] | None = None) -> None:
        """One packet to the launcher."""
        socket.send_fds(self.link, [launch.encode(message)], fds or [])

    def receive(self, timeout: float = _PATIENCE) -> tuple[launch.ToSupervisor, list[int]]:
        """The next packet from the launcher."""
        if not select.select([self.link], [], [], timeout)[0]:
            raise TimeoutError("no message from the launcher")
        packet, fds, _, _ = socket.recv_fds(self.link, launch.MAX_PACKET, launch.MAX_FDS)
        if not packet:
            raise ConnectionError("the launcher has closed the connection")
        return launch.decode_reply(packet), fds

    def expect(self, *kinds: type[launch.ToSupervisor], unit: str = "") -> tuple[launch.ToSupervisor, list[int]]:
        """The next message of one of `kinds` (about `unit`); others are kept for later."""

        def wanted(message: launch.ToSupervisor) -> bool:
            return isinstance(message, kinds) and (not unit or getattr(message, "unit", "") == unit)

        for index, (message, _) in enumerate(self._backlog):
            if wanted(message):
                return self._backlog.pop(index)
        while True:
            message, fds = self.receive()
            if wanted(message):
                return message, fds
            self._backlog.append((message, fds))

    # ----------------------------------------------------------------- parts

    def next_seq(self) -> int:
        """A fresh sequence number."""
        self._seq += 1
        return self._seq

    def make_userns(self, base: int = ID_BASE, size: int = 65536) -> int:
        """A mapped user namespace, from the launcher."""
        self.send(launch.MakeUserns(self.next_seq(), base, size))
        message, fds = self.expect(launch.Userns)
        assert isinstance(message, launch.Userns)
        if message.failure is not None:
            raise StartFailed(message.failure)
        return fds[0]

    def leaf(self, agent: str, name: str = "main") -> int:
        """An fd of the leaf cgroup, made when it is not there."""
        path = self.cgroup / agent / name
        path.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _remove_cgroups(self) -> None:
        for path in sorted(self.cgroup.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
        self.cgroup.rmdir()

    def kill_units(self) -> None:
        """Kill everything that was started, and wait until the kernel has let go of it."""
        (self.cgroup / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + _PATIENCE
        while "populated 1" in (self.cgroup / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise TimeoutError("killed processes stay in their cgroup")
            time.sleep(0.01)

    # ----------------------------------------------------------------- units

    def config(self, *argv: str, **changes: object) -> SandboxConfig:
        """A configuration with plain defaults: inner root, workdir /, no volumes."""
        plain = SandboxConfig(
            agent_id="a",
            hostname="agent",
            argv=argv,
            env=(("HOME", "/root"), ("PATH", "/bin"), ("LANG", "C.UTF-8")),
            workdir="/",
            uid=0,
            gid=0,
            groups=(),
            id_base=ID_BASE,
        )
        return replace(plain, **changes)  # type: ignore[arg-type]  # the names are checked by replace

    @contextlib.contextmanager
    def start_fds(self, agent: str, **changes: int) -> Iterator[Fds]:
        """The fds of a start except stdio, closed afterwards."""
        userns = self.make_userns()
        own: dict[str, int] = {
            "cgroup": self.leaf(agent),
            "rootfs": mount_rootfs(self.rootfs, userns),
            "netns": new_netns(),
            "userns": userns,
            "init": os.open(INIT, os.O_RDONLY | os.O_CLOEXEC),
        }
        try:
            yield replace(Fds(**own), **changes)  # type: ignore[arg-type]  # every field but volumes is an int
        finally:
            for fd in own.values():
                os.close(fd)

    def plan_of(self, config: SandboxConfig, fds: Fds) -> Plan:
        """The plan of a start whose stdio is the test's own; for tests that send the request themselves."""
        return start_plan(config, replace(fds, stdin=0, stdout=1, stderr=2))

    def clone(self, unit: str, plan: Plan, deadline: float = 30.0) -> launch.Cloned:
        """Send the request; the child's existence is awaited, its exec is not."""
        message = launch.Clone(self.next_seq(), unit, plan.encode(), plan.namespaces, plan.cgroup, plan.pidns, deadline)
        self.send(message, plan.fds)
        answer, fds = self.expect(launch.Cloned, launch.Failed, unit=unit)
        if isinstance(answer, launch.Failed):
            raise StartFailed(answer.failure)
        assert isinstance(answer, launch.Cloned)
        self._backlog.append((answer, fds))
        return answer

    def launch(self, unit: str, make: Planner, config: SandboxConfig, fds: Fds) -> Unit:
        """Plan, clone and await exec. stdio becomes pipes whose contents `Unit.output` gathers (stdout, stderr)."""
        pipes = [] if config.tty else [os.pipe(), os.pipe()]
        null = os.open("/dev/null", os.O_RDONLY)
        if pipes:
            fds = replace(fds, stdin=null, stdout=pipes[0][1], stderr=pipes[1][1])
        reading = [read for read, _ in pipes]
        try:
            self.clone(unit, make(config, fds))
            answer, terminal = self.expect(launch.Running, launch.Failed, unit=unit)
        finally:
            os.close(null)
            for _, write in pipes:
                os.close(write)
        cloned, pidfds = self.expect(launch.Cloned, unit=unit)
        assert isinstance(cloned, launch.Cloned)
        if isinstance(answer, launch.Failed):
            for fd in (*pidfds, *reading):
                os.close(fd)
            raise StartFailed(answer.failure)
        result = Unit(unit, cloned.pid, pidfds[0], terminal[0] if terminal else -1, [b"", b""])
        for index, fd in enumerate(reading):
            thread = threading.Thread(target=_gather, args=(fd, result.output, index), daemon=True)
            thread.start()
            result.readers.append(thread)
        return result

    def start(
        self,
        *argv: str,
        agent: str = "a",
        fds: Mapping[str, int] | None = None,
        volumes: Mapping[str, tuple[Path, bool]] | None = None,
        planner: Planner = start_plan,
        **changes: object,
    ) -> Unit:
        """Start an agent in a sandbox of its own.

        Args:
            fds: replacements for the fds of a proper start, to see it fail.
            volumes: target → (what is on the host, read-only).
        """
        with self.start_fds(agent, **(fds or {})) as opened:
            mounts = {target: mount_rootfs(source, opened.userns) for target, (source, _) in (volumes or {}).items()}
            binds = tuple(BindMount(target, read_only, target) for target, (_, read_only) in (volumes or {}).items())
            try:
                config = self.config(*argv, **{"mounts": binds, **changes})
                return self.launch(agent, planner, config, replace(opened, volumes=mounts))
            finally:
                for fd in mounts.values():
                    os.close(fd)

    def exec(self, agent: Unit, *argv: str, unit: str = "exec-1", **changes: object) -> Unit:
        """Start a further process in a running agent."""
        pidns = os.open(f"/proc/{agent.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        cgroup = self.leaf(agent.name, unit)
        try:
            opened = Fds(cgroup=cgroup, agent=agent.pidfd, pidns=pidns)
            return self.launch(f"{agent.name}/{unit}", exec_plan, self.config(*argv, **changes), opened)
        finally:
            os.close(pidns)
            os.close(cgroup)

    def wait(self, unit: Unit) -> Result:
        """Await its exit and acknowledge it."""
        message, _ = self.expect(launch.Exited, unit=unit.name)
        assert isinstance(message, launch.Exited)
        self.send(launch.Acknowledge(message.exit_id))
        for thread in unit.readers:
            thread.join(_PATIENCE)
        os.close(unit.pidfd)
        if unit.terminal >= 0:
            os.close(unit.terminal)
        out, err = (data.decode(errors="replace") for data in unit.output)
        return Result(message, out, err)

    def run(self, *argv: str, **changes: object) -> Result:
        """Start an agent and await its end."""
        return self.wait(self.start(*argv, **changes))  # type: ignore[arg-type]  # start names its own keywords

    def shell(self, script: str, **changes: object) -> Result:
        """Run `script` by the sandbox's /bin/sh."""
        return self.run("/bin/sh", "-c", script, **changes)

    def python(self, code: str, *arguments: str, **changes: object) -> Result:
        """Run `code` by the host's Python, whose /usr is a read-only volume."""
        usr = {"/usr": (Path("/usr"), True)}
        return self.run("/usr/bin/python3", "-I", "-c", code, *arguments, volumes=usr, **changes)

    def kill(self, unit: Unit) -> Result:
        """SIGKILL by pidfd, and await the end."""
        signal.pidfd_send_signal(unit.pidfd, signal.SIGKILL)
        return self.wait(unit)


def _gather(fd: int, output: list[bytes], index: int) -> None:
    while data := os.read(fd, 65536):
        output[index] += data
    os.close(fd)
