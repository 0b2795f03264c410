"""The files of a v2 group as typed attributes, for ``inspect`` and ``check``, on cgroupspy's declarative interfaces.

cgroupspy's own controllers and trees know v1 only and open by path; what is used here are its file interfaces
(descriptors that turn text into values), bound to a directory fd. Some of v2's formats are not among them and are added
below. The tick does not come through here: it keeps its files open (`sensors`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from cgroupspy.interfaces import BaseFileInterface, FlagFile, IntegerFile, ListFile, MultiLineIntegerFile

from agentos_native.cgroup import files


class LimitFile(BaseFileInterface):  # type: ignore[misc]  # cgroupspy has no types
    """An integer, or ``max`` for none."""

    def sanitize_get(self, value: str) -> int | None:
        return None if value.strip() == "max" else int(value)

    def sanitize_set(self, value: int | None) -> str:
        return "max" if value is None else str(int(value))


class BandwidthFile(BaseFileInterface):  # type: ignore[misc]
    """``cpu.max``: quota and period in µs; as millicores, None for no limit."""

    readonly = True

    def sanitize_get(self, value: str) -> int | None:
        quota, period = value.split()
        return None if quota == "max" else int(quota) * 1000 // int(period)


class KeyedFile(BaseFileInterface):  # type: ignore[misc]
    """One ``key integer`` a line (``cpu.stat``, ``memory.events``)."""

    readonly = True

    def sanitize_get(self, value: str) -> dict[str, int]:
        return files.keyed_integers(value)


class NestedKeyedFile(BaseFileInterface):  # type: ignore[misc]
    """``8:16 rbps=1 wbps=max`` a line (``io.max``, ``io.stat``): device → key → integer or None for ``max``."""

    readonly = True

    def sanitize_get(self, value: str) -> dict[str, dict[str, int | None]]:
        result = {}
        for line in value.splitlines():
            device, *pairs = line.split()
            parts = (pair.partition("=") for pair in pairs)
            result[device] = {key: None if number == "max" else int(number) for key, _, number in parts}
        return result


class PressureFile(BaseFileInterface):  # type: ignore[misc]
    """PSI: averages in per cent, totals in µs."""

    readonly = True

    def sanitize_get(self, value: str) -> dict[str, dict[str, float]]:
        return files.pressure(value)


class IoWeightFile(BaseFileInterface):  # type: ignore[misc]
    """The default of ``io.weight``; devices of their own weight are left out."""

    readonly = True

    def sanitize_get(self, value: str) -> int:
        return int(value.splitlines()[0].removeprefix("default "))


class Controller:
    """Files of one controller in one group. Attributes read and write the kernel's files through `dir_fd`.

    Reading an attribute whose file is not there raises FileNotFoundError; `values` leaves such files out.
    """

    def __init__(self, dir_fd: int) -> None:
        self.dir_fd = dir_fd

    def get_property(self, filename: bytes) -> str:
        return files.read_text(self.dir_fd, filename.decode())

    def set_property(self, filename: bytes, value: object) -> None:
        files.write_text(self.dir_fd, filename.decode(), str(value))

    @classmethod
    def interfaces(cls) -> dict[str, BaseFileInterface]:
        return {name: entry for name, entry in vars(cls).items() if isinstance(entry, BaseFileInterface)}

    def values(self) -> dict[str, Any]:
        """File name → value, for each file that this group has and that can be read."""
        result = {}
        for interface in self.interfaces().values():
            if interface.writeonly:
                continue
            name = interface.filename.decode()
            text = files.read_optional(self.dir_fd, name)
            if text is not None:
                result[name] = interface.sanitize_get(text)
        return result


class CoreController(Controller):
    """The files of every v2 group."""

    controllers = ListFile("cgroup.controllers")
    subtree_control = ListFile("cgroup.subtree_control")
    procs = MultiLineIntegerFile("cgroup.procs", readonly=True)
    events = KeyedFile("cgroup.events")
    statistics = KeyedFile("cgroup.stat")
    max_descendants = LimitFile("cgroup.max.descendants")
    max_depth = LimitFile("cgroup.max.depth")
    freeze = FlagFile("cgroup.freeze")
    kill = FlagFile("cgroup.kill", writeonly=True)


class CpuController(Controller):
    weight = IntegerFile("cpu.weight")
    idle = FlagFile("cpu.idle")
    max_millis = BandwidthFile("cpu.max")
    statistics = KeyedFile("cpu.stat")
    pressure = PressureFile("cpu.pressure")


class MemoryController(Controller):
    current = IntegerFile("memory.current", readonly=True)
    peak = IntegerFile("memory.peak", readonly=True)
    min = LimitFile("memory.min")
    low = LimitFile("memory.low")
    high = LimitFile("memory.high")
    max = LimitFile("memory.max")
    swap_max = LimitFile("memory.swap.max")
    events = KeyedFile("memory.events")
    pressure = PressureFile("memory.pressure")


class PidsController(Controller):
    current = IntegerFile("pids.current", readonly=True)
    max = LimitFile("pids.max")
    events = KeyedFile("pids.events")


class IoController(Controller):
    weight = IoWeightFile("io.weight")
    bfq_weight = IoWeightFile("io.bfq.weight")
    max = NestedKeyedFile("io.max")
    pressure = PressureFile("io.pressure")


class Inventory:
    """Everything that is known of one group: ``Inventory.of(path)``."""

    CONTROLLERS: ClassVar[dict[str, type[Controller]]] = {
        "cgroup": CoreController,
        "cpu": CpuController,
        "memory": MemoryController,
        "pids": PidsController,
        "io": IoController,
    }

    @classmethod
    def of(cls, path: str) -> dict[str, dict[str, Any]]:
        """Controller → file name → value; raises OSError when the group at `path` cannot be opened."""
        with files.directory(path) as fd:
            values = {name: controller(fd).values() for name, controller in cls.CONTROLLERS.items()}
        return {name: found for name, found in values.items() if found}
