"""One command in one machine: boot, relay its output as it comes, bring /out back, return its status.

Theory of operation
  This process makes a socket pair for each virtio-serial port and starts the emulator with the other ends. It relays
  ``stdout`` and ``stderr`` to its own, collects the tar archive of ``out``, and waits for a number on ``control``. The
  guest writes that number last, and its write of anything returns only when the emulator has handed the data to the
  socket; so when the number is here, all the rest is too, and the emulator is killed: its disks are snapshots, there
  is nothing to save.
"""

from __future__ import annotations

import io
import selectors
import signal
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from .cache import die
from .qemu import PORTS, Machine, command_line

TIMED_OUT = 124
CHUNK = 1 << 16


@dataclass
class Session:
    """The sockets of a running machine and what has come out of them."""

    machine: Machine
    kvm: bool
    console: Path
    archive: io.BytesIO = field(default_factory=io.BytesIO)
    control: bytes = b""

    def run(self, timeout: float | None) -> int:
        """Boot, and return the command's status: 124 when ``timeout`` seconds have passed since the start."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ends = {name: socket.socketpair() for name in PORTS}
        ports = {name: theirs.fileno() for name, (_, theirs) in ends.items()}
        argv = command_line(self.machine, kvm=self.kvm, console=["-serial", f"file:{self.console}"], ports=ports)
        with _SignalsEndThisProcess():
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=list(ports.values()), process_group=0)
            try:
                for _, theirs in ends.values():
                    theirs.close()
                return self._relay({name: ours for name, (ours, _) in ends.items()}, deadline)
            finally:
                process.kill()
                process.wait()

    def _relay(self, ours: dict[str, socket.socket], deadline: float | None) -> int:
        with selectors.DefaultSelector() as selector:
            for name, end in ours.items():
                end.setblocking(False)
                selector.register(end, selectors.EVENT_READ, name)
            while not self.control.endswith(b"\n"):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    print("error[vm-timeout]: the time limit has passed; the machine was stopped", file=sys.stderr)
                    return TIMED_OUT
                for key, _ in selector.select(left):
                    if not self._take(key.data, ours[key.data]):
                        self._died()
            for name, end in ours.items():
                while name != "control" and self._take(name, end):
                    pass
        return int(self.control)

    def _take(self, name: str, end: socket.socket) -> bool:
        """Read what is there; false when there is nothing, or nothing will come any more."""
        try:
            data = end.recv(CHUNK)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if name == "control":
            self.control += data
        elif name == "out":
            self.archive.write(data)
        else:
            stream = sys.stdout.buffer if name == "stdout" else sys.stderr.buffer
            stream.write(data)
            stream.flush()
        return bool(data)

    def _died(self) -> None:
        tail = self.console.read_text(errors="replace").splitlines()[-15:] if self.console.exists() else []
        sys.stderr.write("".join(f"  console: {line}\n" for line in tail))
        die("the machine ended before its command did")

    def unpack(self, directory: Path) -> None:
        """Put the files that the command left in /out into ``directory``, and none anywhere else."""
        self.archive.seek(0)
        with tarfile.open(fileobj=self.archive, mode="r|*") as archive:
            for member in archive:
                target = directory.joinpath(*(part for part in Path(member.name).parts if part not in ("..", "/")))
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                elif member.isfile() and (content := archive.extractfile(member)):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
                    target.chmod(member.mode & 0o777)


class _SignalsEndThisProcess:
    """Turn SIGTERM and SIGHUP into an exit that runs ``finally`` clauses, so that no emulator is left behind."""

    def __enter__(self) -> None:
        ending = (signal.SIGTERM, signal.SIGHUP)
        self.old = {number: signal.signal(number, self._leave) for number in ending}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    @staticmethod
    def _leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)


def interactive(machine: Machine, *, kvm: bool) -> int:
    """Boot the service with the console on this terminal; Ctrl-A X ends the machine."""
    argv = command_line(machine, kvm=kvm, console=["-serial", "mon:stdio"], ports={})
    with _SignalsEndThisProcess(), subprocess.Popen(argv) as process:
        return process.wait()
