"""The working tree as a disk: a staged copy that keeps its compiled files from run to run, and the disks made from it.

Python's ``.pyc`` files and numba's cache both name the modification time of their source, and a disk image keeps whole
seconds only. So a staged file's time is computed from its contents: the same contents are always equally old, on this
machine and in the guest, and what was compiled here is found valid there.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .base import ROOT, make_disk
from .cache import cache_dir, digest, locked, say

SKIPPED = {".git", ".venv", "__pycache__", "build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
OLDEST, AGES = 1_000_000_000, 600_000_000  # staged files are from 2001 to 2020
SCRIPT = "#!/opt/agentos/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
FREE_SPACE = 512 << 20


@dataclass
class Job:
    """What the guest is told: the command (none = the service), and the names of the directories that it is given."""

    command: Sequence[str] = ()
    env: Sequence[str] = ()
    shares: dict[str, str] = field(default_factory=dict)  # disk serial → name under /share
    want_out: bool = False


def working_tree() -> Iterator[Path]:
    """Paths, relative to the checkout, of what is tracked or not ignored; and the built C extension."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-coz", "--exclude-standard"]
    done = subprocess.run(listing, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        yield from (Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name)
    else:  # an unpacked archive
        for folder, folders, files in os.walk(ROOT):
            folders[:] = [name for name in folders if name not in SKIPPED and not name.endswith(".egg-info")]
            yield from (Path(folder, name).relative_to(ROOT) for name in files if not name.endswith(".so"))
    yield from (path.relative_to(ROOT) for path in ROOT.glob("agentos_native/**/*.so"))


def age(data: bytes) -> int:
    return OLDEST + int.from_bytes(hashlib.sha256(data).digest()[:6]) % AGES


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.unlink(missing_ok=True)
        target.symlink_to(os.readlink(source))
        return
    data, mode = source.read_bytes(), source.stat().st_mode & 0o777
    stamp = age(data)
    try:
        old = target.lstat()
        if (old.st_mtime, old.st_size, old.st_mode & 0o777) == (stamp, len(data), mode):
            return
    except FileNotFoundError:
        pass
    target.unlink(missing_ok=True)
    target.write_bytes(data)
    target.chmod(mode)
    os.utime(target, (stamp, stamp))


def _mirror_tree(tree: Path) -> None:
    wanted = set()
    for path in working_tree():
        source = ROOT / path
        if not source.is_symlink() and not source.is_file():
            continue  # deleted, but not in git yet; or a git submodule
        _copy(source, tree / path)
        wanted.add(path)
    for folder, folders, files in os.walk(tree):
        folders[:] = [name for name in folders if name not in ("__pycache__", ".vm")]
        for name in files:
            if Path(folder, name).relative_to(tree) not in wanted:
                Path(folder, name).unlink()


def _compile(tree: Path) -> None:
    """Fill ``__pycache__``: bytecode of all modules and, when the allocator has changed, numba's compiled kernels."""
    env = {**os.environ, "PYTHONPATH": str(tree), "NUMBA_CPU_NAME": "generic"}
    folders = [str(tree / name) for name in ("agentos_native", "tests", "tools") if (tree / name).is_dir()]
    bytecode = [sys.executable, "-m", "compileall", "-q", *folders]
    subprocess.run(bytecode, env=env, stdout=subprocess.DEVNULL, check=False)  # a broken module is the tests' matter
    if not (tree / "agentos_native/cgroup/warm.py").exists():
        return
    sources = [*(tree / "agentos_native/alloc").rglob("*.py"), *(tree / "agentos_native/cgroup").rglob("*.py")]
    key = digest(*sorted(sources))
    stamp = tree.parent / "warmed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == key:
        return
    say("compiling the allocator's kernels")
    warm = [sys.executable, "-m", "agentos_native.cgroup.warm"]
    done = subprocess.run(warm, cwd=tree, env=env, stdout=sys.stderr, check=False)
    if done.returncode:
        say("they do not compile; the machine will try again when it needs them, slowly")
    else:
        stamp.write_text(key, encoding="utf-8")


def _write_job(tree: Path, job: Job) -> None:
    folder = tree / ".vm"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True)
    exports = "".join(f"export {shlex.quote(item)}\n" for item in job.env)
    if job.command:
        (folder / "command").write_text(f"{exports}exec {shlex.join(job.command)}\n", encoding="utf-8")
    if job.want_out:
        (folder / "want-out").touch()
    shares = "".join(f"{serial} {name}\n" for serial, name in job.shares.items())
    (folder / "shares").write_text(shares, encoding="utf-8")
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, entry in project["scripts"].items():
        module, function = entry.split(":")
        script = folder / "bin" / name
        script.write_text(SCRIPT.format(module=module, function=function), encoding="utf-8")
        script.chmod(0o755)
    # importlib.metadata finds the package's version here, as in an installed one.
    for info in Path(sys.prefix).glob("lib/python*/site-packages/agentos_native-*.dist-info"):
        shutil.copytree(info, tree / info.name, dirs_exist_ok=True)


def tree_disk(job: Job, disk: Path) -> None:
    """Make ``disk`` from the current working tree and ``job``."""
    stage = cache_dir() / f"tree-{digest(str(ROOT))}"
    with locked(stage.name):
        tree = stage / "tree"
        tree.mkdir(parents=True, exist_ok=True)
        _mirror_tree(tree)
        _compile(tree)
        _write_job(tree, job)
        directory_disk(tree, disk)


def directory_disk(directory: Path, disk: Path) -> None:
    """Make ``disk`` from ``directory``, with some room to write."""
    used = sum(path.lstat().st_size + 4096 for path in directory.rglob("*"))
    make_disk(directory, disk, f"{(used * 5 // 4 + FREE_SPACE) >> 10}k")
