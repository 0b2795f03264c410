"""The node's groups: ``<root>/agentos-<node>/<tenant>/<tier>/<agent-id>``, made, found again and removed.

Controllers are handed down as far as the tier, so that agents' groups have them; the leaves below an agent do not.
A controller that cannot be handed down is kept in `Tree.refused` with the reason and counts as missing, so that a spec
which needs it is refused and ``check`` can say why.

``memory.low`` and ``memory.min`` protect a group only as far as the groups above it are protected themselves
(admin-guide/cgroup-v2.rst), so tiers, tenants and the node carry the sum of what is below them.

`create` and `remove` may be called from several threads; one lock guards what they share.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Collection, Iterator
from typing import Final

from agentos_native.cgroup import files, groups, settings
from agentos_native.cgroup.groups import AgentGroup
from agentos_native.cgroup.mounts import CgroupMount
from agentos_native.cgroup.names import GroupRef, is_agent, is_tenant, node_directory, tenant_name
from agentos_native.cgroup.settings import GroupSettings
from agentos_native.errors import AgentosError
from agentos_native.spec.model import PRIORITIES

PROTECTIONS: Final = ("memory.low", "memory.min")
WANTED: Final = ("cpu", "memory", "pids", "io")
"""The controllers that agents' groups shall have, where they exist."""


