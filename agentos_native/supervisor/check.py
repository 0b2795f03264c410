"""``python -m agentos_native.supervisor.check [-o json]``: what this host can do, what is missing, and how to mend it.

A process of its own with one thread: it forks, enters namespaces and makes a cgroup, all of which end with it.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, get_args

import msgspec

from agentos_native.cgroup import CgroupMount, discover
from agentos_native.errors import EXIT_FAILED, AgentosError
from agentos_native.kernel import caps, ns
from agentos_native.spec.model import Controller
from agentos_native.supervisor import admission, probes
from agentos_native.supervisor.options import INITS
from agentos_native.wire.api import CheckFeature, CheckReport

NEEDS_KERNEL: Final = "A kernel with {} is needed (Debian's has it)."
GIVE_TO_V2: Final = (
    "The controller is bound to a cgroup v1 hierarchy. Boot with cgroup_no_v1=all (or, under systemd,\n"
    "systemd.unified_cgroup_hierarchy=1) to have all controllers on v2"
)
WITHOUT: Final = "; until then --allow-unenforced {}\nruns agents without it."
RATES: Final = (
    "modprobe sch_tbf (the kernel's CONFIG_NET_SCH_TBF): until then agents with limits.network cannot start,\n"
    "and networkRate is not shared."
)
IO_WEIGHTS: Final = (
    "echo bfq >/sys/block/DISK/queue/scheduler, or echo 'MAJOR:MINOR enable=1' >/sys/fs/cgroup/io.cost.qos:\n"
    "then the disk is shared by ioWeight; without either only limits are kept."
)
_SECCOMP_ERRNO, _SECCOMP_NOTIFY = 0x00050000, 0x7FC00000
_NAMESPACES: Final = {
    "user": ns.CLONE_NEWUSER, "mount": ns.CLONE_NEWNS, "pid": ns.CLONE_NEWPID, "network": ns.CLONE_NEWNET,
    "ipc": ns.CLONE_NEWIPC, "uts": ns.CLONE_NEWUTS, "cgroup": ns.CLONE_NEWCGROUP, "time": 0x80,
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """One row of the report before it is known."""

    group: str
    name: str
    run: Callable[[], str]
    required: bool = False
    hint: str = ""

    def feature(self) -> CheckFeature:
        """Try it."""
        try:
            detail = self.run()
        except (probes.Missing, OSError, AgentosError) as error:
            hint = self.hint or (error.hint if isinstance(error, AgentosError) else "")
            detail = error.what if isinstance(error, AgentosError) else str(error)
            return CheckFeature(
                name=self.name, group=self.group, state="missing", required=self.required, detail=detail, hint=hint
            )
        return CheckFeature(name=self.name, group=self.group, state="ok", required=self.required, detail=detail)


def existing_parent(path: str) -> str:
    """`path`, or the nearest directory above it that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _namespaces() -> list[Probe]:
    hint = "sysctl user.max_{0}_namespaces must not be 0, and the kernel needs the namespace."
    return [
        Probe(
            "namespaces",
            name,
            partial(probes.namespace, flag),
            required=name != "time",
            hint=hint.format({"mount": "mnt", "network": "net"}.get(name, name)),
        )
        for name, flag in _NAMESPACES.items()
    ]


def _mounts(state: str) -> list[Probe]:
    other = "Put the state directory (--state-dir) on a filesystem with idmapped mounts: ext4, xfs, btrfs, tmpfs, f2fs."
    rows = [
        Probe("mounts", "mount-api", probes.mount_api, True, NEEDS_KERNEL.format("fsopen and move_mount")),
        Probe("mounts", "idmapped-mounts", partial(probes.idmapped, state), True, other),
        Probe("mounts", "overlay-on-idmapped", partial(probes.overlay, state), True, other),
        Probe("mounts", "user-attributes", partial(probes.user_attributes, state), True, other),
    ]
    rows += [
        Probe("storage", name, partial(probes.filesystem, name))
        for name in ("squashfs", "erofs", "btrfs", "xfs", "ext4")
    ]
    rows += [
        Probe("storage", "loop", probes.loop_device),
        Probe("storage", "fscrypt", partial(probes.file_exists, "/sys/fs/ext4/features/encryption", "ext4")),
        Probe("storage", "fs-verity", partial(probes.file_exists, "/sys/fs/ext4/features/verity", "ext4")),
        Probe("storage", "dm-crypt", partial(probes.device_mapper, "crypt")),
    ]
    return rows


def _controller(mount: CgroupMount, name: str, v1_name: str) -> Probe:
    def run() -> str:
        if name in mount.controllers:
            return f"offered at {mount.path}"
        bound = v1_name in mount.v1_controllers
        raise probes.Missing(f"bound to cgroup v1 ({v1_name})" if bound else "the kernel does not offer it")

    agents_can_do_without = name in get_args(Controller)
    hint = GIVE_TO_V2 + (WITHOUT.format(name) if agents_can_do_without else ".")
    return Probe("cgroup", f"controller-{name}", run, hint=hint)


