"""A mount namespace with nothing in it, from which every start begins.

Cloning copies the mount namespace of whoever clones. Starting from an empty one means that no mount of the host is
ever in a namespace of an agent, not even for the time of its start, and that a start does not pay for the number of
mounts the host has.
"""

from __future__ import annotations

import os

from agentos_native.errors import AgentosError
from agentos_native.kernel import mount, ns
from agentos_native.kernel.libc import AT_FDCWD


def make() -> int:
    """An fd of the namespace. Its root is a read-only tmpfs.

    Raises:
        AgentosError: ``empty-namespace``: this process may not make mounts.
    """
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _child(ready[1], done)
    os.close(ready[1])
    os.close(done[0])
    try:
        failure = os.read(ready[0], 4096)
        if failure != b"+":
            raise AgentosError(
                "empty-namespace",
                "the launcher cannot make an empty mount namespace",
                failure.decode(errors="replace") or "the child that makes it died",
                "Run as root with CAP_SYS_ADMIN, and not from an initramfs: pivot_root(2) needs a mounted root.",
            )
        return os.open(f"/proc/{child}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready[0])
        os.close(done[1])
        os.waitpid(child, 0)


def _child(ready: int, done: tuple[int, int]) -> None:
    """Make it, say so, and keep it open until the parent has it. Never returns."""
    try:
        os.close(done[1])
        ns.unshare(ns.CLONE_NEWNS)
        mount.make_private("/")
        context = mount.fsopen("tmpfs")
        for key, value in {"mode": "555", "size": "4k", "nr_inodes": "2"}.items():
            mount.fsconfig_set_string(context, key, value)
        mount.fsconfig_create(context)
        root = mount.fsmount(context, mount.FSMOUNT_CLOEXEC, mount.MOUNT_ATTR_RDONLY)
        mount.move_mount(root, "", AT_FDCWD, "/", mount.MOVE_MOUNT_F_EMPTY_PATH)
        os.fchdir(root)
        mount.pivot_root(".", ".")
        mount.umount2(".", mount.MNT_DETACH)
        os.write(ready, b"+")
        os.read(done[0], 1)
    except OSError as error:
        os.write(ready, str(error).encode())
    finally:
        os._exit(0)
