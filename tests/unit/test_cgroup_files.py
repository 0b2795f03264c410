"""The parts of cgroup/ that need no kernel: mountinfo, names, settings, parsers."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.cgroup import (
    GroupRef,
    GroupSettings,
    IoMax,
    counters,
    discover,
    files,
    names,
    sensors,
    unenforceable,
)
from agentos_native.cgroup import settings as group_settings
from agentos_native.cgroup.actuators import UNKNOWN, WeightFiles
from agentos_native.cgroup.inventory import Inventory
from agentos_native.cgroup.mounts import layout_of, parse_mountinfo, v1_bound
from agentos_native.errors import AgentosError

V2 = "41 31 0:38 / {path} {options},relatime - cgroup2 cgroup2 {options}\n"
HYBRID = (
    "22 1 8:1 / / rw,relatime - ext4 /dev/root rw\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
)


def mounted(tmp_path: Path, before: str = "", controllers: str = "cpu memory", options: str = "rw") -> tuple[str, str]:
    """A directory that mountinfo calls a v2 hierarchy, and that mountinfo's path."""
    root = tmp_path / "cgroup tree"
    root.mkdir()
    (root / "cgroup.controllers").write_text(controllers + "\n")
    info = tmp_path / "mountinfo"
    info.write_text(before + V2.format(path=str(root).replace(" ", "\\040"), options=options))
    return str(root), str(info)


class TestDiscover:
    def test_unified(self, tmp_path: Path) -> None:
        root, info = mounted(tmp_path)
        found = discover(mountinfo=info)
        assert (found.path, found.layout) == (root, "unified")
        assert found.controllers == {"cpu", "memory"}
        assert found.v1_controllers == frozenset()

    def test_hybrid_names_what_v1_holds(self, tmp_path: Path) -> None:
        _, info = mounted(tmp_path, before=HYBRID, controllers="hugetlb")
        found = discover(mountinfo=info)
        assert found.layout == "hybrid"
        assert found.v1_controllers == {"cpu", "cpuacct"}

    def test_a_root_below_the_mount(self, tmp_path: Path) -> None:
        root, info = mounted(tmp_path)
        below = Path(root, "mine")
        below.mkdir()
        (below / "cgroup.controllers").write_text("cpu\n")
        found = discover(str(below), mountinfo=info)
        assert (found.path, found.mount_point) == (str(below), root)
        assert found.controllers == {"cpu"}

    def test_legacy_is_refused_with_the_way_out(self, tmp_path: Path) -> None:
        info = tmp_path / "mountinfo"
        info.write_text(HYBRID)
        with pytest.raises(AgentosError) as failure:
            discover(mountinfo=str(info))
        assert failure.value.code == "no-cgroup2"
        assert "legacy" in failure.value.what
        assert "mount -t cgroup2" in failure.value.hint

    def test_a_root_elsewhere_is_refused(self, tmp_path: Path) -> None:
        _, info = mounted(tmp_path)
        with pytest.raises(AgentosError) as failure:
            discover(str(tmp_path), mountinfo=info)
        assert failure.value.code == "cgroup-root"

    def test_read_only_is_refused(self, tmp_path: Path) -> None:
        _, info = mounted(tmp_path, options="ro")
        with pytest.raises(AgentosError) as failure:
            discover(mountinfo=info)
        assert failure.value.code == "cgroup-read-only"

    @given(st.text())
    def test_no_line_breaks_the_parser(self, text: str) -> None:
        entries = parse_mountinfo(text.splitlines())
        layout_of(entries)
        v1_bound(entries)


class TestNames:
    @pytest.mark.parametrize("name", ["home", "a", "0", "a-b", "x" * 63])
    def test_tenants(self, name: str) -> None:
        assert GroupRef(name, "normal", "0123456789ab").relative == f"{name}/normal/0123456789ab"

    @pytest.mark.parametrize(
        "name", ["", "..", ".", "a/b", "cpu.max", "-a", "a-", "A", "x" * 64, "a\0", "a\n", "é", "cgroup.procs"]
    )
    def test_no_other_tenants(self, name: str) -> None:
        with pytest.raises(AgentosError, match="invalid-name"):
            GroupRef(name, "normal", "0123456789ab")

    @pytest.mark.parametrize(
        ("tier", "agent"), [("top", "0123456789ab"), ("high", "0123456789AB"), ("high", "../../x")]
    )
    def test_no_other_tiers_and_ids(self, tier: str, agent: str) -> None:
        with pytest.raises(AgentosError, match="invalid-name"):
            GroupRef("home", tier, agent)

    @pytest.mark.parametrize("name", ["exec-", "exec-A", "exec-a/b", "other", "main\n", "../main"])
    def test_no_other_leaves(self, name: str) -> None:
        with pytest.raises(AgentosError, match="invalid-name"):
            names.leaf_name(name)


