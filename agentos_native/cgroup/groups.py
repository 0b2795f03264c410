"""One agent's group: its limits, its leaves, its figures, and its end.

The group carries the limits and holds no process; processes live in the leaves ``main`` and ``exec-<n>``. No
controller is enabled for the leaves, so a leaf costs no memory control group and no scheduling level of its own, yet an
exec can be killed and accounted alone (``cgroup.kill``, base ``cpu.stat``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from agentos_native.cgroup import files, settings
from agentos_native.cgroup.names import GroupRef, leaf_name
from agentos_native.cgroup.settings import GroupSettings
from agentos_native.errors import AgentosError

_INTEGERS = ("memory.current", "memory.peak", "memory.swap.current", "pids.current", "pids.peak")
_KEYED = ("cpu.stat", "memory.events", "pids.events", "cgroup.events")
_PRESSURE = ("cpu.pressure", "memory.pressure", "io.pressure")


def wait_for_event(dir_fd: int, key: str, value: int, timeout: float) -> bool:
    """Wait until ``cgroup.events`` says ``key value``; False when `timeout` seconds have passed first.

    kernfs wakes pollers of the file with POLLPRI whenever it changes (kernfs_notify); a group that is gone counts as
    empty.
    """
    deadline = time.monotonic() + timeout
    try:
        fd = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
    except FileNotFoundError:
        return True
    try:
        poller = select.poll()
        poller.register(fd, select.POLLPRI)
        while True:
            try:
                events = files.keyed_integers(os.pread(fd, 4096, 0).decode())
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return True
                raise
            if events.get(key) == value:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poller.poll(left * 1000)
    finally:
        os.close(fd)


def subgroups(dir_fd: int) -> list[str]:
    """The names of the groups directly below."""
    with os.scandir(dir_fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def remove_tree(name: str, dir_fd: int) -> None:
    """Remove the group `name` and what is below it, deepest first; raises OSError (EBUSY while processes live)."""
    try:
        with files.directory(name, dir_fd) as fd:
            for child in subgroups(fd):
                remove_tree(child, fd)
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return


class AgentGroup:
    """The group of one agent. Made by `Tree.create` and `Tree.get`; holds no fd, so it may be kept for long.

    Attributes:
        ref: whose it is.
        path: where it is, for messages and for the registry.
    """

    def __init__(
        self,
        ref: GroupRef,
        path: str,
        controllers: Collection[str],
        on_change: Callable[[GroupRef, GroupSettings | None], None],
    ) -> None:
        self.ref = ref
        self.path = path
        self.controllers = frozenset(controllers)
        self._on_change = on_change

    @contextmanager
    def _directory(self) -> Iterator[int]:
        try:
            fd = files.open_directory(self.path)
        except FileNotFoundError:
            raise AgentosError("cgroup-gone", "the agent's group does not exist", self.path) from None
        try:
            yield fd
        finally:
            os.close(fd)

    def exists(self) -> bool:
        return os.path.isdir(self.path)

    def leaf(self, name: str) -> int:
        """Make the leaf `name` (or take it) and return its directory fd, for CLONE_INTO_CGROUP; the caller closes."""
        leaf_name(name)
        with self._directory() as fd:
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=fd)
                return files.open_directory(name, fd)
            except OSError as error:
                raise files.refusal("create", f"{self.path}/{name}", error) from error

    def leaves(self) -> list[str]:
        with self._directory() as fd:
            return subgroups(fd)

    def remove_leaf(self, name: str, timeout: float = 5.0) -> None:
        """Remove an exec's leaf, waiting until its last process is gone; nothing happens when it is gone already."""
        leaf_name(name)
        with self._directory() as fd:
            try:
                with files.directory(name, fd) as leaf_fd:
                    wait_for_event(leaf_fd, "populated", 0, timeout)
                remove_tree(name, fd)
            except FileNotFoundError:
                return
            except OSError as error:
                raise files.refusal("remove", f"{self.path}/{name}", error) from error

    def update(self, wanted: GroupSettings, allow: Collection[str] = ()) -> None:
        """Replace every setting (what is None or empty goes back to the kernel's default), each read back."""
        with self._directory() as fd:
            settings.apply(fd, self.path, wanted, self.controllers, allow=allow, reset=True)
        self._on_change(self.ref, wanted)

    def kill(self, leaf: str | None = None) -> None:
        """SIGKILL to every process of the group (or of one leaf), forks included (``cgroup.kill``, Linux 5.14)."""
        path = self.path if leaf is None else f"{self.path}/{leaf_name(leaf)}"
        with self._directory() as fd:
            name = "cgroup.kill" if leaf is None else f"{leaf}/cgroup.kill"
            try:
                files.write_text(fd, name, "1")
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise files.refusal("write", f"{path}/cgroup.kill", error, "1") from error

    def wait_empty(self, timeout: float) -> bool:
        """True as soon as no process is left in the group or below; False after `timeout` seconds."""
        try:
            fd = files.open_directory(self.path)
        except FileNotFoundError:
            return True
        try:
            return wait_for_event(fd, "populated", 0, timeout)
        finally:
            os.close(fd)

    def procs(self) -> list[int]:
        """The processes of all leaves. Numbers are for display and for adoption: pin them by pidfd before use."""
        found: list[int] = []
        with self._directory() as fd:
            pending = [""]
            while pending:
                prefix = pending.pop()
                text = files.read_optional(fd, f"{prefix}cgroup.procs")
                found += [int(line) for line in (text or "").split()]
                with contextlib.suppress(FileNotFoundError), files.directory(prefix or ".", fd) as group_fd:
                    pending += [f"{prefix}{child}/" for child in subgroups(group_fd)]
        return found

    def freeze(self, timeout: float = 5.0) -> None:
        """Stop every process of the group until `thaw`; AgentosError ``cgroup-freeze`` when that takes too long."""
        self._set_frozen(True, timeout)

    def thaw(self, timeout: float = 5.0) -> None:
        self._set_frozen(False, timeout)

    def _set_frozen(self, frozen: bool, timeout: float) -> None:
        with self._directory() as fd:
            files.write_checked(fd, self.path, "cgroup.freeze", str(int(frozen)))
            if wait_for_event(fd, "frozen", int(frozen), timeout):
                return
            if frozen:  # leave nothing half-frozen behind
                files.write_checked(fd, self.path, "cgroup.freeze", "0")
        what = f"the group did not {'freeze' if frozen else 'thaw'} within {timeout:g} s"
        hint = "a process in uninterruptible sleep (state D) delays it; try again"
        raise AgentosError("cgroup-freeze", what, self.path, hint)

    def stat(self) -> dict[str, Any]:
        """The group's figures; files that this host does not have are left out.

        Integers in bytes, counts and µs: ``{"memory.current": …, "cpu.stat": {"usage_usec": …}, "memory.events":
        {"oom_kill": …}, "cpu.pressure": {"some": {"total": …}}, …}``.
        """
        result: dict[str, Any] = {}
        with self._directory() as fd:
            for names, parse in ((_INTEGERS, int), (_KEYED, files.keyed_integers), (_PRESSURE, files.pressure)):
                for name in names:
                    text = files.read_optional(fd, name)
                    if text:
                        result[name] = parse(text)
        return result

    def oom_kills(self) -> int | None:
        """How many processes of this agent the OOM killer has ended; None where there is no memory controller."""
        with self._directory() as fd:
            text = files.read_optional(fd, "memory.events")
        return None if text is None else files.keyed_integers(text).get("oom_kill", 0)

    def remove_if_empty(self) -> bool:
        """Remove the group, unless a process or any leaf but ``main`` is in it; whether it is gone now. What an agent
        that has ended by itself leaves is like that, and two calls are enough."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{self.path}/main")
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(self.path)
        except OSError:
            return False
        self._on_change(self.ref, None)
        return True

    def remove(self, timeout: float = 5.0) -> None:
        """Remove the group and its leaves once it is empty (kill must have emptied it); idempotent.

        Raises:
            AgentosError: ``cgroup-busy`` with the processes that are left after `timeout` seconds.
        """
        parent, _, name = self.path.rpartition("/")
        if not self.wait_empty(timeout):
            left = self.procs()
            hint = "a process in uninterruptible sleep (state D) cannot be killed: it goes when its I/O ends"
            where = f"{self.path} (processes {', '.join(map(str, left[:10]))})"
            raise AgentosError("cgroup-busy", f"processes are left after {timeout:g} s", where, hint)
        try:
            with files.directory(parent) as fd:
                remove_tree(name, fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise files.refusal("remove", self.path, error) from error
        self._on_change(self.ref, None)
