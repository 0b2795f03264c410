"""The cgroup v2 tree: its files, sensors and actuators.

The tree and its files come from here; sensors, actuators and the inventory are imported by those who need them, since
they bring NumPy or cgroupspy with them.
"""

from agentos_native.cgroup.groups import AgentGroup
from agentos_native.cgroup.mounts import CgroupMount, discover
from agentos_native.cgroup.names import GroupRef
from agentos_native.cgroup.settings import GroupSettings, IoMax, unenforceable
from agentos_native.cgroup.tree import Tree

__all__ = [
    "AgentGroup",
    "CgroupMount",
    "GroupRef",
    "GroupSettings",
    "IoMax",
    "Tree",
    "discover",
    "unenforceable",
]
