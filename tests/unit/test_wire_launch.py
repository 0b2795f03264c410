"""The messages between launcher and supervisor."""

from __future__ import annotations

import msgspec
import pytest

from agentos_native.wire import launch
from agentos_native.wire.launch import Failure

REQUESTS: list[launch.ToLauncher] = [
    launch.MakeUserns(1, 0x40000000, 65536),
    launch.MakeUserns(2, 0, 65536, inside=0x40000000),
    launch.Clone(2, "0123456789ab/exec-1", b"\0\1\2" * 100, 0x6C020000, 0, 1, 2.5),
    launch.Acknowledge(9),
    launch.Shutdown(3),
]
REPLIES: list[launch.ToSupervisor] = [
    launch.Userns(1),
    launch.Userns(1, Failure("user namespace", "write", "/proc/1/uid_map", 22, "why")),
    launch.Cloned(2, "u", 77),
    launch.Running(2, "u"),
    launch.Failed(2, "u", Failure("mount /proc", "fsmount", "proc", 1)),
    launch.Exited(4, "u", 77, 1, 0, 0.5, 0.25, 4096, 1e9),
    launch.Live("u", 77, True),
    launch.Ready(0),
]


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: type(message).__name__)
def test_requests_survive_the_wire(message: launch.ToLauncher) -> None:
    assert launch.decode_request(launch.encode(message)) == message
    assert launch.decode_request(memoryview(launch.encode(message))) == message


@pytest.mark.parametrize("message", REPLIES, ids=lambda message: type(message).__name__)
def test_replies_survive_the_wire(message: launch.ToSupervisor) -> None:
    assert launch.decode_reply(launch.encode(message)) == message


def test_each_side_refuses_the_others_messages() -> None:
    for request in REQUESTS:
        with pytest.raises(msgspec.DecodeError):
            launch.decode_reply(launch.encode(request))
    for reply in REPLIES:
        with pytest.raises(msgspec.DecodeError):
            launch.decode_request(launch.encode(reply))


@pytest.mark.parametrize("packet", [b"", b"\x00", b"nonsense", b"\x93\xa5Clone\x01"])
def test_damaged_packets_are_refused(packet: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        launch.decode_request(packet)
