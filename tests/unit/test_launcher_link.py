"""The supervisor's end of the socketpair to its launcher; see `agentos_native.supervisor.launcher_link`."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from agentos_native.supervisor.launcher_link import CloneError, LauncherLink
from agentos_native.wire import launch


def test_a_start_whose_pidfd_did_not_come_fails_and_its_end_is_awaited_all_the_same() -> None:
    """A supervisor that has no number free for it is told of the child without it (unix(7), MSG_CTRUNC)."""

    async def story() -> None:
        mine, launcher = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with launcher:
            link = LauncherLink(mine.detach(), lambda: None)
            request = link.clone("unit", b"", namespaces=0, fds=(), cgroup=0)
            wanted = launch.decode_request(memoryview(launcher.recv(launch.MAX_PACKET)))
            assert isinstance(wanted, launch.Clone)
            launcher.send(launch.encode(launch.Cloned(wanted.seq, "unit", 123)))
            with pytest.raises(CloneError) as caught:
                await asyncio.wait_for(request.cloned, 60)
            assert caught.value.failure.errno == errno.EMFILE
            assert not request.running.done()
            launcher.send(launch.encode(launch.Running(wanted.seq, "unit")))
            assert await asyncio.wait_for(request.running, 60) == []
            request.drop()
            link.close()

    asyncio.run(story())
