"""The supervisor's end of the socketpair to the launcher (messages: `agentos_native.wire.launch`).

Theory of operation
    One SOCK_SEQPACKET socket, non-blocking, on the event loop. Requests carry a sequence number; each waits on a
    future of its own, so any number of starts are in flight at once. File descriptors that arrive belong to whoever
    awaited them; one that nobody waits for any more (a cancelled start) is closed here. At the beginning the launcher
    replays what lives and what ended since the last acknowledgement; `replayed` is set with `Ready`. The end of the
    socket is the end of the launcher: the supervisor cannot work without it and stops.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.wire import launch

_ANCILLARY: Final = socket.CMSG_SPACE(launch.MAX_FDS * 4)


class Replay:
    """What the launcher knew when this supervisor connected."""

    def __init__(self) -> None:
        self.live: dict[str, tuple[launch.Live, list[int]]] = {}
        self.exited: list[launch.Exited] = []
        self.restarts = 0
        self.complete = asyncio.Event()


class CloneRequest:
    """One clone in flight: `cloned` gives (pid, pidfd), `running` the fds that came with it (a terminal's master)."""

    def __init__(self, unit: str, loop: asyncio.AbstractEventLoop) -> None:
        self.unit = unit
        self.cloned: asyncio.Future[tuple[int, int]] = loop.create_future()
        self.running: asyncio.Future[list[int]] = loop.create_future()
        self.taken: set[str] = set()
        """Whose fds have a new owner: "cloned", "running"."""

    def drop(self) -> None:
        """Close the fds that have come and that nobody took."""
        self.cloned.cancel()  # what comes later is closed by the link
        if "cloned" not in self.taken and not self.cloned.cancelled() and self.cloned.exception() is None:
            _close([self.cloned.result()[1]])
        self.running.cancel()
        if "running" not in self.taken and not self.running.cancelled() and self.running.exception() is None:
            _close(self.running.result())


class CloneError(Exception):
    """The child never reached exec; `failure` says why."""

    def __init__(self, unit: str, failure: launch.Failure) -> None:
        super().__init__(f"{unit}: {failure.stage}: {failure.call}({failure.path}): errno {failure.errno}")
        self.unit = unit
        self.failure = failure


class LauncherLink:
    """Use on the event loop's thread only.

    Attributes:
        on_exit: called for each `Exited` after the replay; the callee acknowledges when it has recorded it. To be set
            before the event loop runs again.

    Args:
        on_lost: called once when the launcher is gone.
    """

    def __init__(self, fd: int, on_lost: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self.on_exit: Callable[[launch.Exited], None]
        self._on_lost = on_lost
        self._sequence = 0
        self._userns: dict[int, asyncio.Future[int]] = {}
        self._clones: dict[int, CloneRequest] = {}
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self.replay = Replay()
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Leave the launcher alone; pending requests fail."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
        self._fail_all()

    async def make_userns(self, base: int, size: int, inside: int = 0) -> int:
        """The fd (the caller closes it) of a new user namespace that maps inner `inside`.. to `base`.."""
        sequence = self._next()
        future: asyncio.Future[int] = self._loop.create_future()
        self._userns[sequence] = future
        self._send(launch.MakeUserns(sequence, base, size, inside), ())
        return await future

    def clone(
        self,
        unit: str,
        program: bytes,
        *,
        namespaces: int,
        fds: Sequence[int],
        cgroup: int,
        pidns: int = -1,
        deadline: float = 30.0,
    ) -> CloneRequest:
        """Send a clone request; `fds` are duplicated by the kernel, the caller closes its own.

        Args:
            cgroup, pidns: indexes into `fds`.
        """
        sequence = self._next()
        request = CloneRequest(unit, self._loop)
        self._clones[sequence] = request
        self._send(launch.Clone(sequence, unit, program, namespaces, cgroup, pidns, deadline), fds)
        return request

    def acknowledge(self, exit_id: int) -> None:
        """This exit is recorded."""
        self._send(launch.Acknowledge(exit_id), ())

    async def shutdown(self, status: int) -> None:
        """Tell the launcher to end with `status`, and wait until the message is on its way."""
        self._send(launch.Shutdown(status), ())
        while self._outbox:
            await asyncio.sleep(0.005)

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _send(self, message: launch.ToLauncher, fds: Sequence[int]) -> None:
        packet = launch.encode(message)
        if len(packet) > launch.MAX_PACKET or len(fds) > launch.MAX_FDS:
            raise AgentosError(
                "request-too-large",
                f"a launch request of {len(packet)} bytes and {len(fds)} files is more than the launcher takes",
                "",
                f"At most {launch.MAX_PACKET} bytes and {launch.MAX_FDS} files: shorten command or environment.",
            )
        if self._outbox or not self._try_send(packet, fds):
            # Queued fds are duplicated, because the caller closes its own as soon as we return.
            self._outbox.append((packet, [os.dup(fd) for fd in fds]))
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def _try_send(self, packet: bytes, fds: Sequence[int]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([packet], ancillary)
        except BlockingIOError:
            return False
        except OSError as error:
            raise AgentosError("launcher-lost", f"the launcher does not answer: {error.strerror}") from error
        return True

    def _writable(self) -> None:
        while self._outbox:
            packet, fds = self._outbox[0]
            if not self._try_send(packet, fds):
                return
            self._outbox.popleft()
            for fd in fds:
                os.close(fd)
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        for _ in range(64):  # bounded, so that a burst of exits does not starve the API
            try:
                packet, ancillary, _flags, _ = self._socket.recvmsg(
                    launch.MAX_PACKET, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except ConnectionError:
                packet, ancillary = b"", []
            if not packet:
                self._lost()
                return
            self._dispatch(launch.decode_reply(packet), _received_fds(ancillary))

    def _dispatch(self, message: launch.ToSupervisor, fds: list[int]) -> None:
        match message:
            case launch.Userns():
                self._got_userns(message, fds)
            case launch.Cloned():
                self._got_cloned(message, fds)
            case launch.Running():
                request = self._clones.pop(message.seq, None)
                if request is None or request.running.done():
                    _close(fds)
                else:
                    request.running.set_result(fds)
            case launch.Failed():
                request = self._clones.pop(message.seq, None)
                if request is not None:
                    _fail(request, CloneError(message.unit, message.failure))
            case launch.Exited():
                if self.replay.complete.is_set():
                    self.on_exit(message)
                else:
                    self.replay.exited.append(message)
            case launch.Live():
                self.replay.live[message.unit] = (message, fds)
            case launch.Ready():
                self.replay.restarts = message.restarts
                self.replay.complete.set()

    def _got_userns(self, message: launch.Userns, fds: list[int]) -> None:
        future = self._userns.pop(message.seq, None)
        if future is None or future.done():
            _close(fds)
        elif fds:
            future.set_result(fds[0])
        else:
            failure = message.failure or launch.Failure("userns", "", "", 0, "no file descriptor came")
            future.set_exception(CloneError("userns", failure))

    def _got_cloned(self, message: launch.Cloned, fds: list[int]) -> None:
        request = self._clones.get(message.seq)
        if request is None or request.cloned.done():
            _close(fds)
        elif fds:
            request.cloned.set_result((message.pid, fds[0]))
        else:  # the kernel drops what there is no number for (unix(7), MSG_CTRUNC)
            failure = launch.Failure("clone", "recvmsg", "", errno.EMFILE, "the pidfd did not come: too many files")
            request.cloned.set_exception(CloneError(message.unit, failure))

    def _lost(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._fail_all()
        self._on_lost()

    def _fail_all(self) -> None:
        error = AgentosError("launcher-lost", "the launcher ended during a request")
        for future in self._userns.values():
            if not future.done():
                future.set_exception(error)
        for request in self._clones.values():
            _fail(request, error)
        self._userns.clear()
        self._clones.clear()


def _fail(request: CloneRequest, error: Exception) -> None:
    # Failed may come before Cloned (clone3 itself failed) or after it; an await sees it on whichever is still open.
    for future in (request.cloned, request.running):
        if not future.done():
            future.set_exception(error)
            future.exception()  # retrieved here: a start awaits one of the two only


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