class TestSettings:
    @pytest.mark.parametrize(
        ("millis", "text"),
        [
            (None, "max 100000"),
            (500, "50000 100000"),
            (10, "1000 100000"),
            (9, "9000 1000000"),
            (2500, "250000 100000"),
        ],
    )
    def test_cpu_max_never_goes_below_the_least_quota(self, millis: int | None, text: str) -> None:
        assert group_settings.cpu_max(millis) == text
        quota = text.split(maxsplit=1)[0]
        assert quota == "max" or int(quota) >= 1000

    def test_what_cannot_be_enforced(self) -> None:
        asked = GroupSettings(cpu_min_millis=100, memory_max=1, pids_max=4, io_max=(IoMax("8:0", rbps=1),))
        assert unenforceable(asked, {"memory"}) == {"cpu", "pids", "io"}
        assert unenforceable(GroupSettings(cpu_weight=300), set()) == set()

    def test_a_refusal_names_the_way_round(self) -> None:
        with pytest.raises(AgentosError) as failure:
            group_settings.require(GroupSettings(memory_max=1, cpu_max_millis=5), [], ["cpu"], "/x")
        assert failure.value.details["controllers"] == ["memory"]
        assert "--allow-unenforced memory" in failure.value.hint
        group_settings.require(GroupSettings(memory_max=1), [], ["memory"], "/x")

    def write(self, tmp_path: Path, wanted: GroupSettings, present: dict[str, str]) -> dict[str, str]:
        for name, text in present.items():
            (tmp_path / name).write_text(text)
        with files.directory(str(tmp_path)) as fd:
            group_settings.apply(fd, str(tmp_path), wanted, {"cpu", "memory", "pids", "io"})
        return {name: (tmp_path / name).read_text() for name in present}

    def test_each_setting_lands_in_its_file(self, tmp_path: Path) -> None:
        page = os.sysconf("SC_PAGESIZE")
        wanted = GroupSettings(cpu_weight=7, cpu_max_millis=100, memory_max=8 * page, memory_low=page, pids_max=9)
        present = dict.fromkeys(("cpu.weight", "cpu.max", "memory.max", "memory.low", "pids.max"), "")
        assert self.write(tmp_path, wanted, present) == {
            "cpu.weight": "7",
            "cpu.max": "10000 100000",
            "memory.max": str(8 * page),
            "memory.low": str(page),
            "pids.max": "9",
        }

    def test_a_value_that_the_kernel_changed_is_an_error(self, tmp_path: Path) -> None:
        """A plain file keeps the tail of its old content: a value that did not take."""
        with pytest.raises(AgentosError) as failure:
            self.write(tmp_path, GroupSettings(pids_max=9), {"pids.max": "1234"})
        assert failure.value.code == "cgroup-mismatch"
        assert failure.value.where.endswith("pids.max")

    def test_a_missing_file_names_file_value_and_errno(self, tmp_path: Path) -> None:
        with pytest.raises(AgentosError) as failure:
            self.write(tmp_path, GroupSettings(pids_max=9), {})
        assert failure.value.code == "cgroup-write"
        assert failure.value.details == {"file": "pids.max", "value": "9", "errno": errno.ENOENT}
        assert "'9'" in failure.value.what
        assert failure.value.hint

    def test_limits_of_a_partition_go_to_its_disk(self) -> None:
        assert group_settings.whole_disk("4095:7") == "4095:7"
        for name in os.listdir("/sys/class/block"):
            folder = Path("/sys/class/block", name).resolve()
            device = (folder / "dev").read_text().strip()
            disk = folder.parent if (folder / "partition").exists() else folder
            assert group_settings.whole_disk(device) == (disk / "dev").read_text().strip()

    def test_io_max(self) -> None:
        assert IoMax("8:16", rbps=5, wiops=2).render() == "8:16 rbps=5 wbps=max riops=max wiops=2"


STAT = b"usage_usec 7\nuser_usec 3\nsystem_usec 4\nnr_periods 1\nthrottled_usec 5\nnr_bursts 0\n"
PRESSURE = b"some avg10=1.50 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"


def _no_more_files(path: str) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)