class Tree:
    """The tree of one node.

    Args:
        mount: from `discover`.
        node: the node's name.
        base: a directory below ``mount.path`` to make the node's group in.
    """

    def __init__(self, mount: CgroupMount, node: str, base: str = "/") -> None:
        self.mount = mount
        self.node = node
        self.base = os.path.normpath(f"{mount.path}/{base}")
        self.path = f"{self.base}/{node_directory(node)}"
        self.controllers: frozenset[str] = frozenset()
        self.refused: dict[str, str] = {}
        self._lock = threading.RLock()
        self._protected: dict[str, dict[GroupRef, int]] = {file: {} for file in PROTECTIONS}
        self._tenant_low: dict[str, int] = {}
        self._written: dict[str, int] = {}  # of files of `PROTECTIONS` above agents
        self._prepared: set[str] = set()

    # -- the node -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the node's group and hand the controllers down to it; idempotent (a restart finds its own tree).

        Raises:
            AgentosError: the group cannot be made.
        """
        with self._lock:
            self._hand_down_to_base()
            self._make(self.path)
            self.controllers = frozenset(self._enable(self.path)) & set(WANTED)
            if "memory" in self.controllers:
                self._load_protections()

    def _hand_down_to_base(self) -> None:
        """Enable controllers from the mount point down to `base`; parents are touched only where it lacks something."""
        relative = os.path.relpath(self.base, self.mount.mount_point)
        steps = [] if relative == "." else relative.split("/")
        paths = [self.mount.mount_point]
        for step in steps:
            paths.append(f"{paths[-1]}/{step}")
        for path in paths:
            below = paths[paths.index(path) + 1] if path != paths[-1] else None
            if below is not None and set(WANTED) & set(self._offered(path)) <= set(self._offered(below)):
                continue
            self._enable(path)

    @staticmethod
    def _offered(path: str) -> list[str]:
        with files.directory(path) as fd:
            return files.read_text(fd, "cgroup.controllers").split()

    def _enable(self, path: str) -> set[str]:
        """Hand each wanted controller of the group at `path` to the groups below it; returns those that took."""
        try:
            with files.directory(path) as fd:
                offered = set(files.read_text(fd, "cgroup.controllers").split())
                enabled = set(files.read_text(fd, "cgroup.subtree_control").split())
                for name in WANTED:
                    if name in offered and name not in enabled:
                        try:
                            self._enable_one(fd, name)
                            enabled.add(name)
                        except OSError as error:
                            where = f"{path}/cgroup.subtree_control"
                            self.refused[name] = str(files.refusal("write", where, error, f"+{name}"))
                return enabled
        except OSError as error:
            raise files.refusal("open", path, error) from error

    @staticmethod
    def _enable_one(fd: int, name: str) -> None:
        """Hand one controller down, not from a group that holds processes.

        The kernel refuses that with EBUSY for memory and io only; for cpu and pids it would turn the group into the
        root of a threaded subtree, in which no process can be started (admin-guide/cgroup-v2.rst, "Threads").
        """
        if files.read_optional(fd, "cgroup.type") is not None and files.read_text(fd, "cgroup.procs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        files.write_text(fd, "cgroup.subtree_control", f"+{name}")

    @staticmethod
    def _make(path: str) -> bool:
        """Make a group; False when it was there."""
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            return False
        except OSError as error:
            raise files.refusal("create", path, error) from error
        return True

    def close(self) -> None:
        """Nothing is held open; the groups stay (agents outlive their supervisor)."""

    def teardown(self) -> None:
        """Remove the node's group with everything in it; agents must be gone (AgentosError ``cgroup-remove``)."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            try:
                with files.directory(self.base) as fd:
                    groups.remove_tree(os.path.basename(self.path), fd)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise files.refusal("remove", self.path, error) from error
            for protected in self._protected.values():
                protected.clear()
            self._tenant_low.clear()
            self._written.clear()

    # -- tenants ------------------------------------------------------------------------------------------------

    def tenant_path(self, tenant: str) -> str:
        return f"{self.path}/{tenant_name(tenant)}"

    def tier_path(self, tenant: str, tier: str) -> str:
        return f"{self.tenant_path(tenant)}/{tier}"

    def set_tenant(self, tenant: str, wanted: GroupSettings, allow: Collection[str] = ()) -> None:
        """Make the tenant's group and replace its settings, each read back."""
        path = self.tenant_path(tenant)
        settings.require(wanted, self.controllers, allow, path)
        with self._lock:
            self._make_level(path)
            own = GroupSettings(
                cpu_weight=wanted.cpu_weight,
                cpu_max_millis=wanted.cpu_max_millis,
                memory_max=wanted.memory_max,
                memory_high=wanted.memory_high,
                pids_max=wanted.pids_max,
                io_weight=wanted.io_weight,
                io_max=wanted.io_max,
            )
            with files.directory(path) as fd:
                settings.apply(fd, path, own, self.controllers, allow=allow, reset=True)
            self._tenant_low[tenant] = wanted.memory_low or 0
            self._forget_written(path)  # the reset has written 0
            self._protect(tenant)

    def _make_level(self, path: str) -> None:
        """Make a tenant's or a tier's group; hands controllers down once per process, as a crash may lie between."""
        if self._make(path) or path not in self._prepared:
            self._enable(path)
            self._prepared.add(path)

    def remove_empty_tenants(self) -> list[str]:
        """Remove the groups of tenants and tiers that no agent is in; returns the removed tenants."""
        removed = []
        with self._lock, self._node_directory() as fd:
            for tenant in groups.subgroups(fd) if fd >= 0 else []:
                if is_tenant(tenant) and self._remove_empty_tiers(tenant):
                    removed.append(tenant)
        return removed

    def _remove_empty_tiers(self, tenant: str) -> bool:
        path = self.tenant_path(tenant)
        for tier in PRIORITIES:
            with contextlib.suppress(OSError):  # ENOTEMPTY, EBUSY: in use; ENOENT: never made
                os.rmdir(f"{path}/{tier}")
                self._forget_written(f"{path}/{tier}")
        try:
            os.rmdir(path)
        except OSError:
            return False
        self._forget_written(path)
        self._tenant_low.pop(tenant, None)
        return True

    # -- agents -------------------------------------------------------------------------------------------------

    def create(self, ref: GroupRef, wanted: GroupSettings, allow: Collection[str] = ()) -> AgentGroup:
        """Make an agent's group with its settings, each read back; all or nothing.

        Raises:
            AgentosError: ``unenforceable``, ``cgroup-exists``, ``cgroup-create``, ``cgroup-write``,
                ``cgroup-mismatch``.
        """
        group = self.get(ref)
        settings.require(wanted, self.controllers, allow, group.path)
        with self._lock:
            if not self._make_below_levels(ref, group.path):
                hint = "the group of an earlier agent was left behind: the supervisor's recovery removes it"
                raise AgentosError("cgroup-exists", "the agent's group exists already", group.path, hint)
            try:
                with files.directory(group.path) as fd:
                    settings.apply(fd, group.path, wanted, self.controllers, allow=allow)
                self._changed(ref, wanted)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.rmdir(group.path)
                for protected in self._protected.values():
                    protected.pop(ref, None)
                raise
        return group

    def _make_below_levels(self, ref: GroupRef, path: str) -> bool:
        """Make the agent's group, and the levels above where they are missing; False when the group was there."""
        if self.tier_path(ref.tenant, ref.tier) in self._prepared:
            with contextlib.suppress(OSError):  # the long way mends it, or says why not
                os.mkdir(path, 0o755)
                return True
        self._make_level(self.tenant_path(ref.tenant))
        self._make_level(self.tier_path(ref.tenant, ref.tier))
        return self._make(path)

    def get(self, ref: GroupRef) -> AgentGroup:
        """The agent's group, whether it exists or not."""
        return AgentGroup(ref, f"{self.path}/{ref.relative}", self.controllers, self._changed)

    def find(self) -> list[GroupRef]:
        """Every agent's group in the tree, for recovery; directories with other names are not ours and left out."""
        found = []
        with self._node_directory() as fd:
            for tenant in groups.subgroups(fd) if fd >= 0 else []:
                if not is_tenant(tenant):
                    continue
                for tier in PRIORITIES:
                    with contextlib.suppress(FileNotFoundError), files.directory(f"{tenant}/{tier}", fd) as tier_fd:
                        found += [GroupRef(tenant, tier, name) for name in groups.subgroups(tier_fd) if is_agent(name)]
        return sorted(found)

    @contextlib.contextmanager
    def _node_directory(self) -> Iterator[int]:
        """The node's directory fd, or -1 when there is none yet."""
        try:
            fd = files.open_directory(self.path)
        except FileNotFoundError:
            yield -1
            return
        try:
            yield fd
        finally:
            os.close(fd)

    # -- memory protection --------------------------------------------------------------------------------------

    def _load_protections(self) -> None:
        for file, protected in self._protected.items():
            for ref in self.find():
                amount = self._read_amount(self.get(ref).path, file)
                if amount > 0:
                    protected[ref] = amount
            above = {self.path} | {self.tenant_path(ref.tenant) for ref in protected}
            above |= {self.tier_path(ref.tenant, ref.tier) for ref in protected}
            for path in above:
                self._written[f"{path}/{file}"] = self._read_amount(path, file)

    @staticmethod
    def _read_amount(path: str, file: str) -> int:
        with files.directory(path) as fd:
            text = files.read_optional(fd, file) or "0"
        return int(text) if text.isdigit() else -1

    def _forget_written(self, path: str) -> None:
        for file in PROTECTIONS:
            self._written.pop(f"{path}/{file}", None)

    def _changed(self, ref: GroupRef, wanted: GroupSettings | None) -> None:
        if "memory" not in self.controllers:
            return
        low = (wanted.memory_low or 0) if wanted is not None else 0
        least = (wanted.memory_min or 0) if wanted is not None else 0
        with self._lock:
            before = [protected.get(ref, 0) for protected in self._protected.values()]
            for protected, amount in zip(self._protected.values(), (low, least), strict=True):
                if amount:
                    protected[ref] = amount
                else:
                    protected.pop(ref, None)
            if before != [low, least]:
                self._protect(ref.tenant)

    def _protect(self, tenant: str) -> None:
        """Give the tenant's tiers, the tenant and the node the protection that the groups below them need."""
        if "memory" not in self.controllers:
            return
        for file, protected in self._protected.items():
            tiers: dict[str, int] = {}
            tenants: dict[str, int] = {}
            for ref, amount in protected.items():
                tenants[ref.tenant] = tenants.get(ref.tenant, 0) + amount
                if ref.tenant == tenant:
                    tiers[ref.tier] = tiers.get(ref.tier, 0) + amount
            if file == "memory.low":
                tenants |= {name: max(tenants.get(name, 0), own) for name, own in self._tenant_low.items()}
            for tier in PRIORITIES:
                self._write_amount(self.tier_path(tenant, tier), file, tiers.get(tier, 0))
            self._write_amount(self.tenant_path(tenant), file, tenants.get(tenant, 0))
            self._write_amount(self.path, file, sum(tenants.values()))

    def _write_amount(self, path: str, file: str, amount: int) -> None:
        where = f"{path}/{file}"
        if self._written.get(where, 0) == amount:
            return
        with contextlib.suppress(FileNotFoundError), files.directory(path) as fd:
            files.write_checked(fd, path, file, str(amount))
            self._written[where] = amount
