"""Kills by the OOM killer, reported as they happen, with the group's figures at that moment.

The kernel wakes pollers of ``memory.events`` when it chooses a victim (memcg_memory_event), before the victim's memory
is back; a thread that sleeps in epoll_wait(2) reads the figures then. A kill need not end the agent: it may have hit
one of its processes. When an agent ends, `forget` looks a last time, so that no kill goes unreported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import threading
from typing import Any, Final

from agentos_native.cgroup.memory_files import OomFigures, oom_figures
from agentos_native.supervisor.loop.controllers import Notify

REST: Final = 0.05
"""Seconds between two looks: a throttled group's events change a hundred times a second, and are no news."""


class OomWatch:
    """Watches the groups it is given. `watch` and `forget` may be called from any thread."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._lock = threading.Lock()
        self._paths: dict[int, tuple[str, str]] = {}  # fd -> agent, path
        self._fds: dict[str, int] = {}
        self._kills: dict[str, int] = {}
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, agent_id: str, path: str) -> None:
        """Report kills in the group at `path` from now on; nothing happens where it has no ``memory.events``."""
        figures = oom_figures(path)
        if figures is None or self._stop.is_set():
            return
        with self._lock:
            self._drop(agent_id)
            self._kills[agent_id] = figures.oom_kills
            with contextlib.suppress(OSError):
                fd = os.open(f"{path}/memory.events", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                self._fds[agent_id], self._paths[fd] = fd, (agent_id, path)
                os.pread(fd, 4096, 0)  # what is in it now is no news
                with contextlib.suppress(PermissionError):  # a plain file, in tests: only `forget` looks there
                    self._epoll.register(fd, select.EPOLLPRI)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="oom", daemon=True)
                self._thread.start()

    def forget(self, agent_id: str) -> None:
        """Look a last time, then let go of the group."""
        with self._lock:
            fd = self._fds.get(agent_id, -1)
            if fd >= 0:
                self._look(fd)
            self._drop(agent_id)

    def kills(self, agent_id: str) -> int:
        """How many were seen in this agent's group; -1: it is not watched."""
        return self._kills.get(agent_id, -1)

    def _drop(self, agent_id: str) -> None:
        fd = self._fds.pop(agent_id, -1)
        self._kills.pop(agent_id, None)
        if fd >= 0:
            del self._paths[fd]
            os.close(fd)  # which takes it out of the epoll set

    def _look(self, fd: int) -> None:
        agent_id, path = self._paths[fd]
        figures = oom_figures(path)
        try:
            os.pread(fd, 4096, 0)
        except OSError:  # the group is gone: an fd of it would wake us for ever
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
        if figures is not None and figures.oom_kills > self._kills[agent_id]:
            fresh = figures.oom_kills - self._kills[agent_id]
            self._kills[agent_id] = figures.oom_kills
            self._notify("oom-killed", agent_id, **_detail(figures, fresh))

    def _loop(self) -> None:
        while not self._stop.is_set():
            ready = self._epoll.poll()
            with self._lock:
                for fd, _ in ready:
                    if fd in self._paths:
                        self._look(fd)
            self._stop.wait(REST)

    def close(self) -> None:
        """End the thread and let go of every group; again, it does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for agent_id in list(self._fds):
                self._drop(agent_id)
        self._epoll.close()
        os.close(self._wake)


def _detail(figures: OomFigures, fresh: int) -> dict[str, Any]:
    return {**dataclasses.asdict(figures), "processes": fresh}