class TestSensors:
    def group(self, tmp_path: Path, name: str, stat: bytes, pressure: bytes | None) -> str:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        (path / "cpu.stat").write_bytes(stat)
        if pressure is not None:
            (path / "cpu.pressure").write_bytes(pressure)
        return str(path)

    @pytest.mark.parametrize("kept", [8, 3, 0])
    @pytest.mark.parametrize("engine", ["python", "numba"])
    def test_reading(self, tmp_path: Path, engine: str, kept: int) -> None:
        """Files stay open as far as that is allowed; what does not is read just so."""
        before = len(os.listdir("/proc/self/fd"))
        one = sensors.Sensors(4)
        one.keep(kept)
        one.open(0, self.group(tmp_path, "a", STAT, PRESSURE))
        one.open(1, self.group(tmp_path, "b", b"usage_usec 99\n", None))
        one.open(2, str(tmp_path / "missing"))
        one.open(3, self.group(tmp_path, "d", STAT, PRESSURE))
        try:
            assert engine == "python" or sensors.use_compiled()
            (tmp_path / "a" / "cpu.stat").write_bytes(STAT.replace(b"c 7", b"c 70000000000"))
            (tmp_path / "d" / "cpu.stat").write_bytes(b"")
            assert len(os.listdir("/proc/self/fd")) - before <= kept
            one.read(np.arange(4))
            assert len(os.listdir("/proc/self/fd")) - before <= kept
        finally:
            sensors.use_python()
        assert one.status.tolist() == [counters.OK, counters.NO_PRESSURE, counters.GONE, counters.GONE]
        assert (one.usage[0], one.throttled[0], one.stalled[0]) == (70_000_000_000, 5, 1234)
        assert (one.usage[1], one.throttled[1]) == (99, 0)
        one.close_all()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_what_cannot_be_opened_now_stays_as_it_is_known(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = sensors.Sensors(1)
        one.keep(0)
        one.open(0, self.group(tmp_path, "a", STAT, PRESSURE))
        with monkeypatch.context() as patch:
            patch.setattr(files, "directory", _no_more_files)
            one.read(np.array([0]))
        assert (one.status[0], one.usage[0]) == (counters.OK, 7)
        shutil.rmtree(tmp_path / "a")
        one.read(np.array([0]))
        assert one.status[0] == counters.GONE

    @settings(max_examples=200)
    @given(
        st.one_of(st.binary(max_size=200), st.integers(0, 10**15).map(lambda n: STAT.replace(b"7", str(n).encode()))),
        st.one_of(st.binary(max_size=200), st.integers(0, 10**15).map(lambda n: PRESSURE.replace(b"1234", b"%d" % n))),
    )
    def test_both_parsers_read_the_same(self, stat: bytes, pressure: bytes) -> None:
        """Whatever a file holds; where the Python parser raises, the compiled one says there is nothing."""
        from agentos_native.cgroup import compiled

        def raw(text: bytes) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint8]], int]:
            return np.frombuffer(text.ljust(4096, b"\0"), dtype=np.uint8).copy(), len(text)

        well_formed = stat.startswith(b"usage_usec ") and stat != b"usage_usec "
        if well_formed:
            assert compiled._keyed(*raw(stat), compiled._USAGE) == sensors.parse_cpu_stat(stat)[0]
        if pressure.startswith(b"some avg10"):
            assert compiled._some_total(*raw(pressure)) == sensors.parse_pressure(pressure)
        else:
            with pytest.raises(ValueError, match=r".*"):
                sensors.parse_pressure(pressure)
            assert compiled._some_total(*raw(pressure)) == -1


class TestActuators:
    def test_files_are_opened_by_the_first_write(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.weight").write_text("100\n")
        one = WeightFiles(2)
        one.open(0, str(tmp_path))
        assert one.written.tolist() == [100, UNKNOWN]
        assert one.write(np.array([0]), np.array([2500])).tolist() == [True]
        assert (tmp_path / "cpu.weight").read_text() == "2500"
        one.close_all()

    def test_a_group_that_is_gone(self, tmp_path: Path) -> None:
        one = WeightFiles(1)
        one.open(0, str(tmp_path / "gone"))
        assert one.write(np.array([0]), np.array([5])).tolist() == [False]
        assert one.written.tolist() == [UNKNOWN]

    def test_many_at_once_by_the_compiled_engine(self, tmp_path: Path) -> None:
        one = WeightFiles(40)
        for slot in range(39):
            path = tmp_path / str(slot)
            path.mkdir()
            (path / "cpu.weight").write_text("")
            one.open(slot, str(path))
        values = np.array([1, 10_000, *range(2, 40)])
        try:
            assert sensors.use_compiled()
            done = one.write(np.arange(40), values)
        finally:
            sensors.use_python()
        assert done.tolist() == [True] * 39 + [False]
        assert [int((tmp_path / str(slot) / "cpu.weight").read_text()) for slot in range(39)] == values[:39].tolist()
        one.close_all()


def test_inventory_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("25000 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.stat").write_bytes(STAT)
    (tmp_path / "io.max").write_text("8:0 rbps=5 wbps=max riops=max wiops=max\n")
    found = Inventory.of(str(tmp_path))
    assert found["cpu"]["cpu.max"] == 250
    assert found["cpu"]["cpu.stat"]["throttled_usec"] == 5
    assert found["memory"] == {"memory.max": None}
    assert found["io"]["io.max"]["8:0"]["rbps"] == 5
    assert "pids" not in found
