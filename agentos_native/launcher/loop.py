"""The launcher's loop: one thread, one epoll, no policy.

Theory of operation
    Four sources: the supervisor's socket (requests), the status socket (news of children on their way to exec, from
    ``sandbox/_child.c``), a signalfd (SIGCHLD, SIGTERM, SIGINT), and the clock (deadlines, restart of the supervisor).
    A request is started and left alone; nothing here waits for a child, so any number of starts are in flight. The
    status socket is always read before children are reaped, so that a child is known before its death is.

    Every process that loses its parent comes to this one (PR_SET_CHILD_SUBREAPER) and is reaped. An exit is kept, and
    told to every new supervisor, until one has acknowledged it. When the supervisor dies it is started again with a new
    socketpair and is told what lives; agents do not notice. When this process dies, children that have not executed die
    with it (see ``_child.c``), agents live on, and the supervisor ends itself (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
import time
from typing import Final

import msgspec

from agentos_native import faults
from agentos_native.kernel import process, signals
from agentos_native.launcher import emptyns, units, usernamespaces
from agentos_native.launcher.channel import Channel, close_all, receive
from agentos_native.launcher.supervised import Supervised
from agentos_native.launcher.units import Unit
from agentos_native.sandbox import _child
from agentos_native.wire import launch
from agentos_native.wire.launch import Failure

_LAST_WORDS: Final = 10.0
"""Seconds that a supervisor has to end after it has sent `Shutdown`."""


class Launcher:
    """`run` is the process; the rest are its events."""

    def __init__(self, command: list[str]) -> None:
        self._supervised = Supervised(command)
        self._channel: Channel | None = None
        self._units: dict[str, Unit] = {}
        self._by_slot: dict[int, Unit] = {}
        self._by_pid: dict[int, Unit] = {}
        self._exits: dict[int, launch.Exited] = {}
        self._next_exit = 1
        self._start_at: float | None = 0.0
        self._ending: tuple[int, float] | None = None
        self._status: int | None = None
        self._stopping = False
        self._buffer = memoryview(bytearray(launch.MAX_PACKET))
        self._epoll = select.epoll()
        self._signals = signals.signalfd({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})
        self._news, self._children_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._news.setblocking(False)
        _child.setup(self._children_end.fileno(), process.pidfd_open(os.getpid()), emptyns.make())

    def run(self) -> int:
        """Serve until the supervisor is done; returns the exit status of the program."""
        self._epoll.register(self._signals, select.EPOLLIN)
        self._epoll.register(self._news.fileno(), select.EPOLLIN)
        while self._status is None:
            self._on_clock()
            for fd, _ in self._epoll.poll(self._timeout()):
                if fd == self._news.fileno():
                    self._read_news()
                elif fd == self._signals:
                    self._on_signals()
                else:
                    self._on_supervisor()
        return self._status

    # ------------------------------------------------------------------ clock

    def _timeout(self) -> float:
        moments = [unit.deadline for unit in self._by_slot.values() if unit.deadline is not None]
        if self._start_at is not None:
            moments.append(self._start_at)
        if self._ending is not None:
            moments.append(self._ending[1])
        return max(0.0, min(moments) - time.monotonic()) if moments else -1

    def _on_clock(self) -> None:
        now = time.monotonic()
        if self._start_at is not None and now >= self._start_at:
            self._start_at = None
            self._connect(now)
        if self._ending is not None and now >= self._ending[1]:
            self._status = self._ending[0]
        for unit in list(self._by_slot.values()):
            if unit.deadline is not None and now >= unit.deadline:
                self._expire(unit)

    def _expire(self, unit: Unit) -> None:
        unit.learn_identity()
        unit.deadline = None
        _, _, _, stage, call, path, _ = _child.result(unit.slot)
        unit.failure = Failure(stage, call, os.fsdecode(path), errno.ETIMEDOUT, "not executed before the deadline")
        if unit.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError, OSError):
                process.pidfd_send_signal(unit.pidfd, signal.SIGKILL)

    # ------------------------------------------------------------- supervisor

    def _connect(self, now: float) -> None:
        channel = Channel(self._supervised.start(now))
        self._channel = channel
        self._epoll.register(channel.socket.fileno(), select.EPOLLIN)
        for unit in self._by_pid.values():
            if unit.exited is None:
                fds = [fd for fd in (unit.pidfd, unit.terminal) if fd >= 0]
                self._send(launch.Live(unit.name, unit.pid, unit.executed), *fds)
        for message in self._exits.values():
            self._send(message)
        self._send(launch.Ready(self._supervised.starts - 1))

    def _disconnect(self) -> None:
        if self._channel is not None:
            self._epoll.unregister(self._channel.socket.fileno())
            self._channel.close()
            self._channel = None

    def _send(self, message: launch.ToSupervisor, *fds: int) -> None:
        if self._channel is None:
            return
        self._channel.send(launch.encode(message), fds)
        if self._channel.backlog:
            self._epoll.modify(self._channel.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _on_supervisor(self) -> None:
        channel = self._channel
        if channel is None:
            return
        self._flush(channel)
        for _ in range(16):  # news and deaths have their turn between
            try:
                length, fds = receive(channel.socket, self._buffer)
            except BlockingIOError:
                return
            except (ConnectionError, ValueError):
                length, fds = 0, []
            if length == 0:
                self._disconnect()
                return
            self._on_request(self._buffer[:length], fds)
            if self._channel is not channel:
                return

    def _flush(self, channel: Channel) -> None:
        if channel.backlog and channel.flush():
            self._epoll.modify(channel.socket.fileno(), select.EPOLLIN)

    def _on_request(self, packet: memoryview, fds: list[int]) -> None:
        try:
            message = launch.decode_request(packet)
        except msgspec.DecodeError:
            close_all(fds)
            self._disconnect()  # the other end is not the supervisor of this version
            return
        match message:
            case launch.Clone():
                faults.point("launcher.received")
                self._clone(message, fds)
                return
            case launch.MakeUserns():
                self._make_userns(message)
            case launch.Acknowledge():
                self._exits.pop(message.exit_id, None)
            case launch.Shutdown():
                self._ending = (message.status, time.monotonic() + _LAST_WORDS)
        close_all(fds)

    # ------------------------------------------------------------------ clone

    def _clone(self, message: launch.Clone, fds: list[int]) -> None:
        if message.unit in self._units:
            failure = Failure("clone", "", message.unit, errno.EEXIST, "a unit of this name runs")
        elif not 0 <= message.cgroup < len(fds) or not -1 <= message.pidns < len(fds):
            failure = Failure("clone", "", message.unit, errno.EBADF, "no such file descriptor in the request")
        else:
            pidns = fds[message.pidns] if message.pidns >= 0 else -1
            arguments = (message.program, tuple(fds), message.namespaces, fds[message.cgroup], pidns)
            try:
                unit = self._start(message.seq, message.unit, arguments, fds, message.deadline)
                self._units[unit.name] = unit
                return
            except (OSError, ValueError) as error:
                failure = Failure("clone", "start", "", getattr(error, "errno", None) or errno.EINVAL, str(error))
        close_all(fds)
        self._send(launch.Failed(message.seq, message.unit, failure))

    def _start(
        self, seq: int, name: str, arguments: tuple[bytes, tuple[int, ...], int, int, int], fds: list[int], limit: float
    ) -> Unit:
        slot = _child.start(*arguments)
        unit = self._by_slot[slot] = Unit(seq, name, slot, fds, time.monotonic() + limit)
        return unit

    def _make_userns(self, message: launch.MakeUserns) -> None:
        try:
            fd = usernamespaces.make(message.base, message.size, message.inside)
        except OSError as error:
            call = "write" if error.filename else "clone3"
            failure = Failure("user namespace", call, error.filename or "", error.errno or 0, str(error))
            self._send(launch.Userns(message.seq, failure))
        else:
            self._send(launch.Userns(message.seq), fd)
            os.close(fd)

    # ------------------------------------------------------------------- news

    def _read_news(self) -> None:
        while True:
            try:
                length, fds = receive(self._news, self._buffer)
            except BlockingIOError:
                return
            news = int.from_bytes(self._buffer[:length], sys.byteorder)
            unit = self._by_slot[news >> 8]
            match news & 0xFF:
                case units.BORN:
                    self._born(unit)
                case units.TERMINAL:
                    unit.terminal = fds[0]
                case units.RELEASED:
                    self._released(unit)

    def _born(self, unit: Unit) -> None:
        self._adopt(unit)
        self._send(launch.Cloned(unit.seq, unit.name, unit.pid), unit.pidfd)
        faults.point("launcher.cloned")

    def _adopt(self, unit: Unit) -> None:
        """The child exists: it has its own copies of the request's fds."""
        unit.learn_identity()
        close_all(unit.fds)
        unit.fds = []
        if unit.pidfd >= 0:
            self._by_pid[unit.pid] = unit

    def _released(self, unit: Unit) -> None:
        if unit.fds:
            self._adopt(unit)
        unit.release()
        del self._by_slot[unit.slot]
        if unit.executed:
            # The terminal's master is kept, too: without any the program would be hung up when a supervisor dies.
            self._send(launch.Running(unit.seq, unit.name), *([unit.terminal] if unit.terminal >= 0 else []))
            faults.point("launcher.executed")
        self._finish(unit)

    def _finish(self, unit: Unit) -> None:
        """Tell the end of a unit, once it is over."""
        if not unit.over:
            return
        unit.close()
        self._by_pid.pop(unit.pid, None)
        del self._units[unit.name]
        if unit.executed:
            message = units.exit_message(unit, self._next_exit)
            self._exits[self._next_exit] = message
            self._next_exit += 1
            faults.point("launcher.exit-kept")
            self._send(message)
        elif unit.failure is not None:
            self._send(launch.Failed(unit.seq, unit.name, unit.failure))

    # ---------------------------------------------------------------- signals

    def _on_signals(self) -> None:
        for number in signals.read_signals(self._signals):
            if number == signal.SIGCHLD:
                self._read_news()
                self._reap()
            elif self._supervised.pid:
                self._stopping = True
                self._supervised.signal(number)
            else:
                self._status = 128 + number

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._supervised.pid:
                self._supervisor_died(status)
            elif unit := self._unit_of(pid):
                unit.exited = (status, usage)
                self._finish(unit)

    def _unit_of(self, pid: int) -> Unit | None:
        """The unit of a reaped child; None for a stray that came to its subreaper."""
        if pid not in self._by_pid:  # killed before it could say that it was born, perhaps by its deadline
            for unit in self._by_slot.values():
                unit.learn_identity()
                if unit.pid == pid:
                    self._adopt(unit)
        return self._by_pid.get(pid)

    def _supervisor_died(self, status: int) -> None:
        self._disconnect()
        now = time.monotonic()
        if self._ending is not None:
            self._status = self._ending[0]
            return
        delay = self._supervised.died(status, now, again=not self._stopping)
        if delay is None:
            self._status = self._supervised.status
        else:
            self._start_at = now + delay