def _cgroup(mount: CgroupMount | AgentosError, state: str) -> list[Probe]:
    if isinstance(mount, AgentosError):
        error = mount

        def fail() -> str:
            raise error

        return [Probe("cgroup", "cgroup2", fail, True)]
    rows = [
        Probe("cgroup", "cgroup2", lambda: f"{mount.layout}, at {mount.mount_point}", True),
        Probe("cgroup", "core", partial(probes.cgroup_core, mount.path), True, NEEDS_KERNEL.format("cgroup.kill")),
        Probe("cgroup", "pressure", partial(probes.pressure, mount.path), hint="Boot with psi=1."),
        Probe(
            "cgroup",
            "pressure-trigger",
            probes.pressure_trigger,
            hint="CAP_SYS_RESOURCE is missing; windows of whole multiples of 2 s work all the same.",
        ),
    ]
    rows.append(Probe("cgroup", "io-weights", partial(probes.io_weights, mount.mount_point, state), hint=IO_WEIGHTS))
    v1_names = {"io": "blkio"}
    rows += [_controller(mount, name, v1_names.get(name, name)) for name in ("cpu", "memory", "pids", "io", "cpuset")]
    return rows


def _network() -> list[Probe]:
    rows = [
        Probe("network", "node-network", probes.node_network, True),
        Probe("network", "network-rates", probes.network_rates, hint=RATES),
    ]
    rows += [
        Probe("network", f"link-{kind}", partial(probes.link_kind, kind))
        for kind in ("veth", "bridge", "dummy", "ipvlan", "wireguard")
    ]
    rows += [
        Probe("network", f"tc-{kind}", partial(probes.queue_kind, kind))
        for kind in ("htb", "tbf", "ingress", "fq_codel", "netem")
    ]
    return rows


def _security() -> list[Probe]:
    seccomp = NEEDS_KERNEL.format("CONFIG_SECCOMP_FILTER")
    rows = [
        Probe("security", "seccomp", partial(probes.seccomp, _SECCOMP_ERRNO), True, seccomp),
        Probe("security", "seccomp-notify", partial(probes.seccomp, _SECCOMP_NOTIFY)),
        Probe("security", "landlock", probes.landlock),
        Probe("security", "bpf", probes.bpf),
    ]
    rows += [
        Probe("security", f"lsm-{name}", partial(probes.security_module, name))
        for name in ("bpf", "lockdown", "apparmor", "selinux")
    ]
    return rows


def _capabilities() -> str:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    lacking = [f"CAP_{name}" for number, name in enumerate(caps.NAMES) if not effective >> number & 1]
    if os.geteuid() != 0:
        raise probes.Missing("not root")
    if lacking:
        raise probes.Missing(f"lacking: {', '.join(lacking)}")
    return "all"


def _needed_capabilities() -> str:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    needed = caps.mask(["SYS_ADMIN", "NET_ADMIN", "SETUID", "SETGID", "CHOWN", "DAC_OVERRIDE", "MKNOD", "KILL"])
    if needed & ~effective:
        raise probes.Missing("SYS_ADMIN, NET_ADMIN, SETUID, SETGID, CHOWN, DAC_OVERRIDE, MKNOD and KILL are needed")
    return "every capability that is needed"


def _init() -> str:
    for path in INITS:
        if os.access(path, os.X_OK):
            return path
    raise probes.Missing(f"none of {', '.join(INITS)}")


def _processes() -> list[Probe]:
    return [
        Probe("processes", "privilege", _needed_capabilities, True, "Run as root."),
        Probe("processes", "capabilities", _capabilities, hint="Hard limits cannot be raised without SYS_RESOURCE."),
        Probe("processes", "init", _init, True, "apt-get install tini (or catatonit)"),
        Probe("processes", "pidfd-exit-info", probes.exit_info),
        Probe("machine", "kvm", probes.kvm, hint="The virtual machine of tools/vm is emulated then, and slow."),
    ]


def _limits() -> dict[str, Any]:
    def sysctl(name: str) -> int | None:
        try:
            with open(f"/proc/sys/{name}") as file:
                return int(file.read())
        except (OSError, ValueError):
            return None

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    capacity = admission.node_capacity()
    return {
        "cpus": capacity.cpu / 1000,
        "memory": capacity.memory,
        "pid_max": sysctl("kernel/pid_max"),
        "nofile_soft": soft,
        "nofile_hard": hard,
        "max_user_namespaces": sysctl("user/max_user_namespaces"),
        "max_net_namespaces": sysctl("user/max_net_namespaces"),
        "max_mnt_namespaces": sysctl("user/max_mnt_namespaces"),
    }


def report(state_dir: str) -> CheckReport:
    """Probe everything. `state_dir` need not exist; its filesystem is what counts."""
    mount: CgroupMount | AgentosError
    try:
        mount = discover()
    except AgentosError as error:
        mount = error
    state = existing_parent(state_dir)
    rows = [*_processes(), *_namespaces(), *_mounts(state), *_cgroup(mount, state), *_network(), *_security()]
    features = [row.feature() for row in rows]
    cgroup: dict[str, Any] = {}
    if isinstance(mount, CgroupMount):
        cgroup = {
            "layout": mount.layout,
            "root": mount.path,
            "controllers": sorted(mount.controllers),
            "v1_controllers": sorted(mount.v1_controllers),
        }
    ok = all(feature.state == "ok" for feature in features if feature.required)
    return CheckReport(ok=ok, features=features, cgroup=cgroup, limits=_limits())


def main() -> int:
    """The process: prints the report, exits with 125 when agents cannot run here."""
    found = report(os.environ.get("AGENTOS_STATE_DIR", "/var/lib/agentos"))
    if sys.argv[1:] == ["-o", "json"]:
        print(msgspec.json.encode(found).decode())
    else:
        for feature in found.features:
            print(f"{feature.state:8} {feature.group:11} {feature.name:20} {feature.detail}")
    return 0 if found.ok else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
