"""The launcher's parts that need no privilege: command line, channel, restarts of the supervisor, exit messages."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from agentos_native.kernel import signals
from agentos_native.launcher.__main__ import supervisor_command
from agentos_native.launcher.channel import Channel, close_all, receive
from agentos_native.launcher.supervised import Supervised
from agentos_native.launcher.units import Unit, exit_message


@pytest.mark.parametrize(
    ("arguments", "tail"),
    [
        ([], ["-m", "agentos_native.supervisor"]),
        (["--node", "x"], ["-m", "agentos_native.supervisor", "--node", "x"]),
        (["--", "--embedded"], ["-m", "agentos_native.supervisor", "--embedded"]),
        (["--", "/bin/other", "arg"], ["/bin/other", "arg"]),
        (["--node", "x", "--", "/bin/other"], ["/bin/other", "--node", "x"]),
    ],
)
def test_command_line_of_the_supervisor(arguments: list[str], tail: list[str]) -> None:
    command = supervisor_command(arguments)
    assert command[-len(tail) :] == tail


def died_by(supervised: Supervised, status: int, *, again: bool = True) -> float | None:
    return supervised.died(status, time.monotonic(), again=again)


def test_restart_for_signals_and_software_failures_only(capsys: pytest.CaptureFixture[str]) -> None:
    supervised = Supervised(["true"])
    assert died_by(supervised, 0) is None
    assert died_by(supervised, 125 << 8) is None
    assert supervised.status == 125
    assert died_by(supervised, 70 << 8) is not None
    assert died_by(supervised, int(signal.SIGSEGV)) is not None
    assert "SIGSEGV" in capsys.readouterr().err


def test_no_restart_after_it_was_told_to_stop() -> None:
    supervised = Supervised(["true"])
    assert died_by(supervised, int(signal.SIGTERM), again=False) is None
    assert supervised.status == 128 + signal.SIGTERM


def test_a_second_start_that_is_refused_is_tried_again() -> None:
    supervised = Supervised(["true"])
    supervised.starts = 2
    assert died_by(supervised, 125 << 8) == 0.1
    assert died_by(supervised, 0) is None
    assert died_by(supervised, 125 << 8, again=False) is None


def test_back_off_grows_to_its_limit_and_is_forgotten_after_a_calm_time() -> None:
    supervised = Supervised(["true"])
    delays = [supervised.died(9, 1.0, again=True) for _ in range(9)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert supervised.died(9, 1000.0, again=True) == 0.1


def pair() -> tuple[Channel, socket.socket]:
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(mine), other


def test_channel_never_blocks_and_keeps_order_and_fds() -> None:
    channel, other = pair()
    read, write = os.pipe()
    for count in range(1, 1000):
        channel.send((count - 1).to_bytes(4, "little") + bytes(4000), [write])
        if channel.backlog:
            break
    channel.send(count.to_bytes(4, "little"), [write])
    os.close(write)
    buffer = memoryview(bytearray(8192))
    for expected in range(count + 1):
        _, fds = receive(other, buffer)
        assert int.from_bytes(buffer[:4], "little") == expected
        assert len(fds) == 1
        close_all(fds)
        channel.flush()
    assert not channel.backlog
    assert os.read(read, 1) == b""  # no copy of the writing end is left anywhere
    os.close(read)
    channel.close()
    other.close()


def test_channel_to_a_dead_peer_is_no_error() -> None:
    channel, other = pair()
    other.close()
    channel.send(b"x")
    assert not channel.backlog
    channel.close()


def test_packet_that_is_too_large_is_an_error_and_leaks_no_fd() -> None:
    channel, other = pair()
    before = len(os.listdir("/proc/self/fd"))
    channel.send(bytes(100), [0])
    with pytest.raises(ValueError, match="larger"):
        receive(other, memoryview(bytearray(10)))
    assert len(os.listdir("/proc/self/fd")) == before
    channel.close()
    other.close()


@pytest.mark.parametrize(
    ("status", "code", "number"),
    [(0, os.CLD_EXITED, 0), (7 << 8, os.CLD_EXITED, 7), (9, os.CLD_KILLED, 9), (11 | 0x80, os.CLD_DUMPED, 11)],
)
def test_wait_status_becomes_siginfo(status: int, code: int, number: int) -> None:
    unit = Unit(1, "u", 0, [], None)
    child = os.fork()
    if child == 0:
        os._exit(0)
    _, _, usage = os.wait4(child, 0)
    unit.pid, unit.exited = child, (status, usage)
    message = exit_message(unit, 3)
    assert (message.exit_id, message.unit, message.pid, message.code, message.status) == (3, "u", child, code, number)


def test_signalfd() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    fd = signals.signalfd({signal.SIGUSR1, signal.SIGUSR2})
    try:
        assert signals.read_signals(fd) == set()
        # To this thread: another one, left over from another test, does not block the signals and would take them.
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        assert signals.read_signals(fd) == {signal.SIGUSR1, signal.SIGUSR2}
    finally:
        os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
