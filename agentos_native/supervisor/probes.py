"""Trying things, for `check`: each probe does what an agent's start would do, in a child of its own, and undoes nothing
because everything ends with that child. Versions are never asked for.

A probe returns a detail, or raises: `Missing` (its text is the detail), or OSError (the call and errno are).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from agentos_native.cgroup import io_files
from agentos_native.kernel import libc, mount, ns, process
from agentos_native.network import DIRECTIONS, NodeNetwork, Rates

_MACHINE: Final = os.uname().machine
_CLONE3, _LANDLOCK, _LSM_LIST = 435, 444, 461
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}.get(_MACHINE, -1)
_BPF: Final = {"x86_64": 321, "aarch64": 280}.get(_MACHINE, -1)
_CLONE_INTO_CGROUP, _CLONE_NEWTIME = 0x200000000, 0x80
_MOUNT_ATTR_IDMAP = 0x00100000


class Missing(Exception):
    """The feature is not there; the text says in what way."""


def in_child(work: Callable[[], str]) -> str:
    """`work`'s text, from a forked child whose namespaces and mounts end with it."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(reading)
        status, text = 1, ""
        try:
            status, text = 0, work()
        except Missing as error:
            text = str(error)
        except OSError as error:
            text = str(error)
        except BaseException:
            text = traceback.format_exc(limit=-1).strip().splitlines()[-1]
        finally:
            os.write(writing, text.encode()[:4000])
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if status:
        raise Missing(text or f"the probe ended with status {status}")
    return text


def namespace(flag: int) -> str:
    """A new namespace of one kind."""

    def work() -> str:
        ns.unshare(flag)
        return ""

    return in_child(work)


