"""Where a benchmark happens: namespaces, a cgroup, files and programs of its own, all gone afterwards, also on Ctrl-C.

`Place` is entered inside an outer network and mount namespace (`enter_outer_namespaces` re-executes the program in
one), so nothing that a benchmark makes can be seen by, or disturb, the machine's own network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).resolve().parent
TREE: Final = SOURCES.parent.parent
PROGRAMS: Final[dict[str, tuple[str, ...]]] = {
    "floor": ("floor.c", "floor_ns.c", "floor_rootfs.c", "floor_net.c", "floor_child.c"),
    "spawn": ("spawn.c",),
    "stamp": ("stamp.c",),
    "preads": ("preads.c",),
    "agent": ("agent.c",),
}
OUTER: Final = "AGENTOS_BENCH_OUTER"
CONTROLLERS: Final = ("cpu", "memory", "pids", "io")
IMAGE_DIRECTORIES: Final = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "var")
INITS: Final = ("/usr/bin/tini-static", "/usr/bin/catatonit", "/usr/libexec/catatonit/catatonit")


class BenchError(Exception):
    """The benchmark cannot be run here; the text says what to do."""


def enter_outer_namespaces(arguments: Sequence[str]) -> None:
    """Re-execute this program in its own network and mount namespaces unless it already is in them. Needs root.

    `OUTER` names the network namespace that was left: its being another than the present one is the proof. (The init's
    own namespace, /proc/1/ns/net, is not readable for root in every container.)
    """
    if os.geteuid():
        raise BenchError("benchmarks make namespaces and cgroups: run them as root")
    present = os.readlink("/proc/self/ns/net")
    if os.environ.get(OUTER, present) != present:
        return
    unshare = ["unshare", "--net", "--mount", "--propagation", "private", "--"]
    command = [*unshare, sys.executable, "-m", "tools.benches", *arguments]
    os.execvpe(command[0], command, {**os.environ, "PYTHONPATH": str(TREE), OUTER: present})


def build_programs(directory: Path | None = None) -> Path:
    """Compile the C programs (static: they also run in the VM and in images) unless this source is already compiled.

    Returns the directory that holds them: `directory`, or one in the user's cache named after the source's hash.
    """
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    cache = Path(os.environ.get("AGENTOS_CACHE") or caches / "agentos-native")
    target = directory or cache / "bench" / digest.hexdigest()[:16]
    if all((target / name).exists() for name in PROGRAMS):
        return target
    target.mkdir(parents=True, exist_ok=True)
    for name, sources in PROGRAMS.items():
        unfinished = target / f".{name}.{os.getpid()}"
        command = ["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(unfinished)]
        subprocess.run([*command, *(str(SOURCES / source) for source in sources), "-lm"], check=True)
        unfinished.rename(target / name)
    return target


def find_program(*candidates: str) -> str:
    """The first of `candidates` that exists. Raises BenchError naming them."""
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    raise BenchError(f"not found: {', '.join(candidates)}; tools/setup --for bench installs it")


def cgroup2_mount() -> Path:
    """Where cgroup v2 is mounted (field 5 of mountinfo, see proc(5))."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return Path(before.split()[4])
    raise BenchError("cgroup v2 is not mounted")


@dataclass(frozen=True)
class Place:
    """What a benchmark works with.

    Args:
        directory: for state, the same tmpfs for everybody who is compared. On ext4 a benchmark would slow itself down:
            an inode that was deleted less than a minute ago is not used again, and each new file looks at all of
            those (recently_deleted in fs/ext4/ialloc.c).
        cgroup: the benchmark's own group, with the controllers that exist handed down to its children.
        image: an unpacked root filesystem: busybox, and `stamp`.
        programs: the compiled C programs.
    """

    directory: Path
    cgroup: Path
    image: Path
    programs: Path


@contextmanager
def place(programs: Path) -> Iterator[Place]:
    """Make a `Place` and remove everything in it afterwards."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    cgroup = cgroup2_mount() / f"agentos-bench-{os.getpid()}"
    directory = Path(tempfile.mkdtemp(prefix="agentos-bench-", dir="/var/tmp"))
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=711", "bench", str(directory)], check=True)
        make_group(cgroup)
        image = directory / "image"
        _make_image(image, programs)
        yield Place(directory, cgroup, image, programs)
    finally:
        remove_group(cgroup)
        subprocess.run(["umount", "--lazy", str(directory)], check=False)
        directory.rmdir()


def make_group(path: Path) -> None:
    """Make a cgroup whose children have every controller of `CONTROLLERS` that exists here."""
    for group in (path.parent, path):
        group.mkdir(exist_ok=True)
        available = (group / "cgroup.controllers").read_text().split()
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS if name in available))


def remove_group(path: Path, patience: float = 5.0) -> None:
    """Kill everything in a cgroup and remove it with all groups below."""
    if not path.exists():
        return
    (path / "cgroup.kill").write_text("1")
    give_up = time.monotonic() + patience
    while "populated 1" in (path / "cgroup.events").read_text() and time.monotonic() < give_up:
        time.sleep(0.01)
    for directory, _, _ in os.walk(path, topdown=False):
        os.rmdir(directory)


def _make_image(image: Path, programs: Path) -> None:
    for name in IMAGE_DIRECTORIES:
        (image / name).mkdir(parents=True)
    (image / "tmp").chmod(0o1777)
    (image / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (image / "etc" / "group").write_text("root:x:0:\n")
    shutil.copy2(find_program("busybox"), image / "bin" / "busybox")
    shutil.copy2(programs / "stamp", image / "bin" / "stamp")
    for applet in ("sh", "true", "sleep", "cat", "ls"):
        (image / "bin" / applet).symlink_to("busybox")


def link_names(prefix: str) -> list[str]:
    """Network devices of this namespace whose name begins with `prefix`."""
    names = (line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:])
    return [name for name in names if name.startswith(prefix)]