@contextlib.contextmanager
def user_namespace(base: int = 0x40000000, size: int = 65536) -> Iterator[int]:
    """An fd of a user namespace that maps inner 0.. to `base`.."""
    ready, done = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            ns.unshare(ns.CLONE_NEWUSER)
            os.write(ready[1], b"1")
            os.close(done[1])
            os.read(done[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    try:
        if not os.read(ready[0], 1):
            raise Missing("no user namespace can be made")
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{name}", "w") as file:
                file.write(f"0 {base} {size}\n")
        fd = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        for end in (ready[0], done[0], done[1]):
            os.close(end)
        os.waitpid(child, 0)


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A new tmpfs in a mount namespace of our own; only for use in a child."""
    ns.unshare(ns.CLONE_NEWNS)
    mount.make_private()
    directory = tempfile.mkdtemp(prefix="agentos-check-")
    try:
        mount.mount("tmpfs", directory, "tmpfs", 0)
        try:
            yield directory
        finally:
            mount.umount2(directory, 2)
    finally:
        os.rmdir(directory)


def mount_api() -> str:
    """fsopen, fsmount, open_tree, move_mount."""

    def work() -> str:
        with _scratch() as directory:
            os.mkdir(f"{directory}/a")
            context = mount.fsopen("tmpfs")
            mount.fsconfig_create(context)
            detached = mount.fsmount(context, 1, 0)
            mount.move_mount(detached, "", -100, f"{directory}/a", 4)
            mount.umount2(f"{directory}/a", 2)
        return ""

    return in_child(work)


def idmapped(directory: str) -> str:
    """An idmapped clone of `directory`'s own filesystem: agents' images and volumes are mounted so."""

    def work() -> str:
        with user_namespace() as userns:
            tree = mount.open_tree(-100, directory, 1 | os.O_CLOEXEC)
            mount.mount_setattr(tree, "", 0x1000, attr_set=_MOUNT_ATTR_IDMAP, userns_fd=userns)
        return f"on the filesystem of {directory}"

    return in_child(work)


def overlay(directory: str) -> str:
    """An overlay as agents have it: layers over an idmapped clone of `directory`, marks in user.overlay.*."""

    def work() -> str:
        with _scratch() as scratch, user_namespace() as userns:
            for name in ("upper", "work", "lower", "top/hidden", "middle/hidden/file", "merged"):
                os.makedirs(f"{scratch}/{name}")
            os.setxattr(f"{scratch}/top/hidden", "user.overlay.opaque", b"y")
            lower = mount.open_tree(-100, directory, 1 | os.O_CLOEXEC)
            mount.mount_setattr(lower, "", 0x1000, attr_set=_MOUNT_ATTR_IDMAP, userns_fd=userns)
            # Attached, since a detached mount can be a layer only from Linux 6.15 on (commit ae63304102ec).
            mount.move_mount(lower, "", -100, f"{scratch}/lower", 4)
            merged = _layered(scratch, ("top", "middle", "lower"))
            mount.move_mount(merged, "", -100, f"{scratch}/merged", 4)
            os.close(merged)
            os.close(lower)
            if os.listdir(f"{scratch}/merged/hidden"):
                raise Missing("opaque directories marked by user.overlay.opaque are not understood")
            os.mkdir(f"{scratch}/merged/written")
            mount.umount2(f"{scratch}/merged", 2)
        return f"over an idmapped layer on the filesystem of {directory}"

    return in_child(work)


def _layered(scratch: str, layers: Sequence[str]) -> int:
    """The overlay, detached; `layers` topmost first."""
    context = mount.fsopen("overlay")
    for layer in layers:
        mount.fsconfig_set_string(context, "lowerdir+", f"{scratch}/{layer}")
    mount.fsconfig_set_string(context, "upperdir", f"{scratch}/upper")
    mount.fsconfig_set_string(context, "workdir", f"{scratch}/work")
    mount.fsconfig_set_flag(context, "userxattr")
    mount.fsconfig_set_string(context, "redirect_dir", "nofollow")
    mount.fsconfig_create(context)
    merged = mount.fsmount(context, 1, 0)
    os.close(context)
    return merged


def user_attributes(directory: str) -> str:
    """user.* attributes on `directory`'s filesystem: what marks opaque directories, and what images' files have."""
    with open(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "wb") as file:
        os.setxattr(file.fileno(), "user.overlay.opaque", b"y")
    return f"on the filesystem of {directory}"


def filesystem(name: str) -> str:
    """Whether the kernel has the filesystem, as a module if need be (fsopen loads it)."""
    os.close(mount.fsopen(name))
    return ""


def _clone3_into(cgroup_fd: int) -> int:
    """clone3(2) like fork, into a cgroup; only the child returns 0."""
    arguments = (ctypes.c_uint64 * 11)(_CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup_fd)
    number = ctypes.CDLL(None, use_errno=True).syscall
    pid = int(number(ctypes.c_long(_CLONE3), arguments, ctypes.c_size_t(88)))
    if pid < 0:
        raise OSError(ctypes.get_errno(), f"clone3(CLONE_INTO_CGROUP): {os.strerror(ctypes.get_errno())}")
    return pid


def cgroup_core(root: str) -> str:
    """mkdir, CLONE_INTO_CGROUP, cgroup.freeze, cgroup.kill and base cpu.stat in a group below `root`, which is
    removed."""
    group = os.path.join(root, f"agentos-check-{os.getpid()}")
    os.mkdir(group)
    try:
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        child = _clone3_into(fd)
        if child == 0:
            signal.pause()
            os._exit(1)
        os.close(fd)
        for file, text in (("cgroup.freeze", "1"), ("cgroup.freeze", "0"), ("cgroup.kill", "1")):
            with open(os.path.join(group, file), "w") as target:
                target.write(text)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise Missing("cgroup.kill did not kill")
        with open(os.path.join(group, "cpu.stat")) as stat:
            if "usage_usec" not in stat.read():
                raise Missing("cpu.stat has no usage_usec")
    finally:
        os.rmdir(group)
    return "mkdir, CLONE_INTO_CGROUP, freeze, kill, cpu.stat"


def pressure(root: str) -> str:
    """PSI for groups and for the machine."""
    with open("/proc/pressure/cpu") as file:
        file.read()
    if not os.path.exists(os.path.join(root, "cgroup.controllers")):
        raise Missing("no cgroup v2")
    return "/proc/pressure and *.pressure of groups"


def io_weights(mount_point: str, directory: str) -> str:
    """Whether weights of I/O mean anything on the disk that `directory` is on."""
    disk = io_files.disk_of(directory)
    if disk is None:
        raise Missing(f"{directory} is on no disk of its own (tmpfs, overlay, btrfs)")
    found = io_files.find_weights(mount_point, disk)
    if found is None:
        scheduler = io_files.scheduler_of(disk) or "none"
        raise Missing(f"neither iocost nor BFQ runs on disk {disk} (scheduler: {scheduler}); limits hold all the same")
    return f"{found.kind} on disk {disk} ({found.file})"


def pressure_trigger() -> str:
    """A PSI trigger with a window of one second; without CAP_SYS_RESOURCE only multiples of two seconds are taken."""
    fd = os.open("/proc/pressure/cpu", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, b"some 500000 1000000\0")
    finally:
        os.close(fd)
    return "windows of any length"


def exit_info() -> str:
    """PIDFD_GET_INFO with the exit status of a process that is not one's child."""
    if not process.has_pidfd_exit_info():
        raise Missing("the status of an agent whose launcher died will be unknown")
    return "the status of adopted agents is known"


def landlock() -> str:
    """The ABI version."""
    return f"ABI {libc.syscall('landlock_create_ruleset', _LANDLOCK, None, 0, 1)}"


def seccomp(action: int) -> str:
    """Whether a filter may return `action` (SECCOMP_GET_ACTION_AVAIL)."""
    value = (ctypes.c_uint32 * 1)(action)
    number = ctypes.CDLL(None, use_errno=True).syscall
    if number(ctypes.c_long(_SECCOMP), ctypes.c_uint(2), ctypes.c_uint(0), value) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ""


def bpf() -> str:
    """A program of two instructions (r0 = 0; exit) as a socket filter."""
    code = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    program, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("<IIQQ", 1, 2, ctypes.addressof(program), ctypes.addressof(licence)).ljust(128, b"\0")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    number = ctypes.CDLL(None, use_errno=True).syscall
    fd = number(ctypes.c_long(_BPF), ctypes.c_int(5), buffer, ctypes.c_uint(len(attributes)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"bpf(PROG_LOAD): {os.strerror(ctypes.get_errno())}")
    os.close(fd)
    with contextlib.suppress(OSError), open("/proc/sys/net/core/bpf_jit_enable") as file:
        return f"JIT {'on' if file.read().strip() != '0' else 'off'}"
    return ""


_LSM_NAMES: Final = {
    100: "capability", 101: "selinux", 102: "smack", 103: "tomoyo", 104: "apparmor", 105: "yama", 106: "loadpin",
    107: "safesetid", 108: "lockdown", 109: "bpf", 110: "landlock", 111: "ima", 112: "evm", 113: "ipe",
}  # fmt: skip
"""include/uapi/linux/lsm.h"""


def security_modules() -> set[str]:
    """The active security modules (lsm_list_modules(2), before Linux 6.8 securityfs)."""
    with contextlib.suppress(OSError), open("/sys/kernel/security/lsm") as file:
        return set(file.read().strip().split(","))
    ids, size = (ctypes.c_uint64 * 64)(), (ctypes.c_uint32 * 1)(512)
    count = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(_LSM_LIST), ids, size, ctypes.c_uint(0))
    return {_LSM_NAMES.get(ids[n], str(ids[n])) for n in range(max(int(count), 0))}


def security_module(name: str) -> str:
    """Whether it is active."""
    active = security_modules()
    if name not in active:
        raise Missing(f"not active (active: {', '.join(sorted(active)) or 'unknown'})")
    return "active"


def node_network() -> str:
    """The node's own rules and one agent's wire, in a network namespace of our own."""

    def work() -> str:
        ns.unshare(ns.CLONE_NEWNET)
        network = NodeNetwork("check", 0)
        network.open()
        os.close(network.create(0, "0" * 12, "isolated").netns_fd)
        network.teardown()
        return "veth, addresses, routes, nftables sets and rules"

    return in_child(work)


def network_rates() -> str:
    """A wire's rates, set in both directions and read back."""

    def work() -> str:
        ns.unshare(ns.CLONE_NEWNET)
        network = NodeNetwork("check", 0)
        network.open()
        os.close(network.create(0, "0" * 12, "isolated", Rates(8_000_000, 8_000_000)).netns_fd)
        kept = [network.queues(direction, [0])[0].rate for direction in DIRECTIONS]
        network.teardown()
        if kept != [8_000_000, 8_000_000]:
            raise Missing(f"8000000 bit/s were set, the kernel has {kept}")
        return "limits.network and shares of networkRate"

    return in_child(work)


def _netlink(kind: int, flags: int, payload: bytes) -> int:
    """errno (0: success) of one RTNETLINK request."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(struct.pack("=IHHII", 16 + len(payload), kind, flags | 5, 1, 0) + payload)
        reply = sock.recv(65536)
        return -int(struct.unpack_from("=i", reply, 16)[0])


def _attribute(kind: int, payload: bytes) -> bytes:
    size = 4 + len(payload)
    return struct.pack("=HH", size, kind) + payload + b"\0" * (-size % 4)


def link_kind(name: str) -> str:
    """A network device of this kind; the kernel says EOPNOTSUPP only for kinds that it does not have."""

    def work() -> str:
        ns.unshare(ns.CLONE_NEWNET)
        info = _attribute(18, _attribute(1, name.encode() + b"\0"))
        code = _netlink(16, 0x600, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _attribute(3, b"probe0\0") + info)
        if code == errno.EOPNOTSUPP:
            raise Missing("the kernel does not have it")
        return ""

    return in_child(work)


def queue_kind(name: str) -> str:
    """A queueing discipline (tc(8)); ENOENT only for those that the kernel does not have."""

    def work() -> str:
        ns.unshare(ns.CLONE_NEWNET)
        handle, parent = (0xFFFF0000, 0xFFFFFFF1) if name == "ingress" else (0x10000, 0xFFFFFFFF)
        message = struct.pack("=BxxxiIII", 0, 1, handle, parent, 0) + _attribute(1, name.encode() + b"\0")
        if _netlink(36, 0x600, message) == errno.ENOENT:
            raise Missing("the kernel does not have it")
        return ""

    return in_child(work)


def loop_device() -> str:
    """A free loop device can be had."""
    fd = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return f"next free: {fcntl.ioctl(fd, 0x4C82)}"
    finally:
        os.close(fd)


def device_mapper(target: str) -> str:
    """A device-mapper target (DM_LIST_VERSIONS)."""
    try:
        fd = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Missing(f"no device-mapper: {error.strerror}")
    try:
        request = bytearray(struct.pack("=IIIII", 4, 0, 0, 16384, 312).ljust(16384, b"\0"))
        fcntl.ioctl(fd, 0xC138FD0D, request)
    finally:
        os.close(fd)
    if target.encode() + b"\0" not in bytes(request):
        raise Missing("the target is not there")
    return ""


def file_exists(path: str, what: str) -> str:
    """A file through which the kernel says that it can do something."""
    if not os.path.exists(path):
        raise Missing(f"no {path}")
    return what


def kvm() -> str:
    """KVM_CREATE_VM; whether a guest also boots is found out by tools/vm with a short boot."""
    fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.close(fcntl.ioctl(fd, 0xAE01, 0))
    finally:
        os.close(fd)
    return "a virtual machine can be made; whether it boots is for tools/vm to try"
